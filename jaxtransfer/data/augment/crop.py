"""Crops and flips."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxtransfer.data.augment.base import (
    ImageAugment,
    as_images,
    as_size,
    drawn,
    probability_rule,
    range_rule,
    require,
    size_of,
)

Interpolation = Literal["bilinear", "bicubic"]
ATTEMPTS = 10  # torchvision, `RandomResizedCrop.make_params`; timm, `RandomErasing`


def _triangle(distance: jax.Array) -> jax.Array:
    return jnp.maximum(1 - distance, 0)


def _cubic(distance: jax.Array) -> jax.Array:
    """Keys 1981, "Cubic convolution interpolation", equation 15: a = -1/2, as Pillow has it."""
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return jnp.where(distance < 1, near, jnp.where(distance < 2, far, 0))


KERNELS: Mapping[str, Callable[[jax.Array], jax.Array]] = MappingProxyType(
    {"bilinear": _triangle, "bicubic": _cubic}
)


def resized_crop(
    images: jax.Array,
    boxes: ArrayLike,
    size: int | tuple[int, int],
    interpolation: Interpolation = "bilinear",
) -> jax.Array:
    """Cut a box out of each image and resize it, as Pillow does; shrinking is antialiased.

    Both axes are resampled by one matrix product each, so nothing is gathered and every batch is
    one program. What lies outside of a box has no influence.

    Args:
        images: shape (batch, height, width, channel), float32 in [0, 1].
        boxes: shape (4,) or (batch, 4): top, left, height and width in pixels.
        size: side of the results, or height and width.
        interpolation: bicubic results are clipped to [0, 1].

    Returns:
        Shape (batch, *size, channel).

    Raises:
        DataError: `images`, `boxes` or `size` have the wrong shape, or the interpolation is
            unknown.
    """
    images, (height, width) = as_images(images), as_size(size)
    boxes = jnp.asarray(boxes, jnp.float32)
    require(
        "resized_crop",
        (
            boxes.shape in ((4,), (len(images), 4)),
            f"boxes of shape (4,) or ({len(images)}, 4), found {boxes.shape}",
        ),
        (interpolation in KERNELS, f"one of {', '.join(KERNELS)}, found {interpolation!r}"),
    )
    top, left, rows, columns = jnp.broadcast_to(boxes, (len(images), 4)).T
    kernel = KERNELS[interpolation]
    for_rows = _resampling(top, rows, images.shape[1], height, kernel)
    for_columns = _resampling(left, columns, images.shape[2], width, kernel)
    # Full precision: accelerators would round to bfloat16 or TF32, which photos show.
    resized = jnp.einsum("bih,bhwc->biwc", for_rows, images, precision="highest")
    resized = jnp.einsum("bjw,biwc->bijc", for_columns, resized, precision="highest")
    # Weights are rounded, so their sums are 1 only nearly.
    return jnp.clip(resized, 0, 1)


def _resampling(
    start: jax.Array,
    length: jax.Array,
    size: int,
    wanted: int,
    kernel: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """Matrices (batch, wanted, size) that resample `length` pixels from `start` on.

    As Pillow's `precompute_coeffs` (src/libImaging/Resample.c): to shrink, the kernel is widened.
    """
    start, length = start[:, jnp.newaxis, jnp.newaxis], length[:, jnp.newaxis, jnp.newaxis]
    step = length / wanted
    centres = start + (jnp.arange(wanted, dtype=jnp.float32)[:, jnp.newaxis] + 0.5) * step
    pixels = jnp.arange(size, dtype=jnp.float32) + 0.5
    # Closed at one end, so that a box of one pixel always holds the centre of one.
    inside = (pixels >= start) & (pixels < start + length)
    weights = kernel(jnp.abs(pixels - centres) / jnp.maximum(step, 1))
    weights = jnp.where(inside, weights, 0)
    return weights / jnp.sum(weights, axis=-1, keepdims=True)


def random_boxes(
    key: jax.Array,
    count: int,
    image: tuple[int, int],
    largest: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    fallback: tuple[int, int],
) -> jax.Array:
    """Boxes of uniform area and log-uniform aspect, the first of ten draws that fits.

    Args:
        key: the same key gives the same boxes.
        count: how many.
        image: height and width of what they lie in.
        largest: the most that a box may be high and wide.
        scale: bounds of the area, as shares of the image.
        ratio: bounds of width over height.
        fallback: height and width of the centred box where no draw fits.

    Returns:
        Shape (count, 4), float32 of whole pixels: top, left, height, width.
    """
    area_key, ratio_key, place_key = jax.random.split(key, 3)
    draws = (ATTEMPTS, count)
    area = (
        image[0] * image[1] * jax.random.uniform(area_key, draws, jnp.float32, *map(float, scale))
    )
    log_ratio = jax.random.uniform(ratio_key, draws, jnp.float32, *map(math.log, ratio))
    heights = jnp.round(jnp.sqrt(area / jnp.exp(log_ratio)))
    widths = jnp.round(jnp.sqrt(area * jnp.exp(log_ratio)))
    fits = (heights > 0) & (heights <= largest[0]) & (widths > 0) & (widths <= largest[1])
    first = jnp.argmax(fits, axis=0, keepdims=True)
    found = jnp.any(fits, axis=0)
    sides, corners = [], []
    shares = jax.random.uniform(place_key, (2, count), jnp.float32)
    for lengths, share, side, other in zip((heights, widths), shares, image, fallback, strict=True):
        length = jnp.where(found, jnp.take_along_axis(lengths, first, axis=0)[0], other)
        # A share just below 1 may round up to a corner that is one too far.
        corner = jnp.minimum(jnp.floor(share * (side - length + 1)), side - length)
        corners.append(jnp.where(found, corner, (side - other) // 2))
        sides.append(length)
    return jnp.stack([*corners, *sides], axis=-1)


@dataclass(frozen=True)
class RandomResizedCrop(ImageAugment):
    """A random part of each image, resized to one size.

    Area and aspect of the part are drawn up to ten times until it fits into the image; else it is
    the centre, cut to the nearest aspect allowed.

    Attributes:
        size: side of the results, or height and width.
        scale: bounds of the part's area, as shares of the image's.
        ratio: bounds of its width over its height, log-uniform.
        interpolation: how it is resized.

    Source: Szegedy et al. 2015, "Going deeper with convolutions" (arXiv 1409.4842), section 6, for
    the law; torchvision's `RandomResizedCrop` for rounding, draws and defaults.

    Raises:
        DataError: a number is out of range, or the interpolation unknown.
    """

    size: int | tuple[int, int]
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", as_size(self.size))
        require(
            "RandomResizedCrop",
            range_rule("scale", self.scale),
            (self.scale[-1] <= 1, f"a scale up to 1, found {self.scale}"),
            range_rule("ratio", self.ratio),
            (
                self.interpolation in KERNELS,
                f"an interpolation among {', '.join(KERNELS)}, found {self.interpolation!r}",
            ),
        )

    def on_images(self, key: jax.Array, images: jax.Array) -> jax.Array:
        """Shape (batch, *size, channel)."""
        shape = size_of(images)
        fallback = self._fallback(shape)
        boxes = random_boxes(key, len(images), shape, shape, self.scale, self.ratio, fallback)
        return resized_crop(images, boxes, self.size, self.interpolation)

    def box(
        self, generator: np.random.Generator, image: tuple[int, int]
    ) -> tuple[int, int, int, int]:
        """A part for one image on the host, by the same law: top, left, height and width in pixels.

        Args:
            generator: draws it.
            image: height and width.
        """
        for _ in range(ATTEMPTS):
            area = image[0] * image[1] * generator.uniform(*self.scale)
            aspect = math.exp(generator.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            height, width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
            if 0 < height <= image[0] and 0 < width <= image[1]:
                top, left = (
                    int(generator.integers(side - part + 1))
                    for side, part in zip(image, (height, width), strict=True)
                )
                return top, left, height, width
        height, width = self._fallback(image)
        return (image[0] - height) // 2, (image[1] - width) // 2, height, width

    def _fallback(self, image: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the centre, cut to the nearest aspect allowed."""
        low, high = self.ratio
        return min(image[0], round(image[1] / low)), min(image[1], round(image[0] * high))


@dataclass(frozen=True)
class RandomCrop(ImageAugment):
    """A random part of each padded image, at its own resolution.

    Attributes:
        size: side of the results, or height and width.
        padding: how many pixels are added on each side before.
        fill: what they hold.

    Source: He et al. 2016, "Deep Residual Learning for Image Recognition" (arXiv 1512.03385),
    section 4.2: 4 pixels, zeros, for CIFAR's 32 x 32.

    Raises:
        DataError: a number is out of range; when it runs, the padded images are smaller than size.
    """

    size: int | tuple[int, int]
    padding: int = 4
    fill: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", as_size(self.size))
        require(
            "RandomCrop",
            (self.padding >= 0, f"a padding of 0 or more, found {self.padding}"),
            (0 <= self.fill <= 1, f"a fill from 0 to 1, found {self.fill}"),
        )

    def on_images(self, key: jax.Array, images: jax.Array) -> jax.Array:
        """Shape (batch, *size, channel)."""
        wanted = (*as_size(self.size), images.shape[3])
        around = ((0, 0), (self.padding,) * 2, (self.padding,) * 2, (0, 0))
        padded = jnp.pad(images, around, constant_values=self.fill)
        spare = [padded.shape[axis + 1] - wanted[axis] for axis in (0, 1)]
        require(
            "RandomCrop",
            (
                min(spare) >= 0,
                f"images of at least {wanted[:2]} with their padding, found {padded.shape[1:3]}; "
                "ask for a smaller size or more padding",
            ),
        )
        most = jnp.array([*spare, 0], jnp.int32)
        corners = jax.random.randint(key, (len(images), 3), 0, most + 1)
        return jax.vmap(lambda image, corner: jax.lax.dynamic_slice(image, corner, wanted))(
            padded, corners
        )


@dataclass(frozen=True)
class _Flip(ImageAugment):
    """The pixels of some images stand in the other order along one axis."""

    probability: float = 0.5

    axis: ClassVar[int]

    def __post_init__(self) -> None:
        require(type(self).__name__, probability_rule(self.probability))

    def on_images(self, key: jax.Array, images: jax.Array) -> jax.Array:
        """Shape as `images`."""
        flipped = jnp.flip(images, self.axis)
        return jnp.where(drawn(key, self.probability, len(images)), flipped, images)


@dataclass(frozen=True)
class HorizontalFlip(_Flip):
    """Left and right change places in some images.

    Attributes:
        probability: for each image.

    Raises:
        DataError: the probability is none.
    """

    axis: ClassVar[int] = 2


@dataclass(frozen=True)
class VerticalFlip(_Flip):
    """Top and bottom change places in some images.

    Attributes:
        probability: for each image.

    Raises:
        DataError: the probability is none.
    """

    axis: ClassVar[int] = 1
