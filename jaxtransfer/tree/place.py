"""Host arrays onto devices: each byte is read once, and no more than a device holds is copied."""

from __future__ import annotations

import contextlib
import math
import mmap
from typing import Any

import jax
import numpy as np

from jaxtransfer.errors import TreeError
from jaxtransfer.tree.names import named_leaves
from jaxtransfer.types import PyTree

_ALIGNMENT = 64
"""JAX takes over host memory that begins at such a multiple without copying it (CPU)."""

_CHUNK_BYTES = 16 * 2**20
"""How much of a file may be mapped into memory at a time, beside what is kept."""


def place(tree: PyTree, sharding: PyTree | None = None) -> PyTree:
    """The same tree on devices: every leaf becomes a `jax.Array` with the sharding asked for.

    Of a leaf that is a view of a memory map, as `read_weights` gives them, only the slices that
    devices of this process need are read, each once, and their pages are let go as soon as they are
    copied. So a load takes the bytes of the arrays and a little more, and no device ever
    holds a leaf that is sharded over several.

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
    memory = np.empty(values.nbytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    copy = memory[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    # Parts of an array that is not contiguous lie among each other in the file.
    rows = len(values) if values.ndim and values.flags.c_contiguous else 1
    parts = max(1, min(rows, math.ceil(values.nbytes / _CHUNK_BYTES)))
    if parts == 1:
        copy[...] = values
        _release(values)
        return copy
    for part in range(parts):
        chunk = slice(part * rows // parts, (part + 1) * rows // parts)
        copy[chunk] = values[chunk]
        _release(values[chunk])
    return copy


def _release(values: np.ndarray) -> None:
    """Let go of the pages of a read-only memory map on which values lie; they can be read again."""
    owner: Any = values
    while isinstance(owner, np.ndarray):
        owner = owner.base
    owner = owner.obj if isinstance(owner, memoryview) else owner
    if not (isinstance(owner, mmap.mmap) and hasattr(owner, "madvise") and values.nbytes):
        return
    whole = np.frombuffer(owner, np.uint8)
    if whole.flags.writeable:
        return  # Changes that are in memory alone would be lost.
    low, high = np.lib.array_utils.byte_bounds(values)
    start = (low - whole.ctypes.data) // mmap.PAGESIZE * mmap.PAGESIZE
    with contextlib.suppress(OSError):
        owner.madvise(mmap.MADV_DONTNEED, start, high - whole.ctypes.data - start)
