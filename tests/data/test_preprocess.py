from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxtransfer.data import check_images, preprocess_images
from jaxtransfer.errors import DataError
from jaxtransfer.models import Preprocess

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (3, 12, 16, 3)).astype(np.uint8)
RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos3": Image.Resampling.LANCZOS,
}


def process(images: Any, **fields: Any) -> np.ndarray:
    how = Preprocess(**fields)
    return np.asarray(preprocess_images(jnp.asarray(check_images(images, how)), how))


def pillow_resize(images: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """Floats of one channel each, resized by Pillow; it widens its filters to shrink, as we do."""
    resized = [
        [
            np.asarray(
                Image.fromarray(image[..., channel]).resize(
                    (size[1], size[0]), RESAMPLING[interpolation]
                )
            )
            for channel in range(image.shape[-1])
        ]
        for image in images
    ]
    return np.moveaxis(np.array(resized), 1, -1)


# ---------------------------------------------------------------------------------------------
# Size


@pytest.mark.parametrize(
    ("interpolation", "size"),
    [
        *((name, size) for name in RESAMPLING for size in ((24, 32), (6, 8))),
        # A nearest pixel is a matter of rounding where two are equally near.
        *((name, size) for name in list(RESAMPLING)[1:] for size in ((18, 24), (9, 12))),
    ],
    ids=str,
)
def test_resizing_is_that_of_pillow(interpolation: str, size: tuple[int, int]) -> None:
    # A smooth image: at sharp edges filters of several pixels differ in how they treat the border.
    y, x = np.mgrid[0:12, 0:16] / 16
    images = np.stack([0.5 + 0.4 * np.sin(3 * y + 2 * x), x * y], -1)[None].astype(np.float32)
    found = process(images, size=size, interpolation=interpolation)
    expected = pillow_resize(images, size, interpolation)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2e-5 if interpolation != "nearest" else 0)


def test_shrinking_averages_what_it_leaves_out() -> None:
    stripes = np.tile(np.array([0.0, 1.0], np.float32), (1, 16, 8))[..., None]
    found = process(stripes, size=(8, 8))
    np.testing.assert_allclose(found[:, :, 2:-2], 0.5, atol=1e-6)
    assert set(np.unique(process(stripes, size=(8, 8), interpolation="nearest"))) <= {0.0, 1.0}


def test_images_that_have_the_size_stay_as_they_are() -> None:
    found = process(BYTES, size=(12, 16), scale=None)
    np.testing.assert_array_equal(found, BYTES)


@pytest.mark.parametrize(
    ("size", "rows", "columns"),
    [((12, 12), (0, 12), (2, 14)), ((12, 8), (0, 12), (4, 12)), ((12, 13), (0, 12), (1, 14))],
)
def test_the_centre_is_kept(
    size: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    # The height has the size already: nothing is resized, the sides are cut off.
    found = process(BYTES, size=size, scale=None)
    np.testing.assert_array_equal(found, BYTES[:, slice(*rows), slice(*columns)])


def test_the_aspect_is_kept() -> None:
    images = RNG.random((1, 12, 16, 1)).astype(np.float32)
    found = process(images, size=(6, 6))
    expected = pillow_resize(images, (6, 8), "bilinear")[:, :, 1:7]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_crop_keeps_a_share_of_the_resized_image() -> None:
    images = RNG.random((1, 12, 16, 1)).astype(np.float32)
    found = process(images, size=(9, 12), crop_fraction=0.75)
    np.testing.assert_array_equal(found, images[:, 1:10, 2:14])
    assert process(images, size=(7, 7), crop_fraction=0.875).shape == (1, 7, 7, 1)


# ---------------------------------------------------------------------------------------------
# Channels and numbers


def test_colours_become_luma() -> None:
    found = process(BYTES, channels=1)
    expected = (BYTES * np.array([0.299, 0.587, 0.114])).sum(axis=-1, keepdims=True) / 255
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_grey_is_repeated() -> None:
    found = process(BYTES[..., :1], channels=3)
    np.testing.assert_array_equal(found, np.repeat(found[..., :1], 3, axis=-1))
    np.testing.assert_allclose(found[..., :1], BYTES[..., :1] / 255, atol=1e-6)


def test_a_missing_channel_axis_is_added() -> None:
    np.testing.assert_array_equal(
        process(BYTES[..., 0], channels=1), process(BYTES[..., :1], channels=1)
    )


def test_mean_and_deviation_are_those_of_each_channel_in_its_own_order() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    found = process(BYTES, mean=mean, std=std)
    np.testing.assert_allclose(found, (BYTES / 255 - mean) / np.array(std), atol=2e-6)
    reversed_ = process(BYTES, mean=mean, std=std, channel_order="bgr")
    expected = (BYTES[..., ::-1] / 255 - mean) / np.array(std)
    np.testing.assert_allclose(reversed_, expected, atol=2e-6)


def test_one_mean_and_deviation_serve_all_channels() -> None:
    found = process(BYTES, mean=(0.5,), std=(0.5,))
    np.testing.assert_allclose(found, BYTES / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.uint16])
def test_integers_are_floats_times_the_scale(dtype: Any) -> None:
    fields = {"size": (8, 8), "channels": 1, "mean": (0.4,), "std": (0.3,)}
    floats = BYTES.astype(np.float32) / np.float32(255)
    found = process(BYTES.astype(dtype), **fields)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, process(floats, **fields), atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, jnp.bfloat16])
def test_other_floats_become_float32(dtype: Any) -> None:
    images = (BYTES / 255).astype(dtype)
    found = process(images, size=(12, 16))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, images.astype(np.float32), atol=1e-6)


@pytest.mark.parametrize(
    "inputs", [BYTES, np.arange(6).reshape(2, 3), np.ones((2, 4), np.float16)], ids=str
)
def test_where_nothing_is_asked_inputs_come_through_untouched(inputs: np.ndarray) -> None:
    how = Preprocess(scale=None)
    assert check_images(inputs, how) is inputs
    found = jax.jit(lambda x: preprocess_images(x, how))(inputs)
    assert found.dtype == jnp.asarray(inputs).dtype
    np.testing.assert_array_equal(found, inputs)


def test_it_runs_inside_jit() -> None:
    how = Preprocess((8, 8), 1, mean=(0.5,))
    found = jax.jit(lambda images: preprocess_images(images, how))(BYTES)
    np.testing.assert_allclose(
        found, process(BYTES, size=(8, 8), channels=1, mean=(0.5,)), atol=1e-6
    )


# ---------------------------------------------------------------------------------------------
# What is refused


@pytest.mark.parametrize(
    ("images", "fields", "message"),
    [
        (BYTES[0], {"channels": 3}, "1 or 3 channels, found (12, 16, 3); add a batch axis"),
        (BYTES[0, ..., 0], {"size": (4, 4)}, "any channels, found (12, 16)"),
        (BYTES[None], {"size": (4, 4)}, "found (1, 3, 12, 16, 3)"),
        (np.moveaxis(BYTES, -1, 1), {"channels": 3}, "found (3, 3, 12, 16); "),
        (np.zeros((2, 4, 4, 4)), {"channels": 3}, "drop alpha"),
        (
            BYTES,
            {"interpolation": "area"},
            "among nearest, bilinear, bicubic, lanczos3, found 'area'",
        ),
        (BYTES, {"mean": (0.5, 0.5)}, "a mean for each of 3 channels, or one, found (0.5, 0.5)"),
        (BYTES, {"channels": 1, "std": (1.0, 1.0, 2.0)}, "a std for each of 1 channels, or one"),
        (BYTES.astype(np.float32), {}, "expected floats in [0, 1], found [0, 255]; divide them"),
        (np.full((1, 2, 2, 1), -0.5), {}, "found [-0.5, -0.5]"),
        (np.full((1, 2, 2, 1), np.nan), {}, "found [nan, nan]"),
        (np.full((1, 2, 2, 1), 2, jnp.bfloat16), {}, "expected floats in [0, 1], found [2, 2]"),
        (np.full((1, 2, 2, 1), 4000, np.uint16), {}, "integers from 0 to 255, found [4000, 4000]"),
        (np.full((1, 2, 2, 1), -3), {}, "integers from 0 to 255, found [-3, -3]"),
    ],
)
def test_images_that_do_not_fit_are_an_error(
    images: Any, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        check_images(images, Preprocess(**fields))


def test_the_range_is_free_where_nothing_is_scaled() -> None:
    check_images(BYTES.astype(np.float32) - 1000, Preprocess(scale=None))
    check_images(np.full((1, 2, 2, 1), 4000, np.uint16), Preprocess(scale=65535.0))
    check_images(np.array([[[[1.0005]], [[-0.0005]]]]), Preprocess())  # what resizing may leave


def test_no_images_are_no_error() -> None:
    assert check_images(BYTES[:0], Preprocess((8, 8), 3)).shape == (0, 12, 16, 3)
