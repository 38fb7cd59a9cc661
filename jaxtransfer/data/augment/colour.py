"""Changes of colour: brightness, contrast, saturation, hue and grey.

Images of one channel have neither saturation nor hue: what changes these leaves them as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxtransfer.data.augment.base import (
    ImageAugment,
    as_images,
    drawn,
    per_image,
    probability_rule,
    require,
)
from jaxtransfer.surgery.stem import LUMA


def grayscale(images: jax.Array) -> jax.Array:
    """The luma of each pixel in all three channels.

    Args:
        images: shape (batch, height, width, 1 or 3), float32 in [0, 1].

    Raises:
        DataError: there are neither one nor three channels.
    """
    return jnp.broadcast_to(luma(images), images.shape)


def luma(images: jax.Array) -> jax.Array:
    """Shape (batch, height, width, 1); ITU-R BT.601, section 2.5.1, as Pillow and torchvision."""
    images = as_images(images)
    channels = images.shape[-1]
    require(
        "augment",
        (channels in (1, 3), f"images of 1 or 3 channels where colours change, found {channels}"),
    )
    if channels == 1:
        return images
    red, green, blue = LUMA[0]
    return red * images[..., :1] + green * images[..., 1:2] + blue * images[..., 2:]


def blend(base: jax.Array, images: jax.Array, factor: jax.Array) -> jax.Array:
    """From `base` at factor 0 over `images` at 1 to beyond them, clipped to [0, 1]."""
    # Written so that a factor of 1 gives the images to the bit.
    return jnp.clip(images + (1 - factor) * (base - images), 0, 1)


def adjust_brightness(images: jax.Array, factor: ArrayLike) -> jax.Array:
    """Every value times `factor`: 0 is black, 1 changes nothing.

    Args:
        images: shape (batch, height, width, channel), float32 in [0, 1].
        factor: one number from 0, or shape (batch,).
    """
    return jnp.clip(as_images(images) * per_image(images, factor), 0, 1)


def adjust_contrast(images: jax.Array, factor: ArrayLike) -> jax.Array:
    """Away from the mean luma of each image, or for a factor below 1 towards it.

    Args:
        images: shape (batch, height, width, 1 or 3), float32 in [0, 1].
        factor: one number from 0, or shape (batch,): 0 is plain grey, 1 changes nothing.

    Source: torchvision's `adjust_contrast`; Pillow's `ImageEnhance.Contrast` rounds the mean.

    Raises:
        DataError: there are neither one nor three channels.
    """
    # The luma of the mean is the mean of the luma, and far less work.
    mean = luma(jnp.mean(images, axis=(1, 2), keepdims=True))
    return blend(mean, images, per_image(images, factor))


def adjust_saturation(images: jax.Array, factor: ArrayLike) -> jax.Array:
    """Away from grey, or for a factor below 1 towards it; grey images stay as they are.

    Args:
        images: shape (batch, height, width, 1 or 3), float32 in [0, 1].
        factor: one number from 0, or shape (batch,): 0 is grey, 1 changes nothing.

    Source: torchvision's `adjust_saturation`; Pillow's `ImageEnhance.Color`.

    Raises:
        DataError: there are neither one nor three channels.
    """
    return blend(luma(images), images, per_image(images, factor))


def adjust_hue(images: jax.Array, shift: ArrayLike) -> jax.Array:
    """Turn the hue in HSV space; grey images stay as they are.

    Args:
        images: shape (batch, height, width, 1 or 3), float32 in [0, 1].
        shift: one number, or shape (batch,), in turns: 1/3 makes red green.

    Source: Smith 1978, "Color gamut transform pairs", for HSV; torchvision's `adjust_hue`.

    Raises:
        DataError: there are neither one nor three channels.
    """
    grey = luma(images)  # checks the channels
    if grey.shape == images.shape:
        return images
    red, green, blue = images[..., 0], images[..., 1], images[..., 2]
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    divisor = jnp.where(chroma > 0, chroma, 1)
    sixths = jnp.where(
        value == red,
        (green - blue) / divisor,
        jnp.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    sixths = sixths + 6 * per_image(images, shift)[..., 0]

    def channel(offset: float) -> jax.Array:
        """The value, less the chroma in the share of the circle that is far from this channel."""
        position = (sixths + offset) / 6
        position = 6 * (position - jnp.floor(position))  # several times as fast as a remainder
        return value - chroma * jnp.clip(jnp.minimum(position, 4 - position), 0, 1)

    return jnp.stack([channel(5), channel(3), channel(1)], axis=-1)


@dataclass(frozen=True)
class ColorJitter(ImageAugment):
    """Random brightness, contrast, saturation and hue, of each image and in this order.

    The order is fixed: the four nearly commute, and a random one for each image would cost four
    times as much.

    Attributes:
        brightness: the factor is uniform from 1 - brightness, or 0, to 1 + brightness.
        contrast: likewise.
        saturation: likewise; nothing happens to grey images.
        hue: bound of the shift in turns, to either side, at most 0.5; nothing happens to grey
            images.

    Source: torchvision's `ColorJitter`, which draws an order, for the law.

    Raises:
        DataError: a number is out of range.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self) -> None:
        factors = (self.brightness, self.contrast, self.saturation)
        require(
            "ColorJitter",
            (
                all(0 <= factor < float("inf") for factor in factors),
                f"brightness, contrast and saturation of 0 or more, found {factors}",
            ),
            (0 <= self.hue <= 0.5, f"a hue from 0 to 0.5, found {self.hue}"),
        )

    def on_images(self, key: jax.Array, images: jax.Array) -> jax.Array:
        """Shape as `images`."""
        shares = jax.random.uniform(key, (4, len(images)), jnp.float32)
        changes = (
            (adjust_brightness, self.brightness),
            (adjust_contrast, self.contrast),
            (adjust_saturation, self.saturation),
        )
        for (change, bound), share in zip(changes, shares[:3], strict=True):
            if bound:
                low = max(1 - bound, 0)
                images = change(images, low + (1 + bound - low) * share)
        if self.hue:
            images = adjust_hue(images, self.hue * (2 * shares[3] - 1))
        return images


@dataclass(frozen=True)
class RandomGrayscale(ImageAugment):
    """Some images lose their colours and keep their channels.

    Attributes:
        probability: for each image.

    Source: torchvision's `RandomGrayscale`, for the default.

    Raises:
        DataError: the probability is none.
    """

    probability: float = 0.1

    def __post_init__(self) -> None:
        require("RandomGrayscale", probability_rule(self.probability))

    def on_images(self, key: jax.Array, images: jax.Array) -> jax.Array:
        """Shape as `images`."""
        is_grey = drawn(key, self.probability, len(images))
        return jnp.where(is_grey, grayscale(images), images)
