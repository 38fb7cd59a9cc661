"""Augmentations that whole recipes use."""

from __future__ import annotations

from jaxtransfer.data.augment.base import Augment, Compose
from jaxtransfer.data.augment.crop import HorizontalFlip, RandomResizedCrop
from jaxtransfer.data.augment.erasing import RandomErasing
from jaxtransfer.data.augment.mixing import MixUpOrCutMix
from jaxtransfer.data.augment.policy import RAND_AUGMENT_INCREASING, RandAugment


def standard_augment(size: int | tuple[int, int]) -> Compose:
    """A random resized crop and a flip.

    Args:
        size: what the network takes, the side or height and width.

    Source: Szegedy et al. 2015 (arXiv 1409.4842), section 6; the training of torchvision's networks
    (references/classification, its first recipe).
    """
    return Compose((RandomResizedCrop(size), HorizontalFlip()))


def strong_augment(size: int | tuple[int, int], num_classes: int | None = None) -> Compose:
    """What Vision Transformers are trained with: RandAugment, random erasing, mixup and CutMix.

    Args:
        size: what the network takes, the side or height and width.
        num_classes: how many classes there are, for mixup and CutMix; `None` leaves them out.

    Source: Touvron et al. 2021, "Training data-efficient image transformers & distillation through
    attention" (arXiv 2012.12877), table 9, by timm's `create_transform` and `Mixup`:
    "rand-m9-mstd0.5-inc1", erasing 0.25 by pixels, mixup 0.8, CutMix 1.0, bicubic crops. Not among
    them are repeated augmentation, which is the sampler's part, and label smoothing, the loss's.
    """
    policy = RandAugment(
        num_ops=2,
        magnitude=9.0,
        largest=10.0,
        magnitude_std=0.5,
        probability=0.5,
        operations=RAND_AUGMENT_INCREASING,
        fill=0.5,
    )
    steps: tuple[Augment, ...] = (
        RandomResizedCrop(size, interpolation="bicubic"),
        HorizontalFlip(),
        policy,
        RandomErasing(0.25),
    )
    return Compose(steps if num_classes is None else (*steps, MixUpOrCutMix(num_classes)))
