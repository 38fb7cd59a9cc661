from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxtransfer.data.preprocess import INTERPOLATIONS
from jaxtransfer.data.resample import resample

IMAGE = np.random.default_rng(0).random((11, 14, 2)).astype(np.float32)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("resized", [(5, 20), (11, 9)], ids=str)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_resampling_is_that_of_jax(
    interpolation: str, resized: tuple[int, int], antialias: bool
) -> None:
    whole = jax.image.resize(
        IMAGE, (*resized, 2), INTERPOLATIONS[interpolation], antialias=antialias
    )
    found = resample(IMAGE, resized, (1, 2), (4, 6), interpolation, antialias)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, whole[1:5, 2:8], atol=2e-6)


def test_integers_are_rounded_within_their_range() -> None:
    bars = np.tile(np.array([0, 255], np.uint8), (4, 4))[..., None]
    found = resample(bars, (4, 16), (0, 0), (4, 16), "bicubic", True)
    assert found.dtype == np.uint8 and found.min() == 0 and found.max() == 255
    halves = resample(np.array([[[0], [3]]], np.uint16), (1, 4), (0, 0), (1, 4), "bilinear", True)
    assert halves.dtype == np.uint16 and halves.ravel().tolist() == [0, 1, 2, 3]
