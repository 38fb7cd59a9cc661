"""mixup and CutMix: each image together with its neighbour in the batch.

One share is drawn for the whole batch, as in the papers' own code, timm and torchvision. The
partner of an image is the one before it, the first one's is the last: batches are shuffled, and a
shift by one costs little where a batch is spread over devices.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxtransfer.data.augment.base import Batch, as_images, probability_rule, require, size_of
from jaxtransfer.data.augment.erasing import inside_boxes


def soft_labels(labels: jax.Array, num_classes: int) -> jax.Array:
    """Labels as shares of classes, float32 of shape (batch, num_classes).

    Args:
        labels: shape (batch,), integers from 0; or shape (batch, num_classes), floats, which stay
            as they are.
        num_classes: how many classes there are.

    Returns:
        Rows that sum to 1; NaN for a label that is none of the classes.

    Raises:
        DataError: labels are neither.
    """
    is_index = labels.ndim == 1 and jnp.issubdtype(labels.dtype, jnp.integer)
    is_soft = jnp.issubdtype(labels.dtype, jnp.floating) and labels.shape[1:] == (num_classes,)
    require(
        "label",
        (
            is_index or is_soft,
            f"integers of shape (batch,), or floats of shape (batch, {num_classes}), "
            f"found {labels.dtype} of shape {labels.shape}",
        ),
    )
    if is_soft:
        return labels.astype(jnp.float32)
    # One-hot rows of such labels would be empty, and their loss a silent 0.
    known = ((labels >= 0) & (labels < num_classes))[:, jnp.newaxis]
    return jnp.where(known, jax.nn.one_hot(labels, num_classes), jnp.nan)


def mixup(batch: Batch, share: ArrayLike, num_classes: int) -> Batch:
    """Each image times `share`, plus its partner times the rest; labels likewise.

    Where there is a `weight`, the loss stays what it is without mixing, linear in the examples: a
    label counts with its share times its example's weight. Examples of weight 0 are padding: they
    stay as they are, and so do those whose partner is padding.

    Args:
        batch: `image`, `label` and optionally `weight`.
        share: what is left of each image, from 0 to 1.
        num_classes: how many classes there are.

    Returns:
        The batch with new `image`, `label` (float32, shape (batch, num_classes)) and `weight`.

    Source: Zhang et al. 2017, "mixup: Beyond Empirical Risk Minimization" (arXiv 1710.09412),
    equation in section 1.
    """
    images = as_images(batch["image"])
    share = jnp.asarray(share, jnp.float32)
    mixed = share * images + (1 - share) * _partner(images)
    return _mixed(batch, jnp.clip(mixed, 0, 1), share, num_classes)


def cutmix(batch: Batch, box: ArrayLike, num_classes: int) -> Batch:
    """A box of each image replaced by that of its partner; labels by the areas.

    Weights are treated as `mixup` says.

    Args:
        batch: `image`, `label` and optionally `weight`.
        box: shape (4,), whole pixels within the image: top, left, height, width.
        num_classes: how many classes there are.

    Returns:
        The batch with new `image`, `label` (float32, shape (batch, num_classes)) and `weight`.

    Source: Yun et al. 2019, "CutMix: Regularization Strategy to Train Strong Classifiers with
    Localizable Features" (arXiv 1905.04899), equation 1.
    """
    images = as_images(batch["image"])
    box = jnp.asarray(box, jnp.float32)
    height, width = images.shape[1:3]
    mixed = jnp.where(inside_boxes(box[jnp.newaxis], (height, width)), _partner(images), images)
    return _mixed(batch, mixed, 1 - box[2] * box[3] / (height * width), num_classes)


def cutmix_box(key: jax.Array, share: ArrayLike, size: tuple[int, int]) -> jax.Array:
    """A box, uniform over its centre and cut at the rim, of area 1 - `share` before the cut.

    Args:
        key: the same key gives the same box.
        share: what is left of each image, from 0 to 1.
        size: height and width of the images.

    Returns:
        Shape (4,), float32 of whole pixels: top, left, height, width.

    Source: Yun et al. 2019 (arXiv 1905.04899), equation 2; timm's `rand_bbox` for rounding.
    """
    sides = jnp.array(size, jnp.float32)
    lengths = jnp.floor(sides * jnp.sqrt(1 - jnp.asarray(share, jnp.float32)))
    centres = jnp.floor(sides * jax.random.uniform(key, (2,), jnp.float32))
    half = jnp.floor(lengths / 2)
    low, high = jnp.clip(centres - half, 0, sides), jnp.clip(centres - half + lengths, 0, sides)
    return jnp.concatenate([low, high - low])


def _partner(values: jax.Array) -> jax.Array:
    return jnp.roll(values, 1, axis=0)


def _mixed(batch: Batch, images: jax.Array, share: jax.Array, num_classes: int) -> Batch:
    """The batch with mixed images, and labels and weights that go with them."""
    labels = soft_labels(batch["label"], num_classes)
    if "weight" not in batch:
        labels = share * labels + (1 - share) * _partner(labels)
        return {**batch, "image": images, "label": labels}
    weight, others = batch["weight"], _partner(batch["weight"])
    mixes = (weight > 0) & (others > 0)
    # Where weights are equal, this is that weight to the bit.
    total = jnp.where(mixes, weight + (1 - share) * (others - weight), weight)
    part = jnp.where(mixes, (1 - share) * others / jnp.where(mixes, total, 1), 0)[:, jnp.newaxis]
    # Selected, not multiplied by 0: what padding holds may be no number.
    mixed = jnp.where(part > 0, (1 - part) * labels + part * _partner(labels), labels)
    where = mixes[:, jnp.newaxis, jnp.newaxis, jnp.newaxis]
    images = jnp.where(where, images, batch["image"])
    return {**batch, "image": images, "label": mixed, "weight": total}


@dataclass(frozen=True)
class _Mixing:
    """A share drawn from Beta(alpha, alpha) for each batch."""

    alpha: float
    num_classes: int

    def __post_init__(self) -> None:
        require(type(self).__name__, *_rules(self.alpha, self.num_classes))


@dataclass(frozen=True)
class MixUp(_Mixing):
    """mixup with a share drawn from Beta(alpha, alpha) for each batch.

    Attributes:
        alpha: above 0; the higher, the nearer are shares to a half.
        num_classes: how many classes there are.

    Source: as for `mixup`; section 3.1 has alpha from 0.1 to 0.4 for ImageNet.

    Raises:
        DataError: a number is out of range; when it runs, labels are neither integers nor soft.
    """

    def __call__(self, key: jax.Array, batch: Batch) -> Batch:
        """The batch with mixed images, and labels as shares of classes."""
        share = _draw_share(key, self.alpha)
        return mixup(batch, share, self.num_classes)


@dataclass(frozen=True)
class CutMix(_Mixing):
    """CutMix with a share drawn from Beta(alpha, alpha) and a box drawn for each batch.

    Attributes:
        alpha: above 0; 1 makes all shares alike.
        num_classes: how many classes there are.

    Source: as for `cutmix`; section 3.1 has alpha 1.

    Raises:
        DataError: a number is out of range; when it runs, labels are neither integers nor soft.
    """

    def __call__(self, key: jax.Array, batch: Batch) -> Batch:
        """The batch with patched images, and labels as shares of classes."""
        share_key, box_key = jax.random.split(key)
        share = _draw_share(share_key, self.alpha)
        box = cutmix_box(box_key, share, size_of(as_images(batch["image"])))
        return cutmix(batch, box, self.num_classes)


@dataclass(frozen=True)
class MixUpOrCutMix:
    """mixup for some batches, CutMix for others, and neither for the rest.

    Attributes:
        num_classes: how many classes there are.
        mixup_alpha: as `MixUp` has it.
        cutmix_alpha: as `CutMix` has it.
        switch_probability: of CutMix for a batch that is mixed.
        probability: that a batch is mixed at all.

    Source: timm's `Mixup` in its mode "batch"; the defaults are those of Touvron et al. 2021
    (arXiv 2012.12877), table 9.

    Raises:
        DataError: a number is out of range; when it runs, labels are neither integers nor soft.
    """

    num_classes: int
    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    switch_probability: float = 0.5
    probability: float = 1.0

    def __post_init__(self) -> None:
        require(
            "MixUpOrCutMix",
            *_rules(self.mixup_alpha, self.num_classes),
            *_rules(self.cutmix_alpha, self.num_classes)[:1],
            probability_rule(self.switch_probability),
            probability_rule(self.probability),
        )

    def __call__(self, key: jax.Array, batch: Batch) -> Batch:
        """The batch with labels as shares of classes, whether it was mixed or not."""
        chance_key, switch_key, share_key, box_key = jax.random.split(key, 4)
        is_mixed = jax.random.bernoulli(chance_key, float(self.probability))
        is_cut = jax.random.bernoulli(switch_key, float(self.switch_probability))
        share = _draw_share(share_key, jnp.where(is_cut, self.cutmix_alpha, self.mixup_alpha))
        share = jnp.where(is_mixed, share, 1)
        box = cutmix_box(box_key, share, size_of(as_images(batch["image"])))
        return jax.lax.cond(
            is_cut,
            lambda batch: cutmix(batch, box, self.num_classes),
            lambda batch: mixup(batch, share, self.num_classes),
            dict(batch),
        )


def _draw_share(key: jax.Array, alpha: ArrayLike) -> jax.Array:
    """From Beta(alpha, alpha), as the share of one in the sum of two gamma variates."""
    # Logarithms, because those of a small alpha are smaller than float32 can hold.
    one, other = jax.random.loggamma(key, jnp.asarray(alpha, jnp.float32), (2,), jnp.float32)
    return jax.nn.sigmoid(one - other)


def _rules(alpha: float, num_classes: int) -> tuple[tuple[bool, str], ...]:
    return (
        (0 < alpha < float("inf"), f"an alpha above 0, found {alpha}"),
        (num_classes > 0, f"num_classes above 0, found {num_classes}"),
    )
