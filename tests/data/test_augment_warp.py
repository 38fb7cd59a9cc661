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
from jaxtransfer.errors import DataError

KEY = jax.random.key(0)
PHOTOS = np.random.default_rng(5).random((2, 13, 18, 2), np.float32)
IMAGES = jnp.asarray(PHOTOS)
FILL = 0.25
rotate, affine = jax.jit(augment.rotate), jax.jit(augment.affine)
affine_matrices = jax.jit(augment.affine_matrices, static_argnums=0)
BILINEAR = Image.Resampling.BILINEAR


def with_pillow(change: Any) -> np.ndarray:
    """Each channel of each photo changed by Pillow, in floats."""
    changed = [[np.asarray(change(Image.fromarray(i[..., c]))) for c in range(2)] for i in PHOTOS]
    return np.moveaxis(np.array(changed), 1, -1)


def pillow_affine(*numbers: float) -> np.ndarray:
    return with_pillow(
        lambda image: image.transform(
            image.size, Image.Transform.AFFINE, numbers, BILINEAR, fillcolor=FILL
        )
    )


@pytest.mark.parametrize("degrees", [0.0, 17.0, -30.0, 90.0, 135.5])
def test_rotation_is_pillows(degrees: float):
    expected = with_pillow(lambda image: image.rotate(degrees, BILINEAR, fillcolor=FILL))
    found = np.asarray(rotate(IMAGES, degrees, FILL))
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("change", "value", "numbers"),
    [
        (augment.shear_x, 0.3, (1, 0.3, 0, 0, 1, 0)),
        (augment.shear_y, -0.27, (1, 0, 0, -0.27, 1, 0)),
        (augment.translate_x, 3.3, (1, 0, -3.3, 0, 1, 0)),
        (augment.translate_y, -5.0, (1, 0, 0, 0, 1, 5.0)),
    ],
)
def test_shears_and_shifts_are_pillows(change: Any, value: float, numbers: Any):
    expected = pillow_affine(*numbers)
    np.testing.assert_allclose(jax.jit(change)(IMAGES, value, FILL), expected, rtol=0, atol=2e-5)


def test_any_affine_map_is_pillows():
    matrix = np.array([[0.9, 0.31, -2.13], [-0.2, 1.24, 0.57]])
    expected = pillow_affine(*matrix.ravel())
    np.testing.assert_allclose(affine(IMAGES, matrix, FILL), expected, rtol=0, atol=2e-5)


def test_matrices_scale_shear_turn_and_shift_a_point_in_this_order():
    # A point of the image, seen from the centre, y down; where it must be found in the result.
    point = np.array([2.0, -1.0])
    lean, turn = np.deg2rad(25), np.deg2rad(40)
    shear = np.array([[1, -np.tan(lean)], [0, 1]])
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    place = rotation @ shear @ (1.5 * point) + (0.75, -0.5) + (9, 6.5)
    matrix = np.asarray(affine_matrices((13, 18), 40.0, (0.75, -0.5), 1.5, 25.0))
    np.testing.assert_allclose(matrix @ [*place, 1], point + (9, 6.5), rtol=0, atol=1e-5)


def test_each_image_has_its_own_value_and_channels_their_own_fill():
    found = np.asarray(augment.translate_x(IMAGES, jnp.array([18.0, 0.0]), (0.125, 0.5)))
    np.testing.assert_array_equal(found[0, ..., 0], np.full((13, 18), 0.125))
    np.testing.assert_array_equal(found[0, ..., 1], np.full((13, 18), 0.5))
    np.testing.assert_array_equal(found[1], PHOTOS[1])


@pytest.mark.parametrize(
    "change",
    [
        augment.rotate,
        augment.shear_x,
        augment.shear_y,
        augment.translate_x,
        augment.translate_y,
        lambda images, _: augment.RandomAffine(0.0).on_images(KEY, images),
        lambda images, _: augment.RandomRotation(0.0).on_images(KEY, images),
    ],
)
def test_nothing_changes_nothing(change: Any):
    np.testing.assert_array_equal(jax.jit(change)(IMAGES, 0.0), PHOTOS)


def test_random_rotation_draws_within_its_bound():
    # The direction in which a bright spot to the right of the centre is found.
    spot = jnp.zeros((1000, 21, 21, 1)).at[:, 10, 18].set(1.0)
    found = np.asarray(jax.jit(augment.RandomRotation(40.0).on_images)(KEY, spot))[..., 0]
    y, x = np.mgrid[10:-11:-1, -10:11]
    degrees = np.rad2deg(np.arctan2((found * y).sum((1, 2)), (found * x).sum((1, 2))))
    assert -40.5 < degrees.min() < -38 and 38 < degrees.max() < 40.5
    assert abs(degrees.mean()) < 4 * 80 / np.sqrt(12 * 1000)


def test_random_affine_draws_within_its_bounds():
    pixel = jnp.zeros((1000, 20, 40, 1)).at[:, 9:11, 19:21].set(1.0)
    found = np.asarray(
        jax.jit(augment.RandomAffine(0.0, (0.25, 0.1), (0.5, 2.0)).on_images)(KEY, pixel)
    )
    mass = found[..., 0].sum(axis=(1, 2))
    x = (found[..., 0] * (np.arange(40) - 19.5)).sum(axis=(1, 2)) / mass
    y = (found[..., 0] * (np.arange(20) - 9.5)[:, None]).sum(axis=(1, 2)) / mass
    assert -10.3 < x.min() < -9.5 and 9.5 < x.max() < 10.3
    assert -2.3 < y.min() < -1.8 and 1.8 < y.max() < 2.3
    assert abs(x.mean()) < 4 * 20 / np.sqrt(12 * 1000)
    # The spot's mass is the square of its scale, whose mean over 0.5 to 2 is 1.75.
    assert abs(mass.mean() / 4 - 1.75) < 0.2


def test_shear_is_drawn_within_its_bound():
    line = jnp.zeros((500, 21, 21, 1)).at[:, :, 10].set(1.0)
    found = np.asarray(jax.jit(augment.RandomAffine(0.0, shear=20.0).on_images)(KEY, line))[..., 0]
    columns = (found * np.arange(21)).sum(axis=2) / found.sum(axis=2)
    degrees = np.rad2deg(np.arctan((columns[:, 0] - columns[:, -1]) / 20))
    assert -20.1 < degrees.min() < -19 and 19 < degrees.max() < 20.1


@given(
    st.integers(0, 2**31),
    st.floats(-180, 180, width=32),
    st.floats(-9, 9, width=32),
    st.floats(0.125, 3, width=32),
    st.floats(-80, 80, width=32),
    st.sampled_from([1, 5]),
)
def test_warps_keep_range_shape_and_dtype(
    seed: int, degrees: float, shift: float, scale: float, shear: float, channels: int
):
    rng = np.random.default_rng(seed)
    images = jnp.asarray(rng.random((2, 5, 7, channels)), jnp.float32)
    images = images.at[1].set(images[1].round())  # the ends of the range
    matrices = affine_matrices((5, 7), degrees, (shift, -shift), scale, shear)
    found = affine(images, matrices, 1.0)
    assert found.shape == images.shape and found.dtype == jnp.float32
    assert 0 <= float(found.min()) and float(found.max()) <= 1


def test_wrong_warps_are_refused():
    with pytest.raises(DataError, match=r"(?s)\(2, 2, 3\), found \(3, 3\).*2 channels, found \(0,"):
        augment.affine(IMAGES, np.eye(3), (0, 0, 0))
    with pytest.raises(DataError, match="(?s)degrees from 0.*two shares.*a scale.*below 90"):
        augment.RandomAffine(-1, (2, 0), (0, 1), 90)
    with pytest.raises(DataError, match="degrees from 0 to 180, found 181"):
        augment.RandomRotation(181)
