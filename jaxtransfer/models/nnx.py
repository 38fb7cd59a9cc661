"""The forward pass of a Flax NNX module as a pure function of parameters and statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from jaxtransfer.errors import ModelError
from jaxtransfer.models.calling import keywords_of, mode_values
from jaxtransfer.tree import is_below, with_subtree
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

        states = [_filled(self.params, params, stop), _filled(self.stats, stats, stop)]
        module = nnx.merge(self.graphdef, *states, self.rest, copy=True)
        _set_modes(module, train, frozen_modules)
        if rngs:
            nnx.reseed(module, **{"default": next(iter(rngs.values())), **rngs})
        outputs = _call(module, inputs, train=train, start=start, stop=stop)
        if stats and train:
            stats = text_keys(nnx.to_pure_dict(nnx.state(module, nnx.BatchStat)))
        return outputs, stats


def split_nnx(module: Any) -> tuple[NnxApply, dict[str, Any], dict[str, Any]]:
    """An NNX module's forward pass, parameters and statistics, the latter two as nested dicts."""
    from flax import nnx

    graphdef, params, stats, rest = nnx.split(module, nnx.Param, nnx.BatchStat, ...)
    apply = NnxApply(graphdef, jax.eval_shape(lambda: params), jax.eval_shape(lambda: stats), rest)
    return apply, text_keys(nnx.to_pure_dict(params)), text_keys(nnx.to_pure_dict(stats))


def text_keys(tree: Any) -> Any:
    """Nested dicts whose keys are text: NNX numbers the members of a list by integers."""
    if not isinstance(tree, Mapping):
        return tree
    return {str(key): text_keys(value) for key, value in tree.items()}


def _filled(template: Any, values: PyTree, stop: str | None) -> Any:
    """A State with the arrays of nested dicts; what lies at `stop` is not run, and stays as it is."""
    from flax import nnx

    state = jax.tree.map(lambda leaf: leaf, template)
    nnx.replace_by_pure_dict(state, with_subtree(values, stop, None) if stop else values)
    return state


def _set_modes(module: Any, train: bool, frozen_modules: frozenset[str]) -> None:
    from flax import nnx

    module.train() if train else module.eval()
    for path, submodule in nnx.iter_modules(module):
        if path and train and is_below("/".join(map(str, path)), frozen_modules):
            submodule.eval()


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
    """What enters the submodule at `stop`; the submodule itself is not run."""
    seen: list[jax.Array] = []

    def keep(features: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        seen.append(features)
        return features

    *parents, last = stop.split("/")
    owner = module
    for segment in parents:
        owner = owner[int(segment)] if segment.isdigit() else getattr(owner, segment)
    if last.isdigit():
        owner[int(last)] = keep
    else:
        setattr(owner, last, keep)
    module(inputs, **arguments)
    if len(seen) != 1:
        raise ModelError(
            f"{type(module).__name__}: expected the module {stop!r} to be called once, found "
            f"{len(seen)} calls; name a submodule that the forward pass enters once"
        )
    return seen[0]
