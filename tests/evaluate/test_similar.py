from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_similarity

from jaxtransfer.errors import DataError
from jaxtransfer.evaluate import nearest
from jaxtransfer.evaluate.similar import nearest_images

RNG = np.random.default_rng(0)
FEATURES, SOURCES = (RNG.normal(size=(count, 6)) for count in (7, 20))


@pytest.mark.parametrize("blocks", [(512, 65536), (3, 8)])
def test_the_highest_cosines_are_found_in_any_blocks(blocks, monkeypatch):
    monkeypatch.setattr(nearest, "QUERIES", blocks[0])
    monkeypatch.setattr(nearest, "REFERENCES", blocks[1])
    cosines = cosine_similarity(FEATURES, SOURCES)
    expected = np.argsort(-cosines, axis=1)[:, :9]
    found = nearest_images(1e30 * FEATURES, 1e-30 * SOURCES, k=9)
    np.testing.assert_array_equal(found.indices, expected)
    np.testing.assert_allclose(
        found.similarities, np.take_along_axis(cosines, expected, axis=1), atol=1e-6
    )
    assert (found.indices.dtype, found.similarities.dtype) == (np.int64, np.float32)


def test_equal_cosines_stand_in_their_order_and_zeros_are_like_nothing(monkeypatch):
    monkeypatch.setattr(nearest, "REFERENCES", 2)
    found = nearest_images([[1, 0], [0, 0]], [[0, 2], [3, 0], [1, 0], [5, 0], [0, 0]], k=9)
    np.testing.assert_array_equal(found.indices, [[1, 2, 3, 0, 4], [0, 1, 2, 3, 4]])
    np.testing.assert_allclose(found.similarities, [[1, 1, 1, 0, 0], [0] * 5], atol=1e-7)


@pytest.mark.parametrize(
    ("features", "sources", "k", "message"),
    [
        (FEATURES[:, :3], SOURCES, 1, "3 and 6 channels and k=1"),
        (FEATURES, SOURCES, 0, "and k=0"),
        (FEATURES[:0], SOURCES, 1, "at least one row of features, found none"),
        (
            FEATURES,
            SOURCES[0],
            1,
            r"source_features: expected numbers of shape .*\(6,\)",
        ),
        (
            FEATURES,
            np.where(SOURCES == SOURCES[2, 1], np.nan, SOURCES),
            1,
            "source_features: expected finite numbers.*row 2",
        ),
    ],
)
def test_what_cannot_be_compared_is_told(features, sources, k, message):
    with pytest.raises(DataError, match=f"nearest_images: .*{message}"):
        nearest_images(features, sources, k)
