"""Rotation, shear and translation: each image through an affine map of its own."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxtransfer.data.augment.base import (
    ImageAugment,
    as_images,
    per_image,
    range_rule,
    require,
    size_of,
)

Fill = float | tuple[float, ...]
ROUNDING = 1e-4  # pixels, many times what float32 is off by in an image of thousands


def affine(images: jax.Array, matrices: ArrayLike, fill: Fill = 0.0) -> jax.Array:
    """Each image through an affine map, bilinear; as Pillow's `Image.transform` with `AFFINE`.

    Args:
        images: shape (batch, height, width, channel), float32 in [0, 1].
        matrices: shape (2, 3) or (batch, 2, 3): from (x, y, 1) of a place in the result to (x, y)
            of that place in the image, in pixels from the top left corner, x to the right.
        fill: what places from outside the image hold, one number or one for each channel.

    Returns:
        Shape as `images`.

    Raises:
        DataError: an argument has the wrong shape.
    """
    images = as_images(images)
    count, height, width, channels = images.shape
    matrices = jnp.asarray(matrices, jnp.float32)
    colour = jnp.asarray(fill, jnp.float32)
    require(
        "affine",
        (
            matrices.shape in ((2, 3), (count, 2, 3)),
            f"matrices of shape (2, 3) or ({count}, 2, 3), found {matrices.shape}",
        ),
        (
            colour.shape in ((), (1,), (channels,)),
            f"one fill, or one for each of {channels} channels, found {fill}",
        ),
    )
    matrices = jnp.broadcast_to(matrices, (count, 2, 3))[:, :, :, jnp.newaxis, jnp.newaxis]
    x = jnp.arange(width, dtype=jnp.float32) + 0.5
    y = jnp.arange(height, dtype=jnp.float32)[:, jnp.newaxis] + 0.5
    column, row = (m[:, 0] * x + m[:, 1] * y + m[:, 2] for m in (matrices[:, 0], matrices[:, 1]))
    # A right angle puts pixels on the very rim; rounding must not decide which of them are inside.
    x, y = column + ROUNDING, row + ROUNDING
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    sampled = _bilinear(images, row - 0.5, column - 0.5)
    return jnp.where(inside[..., jnp.newaxis], sampled, colour)


def _bilinear(images: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
    """Values between pixel centres, from positions (batch, height, width); edges go on outside."""
    count, height, width, channels = images.shape
    pixels = images.reshape(count, height * width, channels)
    top, left = jnp.floor(row), jnp.floor(column)
    down, right = (row - top)[..., jnp.newaxis], (column - left)[..., jnp.newaxis]

    def at(row: jax.Array, column: jax.Array) -> jax.Array:
        index = jnp.clip(row, 0, height - 1) * width + jnp.clip(column, 0, width - 1)
        index = index.astype(jnp.int32).reshape(count, -1)
        found = jax.vmap(lambda image, i: image.at[i].get(mode="promise_in_bounds"))(pixels, index)
        return found.reshape(*row.shape, channels)

    def between(one: jax.Array, other: jax.Array, share: jax.Array) -> jax.Array:
        return one + share * (other - one)  # never beyond 0 or 1, as two products might add up to

    upper = between(at(top, left), at(top, left + 1), right)
    lower = between(at(top + 1, left), at(top + 1, left + 1), right)
    return between(upper, lower, down)


def affine_matrices(
    size: tuple[int, int],
    degrees: ArrayLike = 0.0,
    translate: tuple[ArrayLike, ArrayLike] = (0.0, 0.0),
    scale: ArrayLike = 1.0,
    shear: ArrayLike = 0.0,
) -> jax.Array:
    """Matrices for `affine` that shear, scale and rotate about the centre, then translate.

    Args:
        size: height and width of the images.
        degrees: counter-clockwise.
        translate: pixels to the right and down.
        scale: above 1 enlarges.
        shear: degrees by which what is upright leans, parallel to the x axis.

    Returns:
        Shape (2, 3), or (batch, 2, 3) where arguments are of shape (batch,).
    """
    numbers = (degrees, *translate, scale, shear)
    turn, right, down, factor, lean = jnp.broadcast_arrays(
        *(jnp.asarray(number, jnp.float32) for number in numbers)
    )
    turn, slope = jnp.deg2rad(turn), jnp.tan(jnp.deg2rad(lean))
    # The inverse: back by the translation, then the rotation, the shear and the scale undone.
    cos, sin = jnp.cos(turn) / factor, jnp.sin(turn) / factor
    xx, xy, yx, yy = cos + slope * sin, slope * cos - sin, sin, cos
    centre_y, centre_x = size[0] / 2, size[1] / 2
    x, y = -centre_x - right, -centre_y - down
    rows = ((xx, xy, xx * x + xy * y + centre_x), (yx, yy, yx * x + yy * y + centre_y))
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def rotate(images: jax.Array, degrees: ArrayLike, fill: Fill = 0.0) -> jax.Array:
    """Rotate counter-clockwise about the centre, as Pillow's `Image.rotate`.

    Args:
        images: shape (batch, height, width, channel), float32 in [0, 1].
        degrees: one number, or shape (batch,).
        fill: as for `affine`.
    """
    degrees = per_image(images, degrees).reshape(-1)
    matrices = affine_matrices(size_of(images), jnp.broadcast_to(degrees, len(images)))
    return affine(images, matrices, fill)


def shear_x(images: jax.Array, factor: ArrayLike, fill: Fill = 0.0) -> jax.Array:
    """Shift each row to the left by `factor` times its distance from the top.

    Args:
        images: shape (batch, height, width, channel), float32 in [0, 1].
        factor: one number, or shape (batch,).
        fill: as for `affine`.
    """
    return affine(images, shear_matrices(_each(images, factor), 0.0), fill)


def shear_y(images: jax.Array, factor: ArrayLike, fill: Fill = 0.0) -> jax.Array:
    """Shift each column up by `factor` times its distance from the left.

    Args:
        images: shape (batch, height, width, channel), float32 in [0, 1].
        factor: one number, or shape (batch,).
        fill: as for `affine`.
    """
    return affine(images, shear_matrices(0.0, _each(images, factor)), fill)


def translate_x(images: jax.Array, pixels: ArrayLike, fill: Fill = 0.0) -> jax.Array:
    """Shift to the right.

    Args:
        images: shape (batch, height, width, channel), float32 in [0, 1].
        pixels: one number, or shape (batch,).
        fill: as for `affine`.
    """
    matrices = affine_matrices(size_of(images), translate=(_each(images, pixels), 0.0))
    return affine(images, matrices, fill)


def translate_y(images: jax.Array, pixels: ArrayLike, fill: Fill = 0.0) -> jax.Array:
    """Shift down.

    Args:
        images: shape (batch, height, width, channel), float32 in [0, 1].
        pixels: one number, or shape (batch,).
        fill: as for `affine`.
    """
    matrices = affine_matrices(size_of(images), translate=(0.0, _each(images, pixels)))
    return affine(images, matrices, fill)


def shear_matrices(along_x: ArrayLike, along_y: ArrayLike) -> jax.Array:
    """Matrices for `affine` that shear and leave the top left corner in its place."""
    x, y = jnp.broadcast_arrays(
        jnp.asarray(along_x, jnp.float32), jnp.asarray(along_y, jnp.float32)
    )
    one, zero = jnp.ones_like(x), jnp.zeros_like(x)
    rows = ((one, x, zero), (y, one, zero))
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def _each(images: jax.Array, value: ArrayLike) -> jax.Array:
    return jnp.broadcast_to(per_image(images, value).reshape(-1), len(images))


@dataclass(frozen=True)
class RandomAffine(ImageAugment):
    """A random rotation, translation, scale and shear of each image, bilinear.

    Attributes:
        degrees: bound of the rotation, to either side.
        translate: bounds of the shift in x and y, as shares of width and height.
        scale: bounds of the factor of size.
        shear: bound of the shear parallel to the x axis, in degrees.
        fill: what comes in from outside, one number or one for each channel.

    Source: torchvision's `RandomAffine`, whose shifts are whole pixels, for the law.

    Raises:
        DataError: a number is out of range.
    """

    degrees: float
    translate: tuple[float, float] = (0.0, 0.0)
    scale: tuple[float, float] = (1.0, 1.0)
    shear: float = 0.0
    fill: Fill = 0.0

    def __post_init__(self) -> None:
        require(
            "RandomAffine",
            (0 <= self.degrees <= 180, f"degrees from 0 to 180, found {self.degrees}"),
            (
                len(self.translate) == 2 and all(0 <= share <= 1 for share in self.translate),
                f"translate of two shares from 0 to 1, found {self.translate}",
            ),
            range_rule("scale", self.scale),
            (0 <= self.shear < 90, f"shear from 0, below 90 degrees, found {self.shear}"),
        )

    def on_images(self, key: jax.Array, images: jax.Array) -> jax.Array:
        """Shape as `images`."""
        count, (height, width) = len(images), size_of(images)
        signed = jax.random.uniform(key, (5, count), jnp.float32, -1, 1)
        low, high = self.scale
        matrices = affine_matrices(
            (height, width),
            self.degrees * signed[0],
            (self.translate[0] * width * signed[1], self.translate[1] * height * signed[2]),
            low + (high - low) * (signed[3] + 1) / 2,
            self.shear * signed[4],
        )
        return affine(images, matrices, self.fill)


@dataclass(frozen=True)
class RandomRotation(ImageAugment):
    """A random rotation of each image about its centre, bilinear.

    Attributes:
        degrees: bound, to either side.
        fill: what comes in from outside, one number or one for each channel.

    Raises:
        DataError: a number is out of range.
    """

    degrees: float
    fill: Fill = 0.0

    def __post_init__(self) -> None:
        require(
            "RandomRotation",
            (0 <= self.degrees <= 180, f"degrees from 0 to 180, found {self.degrees}"),
        )

    def on_images(self, key: jax.Array, images: jax.Array) -> jax.Array:
        """Shape as `images`."""
        degrees = jax.random.uniform(key, (len(images),), jnp.float32, -1, 1) * self.degrees
        return rotate(images, degrees, self.fill)
