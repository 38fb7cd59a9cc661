"""The forward pass of a Flax Linen module as a pure function of parameters and statistics."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxtransfer.errors import ModelError
from jaxtransfer.models.calling import (
    StopReached,
    evaluation_arguments,
    keywords_of,
    mode_values,
)
from jaxtransfer.tree import is_below, subtree
from jaxtransfer.types import PyTree


@dataclass(frozen=True)
class LinenApply:
    """`Model.apply` of a Linen module.

    A module whose call takes `start` and `stop` cuts its own forward pass. For any other module
    `stop` may name a submodule: the result is what enters it first. Modules in `frozen_modules` run
    as in evaluation whatever the others do, BatchNorm and Dropout included, without the module's
    help.

    Attributes:
        module: the network.
        stem: path of the layer that takes the images, where all inputs are images; they are then
            compared with its kernel.
    """

    module: nn.Module
    stem: str | None = None

    def __hash__(self) -> int:
        # A module with a list or a dict among its fields has no hash, but can be compared.
        return hash(type(self.module))

    @property
    def can_start(self) -> bool:
        """Whether the module cuts its own forward pass, so that it can begin at a stage."""
        return {"start", "stop"} <= keywords_of(type(self.module).__call__)

    def __call__(
        self,
        params: PyTree,
        stats: PyTree,
        inputs: jax.Array,
        *,
        train: bool,
        rngs: Mapping[str, jax.Array] | None = None,
        start: str | None = None,
        stop: str | None = None,
        frozen_modules: frozenset[str] = frozenset(),
    ) -> tuple[jax.Array, PyTree]:
        """The forward pass of `Model.apply`."""
        if start is None and self.stem is not None:
            _check_images(type(self.module).__name__, inputs, params, self.stem)
        keywords = keywords_of(type(self.module).__call__)
        modes = mode_values(train)
        arguments: dict[str, Any] = {name: modes[name] for name in modes if name in keywords}
        if self.can_start:
            arguments |= {"start": start, "stop": stop}
        elif start is not None:
            raise ModelError(
                f"{type(self.module).__name__}: expected a module whose call takes start and stop, "
                f"found {sorted(keywords - {'self'})}; without them only stop= is possible"
            )
        stops_at = None if self.can_start else stop
        with nn.intercept_methods(_interceptor(frozen_modules, stops_at)):
            outputs, updates = _with_mode_fields(self.module, train).apply(
                {"params": params} | ({"batch_stats": stats} if stats else {}),
                inputs,
                # Streams without a key of their own draw from the one that Linen falls back to.
                rngs={"params": next(iter(rngs.values())), **rngs} if rngs else None,
                mutable=["batch_stats"] if stats and train else [],
                method=_run if stops_at is None else _run_until_stop,
                **arguments,
            )
        return outputs, updates.get("batch_stats", stats)


def _check_images(network: str, images: jax.Array, params: PyTree, stem: str) -> None:
    channels = subtree(params, f"{stem}/kernel").shape[-2]
    shape = tuple(jnp.shape(images))
    if len(shape) == 4 and shape[-1] == channels:
        return
    if len(shape) == 4 and shape[1] == channels:
        remedy = "the channels come first: images.transpose(0, 2, 3, 1) moves them last"
    elif len(shape) == 3 and shape[-1] == channels:
        remedy = "add a batch axis: images[None]"
    else:
        remedy = "adapt_stem makes a network for other channels"
    raise ModelError(
        f"{network}: expected images of shape (batch, height, width, {channels}), found {shape}; "
        f"{remedy}"
    )


def stages_in_order(module: nn.Module, variables: PyTree, inputs: Any) -> tuple[str, ...]:
    """The top-level submodules with parameters, in the order in which the forward pass enters them.

    Nothing is computed: the forward pass is traced once.

    Args:
        module: a Linen module.
        variables: its variables; values are not looked at.
        inputs: the shape and dtype of a batch of inputs.
    """
    entered: dict[str, None] = {}

    def record(call: Callable[..., Any], args: tuple, kwargs: dict, context: Any) -> Any:
        entered.update(dict.fromkeys(context.module.path[:1]))
        return call(*args, **kwargs)

    def forward(variables: PyTree, inputs: jax.Array) -> jax.Array:
        params, stats = variables["params"], variables.get("batch_stats", {})
        return LinenApply(module)(params, stats, inputs, train=False)[0]

    with nn.intercept_methods(record):
        jax.eval_shape(forward, variables, inputs)
    return tuple(name for name in entered if name in variables["params"])


def _run(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return module(*args, **kwargs)  # pyright: ignore[reportCallIssue]


def _run_until_stop(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    try:
        _run(module, *args, **kwargs)
    except StopReached as reached:
        return reached.features
    raise ModelError(
        f"{type(module).__name__}: expected the forward pass to enter the module that it should "
        "stop at, found that it never does; name a submodule by its path in the parameters"
    )


def _interceptor(frozen_modules: frozenset[str], stop: str | None) -> Callable[..., Any]:
    roots: list[Any] = []

    def intercept(call: Callable[..., Any], args: tuple, kwargs: dict, context: Any) -> Any:
        path = "/".join(context.module.path)
        roots.append(context.module.scope.root)
        if context.method_name != "__call__" or not path:
            return call(*args, **kwargs)
        if path == stop:
            # Linen's transforms run what is inside of them in a scope of its own.
            if roots[-1] is not roots[0]:
                raise ModelError(
                    f"{stop}: expected a module outside of nn.remat, nn.scan and their like, found "
                    "one inside, which cannot be stopped at; name a module before or around it"
                )
            raise StopReached(args[0])
        if is_below(path, frozen_modules):
            return _call_in_evaluation(call, args, kwargs, context.module)
        return call(*args, **kwargs)

    return intercept


def _with_mode_fields(module: nn.Module, train: bool) -> nn.Module:
    """The module with its mode fields set: some networks get their mode when they are made."""
    fields: dict[str, Any] = _mode_fields(module, train)
    return module.clone(**fields) if fields else module


def _mode_fields(module: nn.Module, train: bool) -> dict[str, bool | None]:
    """What the mode fields that a module has must be.

    Linen's layers refuse a mode that is given both as a field and as an argument, so where the call
    takes it, the field is `None`.
    """
    accepted = keywords_of(type(module).__call__)
    names = {field.name for field in dataclasses.fields(module)}
    return {
        name: None if name in accepted else value
        for name, value in mode_values(train).items()
        if name in names and getattr(module, name) is not None
    }


def _call_in_evaluation(
    call: Callable[..., Any], args: tuple, kwargs: dict, module: nn.Module
) -> Any:
    """Call a submodule with every mode argument and field set to evaluation."""
    (_, *args_), kwargs = evaluation_arguments(type(module).__call__, (module, *args), kwargs)
    fields = _mode_fields(module, train=False)
    before = {name: getattr(module, name) for name in fields}
    # A bound module lives for one trace only, so its fields can be set for the time of the call.
    for name, value in fields.items():
        object.__setattr__(module, name, value)
    try:
        return call(*args_, **kwargs)
    finally:
        for name, value in before.items():
            object.__setattr__(module, name, value)
