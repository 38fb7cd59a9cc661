"""Which images of one collection look most like those of another one to a network."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxtransfer.errors import DataError

QUERIES, SOURCES = 512, 65536
"""Rows that are compared at a time: similarities take at most 128 MiB."""


class NearestImages(NamedTuple):
    """The most similar source images of each image, most similar first.

    Attributes:
        indices: positions among the source images, int64 of shape (count, k).
        similarities: cosines of the features, float32 of shape (count, k).
    """

    indices: np.ndarray
    similarities: np.ndarray


def nearest_images(features: Any, source_features: Any, k: int = 5) -> NearestImages:
    """The source images whose features have the highest cosines with those of other images.

    Where answers are wrong, they show what the network took the image for; a cosine of 1 finds
    images that are in both collections. Features are compared in blocks, so memory stays bounded.

    Args:
        features: shape (count, channels), finite numbers, such as `jt.features` gives.
        source_features: shape (sources, channels), of the images to search, such as those that were
            trained on.
        k: how many for each image, from 1; all source images where there are fewer.

    Returns:
        Of equal cosines that of the earlier image comes first; features of zeros have the cosine 0
        with all others.

    Raises:
        DataError: features are no rows of finite numbers, the numbers of channels differ, there is
            no image, or `k` is below 1.

    >>> nearest_images([[2.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]], k=1).indices.tolist()
    [[1]]
    """
    queries, sources = (
        _unit_rows(*pair) for pair in (("features", features), ("source_features", source_features))
    )
    if queries.shape[1] != sources.shape[1] or k < 1:
        raise DataError(
            "nearest_images: expected as many channels in both and a k of at least 1, found "
            f"{queries.shape[1]} and {sources.shape[1]} channels and k={k}; take the features of "
            "both from one stage of one network"
        )
    k = min(k, len(sources))
    parts = [
        _nearest(queries[i : i + QUERIES], sources, k) for i in range(0, len(queries), QUERIES)
    ]
    similarities, indices = (np.concatenate(part) for part in zip(*parts, strict=True))
    return NearestImages(indices.astype(np.int64), similarities)


def _unit_rows(name: str, features: Any) -> np.ndarray:
    """Rows of length 1 as float32; a row of zeros stays one."""
    rows = np.asarray(features)
    if rows.ndim != 2 or not rows.size or rows.dtype.kind not in "iufV":
        raise DataError(
            f"nearest_images: expected {name} of shape (count, channels), both above 0, found "
            f"{rows.dtype} of shape {rows.shape}"
        )
    rows = rows.astype(np.float64)
    if not np.isfinite(rows).all():
        first = int(np.argmin(np.isfinite(rows).all(axis=1)))
        raise DataError(
            f"nearest_images: expected finite numbers, found NaN or infinity in {name}, row {first}"
        )
    # By the largest value first: squares of very large and very small numbers are no floats.
    largest = np.abs(rows).max(axis=1, keepdims=True)
    rows = rows / np.where(largest > 0, largest, 1)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def _nearest(queries: np.ndarray, sources: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and positions of the nearest rows, the nearest first."""
    best = np.zeros((len(queries), 0), np.float32), np.zeros((len(queries), 0), np.int32)
    for start in range(0, len(sources), SOURCES):
        block = sources[start : start + SOURCES]
        cosines, at = jax.device_get(_top(queries, block, min(k, len(block))))
        cosines = np.concatenate([best[0], cosines], axis=1)
        at = np.concatenate([best[1], at + np.int32(start)], axis=1)
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
        best = np.take_along_axis(cosines, order, axis=1), np.take_along_axis(at, order, axis=1)
    return best


@functools.partial(jax.jit, static_argnums=2)
def _top(queries: jax.Array, sources: jax.Array, k: int) -> Any:
    return jax.lax.top_k(jnp.matmul(queries, sources.T, precision="highest"), k)
