"""Bring images into the form that a network was trained on; runs on the device, inside jit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxtransfer.errors import DataError
from jaxtransfer.models import AS_THEY_COME, Preprocess
from jaxtransfer.surgery.stem import LUMA

INTERPOLATIONS = {
    "nearest": "nearest",
    "bilinear": "linear",
    "bicubic": "cubic",
    "lanczos3": "lanczos3",
}


def check_images(images: np.ndarray, how: Preprocess) -> np.ndarray:
    """Images as an array of shape (batch, height, width, channel) for `preprocess_images`.

    A missing channel axis is added where `how` asks for images of a certain size or channel count.

    Args:
        images: integers, or floats that lie in [0, 1] if `how` scales.
        how: what the network expects.

    Raises:
        DataError: the shape is not that of a batch of images, the channels cannot be converted,
            numbers lie outside the range that `how` scales, the interpolation is unknown, or
            `how` has a mean or deviation for another number of channels.
    """
    images = np.asarray(images)
    if how.size is not None or how.channels is not None:
        images = _with_channels(images, how)
    _check_how(how, images.shape[-1] if images.ndim else 0)
    if how.scale is not None and images.size:
        _check_range(images, how.scale)
    return images


def _with_channels(images: np.ndarray, how: Preprocess) -> np.ndarray:
    """The images with a channel axis, if their channels are those wanted or can be converted."""
    shape, wanted = images.shape, how.channels
    is_single = images.ndim == 3 and shape[-1] in (1, 3, 4)
    if images.ndim == 3 and not is_single:
        images = images[..., np.newaxis]
    found = images.shape[-1] if images.ndim == 4 else None
    if found is None or not (wanted is None or found in (1, 3)):
        raise DataError(
            "images: expected shape (batch, height, width, channel) with "
            f"{'any' if wanted is None else '1 or 3'} channels, found {shape}; add a batch axis to "
            "a single image, move channels last, drop alpha"
        )
    return images


def _check_how(how: Preprocess, found: int) -> None:
    """Raise unless the steps can be carried out on images of `found` channels."""
    channels = how.channels if how.channels is not None else found
    problems = []
    if how.interpolation not in INTERPOLATIONS:
        known = ", ".join(INTERPOLATIONS)
        problems.append(f"an interpolation among {known}, found {how.interpolation!r}")
    for name, values in (("mean", how.mean), ("std", how.std)):
        if len(values) not in (1, channels):
            problems.append(f"a {name} for each of {channels} channels, or one, found {values}")
    if problems:
        raise DataError(f"preprocess: expected {'; '.join(problems)}")


def _check_range(images: np.ndarray, scale: float) -> None:
    """Raise where floats are not in [0, 1], and integers not in the range that `scale` is for."""
    low, high = float(images.min()), float(images.max())
    if jnp.issubdtype(images.dtype, jnp.inexact):
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # NaN fails too
            raise DataError(
                f"images: expected floats in [0, 1], found [{low:g}, {high:g}]; divide them by "
                f"their largest possible value, or give integers, which are divided by {scale:g}"
            )
    elif low < 0 or high > max(scale, 255):
        raise DataError(
            f"images: expected integers from 0 to {max(scale, 255):g}, found [{low:g}, {high:g}]; "
            "divide them by their largest possible value"
        )


def preprocess_images(images: jax.Array, how: Preprocess) -> jax.Array:
    """Scale, resize, crop, convert channels and normalise, as `Preprocess` describes.

    Args:
        images: shape (batch, height, width, channel), integers or floats, as `check_images` gives.
        how: what the network expects.

    Returns:
        float32, shape (batch, *how.size, how.channels); the very images, of whatever shape and
        dtype, if nothing is asked, so that other inputs than images can enter a network.
    """
    if how == AS_THEY_COME:
        return images
    is_integer = jnp.issubdtype(images.dtype, jnp.integer) or images.dtype == jnp.bool_
    images = images.astype(jnp.float32)
    if is_integer and how.scale is not None:
        images = images / jnp.float32(how.scale)
    if how.size is not None:
        images = _resize_and_crop(images, how.size, how)
    if how.channels is not None:
        images = _convert_channels(images, how.channels)
    if how.channel_order == "bgr":
        images = images[..., ::-1]
    if any(how.mean) or any(value != 1 for value in how.std):
        images = (images - jnp.asarray(how.mean, jnp.float32)) / jnp.asarray(how.std, jnp.float32)
    return images


def _resize_and_crop(images: jax.Array, size: tuple[int, int], how: Preprocess) -> jax.Array:
    """Resize so that the images cover what is wanted, keep the aspect, and cut out the centre."""
    height, width = images.shape[1:3]
    wanted_height, wanted_width = size
    ratio = max(wanted_height / height, wanted_width / width) / how.crop_fraction
    resized = (max(round(height * ratio), wanted_height), max(round(width * ratio), wanted_width))
    if resized != (height, width):
        shape = (images.shape[0], *resized, images.shape[3])
        method = INTERPOLATIONS[how.interpolation]
        images = jax.image.resize(images, shape, method, antialias=how.antialias)
    top, left = (resized[0] - wanted_height) // 2, (resized[1] - wanted_width) // 2
    return images[:, top : top + wanted_height, left : left + wanted_width, :]


def _convert_channels(images: jax.Array, channels: int) -> jax.Array:
    found = images.shape[-1]
    if found == channels:
        return images
    if found == 1:
        return jnp.repeat(images, channels, axis=-1)
    return jnp.sum(images * jnp.asarray(LUMA, jnp.float32)[0], axis=-1, keepdims=True)
