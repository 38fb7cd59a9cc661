"""What all augmentations share: a function of key and batch that is a value, and their sequence."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxtransfer.errors import DataError

Batch: TypeAlias = Mapping[str, Any]


class Augment(Protocol):
    """What training takes: a pure function of a key and a batch, run inside jit.

    The augmentations of this room are frozen dataclasses: equal by value, hashable, and printed
    with all that tells them from any other.
    """

    def __call__(self, key: jax.Array, batch: Batch, /) -> Batch:
        """The batch with its images, and for mixing its labels too, changed at random."""
        ...


class ImageAugment(ABC):
    """An augmentation that changes images alone, each with randomness of its own."""

    @abstractmethod
    def on_images(self, key: jax.Array, images: jax.Array) -> jax.Array:
        """The images changed at random.

        Args:
            key: the same key gives the same result.
            images: shape (batch, height, width, channel), float32 in [0, 1].
        """

    def __call__(self, key: jax.Array, batch: Batch) -> Batch:
        """The batch with `on_images` of its `image`."""
        return {**batch, "image": self.on_images(key, as_images(batch["image"]))}


@dataclass(frozen=True)
class Compose:
    """Augmentations one after the other, each with a key of its own.

    Attributes:
        steps: in the order in which they run; none leaves batches as they are.

    >>> from jaxtransfer.data import augment
    >>> augment.Compose((augment.HorizontalFlip(), augment.RandomErasing(0.25)))
    Compose(steps=(HorizontalFlip(probability=0.5), RandomErasing(probability=0.25, \
scale=(0.02, 0.3333333333333333), ratio=(0.3, 3.3333333333333335), fill='noise')))
    """

    steps: tuple[Augment, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))
        require("Compose", (all(map(callable, self.steps)), f"functions, found {self.steps}"))

    def __call__(self, key: jax.Array, batch: Batch) -> Batch:
        """The batch after all steps."""
        for position, step in enumerate(self.steps):
            batch = step(jax.random.fold_in(key, position), batch)
        return batch


def require(where: str, *rules: tuple[bool, str]) -> None:
    """Raise one error that names every expectation that does not hold.

    Raises:
        DataError: the first part of a rule is false.
    """
    broken = [expected for holds, expected in rules if not holds]
    if broken:
        raise DataError(f"{where}: expected {'; '.join(broken)}")


def probability_rule(probability: float) -> tuple[bool, str]:
    """The rule that a probability is one, for `require`."""
    return 0 <= probability <= 1, f"a probability from 0 to 1, found {probability}"


def range_rule(name: str, bounds: tuple[float, float], low: float = 0.0) -> tuple[bool, str]:
    """The rule that two numbers above `low` are in order, for `require`."""
    holds = len(bounds) == 2 and low < bounds[0] <= bounds[1] < float("inf")
    return holds, f"a {name} of two numbers above {low:g} in order, found {bounds}"


def as_images(images: jax.Array) -> jax.Array:
    """The images, if they are what augmentation is defined for.

    Raises:
        DataError: they are no floats, or not of shape (batch, height, width, channel).
    """
    images = jnp.asarray(images)
    require(
        "augment",
        (
            images.dtype == jnp.float32,
            f"images of float32 in [0, 1], found {images.dtype}; divide integers by their largest "
            "possible value",
        ),
        (
            images.ndim == 4,
            f"images of shape (batch, height, width, channel), found {images.shape}",
        ),
    )
    return images


def per_image(images: jax.Array, value: ArrayLike) -> jax.Array:
    """One number for all images, or one for each, as float32 that broadcasts against them."""
    value = jnp.asarray(value, jnp.float32)
    require(
        "augment",
        (
            value.shape in ((), (len(images),)),
            f"one number, or one for each of {len(images)} images, found shape {value.shape}",
        ),
    )
    return value.reshape(-1, 1, 1, 1)


def size_of(images: jax.Array) -> tuple[int, int]:
    """Height and width of images of shape (batch, height, width, channel)."""
    return images.shape[1], images.shape[2]


def drawn(key: jax.Array, probability: float, count: int) -> jax.Array:
    """For each of `count` images whether something happens to it, shape (count, 1, 1, 1)."""
    return jax.random.bernoulli(key, float(probability), (count, 1, 1, 1))


def as_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """A size as (height, width); one number is the side of a square.

    Raises:
        DataError: it is not made of whole numbers above 0.
    """
    pair = (size, size) if isinstance(size, int) else tuple(size)
    holds = len(pair) == 2 and all(isinstance(side, int) and side > 0 for side in pair)
    require("size", (holds, f"one or two whole numbers above 0, found {size}"))
    return pair[0], pair[1]
