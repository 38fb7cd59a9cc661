"""Which images of one collection look most like those of another one to a network."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from jaxtransfer.errors import DataError
from jaxtransfer.evaluate.features import check_features
from jaxtransfer.evaluate.nearest import nearest_rows, unit_rows


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
    queries, sources = _rows("features", features), _rows("source_features", source_features)
    if queries.shape[1] != sources.shape[1] or k < 1:
        raise DataError(
            "nearest_images: expected as many channels in both and a k of at least 1, found "
            f"{queries.shape[1]} and {sources.shape[1]} channels and k={k}; take the features of "
            "both from one stage of one network"
        )
    similarities, indices = nearest_rows(queries, sources, k)
    return NearestImages(indices, similarities)


def _rows(name: str, features: Any) -> np.ndarray:
    """Checked rows of length 1 as float32."""
    rows = check_features(f"nearest_images: {name}", features)
    if not len(rows):
        raise DataError(f"nearest_images: expected at least one row of {name}, found none")
    return unit_rows(rows).astype(np.float32)
