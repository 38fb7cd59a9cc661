"""Rows of features and their nearest ones by cosine, in blocks that bound the memory."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

QUERIES, REFERENCES = 512, 65536
"""Rows that are compared at a time: similarities take at most 128 MiB."""


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1 in their own dtype; a row of zeros stays one.

    Args:
        rows: finite floats of shape (count, channels).

    >>> unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6, 0.8], [0.0, 0.0]]
    """
    # By the largest value first: squares of very large and very small numbers are no floats.
    rows = rows / np.maximum(np.abs(rows).max(axis=1, keepdims=True), np.finfo(rows.dtype).tiny)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1).astype(rows.dtype)


def nearest_rows(
    queries: np.ndarray, references: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The `k` rows with the highest cosine with each query, highest first, of equal ones the first.

    Args:
        queries: rows of length 1 as `unit_rows` gives them, shape (count, channels), float32.
        references: likewise, shape (references, channels), at least one.
        k: how many, from 1; all of them where there are fewer.

    Returns:
        Cosines, float32, and positions among the references, int64; both of shape
        (count, min(k, references)).

    >>> nearest_rows(np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32)[::-1], 1)[1].tolist()
    [[1], [0]]
    """
    width = min(k, len(references))
    parts = [
        _nearest(queries[at : at + QUERIES], references, width)
        for at in range(0, len(queries), QUERIES)
    ]
    cosines = np.concatenate([np.zeros((0, width), np.float32), *(part[0] for part in parts)])
    return cosines, np.concatenate([np.zeros((0, width), np.int64), *(part[1] for part in parts)])


def _nearest(queries: np.ndarray, references: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    best = np.zeros((len(queries), 0), np.float32), np.zeros((len(queries), 0), np.int64)
    for start in range(0, len(references), REFERENCES):
        block = references[start : start + REFERENCES]
        cosines, at = jax.device_get(_top(queries, block, min(k, len(block))))
        cosines = np.concatenate([best[0], cosines], axis=1)
        at = np.concatenate([best[1], at.astype(np.int64) + start], axis=1)
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
        best = np.take_along_axis(cosines, order, axis=1), np.take_along_axis(at, order, axis=1)
    return best


@functools.partial(jax.jit, static_argnums=2)
def _top(queries: jax.Array, references: jax.Array, k: int) -> Any:
    return jax.lax.top_k(jnp.matmul(queries, references.T, precision="highest"), k)
