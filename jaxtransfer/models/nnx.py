"""The forward pass of a Flax NNX module as a pure function of parameters and statistics."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from jaxtransfer.errors import ModelError
from jaxtransfer.models.calling import (
    StopReached,
    current_batch_axis,
    evaluation_arguments,
    keywords_of,
    mode_values,
)
from jaxtransfer.tree import flatten, is_below, map_with_names
from jaxtransfer.types import PyTree


@dataclass(frozen=True, eq=False)
class NnxApply:
    """`Model.apply` of an NNX module; the module that it came from is never changed.

    Attributes:
        graphdef: the module's static part.
        params: the module's parameters by shape and dtype, as an NNX State.
        stats: the module's BatchNorm statistics by shape and dtype, as an NNX State.
        rest: what is neither, such as random streams.
    """

    graphdef: Any
    params: Any
    stats: Any
    rest: Any

    @property
    def can_start(self) -> bool:
        """Whether the module cuts its own forward pass, so that it can begin at a stage."""
        return {"start", "stop"} <= keywords_of(self.graphdef.type.__call__)

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
        from flax import nnx

        may_differ = stop is not None
        states = [
            _filled(self.params, params, may_differ, "parameters"),
            _filled(self.stats, stats, may_differ, "statistics"),
        ]
        module = nnx.merge(self.graphdef, *states, self.rest, copy=True)
        _set_modes(module, train, frozen_modules)
        if rngs:
            _reseed(module, rngs)
        outputs = _call(module, inputs, train=train, start=start, stop=stop)
        if stats and train:
            stats = _updated(stats, nnx.state(module, nnx.BatchStat))
        return outputs, stats


def split_nnx(module: Any) -> tuple[NnxApply, dict[str, Any], dict[str, Any]]:
    """An NNX module's forward pass, parameters and statistics, the latter two as nested dicts.

    The parameters' top-level keys are in the order in which the module was given its attributes.

    Raises:
        ModelError: it is no NNX module.
    """
    from flax import nnx

    if not isinstance(module, nnx.Module):
        raise ModelError(
            f"from_nnx: expected an instance of flax.nnx.Module, found {type(module).__name__}"
        )
    graphdef, params, stats, rest = nnx.split(module, nnx.Param, nnx.BatchStat, ...)
    apply = NnxApply(graphdef, jax.eval_shape(lambda: params), jax.eval_shape(lambda: stats), rest)
    named = text_keys(nnx.to_pure_dict(params))
    order = [name for name in vars(module) if name in named]
    ordered = {name: named[name] for name in dict.fromkeys([*order, *named])}
    return apply, ordered, text_keys(nnx.to_pure_dict(stats))


def text_keys(tree: Any) -> Any:
    """Nested dicts whose keys are text: NNX numbers the members of a list by integers."""
    if not isinstance(tree, Mapping):
        return tree
    return {str(key): text_keys(value) for key, value in tree.items()}


def _filled(template: Any, values: PyTree, may_differ: bool, what: str) -> Any:
    """A State with the arrays of nested dicts.

    Args:
        template: the State by shape and dtype.
        values: the arrays, by the State's names.
        may_differ: whether leaves that `values` has not, or in another shape, stay as they are. A
            forward pass that stops early does not come to them.
        what: the leaves are, for messages.

    Raises:
        ModelError: leaves are missing or of another shape.
    """
    from flax import nnx

    shapes, given = nnx.to_pure_dict(template), flatten(values)
    problems = []

    def fill(node: Any, path: tuple[str, ...]) -> Any:
        if isinstance(node, Mapping):
            return {key: fill(value, (*path, str(key))) for key, value in node.items()}
        name = "/".join(path)
        value = given.get(name)
        if value is None or value.shape != node.shape:
            found = "nothing" if value is None else value.shape
            problems.append(f" ~ {name}: expected {node.shape}, found {found}")
            return node
        return value

    pure = fill(shapes, ())
    if problems and not may_differ:
        raise ModelError(
            "\n".join([f"expected the {what} that the NNX module was split into, found", *problems])
        )
    state = jax.tree.map(lambda leaf: leaf, template)  # a copy, which is filled in place
    nnx.replace_by_pure_dict(state, pure)
    return state


def _updated(stats: PyTree, state: Any) -> PyTree:
    """The statistics after a forward pass; those that the module has not, or not run, as before."""
    from flax import nnx

    after = flatten(text_keys(nnx.to_pure_dict(state)))
    seen = {n: v for n, v in after.items() if not isinstance(v, jax.ShapeDtypeStruct)}
    return map_with_names(lambda name, before: seen.get(name, before), stats)


def _reseed(module: Any, rngs: Mapping[str, jax.Array]) -> None:
    """Give every random stream a key: that of its name, or else one made from the first key."""
    from flax import nnx

    streams = [node for _, node in nnx.iter_graph(module) if isinstance(node, nnx.RngStream)]
    tags = sorted({stream.tag for stream in streams} - set(rngs))
    first = next(iter(rngs.values()))
    keys: dict[str, Any] = {t: jax.random.fold_in(first, i) for i, t in enumerate(tags)} | {**rngs}
    nnx.reseed(module, policy="match_shape", **keys)


def _set_modes(module: Any, train: bool, frozen_modules: frozenset[str]) -> None:
    from flax import nnx

    module.train() if train else module.eval()
    for path, submodule in nnx.iter_modules(module):
        if isinstance(submodule, nnx.BatchNorm) and submodule.axis_name is None:
            submodule.axis_name = current_batch_axis()
        if path and train and is_below("/".join(map(str, path)), frozen_modules):
            submodule.eval()
            # A mode that is given at the call goes before the one that `eval` sets.
            kind = _evaluating(type(submodule))
            object.__setattr__(submodule, "__class__", kind)


@functools.cache
def _evaluating(kind: type) -> type:
    """The same class, but for the mode arguments of its call: they are always set to evaluation."""
    call = next((c.__dict__["__call__"] for c in kind.__mro__ if "__call__" in c.__dict__), None)
    if call is None or not keywords_of(call) & set(mode_values(train=False)):
        return kind

    def call_in_evaluation(self: Any, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = evaluation_arguments(call, (self, *args), kwargs)
        return call(*args, **kwargs)

    return type(kind)(kind.__name__, (kind,), {"__call__": call_in_evaluation})


def _call(
    module: Any, inputs: jax.Array, *, train: bool, start: str | None, stop: str | None
) -> Any:
    keywords = keywords_of(type(module).__call__)
    arguments: dict[str, Any] = {
        name: value for name, value in mode_values(train).items() if name in keywords
    }
    if {"start", "stop"} <= keywords:
        return module(inputs, **arguments, start=start, stop=stop)
    if start is not None:
        raise ModelError(
            f"{type(module).__name__}: expected a module whose call takes start and stop, found "
            f"{sorted(keywords - {'self'})}; without them only stop= is possible"
        )
    if stop is None:
        return module(inputs, **arguments)
    return _features_at(module, inputs, stop, arguments)


def _features_at(module: Any, inputs: jax.Array, stop: str, arguments: dict[str, Any]) -> Any:
    """What enters the submodule at `stop`; neither it nor what follows is run."""

    def stop_here(features: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        raise StopReached(features)

    *parents, last = stop.split("/")
    try:
        owner = module
        for segment in parents:
            owner = owner[int(segment)] if segment.isdigit() else getattr(owner, segment)
        if last.isdigit():
            owner[int(last)] = stop_here
        else:
            getattr(owner, last)
            setattr(owner, last, stop_here)
    except (AttributeError, IndexError, TypeError) as error:
        raise ModelError(
            f"{type(module).__name__}: expected a submodule {stop!r}: {error}"
        ) from error
    try:
        module(inputs, **arguments)
    except StopReached as reached:
        return reached.features
    raise ModelError(
        f"{type(module).__name__}: expected the forward pass to enter the module {stop!r}, found "
        "that it never does; name a submodule by its path in the parameters"
    )
