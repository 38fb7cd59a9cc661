"""Counts and tables of a tree: what is in it, and what it weighs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtransfer.tree.names import SEPARATOR, named_leaves
from jaxtransfer.types import PyTree


def count_parameters(tree: PyTree) -> int:
    """How many numbers the arrays of a tree hold; leaves without a shape count nothing.

    >>> count_parameters({"kernel": np.zeros((3, 4)), "bias": np.zeros(4)})
    16
    """
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree) if hasattr(leaf, "shape"))


def count_bytes(tree: PyTree) -> int:
    """How many bytes the arrays of a tree take; leaves without a shape count nothing.

    >>> count_bytes({"bias": np.zeros(4, np.float32)})
    16
    """
    return sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if hasattr(leaf, "shape")
    )


def format_bytes(count: float) -> str:
    """A number of bytes as a person reads it.

    >>> format_bytes(1536)
    '1.5 KiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def format_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A plain-text table; columns of numbers are aligned to the right.

    >>> print(format_table(["name", "size"], [["stem", 7], ["head", 1234]]))
    name  size
    ----  ----
    stem     7
    head  1234
    """
    cells = [[str(cell) for cell in row] for row in rows]
    columns = list(zip(*([list(header), *cells]), strict=True))
    widths = [max(map(len, column)) for column in columns]
    is_number = [
        bool(rows) and all(isinstance(row[i], (int, float)) for row in rows)
        for i in range(len(header))
    ]

    def line(row: Sequence[str]) -> str:
        aligned = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, is_number, strict=True)
        ]
        return "  ".join(aligned).rstrip()

    return "\n".join([line(header), line(["-" * width for width in widths]), *map(line, cells)])


def summary(tree: PyTree, depth: int | None = None) -> str:
    """A table of a tree: a row a leaf, or a row for all that shares its first `depth` segments.

    Args:
        tree: any registered pytree; leaves may be arrays or `jax.ShapeDtypeStruct`.
        depth: how many segments of the name make a row; `None` for all of them.

    >>> print(summary({"head": {"bias": np.zeros(4, np.float32)}}))
    name       shape  dtype    parameters  bytes
    ---------  -----  -------  ----------  -----
    head/bias  4      float32           4     16
    total                               4     16
    """
    groups: dict[str, list[Any]] = {}
    for name, leaf in named_leaves(tree):
        key = SEPARATOR.join(name.split(SEPARATOR)[:depth])
        groups.setdefault(key, []).append(leaf)
    rows = [
        [name, _shape(leaves), _dtype(leaves), count_parameters(leaves), count_bytes(leaves)]
        for name, leaves in groups.items()
    ]
    rows.append(["total", "", "", count_parameters(tree), count_bytes(tree)])
    return format_table(["name", "shape", "dtype", "parameters", "bytes"], rows)


def _shape(leaves: Sequence[Any]) -> str:
    if len(leaves) > 1:
        return f"{len(leaves)} leaves"
    return "×".join(map(str, leaves[0].shape)) if hasattr(leaves[0], "shape") else ""


def _dtype(leaves: Sequence[Any]) -> str:
    names = {str(leaf.dtype) if hasattr(leaf, "dtype") else type(leaf).__name__ for leaf in leaves}
    return ", ".join(sorted(names))


def as_host_array(leaf: Any) -> np.ndarray:
    """A leaf as a NumPy array; typed random keys as the numbers behind them."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)
