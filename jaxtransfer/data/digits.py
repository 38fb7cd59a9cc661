"""The embedded target task: scikit-learn's handwritten digits, and its few-shot split."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from jaxtransfer.data.arrays import ArrayData, few_shot
from jaxtransfer.errors import DataError

VALIDATION_COUNT = 300


class Split(NamedTuple):
    """Three parts without a common example."""

    train: ArrayData
    validation: ArrayData
    test: ArrayData


def load_digits() -> ArrayData:
    """The 1,797 handwritten digits that come with scikit-learn.

    Returns:
        Images of shape (1797, 8, 8, 1), float32 in [0, 1], ink bright on dark; classes "0" to "9".

    Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine
    Learning Repository, 1998, https://doi.org/10.24432/C50P49. Each pixel counts the ink in a 4x4
    block of a 32x32 bitmap, 0 to 16.
    """
    from sklearn import datasets

    bunch: Any = datasets.load_digits()
    images = (bunch["images"] / 16.0).astype(np.float32)[..., np.newaxis]
    return ArrayData(images, bunch["target"].astype(np.int32), tuple(map(str, range(10))))


def few_shot_split(
    data: ArrayData, per_class: int, seed: int, validation: int = VALIDATION_COUNT
) -> Split:
    """A few labelled examples to train on, some to choose a learning rate by, the rest to test on.

    Args:
        data: all examples.
        per_class: training examples of each class.
        seed: the same seed gives the same parts.
        validation: how many examples the validation part has.

    Raises:
        DataError: there are too few examples for all three parts, or `validation` is below 0.
    """
    if validation < 0:
        raise DataError(f"few_shot_split: expected validation of at least 0, found {validation}")
    train = few_shot(data.labels, per_class, seed)
    others = np.random.default_rng((seed, 1)).permutation(np.setdiff1d(np.arange(len(data)), train))
    if len(others) <= validation:
        raise DataError(
            f"few_shot_split: expected more than {len(train) + validation} examples, found "
            f"{len(data)}; lower per_class or validation"
        )
    return Split(data.take(train), data.take(others[:validation]), data.take(others[validation:]))
