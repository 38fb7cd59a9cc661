"""Blocks of one structure as one subtree with a leading axis, for `nn.scan`, and back.

A network of many equal blocks compiles faster where one block is scanned over the parameters of
all; its blocks can be frozen, and cut, one by one only where they are apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtransfer.errors import ModelError, TreeError
from jaxtransfer.surgery.network import (
    AnyModel,
    check_that_it_runs,
    compute,
    linen_module,
    with_option,
)
from jaxtransfer.surgery.truncate import TruncatedApply
from jaxtransfer.tree import named_leaves
from jaxtransfer.types import PyTree

STACKED = "blocks"
_BLOCK = re.compile(r"block\d+")


def stack_blocks(tree: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The subtrees of several keys as one, `blocks`, whose leaves have a new first axis.

    Every other leaf is the same array as before; values stay to the bit.

    Args:
        tree: nested dicts.
        names: top-level keys in the order of the new axis, of equal structure and shapes.

    Raises:
        TreeError: keys are not there, or do not fit each other, or there are `blocks` already.

    >>> tree = {"block0": {"bias": np.zeros(2)}, "block1": {"bias": np.ones(2)}}
    >>> stack_blocks(tree, ["block0", "block1"])["blocks"]["bias"].shape
    (2, 2)
    """
    missing = [name for name in names if name not in tree]
    if missing or not names or STACKED in tree:
        found = missing or list(tree)
        raise TreeError(
            f"stack_blocks: expected the keys {', '.join(names) or 'of blocks'} and no "
            f"{STACKED!r}, found {'none of ' if missing else ''}{', '.join(found)}"
        )
    first = _shapes(tree[names[0]])
    for name in names[1:]:
        if (other := _shapes(tree[name])) != first:
            differing = sorted({path for path, _ in set(first.items()) ^ set(other.items())})
            raise TreeError(
                f"stack_blocks: expected leaves of the same names, shapes and dtypes in "
                f"{names[0]} and {name}, found others at {', '.join(differing)}"
            )
    blocks = jax.tree.map(_stacked, *(tree[name] for name in names))
    return _replaced(tree, names, {STACKED: blocks})


def unstack_blocks(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The subtree `blocks` as `block0`, `block1` and so on: the other half of `stack_blocks`.

    Raises:
        TreeError: there are no `blocks`, their leaves do not share the length of the first axis, or
            a key such as `block0` is there already.

    >>> list(unstack_blocks({"blocks": {"bias": np.zeros((2, 3))}}))
    ['block0', 'block1']
    """
    leaves = named_leaves(tree[STACKED]) if STACKED in tree else []
    counts = {leaf.shape[0] if leaf.ndim else 0 for _, leaf in leaves}
    taken = [name for name in tree if _BLOCK.fullmatch(name)]
    if len(counts) != 1 or 0 in counts or taken:
        found = ", ".join(taken) or f"first axes of length {sorted(counts)}"
        raise TreeError(
            f"unstack_blocks: expected leaves below {STACKED!r} whose first axes are of one "
            f"length, and no other blocks, found {found if leaves else 'none'}"
        )
    apart = {
        f"block{i}": jax.tree.map(lambda leaf, i=i: compute(lambda x: x[i], leaf), tree[STACKED])
        for i in range(counts.pop())
    }
    return _replaced(tree, [STACKED], apart)


def _shapes(tree: PyTree) -> dict[str, tuple[Any, ...]]:
    return {name: (tuple(leaf.shape), str(leaf.dtype)) for name, leaf in named_leaves(tree)}


def _stacked(*leaves: Any) -> Any:
    # NumPy keeps 64-bit values, which JAX would cut.
    is_numpy = all(isinstance(leaf, np.ndarray) for leaf in leaves)
    stack = np.stack if is_numpy else jnp.stack
    return compute(lambda *leaves: stack(leaves), *leaves)


def _replaced(
    tree: Mapping[str, Any], old: Sequence[str], new: Mapping[str, Any]
) -> dict[str, Any]:
    """The tree with new entries in the place of the first of the old ones."""
    result: dict[str, Any] = {}
    for key, value in tree.items():
        if key == old[0]:
            result.update(new)
        elif key not in old:
            result[key] = value
    return result


def stack(model: AnyModel) -> AnyModel:
    """The same network with one module scanned over its blocks, which compiles faster.

    The parameters and statistics of the stages `block0` to `block{n-1}` become those of one stage,
    `blocks`; values stay to the bit. See `unstack` for the way back, which probes of single blocks
    and rates of learning layer by layer need.

    Args:
        model: a `Model` whose Linen module has a field `scan`.

    Raises:
        ModelError: it has none, is stacked already, or has no such stages.
        TreeError: the blocks do not have the same structure and shapes.

    Example:
        `fast = stack(model)`
    """
    where = f"stack({model.spec.name})"
    spec = model.spec
    names = tuple(name for name in spec.stages if _BLOCK.fullmatch(name))
    if not names or names != tuple(f"block{i}" for i in range(len(names))):
        raise ModelError(
            f"{where}: expected the stages block0, block1 and so on, found {', '.join(spec.stages)}"
        )
    if any(_BLOCK.fullmatch(stage) for stage in _dropped(model.apply)):
        raise ModelError(
            f"{where}: expected a network with all its blocks, found one that ends after "
            f"{spec.truncated_after}; a scan runs all blocks or none"
        )
    stages = _replaced(dict.fromkeys(spec.stages), names, {STACKED: None})
    return _rebuilt(
        where,
        model,
        scan=True,
        stages=tuple(stages),
        truncated_after=STACKED if spec.truncated_after == names[-1] else spec.truncated_after,
        params=stack_blocks(model.params, names),
        stats=stack_blocks(model.stats, names) if set(names) & set(model.stats) else model.stats,
        note=f"stack: {names[0]} to {names[-1]} are {STACKED}, {len(names)} along the first axis",
    )


def unstack(model: AnyModel) -> AnyModel:
    """The same network with its blocks one by one, each a stage: the other half of `stack`.

    Args:
        model: a `Model` whose Linen module has a field `scan`, which is set.

    Raises:
        ModelError: it has none, or it is not set.
        TreeError: the leaves of `blocks` do not share the length of the first axis.

    Example:
        `unstack(fast).spec.stages`
    """
    where = f"unstack({model.spec.name})"
    spec = model.spec
    params = unstack_blocks(model.params)
    names = [name for name in params if name not in model.params]
    stages = _replaced(dict.fromkeys(spec.stages), [STACKED], dict.fromkeys(names))
    return _rebuilt(
        where,
        model,
        scan=False,
        stages=tuple(stages),
        truncated_after=names[-1] if spec.truncated_after == STACKED else spec.truncated_after,
        params=params,
        stats=unstack_blocks(model.stats) if STACKED in model.stats else model.stats,
        note=f"unstack: {STACKED} are {names[0]} to {names[-1]}",
    )


def _dropped(apply: Any) -> tuple[str, ...]:
    """The stages that a network, or what is inside another head, was cut off before."""
    if isinstance(apply, TruncatedApply):
        return apply.dropped
    return _dropped(apply.body) if hasattr(apply, "body") else ()


def _rebuilt(
    where: str,
    model: AnyModel,
    *,
    scan: bool,
    stages: tuple[str, ...],
    truncated_after: str | None,
    params: PyTree,
    stats: PyTree,
    note: str,
) -> AnyModel:
    """The model with its module's field `scan` set so, and what goes with it.

    Raises:
        ModelError: there is no such field, or it is set so already.
    """
    module = linen_module(model.apply)
    found = getattr(module, "scan", None)
    if not isinstance(found, bool) or found is scan:
        said = f"scan={found}" if isinstance(found, bool) else "no such field"
        raise ModelError(
            f"{where}: expected a Linen module with the field scan={not scan}, found "
            f"{type(module or model.apply).__name__} with {said}"
        )
    changed = with_option(model, "scan", not scan, scan)
    changed = replace(
        changed,
        spec=replace(changed.spec, stages=stages, truncated_after=truncated_after),
        params=params,
        stats=stats,
        receipt=model.receipt.with_note(note),
    )
    check_that_it_runs(where, changed, "its blocks must be scanned as one module named blocks")
    return changed
