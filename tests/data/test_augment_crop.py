from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jaxtransfer.data import augment
from jaxtransfer.data.augment.crop import random_boxes
from jaxtransfer.errors import DataError

KEY = jax.random.key(0)
PHOTOS = np.random.default_rng(3).random((3, 23, 31, 2), np.float32)
resized_crop = jax.jit(augment.resized_crop, static_argnums=(2, 3))
BOXES = np.array([[0, 0, 23, 31], [4, 7, 9, 6], [11, 2, 5, 29]], np.float32)
RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@pytest.mark.parametrize("interpolation", RESAMPLING)
@pytest.mark.parametrize("size", [(8, 8), (23, 31), (5, 40)])
def test_resized_crop_is_pillows(interpolation: Any, size: tuple[int, int]):
    found = np.asarray(resized_crop(PHOTOS, BOXES, size, interpolation))
    assert found.shape == (3, *size, 2)
    for photo, box, result in zip(PHOTOS, BOXES, found, strict=True):
        top, left, height, width = map(int, box)
        for channel in range(2):
            image = Image.fromarray(photo[..., channel])
            image = image.crop((left, top, left + width, top + height))
            expected = image.resize((size[1], size[0]), RESAMPLING[interpolation])
            expected = np.clip(np.asarray(expected), 0, 1)
            # Positions near 30 are good to 2e-6 in float32, and Pillow's are in float64.
            np.testing.assert_allclose(result[..., channel], expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("interpolation", RESAMPLING)
def test_a_crop_of_everything_at_its_size_changes_nothing(interpolation: Any):
    found = resized_crop(PHOTOS, np.array([0, 0, 23, 31]), (23, 31), interpolation)
    np.testing.assert_allclose(found, PHOTOS, rtol=0, atol=1e-6)


def test_wrong_crops_are_refused():
    with pytest.raises(DataError, match=r"(?s)\(3, 4\), found \(4, 4\).*bilinear, bicubic, found"):
        augment.resized_crop(PHOTOS, np.zeros((4, 4)), 8, "linear")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="whole numbers above 0, found 0"):
        augment.RandomResizedCrop(0)
    with pytest.raises(DataError, match="(?s)scale up to 1, found.*ratio of two numbers.*'area'"):
        augment.RandomResizedCrop(8, (0.1, 1.5), (2, 1), "area")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"at least \(40, 40\).*found \(31, 39\)"):
        augment.RandomCrop(40).on_images(KEY, jnp.asarray(PHOTOS))
    with pytest.raises(DataError, match="(?s)padding of 0 or more.*fill from 0 to 1, found 3"):
        augment.RandomCrop(4, -1, 3)
    with pytest.raises(DataError, match="HorizontalFlip: expected a probability.*found -1"):
        augment.HorizontalFlip(-1)
    with pytest.raises(DataError, match="VerticalFlip: expected a probability.*found nan"):
        augment.VerticalFlip(float("nan"))


# Means and deviations of top, left, height, width and share of the area, over 100,000 draws of
# torchvision 0.28's `RandomResizedCrop.make_params`; in the second shape most draws do not fit.
CROP_LAWS = {
    (48, 64): ((6.57, 13.805, 34.86, 36.371, 0.441), (6.637, 10.472, 9.117, 11.187, 0.221)),
    (20, 100): ((1.271, 40.03, 17.464, 19.659, 0.176), (1.736, 21.498, 2.474, 4.914, 0.063)),
}


def check_law(
    boxes: jax.Array | np.ndarray, image: tuple[int, int], means: Any, deviations: Any
) -> None:
    """Means within four standard errors, deviations within three hundredths."""
    found = np.asarray(boxes, float)
    area = found[:, 2] * found[:, 3] / (image[0] * image[1])
    found = np.column_stack([found, area])
    errors = np.array(deviations) / np.sqrt(len(found))
    np.testing.assert_array_less(np.abs(found.mean(axis=0) - means), 4 * errors + 5e-4)
    np.testing.assert_allclose(found.std(axis=0), deviations, rtol=0.03)


@pytest.mark.parametrize("image", CROP_LAWS)
def test_boxes_follow_torchvisions_law(image: tuple[int, int]):
    low, high = 3 / 4, 4 / 3
    fallback = (min(image[0], round(image[1] / low)), min(image[1], round(image[0] * high)))
    sizes = (20_000, image, image, (0.08, 1), (low, high), fallback)
    boxes = jax.jit(lambda key: random_boxes(key, *sizes))(KEY)
    check_law(boxes, image, *CROP_LAWS[image])
    top, left, height, width = np.asarray(boxes).T
    assert min(top.min(), left.min()) >= 0 and min(height.min(), width.min()) > 0
    assert (top + height).max() <= image[0] and (left + width).max() <= image[1]
    assert height.max() == image[0]
    np.testing.assert_array_equal(boxes, np.round(boxes))


@pytest.mark.parametrize("image", CROP_LAWS)
def test_boxes_of_the_host_follow_the_same_law(image: tuple[int, int]):
    generator, crop = np.random.default_rng(0), augment.RandomResizedCrop(8)
    boxes = np.array([crop.box(generator, image) for _ in range(20_000)])
    check_law(boxes, image, *CROP_LAWS[image])
    top, left, height, width = boxes.T
    assert min(top.min(), left.min()) >= 0 and min(height.min(), width.min()) > 0
    assert (top + height).max() <= image[0] and (left + width).max() <= image[1]


@pytest.mark.parametrize(
    ("image", "expected"),
    [((10, 100), (0, 43, 10, 13)), ((100, 10), (43, 0, 13, 10)), ((10, 12), (0, 0, 10, 12))],
)
def test_what_never_fits_is_cut_from_the_centre(image: tuple[int, int], expected: tuple[int, ...]):
    # No part of 0.99 of such an image has an aspect in bounds, but for the last one.
    images = jax.random.uniform(KEY, (2, *image, 1))
    scale, ratio = (0.999, 0.999), (3 / 4, 4 / 3)
    if image == (10, 12):
        scale, ratio = (1e-6, 1e-6), (1.0, 1.3)  # less than a pixel
    crop = augment.RandomResizedCrop(6, scale, ratio)
    found = jax.jit(crop.on_images)(KEY, images)
    np.testing.assert_allclose(found, resized_crop(images, np.array(expected), 6), atol=1e-6)
    assert crop.box(np.random.default_rng(0), image) == expected


def test_crops_of_a_batch_differ_and_keys_repeat():
    images = jnp.tile(jnp.asarray(PHOTOS[:1]), (4, 1, 1, 1))
    crop = jax.jit(augment.RandomResizedCrop((6, 9)).on_images)
    first = np.asarray(crop(KEY, images))
    assert first.shape == (4, 6, 9, 2)
    assert all(np.abs(first[0] - first[i]).max() > 0.05 for i in range(1, 4))
    np.testing.assert_array_equal(crop(KEY, images), first)
    assert np.abs(crop(jax.random.key(1), images) - first).max() > 0.05


def test_random_crops_are_parts_of_the_padded_images():
    places = jnp.arange(1, 26, dtype=jnp.float32).reshape(1, 5, 5, 1) / 25
    padded = np.pad(places[0, ..., 0], 2, constant_values=0.5)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 6))
    found = augment.RandomCrop((5, 6), 2, 0.5).on_images(KEY, jnp.tile(places, (800, 1, 1, 1)))
    counts = np.array([
        (found[..., 0] == window).all(axis=(1, 2)).sum()
        for window in windows.reshape(-1, 5, 6)
    ])  # fmt: skip
    assert counts.sum() == 800 and len(counts) == 20
    assert ((counts - 40) ** 2 / 40).sum() < 45  # chi-squared of 19 degrees: 99.9 % are below 44


@pytest.mark.parametrize(("kind", "axis"), [(augment.HorizontalFlip, 2), (augment.VerticalFlip, 1)])
def test_flips(kind: Any, axis: int):
    images = jnp.asarray(PHOTOS)
    flipped = kind(1.0).on_images(KEY, images)
    np.testing.assert_array_equal(flipped, np.flip(PHOTOS, axis))
    np.testing.assert_array_equal(kind(1.0).on_images(KEY, flipped), images)
    np.testing.assert_array_equal(kind(0.0).on_images(KEY, images), images)
    many = jnp.tile(images[:1, :2, :2], (2000, 1, 1, 1))
    found = kind(0.3).on_images(KEY, many)
    share = np.asarray((found == np.flip(many, axis)).all(axis=(1, 2, 3))).mean()
    assert abs(share - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 2000)


def test_a_box_of_one_pixel_between_two_centres_has_one_of_them():
    found = np.asarray(resized_crop(PHOTOS, (0.0, 0.5, 1.0, 1.0), 5, "bicubic"))
    np.testing.assert_allclose(found, np.broadcast_to(PHOTOS[:, :1, :1], found.shape), rtol=1e-6)


@given(
    st.integers(0, 2**31),
    *[st.tuples(st.floats(0, 22, width=32), st.floats(0, 30, width=32))] * 2,
    st.sampled_from(sorted(RESAMPLING)),
)
def test_crops_keep_range(seed: int, one: Any, other: Any, interpolation: Any):
    photos = np.random.default_rng(seed).integers(0, 2, PHOTOS.shape).astype(np.float32)
    corner, far = np.minimum(one, other), np.maximum(one, other) + 1
    found = np.asarray(
        resized_crop(photos, np.concatenate([corner, far - corner]), 5, interpolation)
    )
    assert found.shape == (3, 5, 5, 2) and found.dtype == np.float32
    assert found.min() >= 0 and found.max() <= 1 and np.isfinite(found).all()
