"""Host arrays onto devices: each byte is read once, and no more than a device holds is copied."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxtransfer.errors import TreeError
from jaxtransfer.tree.mapped import copy_values, new_memory
from jaxtransfer.tree.names import named_leaves
from jaxtransfer.types import PyTree


def place(tree: PyTree, sharding: PyTree | None = None) -> PyTree:
    """The same tree on devices: every leaf becomes a `jax.Array` with the sharding asked for.

    Of a leaf that is a view of a memory map, as `read_weights` gives them, only the slices that
    devices of this process need are read, each once, straight into the memory that a device on the
    host takes over. So a load takes the bytes of the arrays and little more (those of one leaf if
    its axes change places), and no device ever holds the whole of a leaf that is sharded.

    Args:
        tree: any pytree of host arrays or `jax.Array`s.
        sharding: one `jax.sharding.Sharding` for all leaves, or a tree of them like `tree`; `None`
            for the default device.

    Raises:
        TreeError: a leaf is no array, or has 64-bit values, which JAX would cut in half unless
            `jax_enable_x64` is set; or `sharding` is another tree.

    >>> place({"bias": np.ones(3, np.float32)})["bias"].sharding.device_set == {jax.devices()[0]}
    True
    """
    named = named_leaves(tree)
    _check(named)
    placed = [
        _put(leaf, where)
        for (_, leaf), where in zip(named, _shardings(tree, sharding), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(tree), placed)


def _check(named: list[tuple[str, Any]]) -> None:
    problems = []
    for name, leaf in named:
        if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
            problems.append(f" ! {name}: expected an array, found {type(leaf).__name__}")
        elif not isinstance(leaf, jax.Array):
            kept = jax.dtypes.canonicalize_dtype(leaf.dtype)
            if kept != leaf.dtype:
                problems.append(
                    f" ! {name}: {leaf.dtype}, of which JAX would keep {kept}: convert it, or set "
                    "jax_enable_x64"
                )
    if problems:
        raise TreeError(
            "\n".join(["tree: expected arrays that JAX holds whole, found:", *problems])
        )


def _shardings(tree: PyTree, sharding: PyTree | None) -> list[Any]:
    structure = jax.tree.structure(tree)
    if sharding is None or isinstance(sharding, jax.sharding.Sharding):
        return [sharding] * structure.num_leaves
    if jax.tree.structure(sharding) != structure:
        raise TreeError(
            f"sharding: expected one sharding or a tree of them like the tree, found "
            f"{jax.tree.structure(sharding)} for {structure}"
        )
    return jax.tree.leaves(sharding)


def _put(leaf: Any, sharding: Any) -> jax.Array:
    if isinstance(leaf, jax.Array):
        return jax.device_put(leaf, sharding)
    leaf = np.asarray(leaf)
    if sharding is None:
        return jax.device_put(_copy(leaf))
    copies: dict[Any, np.ndarray] = {}

    def slice_for(index: Any) -> np.ndarray:
        # Devices that hold the same slice get the same copy.
        key = tuple(part.indices(size) for part, size in zip(index, leaf.shape, strict=True))
        if key not in copies:
            copies[key] = _copy(leaf[index])
        return copies[key]

    return jax.make_array_from_callback(leaf.shape, sharding, slice_for)


def _copy(values: np.ndarray) -> np.ndarray:
    """A copy in memory of its own that a device can take over."""
    copy = new_memory(values.nbytes).view(values.dtype).reshape(values.shape)
    copy_values(values, copy)
    return copy
