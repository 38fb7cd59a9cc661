"""Changes of single values by curves, histograms and neighbours; for any number of channels.

Where a definition counts on 256 values, an image's values are taken for the bytes that they came
from.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxtransfer.data.augment.base import as_images, per_image
from jaxtransfer.data.augment.colour import blend

LEVELS = 256


def invert(images: jax.Array) -> jax.Array:
    """The negative: 1 less each value, float32 in [0, 1]."""
    return 1 - as_images(images)


def solarize(images: jax.Array, threshold: ArrayLike) -> jax.Array:
    """Invert the values from `threshold` on.

    Args:
        images: shape (batch, height, width, channel), float32 in [0, 1].
        threshold: one number, or shape (batch,): 0 inverts all, above 1 nothing.
    """
    return jnp.where(images >= per_image(images, threshold), invert(images), images)


def solarize_add(images: jax.Array, addition: ArrayLike) -> jax.Array:
    """Add to the values of the darker half, up to 1.

    Args:
        images: shape (batch, height, width, channel), float32 in [0, 1].
        addition: one number from 0, or shape (batch,).

    Source: timm's `solarize_add`, with its threshold of 128 of 255.
    """
    added = jnp.minimum(as_images(images) + per_image(images, addition), 1)
    return jnp.where(images < 128 / 255, added, images)


def posterize(images: jax.Array, bits: ArrayLike) -> jax.Array:
    """Keep the first bits of each byte, and clear the others.

    Args:
        images: shape (batch, height, width, channel), float32 in [0, 1].
        bits: one number from 0, or shape (batch,), rounded to whole ones; 8 or more change nothing.

    Source: Pillow's `ImageOps.posterize`.
    """
    kept = jnp.round(per_image(images, bits))
    step = jnp.exp2(8 - kept)
    posterized = jnp.floor(_as_bytes(images) / step) * step / (LEVELS - 1)
    return jnp.where(kept >= 8, images, posterized)


def autocontrast(images: jax.Array) -> jax.Array:
    """Stretch each channel of each image from 0 to 1; a channel of one value stays as it is.

    Source: Pillow's `ImageOps.autocontrast`, torchvision's `autocontrast`.
    """
    low = jnp.min(as_images(images), axis=(1, 2), keepdims=True)
    high = jnp.max(images, axis=(1, 2), keepdims=True)
    stretched = (images - low) / jnp.where(high > low, high - low, 1)
    return jnp.where(high > low, stretched, images)


def equalize(images: jax.Array) -> jax.Array:
    """Make the histogram of each channel of each image as flat as a curve can.

    A channel in which one value prevails stays as it is.

    Source: Pillow's `ImageOps.equalize`, to the byte.
    """
    count, height, width, channels = as_images(images).shape
    levels = _as_bytes(images).astype(jnp.int32).reshape(count, height * width, channels)
    # Each channel has a part of one table for itself.
    places = levels + LEVELS * jnp.arange(channels, dtype=jnp.int32)
    size = channels * LEVELS
    histogram = jax.vmap(
        lambda place: jnp.zeros(size, jnp.int32).at[place].add(1, mode="promise_in_bounds")
    )(places.reshape(count, -1)).reshape(count, channels, LEVELS)
    highest = jnp.max(levels, axis=1)[..., jnp.newaxis]
    others = height * width - jnp.take_along_axis(histogram, highest, axis=-1)
    step = others // (LEVELS - 1)
    below = jnp.cumsum(histogram, axis=-1) - histogram
    curve = jnp.clip((below + step // 2) // jnp.maximum(step, 1), 0, LEVELS - 1)
    curve = curve.astype(jnp.float32).reshape(count, size) / (LEVELS - 1)
    equalized = jax.vmap(lambda table, place: table.at[place].get(mode="promise_in_bounds"))(
        curve, places
    )
    is_spread = jnp.moveaxis(step, 1, 2)[:, jnp.newaxis] > 0
    return jnp.where(is_spread, equalized.reshape(images.shape), images)


def _as_bytes(images: jax.Array) -> jax.Array:
    """Whole numbers from 0 to 255 as float32; a multiple of 1/255 gives its multiplier."""
    return jnp.clip(jnp.round(as_images(images) * (LEVELS - 1)), 0, LEVELS - 1)


def adjust_sharpness(images: jax.Array, factor: ArrayLike) -> jax.Array:
    """Away from the smoothed image, or for a factor below 1 towards it; its rim stays as it is.

    Args:
        images: shape (batch, height, width, channel), float32 in [0, 1].
        factor: one number from 0, or shape (batch,): 0 is smooth, 1 changes nothing.

    Source: Pillow's `ImageEnhance.Sharpness` with `ImageFilter.SMOOTH`: 5/13 of each value and 1/13
    of each of its eight neighbours.
    """
    height, width = as_images(images).shape[1:3]
    if min(height, width) < 3:
        return images
    rows = images[:, :-2] + images[:, 1:-1] + images[:, 2:]
    around = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    smooth = (around + 4 * images[:, 1:-1, 1:-1]) / 13
    return blend(images.at[:, 1:-1, 1:-1].set(smooth), images, per_image(images, factor))
