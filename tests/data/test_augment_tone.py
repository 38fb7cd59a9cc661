from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from jaxtransfer.data import augment


def pixels(shape: tuple[int, ...], low: int = 0, high: int = 256, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, shape).astype(np.uint8)


def as_floats(values: np.ndarray) -> jax.Array:
    return jnp.asarray(values, jnp.float32) / 255


def as_bytes(images: jax.Array) -> np.ndarray:
    """The bytes that images stand for; an error where one is not a multiple of 1/255."""
    values = np.asarray(images, float) * 255
    np.testing.assert_allclose(values, values.round(), rtol=0, atol=1e-4)
    return values.round().astype(np.uint8)


_CHANGES: dict[str, Any] = {
    "equalize": augment.equalize,
    "autocontrast": augment.autocontrast,
    "invert": augment.invert,
    "posterize": lambda images, bits=3: augment.posterize(images, bits),
    "solarize": lambda images, threshold=0.4: augment.solarize(images, threshold),
    "solarize_add": lambda images: augment.solarize_add(images, 0.4),
    "sharpness": lambda images: augment.adjust_sharpness(images, 1.9),
}
CHANGES = {name: jax.jit(change) for name, change in _CHANGES.items()}
SCENES = {
    "noise": pixels((3, 40, 31, 3)),
    "dark": pixels((2, 40, 31, 3), 3, 60),
    "two values": pixels((2, 30, 30, 3), 100, 102),
    "small": pixels((2, 5, 4, 3)),  # fewer pixels than levels
    "one value": np.full((1, 30, 30, 3), 77, np.uint8),
    "empty channel": pixels((1, 30, 30, 3)) * np.array([1, 0, 1], np.uint8),
}


@pytest.mark.parametrize("scene", SCENES)
def test_equalize_is_pillows_to_the_byte(scene: str):
    expected = [np.asarray(ImageOps.equalize(Image.fromarray(image))) for image in SCENES[scene]]
    np.testing.assert_array_equal(as_bytes(CHANGES["equalize"](as_floats(SCENES[scene]))), expected)


@pytest.mark.parametrize("scene", SCENES)
def test_autocontrast_is_pillows(scene: str):
    expected = [np.asarray(ImageOps.autocontrast(Image.fromarray(i))) for i in SCENES[scene]]
    found = np.asarray(CHANGES["autocontrast"](as_floats(SCENES[scene]))) * 255
    # Pillow cuts the fraction off, sometimes of a product a little below a whole number.
    difference = found - np.array(expected)
    assert difference.min() >= -1e-3 and difference.max() < 1 + 1e-3


@pytest.mark.parametrize("bits", range(1, 9))
def test_posterize_is_pillows_to_the_byte(bits: int):
    values = pixels((2, 16, 16, 3))
    expected = [np.asarray(ImageOps.posterize(Image.fromarray(image), bits)) for image in values]
    np.testing.assert_array_equal(as_bytes(CHANGES["posterize"](as_floats(values), bits)), expected)


def test_posterize_rounds_its_bits_and_keeps_what_eight_cannot():
    images = jax.random.uniform(jax.random.key(0), (3, 4, 4, 1))
    np.testing.assert_array_equal(CHANGES["posterize"](images, 8), images)
    found = CHANGES["posterize"](images, jnp.array([2.6, 0.0, 7.9]))
    np.testing.assert_array_equal(found[:1], CHANGES["posterize"](images[:1], 3))
    np.testing.assert_array_equal(found[1], jnp.zeros((4, 4, 1)))
    np.testing.assert_array_equal(found[2], images[2])


@pytest.mark.parametrize("threshold", [0, 26, 128, 256])
def test_solarize_is_pillows_to_the_byte(threshold: int):
    values = pixels((2, 16, 16, 3))
    expected = [np.asarray(ImageOps.solarize(Image.fromarray(i), threshold)) for i in values]
    found = CHANGES["solarize"](as_floats(values), (threshold - 0.5) / 255)
    np.testing.assert_array_equal(as_bytes(found), expected)


def test_solarize_add_brightens_what_is_below_128():
    values = np.array([0, 20, 127, 128, 255], np.uint8).reshape(1, 1, 5, 1)
    found = as_bytes(augment.solarize_add(as_floats(values), 99 / 255))
    assert found.ravel().tolist() == [99, 119, 226, 128, 255]
    assert as_bytes(augment.solarize_add(as_floats(values), 250 / 255)).ravel()[1] == 255


def test_invert_is_pillows_to_the_byte():
    values = pixels((2, 16, 16, 3))
    expected = [np.asarray(ImageOps.invert(Image.fromarray(image))) for image in values]
    np.testing.assert_array_equal(as_bytes(augment.invert(as_floats(values))), expected)


def test_small_images_have_no_inside_to_sharpen():
    images = jax.random.uniform(jax.random.key(0), (2, 2, 5, 3))
    np.testing.assert_array_equal(augment.adjust_sharpness(images, 3.0), images)


@given(st.sampled_from(sorted(CHANGES)), st.integers(0, 2**31), st.sampled_from([1, 3]))
def test_tones_keep_range_shape_and_dtype(name: str, seed: int, channels: int):
    rng = np.random.default_rng(seed)
    images = jnp.asarray(rng.random((2, 6, 8, channels)) ** rng.uniform(0.1, 9), jnp.float32)
    found = CHANGES[name](images)
    assert found.shape == images.shape and found.dtype == jnp.float32
    assert 0 <= float(found.min()) and float(found.max()) <= 1


@pytest.mark.parametrize("name", CHANGES)
def test_images_of_a_batch_do_not_see_one_another(name: str):
    images = as_floats(SCENES["noise"] // np.array([1, 2, 5], np.uint8)[:, None, None, None])
    together = CHANGES[name](images)
    for i in range(3):
        np.testing.assert_allclose(together[i : i + 1], CHANGES[name](images[i : i + 1]), atol=1e-6)
