"""What a checkpoint holds of a state: host arrays by name, and the way back onto devices."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtransfer.errors import CheckpointError
from jaxtransfer.partition import Plan
from jaxtransfer.train.state import TrainState
from jaxtransfer.tree import fingerprint, flatten, map_with_names, place, split
from jaxtransfer.types import PyTree


def as_parts(state: TrainState) -> dict[str, PyTree]:
    """A state by its fields, whichever it has, with the two halves of the parameters put together.

    So a parameter keeps its name when another plan freezes it.
    """
    halves = ("trainable", "frozen")
    others = {field.name for field in fields(state)}.difference(halves)
    return {"params": state.params, **{name: getattr(state, name) for name in sorted(others)}}


def held(state: TrainState, changed: Collection[str]) -> dict[str, Any]:
    """What a checkpoint holds, by name: all of a state but the parameters that never trained.

    Random keys are their raw words. Empty leaves hold nothing, and are left out.

    Args:
        state: the state after a step.
        changed: the names of the parameters that the run has changed.
    """
    return {
        name: _raw(leaf)
        for name, leaf in flatten(as_parts(state)).items()
        if np.size(leaf) and (not name.startswith("params/") or name[len("params/") :] in changed)
    }


def to_host(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Copies in the host's memory; leaves of which other processes hold parts stay as they are."""
    for leaf in leaves.values():
        if isinstance(leaf, jax.Array) and _is_whole_here(leaf):
            leaf.copy_to_host_async()  # so that no copy waits for the one before it
    return {name: np.array(leaf) if _is_whole_here(leaf) else leaf for name, leaf in leaves.items()}


def hash_of(leaves: Mapping[str, Any]) -> str | None:
    """The fingerprint of named leaves; none where other processes hold parts of them."""
    return fingerprint(dict(leaves)) if all(map(_is_whole_here, leaves.values())) else None


def untouched(params: PyTree, stats: PyTree, held: Collection[str]) -> dict[str, Any]:
    """The parameters and statistics, by name, that a checkpoint takes from the run's source.

    Args:
        params: all parameters.
        stats: all statistics.
        held: the names of what the checkpoint holds itself.
    """
    leaves = flatten({"params": params, "stats": stats})
    return {name: leaf for name, leaf in leaves.items() if name not in held and np.size(leaf)}


def check_fit(arrays: Mapping[str, np.ndarray], template: Mapping[str, Any], where: str) -> None:
    """Raise unless arrays have the names, shapes and dtypes of a template's leaves.

    Statistics may be missing: those that are still the source's are not in a checkpoint.

    Args:
        arrays: what a checkpoint holds, by name.
        template: leaves by name.
        where: the checkpoint, for the message.

    Raises:
        CheckpointError: they do not fit; the message lists all that do not.
    """
    problems = [f" + {name}" for name in sorted(arrays.keys() - template.keys())]
    for name, leaf in template.items():
        found = arrays.get(name)
        if found is None:
            problems += [] if name.startswith("stats/") else [f" - {name}"]
        elif found.shape != leaf.shape or found.dtype != leaf.dtype:
            problems.append(
                f" ~ {name}: {leaf.dtype}{list(leaf.shape)}, found {found.dtype}{list(found.shape)}"
            )
    if problems:
        raise CheckpointError(
            "\n".join(
                [
                    f"{where}: expected the leaves of this run's state, found others "
                    "(+ not expected, - missing, ~ different):",
                    *problems,
                    "resume with the model, plans and optimizer that the run began with",
                ]
            )
        )


def onto_devices(arrays: Mapping[str, np.ndarray], template: TrainState, plan: Plan) -> TrainState:
    """A state like a template, with a checkpoint's values where the template's leaves are.

    Each leaf goes to the devices that the template's leaf is on, in as many pieces; where that one
    is bound to no devices, neither is this one, so that a step that was compiled for the template
    takes it. The devices that wrote the checkpoint do not matter.

    Args:
        arrays: what `to_host` gave; leaves of the template that are not among them stay.
        template: a state of the same plan.
        plan: what trains.
    """

    def placed(name: str, leaf: jax.Array) -> jax.Array:
        if name not in arrays:
            return leaf
        raw = _raw(leaf)
        found = place(arrays[name], raw.sharding if raw.committed else None)
        if _is_key(leaf):
            return jax.random.wrap_key_data(found, impl=jax.random.key_impl(leaf))
        return found

    parts = map_with_names(placed, as_parts(template))
    trainable, frozen = split(parts.pop("params"), plan)
    return replace(template, trainable=trainable, frozen=frozen, **parts)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _raw(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _is_whole_here(leaf: Any) -> bool:
    return not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated
