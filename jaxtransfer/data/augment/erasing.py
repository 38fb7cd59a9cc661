"""Random erasing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from jaxtransfer.data.augment.base import (
    ImageAugment,
    drawn,
    probability_rule,
    range_rule,
    require,
)
from jaxtransfer.data.augment.crop import random_boxes

BYTES_PER_WORD = 4


@dataclass(frozen=True)
class RandomErasing(ImageAugment):
    """A random rectangle of some images is wiped out.

    Area and aspect are drawn up to ten times until the rectangle fits; else the image stays whole.

    Attributes:
        probability: for each image.
        scale: bounds of the rectangle's area, as shares of the image's.
        ratio: bounds of its width over its height, log-uniform.
        fill: what the rectangle holds: a number, or "noise" that is uniform from 0 to 1 for each
            value.

    Source: Zhong et al. 2017, "Random Erasing Data Augmentation" (arXiv 1708.04896), algorithm 1
    and section 4.3, where noise is best; timm's `RandomErasing` for probability, bounds and
    draws. (timm erases after normalisation and fills in normal noise.)

    Raises:
        DataError: a number is out of range.
    """

    probability: float = 0.5
    scale: tuple[float, float] = (0.02, 1 / 3)
    ratio: tuple[float, float] = (0.3, 1 / 0.3)
    fill: float | Literal["noise"] = "noise"

    def __post_init__(self) -> None:
        require(
            "RandomErasing",
            probability_rule(self.probability),
            range_rule("scale", self.scale),
            (self.scale[-1] <= 1, f"a scale up to 1, found {self.scale}"),
            range_rule("ratio", self.ratio),
            (
                self.fill == "noise" or (not isinstance(self.fill, str) and 0 <= self.fill <= 1),
                f"a fill from 0 to 1, or 'noise', found {self.fill!r}",
            ),
        )

    def on_images(self, key: jax.Array, images: jax.Array) -> jax.Array:
        """Shape as `images`."""
        chance_key, box_key, fill_key = jax.random.split(key, 3)
        count, height, width = images.shape[:3]
        largest = (height - 1, width - 1)
        boxes = random_boxes(
            box_key, count, (height, width), largest, self.scale, self.ratio, (0, 0)
        )
        erased = inside_boxes(boxes, (height, width))
        erased &= drawn(chance_key, self.probability, count)
        return jnp.where(erased, self._filling(fill_key, images.shape), images)

    def _filling(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        if not isinstance(self.fill, str):
            return jnp.full((1, 1, 1, 1), self.fill, jnp.float32)
        # Random bits are what costs: each word of them makes four values of a byte's resolution.
        words = -(-shape[2] * shape[3] // BYTES_PER_WORD)
        bits = jax.random.bits(key, (shape[0], shape[1], words))
        values = jax.lax.bitcast_convert_type(bits, jnp.uint8).reshape(*shape[:2], -1)
        values = values[:, :, : shape[2] * shape[3]].reshape(shape)
        return values.astype(jnp.float32) / 255


def inside_boxes(boxes: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Which pixels lie in boxes (count, 4) of top, left, height, width: (count, *size, 1)."""
    top, left, rows, columns = boxes[:, :, jnp.newaxis, jnp.newaxis, jnp.newaxis].swapaxes(0, 1)
    y = jnp.arange(size[0], dtype=boxes.dtype)[:, jnp.newaxis, jnp.newaxis]
    x = jnp.arange(size[1], dtype=boxes.dtype)[:, jnp.newaxis]
    return (y >= top) & (y < top + rows) & (x >= left) & (x < left + columns)
