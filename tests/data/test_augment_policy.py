from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtransfer.data import augment
from jaxtransfer.errors import DataError

KEY = jax.random.key(0)
IMAGES = jax.random.uniform(jax.random.key(1), (6, 9, 12, 3))

# What timm 1.0 gives its functions for level 9 of 10 (`LEVEL_TO_ARG`, the increasing ones), and
# torchvision 0.28 its own at magnitude 9 of 30, in the units of the functions here; where there are
# two values, each image has one of them.
TIMM_9 = {
    "autocontrast": (augment.autocontrast, ()),
    "equalize": (augment.equalize, ()),
    "invert": (augment.invert, ()),
    "rotate": (augment.rotate, (27.0, -27.0)),
    "posterize": (augment.posterize, (1,)),
    "solarize": (augment.solarize, (25.6 / 255,)),
    "solarize_add": (augment.solarize_add, (99 / 255,)),
    "brightness": (augment.adjust_brightness, (1.81, 0.19)),
    "color": (augment.adjust_saturation, (1.81, 0.19)),
    "contrast": (augment.adjust_contrast, (1.81, 0.19)),
    "sharpness": (augment.adjust_sharpness, (1.81, 0.19)),
    "shear_x": (augment.shear_x, (0.27, -0.27)),
    "shear_y": (augment.shear_y, (0.27, -0.27)),
    "translate_x": (augment.translate_x, (0.405 * 12, -0.405 * 12)),
    "translate_y": (augment.translate_y, (0.405 * 9, -0.405 * 9)),
}
TORCHVISION_9 = {
    "identity": (augment.adjust_brightness, (1.0,)),
    "autocontrast": (augment.autocontrast, ()),
    "equalize": (augment.equalize, ()),
    "rotate": (augment.rotate, (9.0, -9.0)),
    "posterize": (augment.posterize, (7,)),
    "solarize": (augment.solarize, (0.7,)),
    "brightness": (augment.adjust_brightness, (1.27, 0.73)),
    "color": (augment.adjust_saturation, (1.27, 0.73)),
    "contrast": (augment.adjust_contrast, (1.27, 0.73)),
    "sharpness": (augment.adjust_sharpness, (1.27, 0.73)),
    "shear_x": (augment.shear_x, (0.09, -0.09)),
    "shear_y": (augment.shear_y, (0.09, -0.09)),
    "translate_x": (augment.translate_x, (150 / 331 * 0.3 * 12, -150 / 331 * 0.3 * 12)),
    "translate_y": (augment.translate_y, (150 / 331 * 0.3 * 9, -150 / 331 * 0.3 * 9)),
}
TABLES = {
    "timm": (augment.RAND_AUGMENT_INCREASING, 10.0, TIMM_9),
    "torchvision": (augment.RAND_AUGMENT, 30.0, TORCHVISION_9),
}


def each_operation(
    table: tuple[augment.Operation, ...], magnitude: float, largest: float
) -> dict[str, np.ndarray]:
    """For each operation all images after it, in one program."""

    def run(key: jax.Array, images: jax.Array) -> dict[str, jax.Array]:
        return {
            row.name: augment.RandAugment(1, magnitude, largest, operations=(row,)).on_images(
                key, images
            )
            for row in table
        }

    return {name: np.asarray(found) for name, found in jax.jit(run)(KEY, IMAGES).items()}


@pytest.mark.parametrize("table", TABLES)
def test_magnitudes_are_those_of_the_library(table: str):
    rows, largest, expected = TABLES[table]
    assert sorted(row.name for row in rows) == sorted(expected)
    found = each_operation(rows, 9.0, largest)
    for name, (change, values) in expected.items():
        arguments = [(value,) for value in values] or [()]
        wanted = np.array([jax.jit(change)(IMAGES, *a) for a in arguments])
        distance = np.abs(wanted - found[name]).max(axis=(2, 3, 4))
        assert distance.min(axis=0).max() < 2e-5, name
        assert len(values) < 2 or len(set(distance.argmin(axis=0))) == 2, name


def test_nothing_happens_at_magnitude_zero():
    unchanging = {"autocontrast", "equalize", "invert"}
    rows = tuple(row for row in augment.RAND_AUGMENT if row.name not in unchanging)
    for name, found in each_operation(rows, 0.0, 30.0).items():
        np.testing.assert_array_equal(found, IMAGES, name)


def test_wide_shifts_are_in_pixels():
    names = ("translate_x_pixels", "translate_y_pixels")
    rows = tuple(row for row in augment.TRIVIAL_AUGMENT_WIDE if row.name in names)
    found = each_operation(rows, 3.75, 30.0)
    for name, change in zip(names, (augment.translate_x, augment.translate_y), strict=True):
        wanted = np.array([jax.jit(change)(IMAGES, shift) for shift in (4.0, -4.0)])
        assert np.abs(wanted - found[name]).max(axis=(2, 3, 4)).min(axis=0).max() < 1e-5


def test_operations_are_drawn_alike_and_for_each_image():
    # Three operations that leave marks of their own on a grey pixel.
    rows = (
        augment.Operation("brightness", -1.0, -1.0),
        augment.Operation("invert"),
        augment.Operation("solarize_add", 0.125, 0.125),
    )
    grey = jnp.full((6000, 1, 1, 1), 0.25)
    policy = augment.RandAugment(1, probability=0.8, operations=rows)
    found, counts = np.unique(jax.jit(policy.on_images)(KEY, grey), return_counts=True)
    assert found.tolist() == [0.0, 0.25, 0.375, 0.75]
    shares = np.array([0.8 / 3, 0.2, 0.8 / 3, 0.8 / 3])
    assert (np.abs(counts / 6000 - shares) < 4 * np.sqrt(shares * (1 - shares) / 6000)).all()


def test_steps_follow_one_another():
    row = augment.Operation("brightness", 0.5, 0.5)
    grey = jnp.full((2, 2, 2, 3), 0.125)
    found = jax.jit(augment.RandAugment(3, operations=(row,)).on_images)(KEY, grey)
    np.testing.assert_allclose(found, np.full((2, 2, 2, 3), 0.125 * 1.5**3), rtol=1e-6)
    none = augment.RandAugment(0).on_images(KEY, IMAGES)
    np.testing.assert_array_equal(none, IMAGES)


@pytest.mark.parametrize(
    ("deviation", "mean", "spread"),
    [
        (0.0, 0.4, 0.0),
        (1.0, 0.4, 0.1),
        # Uniform from 0 to the magnitude.
        (math.inf, 0.2, 0.4 / math.sqrt(12)),
    ],
)
def test_noise_on_the_magnitude(deviation: float, mean: float, spread: float):
    black = jnp.zeros((4000, 1, 1, 1))
    row = augment.Operation("solarize_add", 0.0, 1.0)
    policy = augment.RandAugment(1, 4.0, 10.0, deviation, operations=(row,))
    found = np.asarray(jax.jit(policy.on_images)(KEY, black)).ravel()
    assert abs(found.mean() - mean) < 4 * spread / np.sqrt(4000) + 1e-6
    assert abs(found.std() - spread) < 0.05 * spread + 1e-6


def test_noise_stays_below_the_largest_magnitude():
    row = augment.Operation("solarize_add", 0.0, 0.25)
    policy = augment.RandAugment(1, 9.0, 10.0, 5.0, operations=(row,))
    found = np.asarray(jax.jit(policy.on_images)(KEY, jnp.zeros((1000, 1, 1, 1))))
    assert found.min() == 0 and found.max() == 0.25


def test_trivial_augment_is_one_operation_of_any_strength():
    policy = augment.trivial_augment(0.5)
    assert (policy.num_ops, policy.probability, policy.fill) == (1, 1.0, 0.5)
    assert math.isinf(policy.magnitude_std) and policy.magnitude == policy.largest
    assert policy.operations == augment.TRIVIAL_AUGMENT_WIDE


@pytest.mark.parametrize(
    ("policy", "channels"),
    [
        (augment.RandAugment(1, 30.0), 1),
        (augment.RandAugment(1, 10.0, 10.0, 5.0, 0.9, augment.RAND_AUGMENT_INCREASING, 0.5), 3),
    ],
)
def test_policies_keep_range_shape_and_dtype(policy: augment.RandAugment, channels: int):
    images = jnp.tile(IMAGES[..., :channels], (20, 1, 1, 1))
    run = jax.jit(policy.on_images)
    found = run(KEY, images)
    assert found.shape == images.shape and found.dtype == jnp.float32
    assert 0 <= float(found.min()) and float(found.max()) <= 1
    np.testing.assert_array_equal(run(KEY, images), found)
    assert not np.array_equal(run(jax.random.key(1), images), found)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"magnitude": 31}, "magnitude from 0 to the largest, found 31 of 30"),
        (
            {"num_ops": -1, "probability": 2.0, "operations": ()},
            "(?s)num_ops of 0 or more.*probability from 0 to 1, found 2.*found none",
        ),
        ({"magnitude_std": float("nan")}, "magnitude_std of 0 or more, found nan"),
    ],
)
def test_wrong_policies_are_refused(fields: dict[str, Any], message: str):
    with pytest.raises(DataError, match=message):
        augment.RandAugment(**fields)
    with pytest.raises(DataError, match="one of rotate, shear_x, .*, found 'colour'"):
        augment.Operation("colour")
