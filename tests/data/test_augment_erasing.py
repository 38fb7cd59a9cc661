from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxtransfer.data import augment
from jaxtransfer.errors import DataError

KEY = jax.random.key(0)
RUN = jax.jit(augment.RandomErasing(1).on_images)
ONES = jnp.ones((20_000, 24, 32, 1))

# Means and deviations of top, left, height, width and share of the area, over 60,000 draws of timm
# 1.0's `RandomErasing(probability=1)` on images of 24 x 32.
TIMM = (
    (6.2948, 10.0196, 11.3459, 11.9471, 0.1718),
    (4.8102, 6.8962, 4.8788, 5.5745, 0.0895),
)


def first_and_length(profile: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return profile.argmax(axis=1), profile.sum(axis=1)


def test_rectangles_follow_timms_law():
    found = jax.jit(augment.RandomErasing(1.0, fill=0.0).on_images)(KEY, ONES)
    erased = np.asarray(found)[..., 0] == 0
    top, height = first_and_length(erased.any(axis=2))
    left, width = first_and_length(erased.any(axis=1))
    assert (erased.sum(axis=(1, 2)) == height * width).all()  # each is one full rectangle
    values = np.column_stack([top, left, height, width, height * width / (24 * 32)])
    means, deviations = map(np.array, TIMM)
    distance = np.abs(values.mean(axis=0) - means)
    # Both sides are means of samples.
    errors = deviations * np.sqrt(1 / 20_000 + 1 / 60_000)
    np.testing.assert_array_less(distance, 4 * errors)
    np.testing.assert_allclose(values.std(axis=0), deviations, rtol=0.03)


def test_some_images_are_erased():
    run = jax.jit(augment.RandomErasing(0.25, fill=0.5).on_images)
    is_erased = np.asarray((run(KEY, ONES[:4000]) == 0.5).any(axis=(1, 2, 3)))
    assert abs(is_erased.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 4000)


def test_noise_is_uniform_and_differs():
    images = jnp.full((40, 24, 33, 3), 2.0)  # odd, so that words of noise are cut
    found = np.asarray(jax.jit(augment.RandomErasing(1.0).on_images)(KEY, images))
    noise = found[found != 2]
    counts = np.bincount((noise * 255).round().astype(int), minlength=256)
    expected = len(noise) / 256
    assert len(noise) > 10_000 and noise.min() == 0 and noise.max() == 1
    assert ((counts - expected) ** 2 / expected).sum() < 255 + 4 * np.sqrt(2 * 255)  # chi-squared
    rows = found[0][(found[0] != 2).all(axis=-1)]
    assert np.abs(np.corrcoef(rows.T) - np.eye(3)).max() < 4 / np.sqrt(len(rows))


def test_what_does_not_fit_is_left_whole():
    images = jnp.ones((50, 4, 4, 2))
    everything = augment.RandomErasing(1.0, (1.0, 1.0), (1.0, 1.0), 0.0)
    np.testing.assert_array_equal(jax.jit(everything.on_images)(KEY, images), images)
    never = augment.RandomErasing(0)
    np.testing.assert_array_equal(jax.jit(never.on_images)(KEY, images), images)


@given(st.integers(0, 2**31))
def test_erasing_keeps_range_and_the_rest(seed: int):
    images = jax.random.uniform(KEY, (3, 9, 7, 4))
    found = RUN(jax.random.key(seed), images)
    assert found.shape == images.shape and found.dtype == jnp.float32
    assert 0 <= float(found.min()) and float(found.max()) <= 1
    shares = np.asarray((found != images).any(axis=-1)).mean(axis=(1, 2))
    assert (shares < 0.5).all()


def test_wrong_numbers_are_refused():
    with pytest.raises(DataError, match="(?s)found 2.0;.*a scale of two.*a ratio of two.*'white'"):
        augment.RandomErasing(2.0, (0.5, 0.1), (0.0, 1.0), "white")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="fill from 0 to 1, or 'noise', found 7"):
        augment.RandomErasing(fill=7)
