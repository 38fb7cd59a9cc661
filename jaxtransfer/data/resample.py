"""Resize an array on the host exactly as `jax.image.resize` does on the device."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(0, 1 - x)


def _keys_cubic(x: np.ndarray) -> np.ndarray:
    near = ((1.5 * x - 2.5) * x) * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x >= 2, 0, np.where(x >= 1, far, near))


def _lanczos3(x: np.ndarray) -> np.ndarray:
    return np.where(x >= 3, 0, np.sinc(x) * np.sinc(x / 3))


KERNELS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "bilinear": _triangle,
    "bicubic": _keys_cubic,
    "lanczos3": _lanczos3,
}
"""Weights by distance in pixels; bicubic is R. Keys' with a = -1/2, as in Pillow and JAX.

Source: R. Keys, "Cubic convolution interpolation for digital image processing", 1981, equation 15;
https://docs.jax.dev/en/latest/_autosummary/jax.image.resize.html.
"""


def resample(
    image: np.ndarray,
    resized: tuple[int, int],
    corner: tuple[int, int],
    canvas: tuple[int, int],
    interpolation: str,
    antialias: bool,
) -> np.ndarray:
    """Resize an image and cut a rectangle out of the result.

    Args:
        image: shape (height, width, channel), any kind of number.
        resized: (height, width) to resize to.
        corner: (top, left) of the rectangle in the resized image.
        canvas: (height, width) of the rectangle.
        interpolation: "nearest", "bilinear", "bicubic" or "lanczos3".
        antialias: whether the filters are widened to make an image smaller.

    Returns:
        Shape (*canvas, channel); integers are rounded, and floats are as they were.
    """
    dtype = image.dtype
    for axis in (0, 1):
        size, first, length = resized[axis], corner[axis], canvas[axis]
        centres = (np.arange(first, first + length) + 0.5) * (image.shape[axis] / size)
        if interpolation == "nearest":
            image = np.take(image, np.floor(centres).astype(int), axis)
            continue
        weights = _weights(centres, image.shape[axis], size, KERNELS[interpolation], antialias)
        image = np.moveaxis(np.tensordot(weights, image.astype(np.float32), (1, axis)), 0, axis)
    if np.issubdtype(dtype, np.integer):
        image = np.clip(np.round(image), np.iinfo(dtype).min, np.iinfo(dtype).max)
    return image.astype(dtype)


def _weights(
    centres: np.ndarray,
    count: int,
    size: int,
    kernel: Callable[[np.ndarray], np.ndarray],
    antialias: bool,
) -> np.ndarray:
    """What each of `count` pixels adds to each of the pixels with these centres."""
    widening = max(count / size, 1.0) if antialias else 1.0
    distances = np.abs(centres[:, None] - 0.5 - np.arange(count)) / widening
    weights = kernel(distances)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
