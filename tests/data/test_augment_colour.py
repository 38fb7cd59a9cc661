from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from jaxtransfer.data import augment
from jaxtransfer.errors import DataError

KEY = jax.random.key(0)
BYTES = np.random.default_rng(7).integers(0, 256, (1, 3, 4, 3)).astype(np.uint8)
IMAGES = jnp.asarray(BYTES, jnp.float32) / 255
MANY = jax.random.uniform(KEY, (5, 6, 7, 3))

# The first two rows of what torchvision 0.28 makes of IMAGES, `v2.functional` on float32.
TORCHVISION = {
    ("adjust_brightness", 1.4): """
        1.0 0.878431 0.960784 1.0 0.812549 1.0 1.0 0.312941 0.076863 0.417255 0.395294 1.0
        1.0 0.00549 0.697255 1.0 0.181176 1.0 0.164706 0.653333 1.0 0.422745 0.477647 0.389804""",
    ("adjust_contrast", 1.7): """
        1.0 0.716224 0.816224 1.0 0.636224 0.969557 1.0 0.029557 0.0 0.156224 0.129557 1.0
        1.0 0.0 0.496224 1.0 0.0 1.0 0.0 0.44289 1.0 0.16289 0.229557 0.12289""",
    ("adjust_contrast", 0.3): """
        0.633973 0.538678 0.556325 0.619855 0.524561 0.583384
        0.601031 0.417502 0.366914 0.439855 0.435149 0.612796
        0.624561 0.35162 0.499855 0.597502 0.389267 0.590443
        0.385737 0.490443 0.596326 0.441031 0.452796 0.433973""",
    ("adjust_saturation", 1.8): """
        1.0 0.546181 0.652063 1.0 0.4866 0.839542 1.0 0.092641 0.0 0.252855 0.22462 1.0
        1.0 0.0 0.630718 1.0 0.0 1.0 0.0 0.517973 1.0 0.285715 0.356303 0.243362""",
    ("adjust_saturation", 0.2): """
        0.772251 0.708721 0.720486 0.737713 0.674184 0.7134
        0.476771 0.354418 0.320692 0.343223 0.340086 0.458517
        0.448498 0.266537 0.365361 0.49536 0.356536 0.490654
        0.345556 0.41536 0.485948 0.318206 0.32605 0.313501""",
    ("adjust_hue", 0.3): """
        0.749804 0.945098 0.627451 0.84 0.898039 0.580392
        0.054902 0.835294 0.067451 0.87451 0.282353 0.385098
        0.68 0.913725 0.003922 0.823529 0.708235 0.129412
        0.819608 0.117647 0.607059 0.278431 0.31451 0.341176""",
    ("adjust_hue", -0.45): """
        0.627451 0.908627 0.945098 0.580392 0.898039 0.797255
        0.054902 0.432549 0.835294 0.681176 0.87451 0.282353
        0.003922 0.913725 0.692549 0.129412 0.823529 0.361177
        0.819608 0.681177 0.117647 0.336471 0.278431 0.341176""",
    ("adjust_sharpness", 1.9): """
        0.945098 0.627451 0.686275 0.898039 0.580392 0.776471
        0.835294 0.223529 0.054902 0.298039 0.282353 0.87451
        0.913725 0.003922 0.498039 0.901719 0.0 0.907783
        0.0 0.490015 0.955626 0.301961 0.341176 0.278431""",
}
ENHANCEMENTS = {
    "adjust_brightness": ImageEnhance.Brightness,
    "adjust_contrast": ImageEnhance.Contrast,
    "adjust_saturation": ImageEnhance.Color,
    "adjust_sharpness": ImageEnhance.Sharpness,
}
CHANGES = {name: jax.jit(getattr(augment, name)) for name in (*ENHANCEMENTS, "adjust_hue")}
NEUTRAL = {**dict.fromkeys(ENHANCEMENTS, 1.0), "adjust_hue": 0.0}


@pytest.mark.parametrize(("name", "value"), TORCHVISION)
def test_adjustments_are_those_of_torchvision(name: str, value: float):
    expected = np.array(TORCHVISION[name, value].split(), float).reshape(2, 4, 3)
    found = CHANGES[name](IMAGES, value)[0, :2]
    # Its red counts 0.2989 in luma, where the standard and Pillow have 0.299.
    has_luma = name in ("adjust_contrast", "adjust_saturation")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 if has_luma else 2e-6)


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.6])
@pytest.mark.parametrize("name", ENHANCEMENTS)
def test_adjustments_are_those_of_pillow(name: str, factor: float):
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (2, 9, 11, 3)).astype(np.uint8)
    expected = [ENHANCEMENTS[name](Image.fromarray(image)).enhance(factor) for image in pixels]
    found = CHANGES[name](jnp.asarray(pixels, jnp.float32) / 255, factor)
    # Pillow rounds what an image is blended with, and cuts the fraction off the result.
    limit = (1 + abs(1 - factor) / 2) / 255
    np.testing.assert_allclose(found, np.array(expected) / 255.0, rtol=0, atol=limit + 1e-5)


def test_grayscale_is_that_of_pillow():
    expected = np.asarray(Image.fromarray(BYTES[0]).convert("L")) / 255.0
    found = augment.grayscale(IMAGES)[0]
    for channel in range(3):
        np.testing.assert_allclose(found[..., channel], expected, rtol=0, atol=0.51 / 255)


@pytest.mark.parametrize("name", NEUTRAL)
def test_each_image_has_its_own_value(name: str):
    change = CHANGES[name]
    values = jnp.linspace(0.1, 0.45, 5)
    together = change(MANY, values)
    for i in range(5):
        np.testing.assert_allclose(
            together[i : i + 1], change(MANY[i : i + 1], values[i]), atol=1e-6
        )


@pytest.mark.parametrize("name", NEUTRAL)
def test_a_neutral_value_changes_nothing(name: str):
    exact = name != "adjust_hue"  # which goes through another colour space
    found = CHANGES[name](MANY, NEUTRAL[name])
    np.testing.assert_allclose(found, MANY, rtol=0, atol=0 if exact else 1e-6)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("name", ["adjust_brightness", "adjust_sharpness"])
def test_brightness_and_sharpness_take_any_channels(name: str, channels: int):
    images = MANY[..., [0, 1, 2, 0][:channels]]
    expected = CHANGES[name](MANY, 1.5)[..., [0, 1, 2, 0][:channels]]
    np.testing.assert_allclose(CHANGES[name](images, 1.5), expected, atol=1e-6)


def test_grey_images_have_neither_hue_nor_saturation():
    grey = MANY[..., :1]
    for changed in (
        augment.adjust_hue(grey, 0.4),
        augment.adjust_saturation(grey, 0.2),
        augment.grayscale(grey),
        augment.ColorJitter(saturation=0.9, hue=0.5).on_images(KEY, grey),
        augment.RandomGrayscale(1.0).on_images(KEY, grey),
    ):
        np.testing.assert_array_equal(changed, grey)
    flat = jnp.full((1, 2, 2, 3), 0.25)
    np.testing.assert_allclose(augment.adjust_hue(flat, 0.3), flat, rtol=0, atol=0)


def test_colours_of_other_images_are_refused():
    for change in (augment.adjust_hue, augment.adjust_saturation, augment.adjust_contrast):
        with pytest.raises(DataError, match="1 or 3 channels where colours change, found 4"):
            change(jnp.zeros((2, 3, 3, 4)), 0.5)
    with pytest.raises(DataError, match=r"one for each of 2 images, found shape \(3,\)"):
        augment.adjust_hue(jnp.zeros((2, 3, 3, 3)), jnp.zeros(3))
    with pytest.raises(DataError, match=r"(?s)found uint8; divide.*\(batch, height.*\(2, 3, 3\)"):
        augment.grayscale(jnp.zeros((2, 3, 3), jnp.uint8))


@given(st.sampled_from(sorted(CHANGES)), st.integers(0, 2**31), st.floats(0, 20, width=32))
def test_colours_stay_in_range(name: str, seed: int, value: float):
    rng = np.random.default_rng(seed)
    images = jnp.asarray(rng.random((5, 6, 7, 3)) ** rng.uniform(0.1, 9), jnp.float32)
    found = CHANGES[name](images, value)
    assert found.shape == images.shape and found.dtype == jnp.float32
    assert 0 <= float(found.min()) and float(found.max()) <= 1


@given(st.floats(-0.5, 0.5, width=32))
def test_hue_turns_back(shift: float):
    turned = CHANGES["adjust_hue"](MANY, shift)
    np.testing.assert_allclose(CHANGES["adjust_hue"](turned, -shift), MANY, rtol=0, atol=1e-5)


def test_jitter_draws_its_factors_from_its_bounds():
    dark = jnp.full((4000, 1, 1, 1), 0.25)
    factors = (
        np.asarray(jax.jit(augment.ColorJitter(brightness=0.4).on_images)(KEY, dark)).ravel() / 0.25
    )
    assert 0.6 <= factors.min() < 0.61 and 1.39 < factors.max() <= 1.4 + 1e-6
    assert abs(factors.mean() - 1) < 4 * 0.8 / np.sqrt(12 * 4000)
    wide = (
        np.asarray(jax.jit(augment.ColorJitter(brightness=1.5).on_images)(KEY, dark)).ravel() / 0.25
    )
    assert wide.min() >= 0 and abs(wide.mean() - 1.25) < 4 * 2.5 / np.sqrt(12 * 4000)


def test_jitter_follows_its_order():
    jitter = augment.ColorJitter(0.5, 0.5, 0.5, 0.2)
    shares = jax.random.uniform(KEY, (4, 5), jnp.float32)
    expected = CHANGES["adjust_brightness"](MANY, 0.5 + shares[0])
    expected = CHANGES["adjust_contrast"](expected, 0.5 + shares[1])
    expected = CHANGES["adjust_saturation"](expected, 0.5 + shares[2])
    expected = CHANGES["adjust_hue"](expected, 0.4 * shares[3] - 0.2)
    np.testing.assert_allclose(jax.jit(jitter.on_images)(KEY, MANY), expected, atol=1e-5)


def test_some_images_lose_their_colours():
    images = jnp.tile(MANY[:1], (2000, 1, 1, 1))
    found = augment.RandomGrayscale(0.3).on_images(KEY, images)
    is_grey = np.asarray(jnp.all(found == augment.grayscale(images), axis=(1, 2, 3)))
    is_same = np.asarray(jnp.all(found == images, axis=(1, 2, 3)))
    assert (is_grey ^ is_same).all()
    assert abs(is_grey.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 2000)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"brightness": -0.1, "hue": 0.6}, "(?s)of 0 or more, found.*from 0 to 0.5, found 0.6"),
        ({"contrast": float("nan")}, "of 0 or more"),
    ],
)
def test_wrong_bounds_are_refused(fields: dict[str, Any], message: str):
    with pytest.raises(DataError, match=message):
        augment.ColorJitter(**fields)
    with pytest.raises(DataError, match="probability from 0 to 1, found 2"):
        augment.RandomGrayscale(2)
