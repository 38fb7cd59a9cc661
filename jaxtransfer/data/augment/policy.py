"""RandAugment and TrivialAugment: operations drawn at random from a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import jax
import jax.numpy as jnp

from jaxtransfer.data.augment.base import ImageAugment, probability_rule, require, size_of
from jaxtransfer.data.augment.colour import adjust_brightness, adjust_contrast, adjust_saturation
from jaxtransfer.data.augment.tone import (
    adjust_sharpness,
    autocontrast,
    equalize,
    invert,
    posterize,
    solarize,
    solarize_add,
)
from jaxtransfer.data.augment.warp import Fill, affine, affine_matrices, shear_matrices

Size = tuple[int, int]

# What an operation does with the value that its row of a table gives it, one for each image.
# Warps give matrices, so that all of a step share one resampling.
WARPS: Mapping[str, Callable[[jax.Array, Size], jax.Array]] = MappingProxyType(
    {
        "rotate": lambda value, size: affine_matrices(size, value),
        "shear_x": lambda value, size: shear_matrices(value, 0.0),
        "shear_y": lambda value, size: shear_matrices(0.0, value),
        "translate_x": lambda value, size: affine_matrices(size, translate=(value * size[1], 0.0)),
        "translate_y": lambda value, size: affine_matrices(size, translate=(0.0, value * size[0])),
        "translate_x_pixels": lambda value, size: affine_matrices(size, translate=(value, 0.0)),
        "translate_y_pixels": lambda value, size: affine_matrices(size, translate=(0.0, value)),
    }
)
TONES: Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]] = MappingProxyType(
    {
        "identity": lambda images, value: images,
        "brightness": lambda images, value: adjust_brightness(images, 1 + value),
        "contrast": lambda images, value: adjust_contrast(images, 1 + value),
        "color": lambda images, value: adjust_saturation(images, 1 + value),
        "sharpness": lambda images, value: adjust_sharpness(images, 1 + value),
        "posterize": posterize,
        "solarize": solarize,
        "solarize_add": solarize_add,
        "autocontrast": lambda images, value: autocontrast(images),
        "equalize": lambda images, value: equalize(images),
        "invert": lambda images, value: invert(images),
    }
)


@dataclass(frozen=True)
class Operation:
    """A row of a table of operations.

    Attributes:
        name: a key of `WARPS` or `TONES`.
        weakest: the value at magnitude 0: degrees, a share of the image's side, what is added to a
            factor of 1, bits, or a threshold.
        strongest: the value at the largest magnitude.
        signed: whether the value is negated for half of the images.

    Raises:
        DataError: the operation is unknown.
    """

    name: str
    weakest: float = 0.0
    strongest: float = 0.0
    signed: bool = False

    def __post_init__(self) -> None:
        known = (*WARPS, *TONES)
        require(
            "Operation", (self.name in known, f"one of {', '.join(known)}, found {self.name!r}")
        )


def _enhancements(bound: float) -> tuple[Operation, ...]:
    names = ("brightness", "color", "contrast", "sharpness")
    return tuple(Operation(name, 0.0, bound, signed=True) for name in names)


# Cubuk et al. 2019 (arXiv 1909.13719), section 3; magnitudes of torchvision's `RandAugment`.
RAND_AUGMENT = (
    Operation("identity"),
    Operation("shear_x", 0.0, 0.3, signed=True),
    Operation("shear_y", 0.0, 0.3, signed=True),
    Operation("translate_x", 0.0, 150 / 331, signed=True),
    Operation("translate_y", 0.0, 150 / 331, signed=True),
    Operation("rotate", 0.0, 30.0, signed=True),
    *_enhancements(0.9),
    Operation("posterize", 8.0, 4.0),
    Operation("solarize", 1.0, 0.0),
    Operation("autocontrast"),
    Operation("equalize"),
)
# timm's `_RAND_INCREASING_TRANSFORMS`, which "inc1" of its "rand-m9-mstd0.5-inc1" stands for.
RAND_AUGMENT_INCREASING = (
    Operation("autocontrast"),
    Operation("equalize"),
    Operation("invert"),
    Operation("rotate", 0.0, 30.0, signed=True),
    # timm rounds the bits from 4 to 0 up; `posterize` rounds to the nearest.
    Operation("posterize", 4.5, 0.5),
    Operation("solarize", 256 / 255, 0.0),
    Operation("solarize_add", 0.0, 110 / 255),
    *_enhancements(0.9),
    Operation("shear_x", 0.0, 0.3, signed=True),
    Operation("shear_y", 0.0, 0.3, signed=True),
    Operation("translate_x", 0.0, 0.45, signed=True),
    Operation("translate_y", 0.0, 0.45, signed=True),
)
# Müller & Hutter 2021 (arXiv 2103.10158), table 1, "wide"; torchvision's `TrivialAugmentWide`.
TRIVIAL_AUGMENT_WIDE = (
    Operation("identity"),
    Operation("shear_x", 0.0, 0.99, signed=True),
    Operation("shear_y", 0.0, 0.99, signed=True),
    Operation("translate_x_pixels", 0.0, 32.0, signed=True),
    Operation("translate_y_pixels", 0.0, 32.0, signed=True),
    Operation("rotate", 0.0, 135.0, signed=True),
    *_enhancements(0.99),
    Operation("posterize", 8.0, 2.0),
    Operation("solarize", 1.0, 0.0),
    Operation("autocontrast"),
    Operation("equalize"),
)


@dataclass(frozen=True)
class RandAugment(ImageAugment):
    """A few operations, drawn for each image with replacement, all of one magnitude.

    Warps are bilinear.

    Attributes:
        num_ops: how many operations each image goes through.
        magnitude: how strong they are.
        largest: the magnitude at which an operation is strongest.
        magnitude_std: standard deviation of the normal noise on the magnitude, drawn for each
            operation of each image; infinite for magnitudes uniform from 0 to `magnitude`.
        probability: of each operation to be carried out.
        operations: the table that is drawn from.
        fill: what warps bring in from outside, one number or one for each channel.

    Source: Cubuk et al. 2019, "RandAugment: Practical automated data augmentation with a reduced
    search space" (arXiv 1909.13719); torchvision's `RandAugment` for the defaults; timm's for noise
    and probability.

    Raises:
        DataError: a number is out of range.
    """

    num_ops: int = 2
    magnitude: float = 9.0
    largest: float = 30.0
    magnitude_std: float = 0.0
    probability: float = 1.0
    operations: tuple[Operation, ...] = RAND_AUGMENT
    fill: Fill = 0.0

    def __post_init__(self) -> None:
        require(
            "RandAugment",
            (self.num_ops >= 0, f"a num_ops of 0 or more, found {self.num_ops}"),
            (
                0 <= self.magnitude <= self.largest and 0 < self.largest < math.inf,
                f"a magnitude from 0 to the largest, found {self.magnitude} of {self.largest}",
            ),
            (self.magnitude_std >= 0, f"a magnitude_std of 0 or more, found {self.magnitude_std}"),
            probability_rule(self.probability),
            (len(self.operations) > 0, "an operation or more, found none"),
        )

    def on_images(self, key: jax.Array, images: jax.Array) -> jax.Array:
        """Shape as `images`."""
        for step in range(self.num_ops):
            choice_key, value_key = jax.random.split(jax.random.fold_in(key, step))
            images = apply_operations(
                images,
                self.operations,
                self._choices(choice_key, len(images)),
                self._values(value_key, len(images)),
                self.fill,
            )
        return images

    def _choices(self, key: jax.Array, count: int) -> jax.Array:
        """Positions in the table, -1 where nothing happens."""
        choice_key, chance_key = jax.random.split(key)
        choices = jax.random.randint(choice_key, (count,), 0, len(self.operations))
        happens = jax.random.bernoulli(chance_key, float(self.probability), (count,))
        return jnp.where(happens, choices, -1)

    def _values(self, key: jax.Array, count: int) -> jax.Array:
        """For each operation and image the value it would have, shape (operations, count)."""
        sign_key, noise_key = jax.random.split(key)
        if math.isinf(self.magnitude_std):
            magnitudes = self.magnitude * jax.random.uniform(noise_key, (count,), jnp.float32)
        else:
            noise = self.magnitude_std * jax.random.normal(noise_key, (count,), jnp.float32)
            magnitudes = jnp.clip(self.magnitude + noise, 0, self.largest)
        signs = jnp.where(jax.random.bernoulli(sign_key, 0.5, (count,)), -1.0, 1.0)
        shares = magnitudes / self.largest
        return jnp.stack(
            [
                (row.weakest + (row.strongest - row.weakest) * shares)
                * (signs if row.signed else jnp.ones_like(signs))
                for row in self.operations
            ]
        )


def apply_operations(
    images: jax.Array,
    operations: tuple[Operation, ...],
    choices: jax.Array,
    values: jax.Array,
    fill: Fill = 0.0,
) -> jax.Array:
    """Each image after the operation that was chosen for it.

    Every operation runs on the whole batch, warps as one: that is one program without branches, in
    which a batch may be spread over devices.

    Args:
        images: shape (batch, height, width, channel), float32 in [0, 1].
        operations: the table.
        choices: shape (batch,): positions in the table, -1 for none.
        values: shape (operations, batch): what each operation is given for each image.
        fill: what warps bring in from outside.
    """
    results = images
    matrices = jnp.broadcast_to(shear_matrices(0.0, 0.0), (len(images), 2, 3))
    is_warped = jnp.zeros(len(images), bool)
    for position, (row, value) in enumerate(zip(operations, values, strict=True)):
        chosen = choices == position
        if row.name in WARPS:
            found = WARPS[row.name](value, size_of(images))
            matrices = jnp.where(chosen[:, jnp.newaxis, jnp.newaxis], found, matrices)
            is_warped = is_warped | chosen
        else:
            where = chosen[:, jnp.newaxis, jnp.newaxis, jnp.newaxis]
            results = jnp.where(where, TONES[row.name](images, value), results)
    if not any(row.name in WARPS for row in operations):
        return results
    where = is_warped[:, jnp.newaxis, jnp.newaxis, jnp.newaxis]
    return jnp.where(where, affine(images, matrices, fill), results)


def trivial_augment(fill: Fill = 0.0) -> RandAugment:
    """One operation for each image, of any strength from none to the wide table's strongest.

    Args:
        fill: what warps bring in from outside, one number or one for each channel.

    Source: Müller & Hutter 2021, "TrivialAugment: Tuning-free Yet State-of-the-Art Data
    Augmentation" (arXiv 2103.10158), which draws among 31 strengths where this draws any.
    """
    return RandAugment(
        num_ops=1,
        magnitude=30.0,
        magnitude_std=math.inf,
        operations=TRIVIAL_AUGMENT_WIDE,
        fill=fill,
    )
