"""The forward pass of a Flax Linen module as a pure function of parameters and statistics."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax

from jaxtransfer.errors import ModelError
from jaxtransfer.models.calling import keywords_of, mode_values
from jaxtransfer.tree import is_below
from jaxtransfer.types import PyTree


@dataclass(frozen=True)
class LinenApply:
    """`Model.apply` of a Linen module.

    A module whose call takes `start` and `stop` cuts its own forward pass. For any other module `stop`
    may name a submodule: the result is what enters it. Modules in `frozen_modules` run as in
    evaluation whatever the others do, BatchNorm and Dropout included, without the module's help.
    """

    module: nn.Module

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
        keywords = keywords_of(type(self.module).__call__)
        arguments = {name: value for name, value in mode_values(train).items() if name in keywords}
        cuts_itself = {"start", "stop"} <= keywords
        if cuts_itself:
            arguments |= {"start": start, "stop": stop}
        elif start is not None:
            raise ModelError(
                f"{type(self.module).__name__}: expected a module whose call takes start and stop, "
                f"found {sorted(keywords - {'self'})}; without them only stop= is possible"
            )
        seen: list[jax.Array] = []
        interceptor = _interceptor(frozen_modules, None if cuts_itself else stop, seen)
        with nn.intercept_methods(interceptor):
            outputs, updates = self.module.apply(
                {"params": params} | ({"batch_stats": stats} if stats else {}),
                inputs,
                rngs=dict(rngs) if rngs else None,
                mutable=["batch_stats"] if stats and train else [],
                **arguments,
            )
        if stop is not None and not cuts_itself:
            outputs = _only_one(seen, stop, self.module)
        return outputs, updates.get("batch_stats", stats)


def _interceptor(
    frozen_modules: frozenset[str], stop: str | None, seen: list[jax.Array]
) -> Callable[..., Any]:
    def intercept(call: Callable[..., Any], args: tuple, kwargs: dict, context: Any) -> Any:
        path = "/".join(context.module.path)
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        if path == stop:
            seen.append(args[0])
            return args[0]  # what follows is not wanted, and falls to dead-code elimination
        if path and is_below(path, frozen_modules):
            return _call_in_evaluation(call, args, kwargs, context.module)
        return call(*args, **kwargs)

    return intercept


def _call_in_evaluation(
    call: Callable[..., Any], args: tuple, kwargs: dict, module: nn.Module
) -> Any:
    """Call a submodule with every mode argument and attribute set to evaluation."""
    signature = inspect.signature(type(module).__call__)
    bound = signature.bind(module, *args, **kwargs)
    modes = mode_values(train=False)
    accepted = {name: value for name, value in modes.items() if name in signature.parameters}
    bound.arguments.update(accepted)
    # Linen's layers refuse a mode that is given both as an attribute and as an argument. A bound
    # module lives for one trace only, so its attributes can be set for the time of the call.
    attributes = {
        name: (None if name in accepted else value)
        for name, value in modes.items()
        if getattr(module, name, None) is not None
    }
    before = {name: getattr(module, name) for name in attributes}
    for name, value in attributes.items():
        object.__setattr__(module, name, value)
    try:
        return call(*bound.args[1:], **bound.kwargs)
    finally:
        for name, value in before.items():
            object.__setattr__(module, name, value)


def _only_one(seen: list[jax.Array], stop: str, module: nn.Module) -> jax.Array:
    if len(seen) != 1:
        raise ModelError(
            f"{type(module).__name__}: expected the module {stop!r} to be called once, found "
            f"{len(seen)} calls; name a submodule that the forward pass enters once"
        )
    return seen[0]
