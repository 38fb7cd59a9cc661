"""Bring images into the form that a network was trained on; runs on the device, inside jit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxtransfer.errors import DataError
from jaxtransfer.models import Preprocess

INTERPOLATIONS = {
    "nearest": "nearest",
    "bilinear": "linear",
    "bicubic": "cubic",
    "lanczos3": "lanczos3",
}

# Weights of red, green and blue in the luma of ITU-R BT.601, section 2.5.1.
LUMA_WEIGHTS = (0.299, 0.587, 0.114)


def check_images(images: np.ndarray, how: Preprocess) -> np.ndarray:
    """Images as an array of shape (batch, height, width, channel) that `preprocess_images` can take.

    A missing channel axis is added where `how` asks for images of a certain size or channel count.

    Args:
        images: integers, or floats that lie in [0, 1] if `how` scales.
        how: what the network expects.

    Raises:
        DataError: the shape is not that of a batch of images, the channels cannot be converted, the
            interpolation is unknown, or floats lie outside [0, 1] where `how` scales.
    """
    images = np.asarray(images)
    is_image = how.size is not None or how.channels is not None
    if is_image and images.ndim == 3:
        images = images[..., np.newaxis]
    if is_image and (images.ndim != 4 or images.shape[-1] not in (1, 3)):
        raise DataError(
            "images: expected shape (batch, height, width, channel) with 1 or 3 channels, found "
            f"{images.shape}; add a batch axis to a single image, move channels last, drop alpha"
        )
    if how.interpolation not in INTERPOLATIONS:
        raise DataError(
            f"preprocess: expected an interpolation among {', '.join(INTERPOLATIONS)}, found "
            f"{how.interpolation!r}"
        )
    if how.scale is not None and images.size and np.issubdtype(images.dtype, np.floating):
        low, high = float(images.min()), float(images.max())
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # NaN fails too
            raise DataError(
                f"images: expected floats in [0, 1], found [{low:g}, {high:g}]; divide them by their "
                f"largest possible value, or give integers, which are divided by {how.scale:g}"
            )
    return images


def preprocess_images(images: jax.Array, how: Preprocess) -> jax.Array:
    """Scale, resize, crop, convert channels and normalise, as `Preprocess` describes.

    Args:
        images: shape (batch, height, width, channel), integers or floats, as `check_images` gives.
        how: what the network expects.

    Returns:
        float32, shape (batch, *how.size, how.channels); floats keep their dtype if nothing is asked.
    """
    is_integer = jnp.issubdtype(images.dtype, jnp.integer) or images.dtype == jnp.bool_
    images = images.astype(jnp.float32)
    if is_integer and how.scale is not None:
        images = images / jnp.float32(how.scale)
    if how.size is not None:
        images = _resize_and_crop(images, how)
    if how.channels is not None:
        images = _convert_channels(images, how.channels)
    if how.channel_order == "bgr":
        images = images[..., ::-1]
    if any(how.mean) or any(value != 1 for value in how.std):
        images = (images - jnp.asarray(how.mean, jnp.float32)) / jnp.asarray(how.std, jnp.float32)
    return images


def _resize_and_crop(images: jax.Array, how: Preprocess) -> jax.Array:
    """Resize so that the short side covers the wanted size, keep the aspect, and cut out the centre."""
    assert how.size is not None
    height, width = images.shape[1:3]
    wanted_height, wanted_width = how.size
    ratio = max(wanted_height / height, wanted_width / width) / how.crop_fraction
    resized = (max(round(height * ratio), wanted_height), max(round(width * ratio), wanted_width))
    if resized != (height, width):
        shape = (images.shape[0], *resized, images.shape[3])
        images = jax.image.resize(images, shape, INTERPOLATIONS[how.interpolation])
    top, left = (resized[0] - wanted_height) // 2, (resized[1] - wanted_width) // 2
    return images[:, top : top + wanted_height, left : left + wanted_width, :]


def _convert_channels(images: jax.Array, channels: int) -> jax.Array:
    found = images.shape[-1]
    if found == channels:
        return images
    if found == 1:
        return jnp.repeat(images, channels, axis=-1)
    return jnp.sum(images * jnp.asarray(LUMA_WEIGHTS, jnp.float32), axis=-1, keepdims=True)
