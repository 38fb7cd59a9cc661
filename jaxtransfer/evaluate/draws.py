"""Which examples a comparison trains on, chooses by and tests on, for each seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxtransfer.data import Data, few_shot, stratified_split
from jaxtransfer.data.digits import VALIDATION_COUNT
from jaxtransfer.errors import DataError

TEST_SHARE = VALIDATION_SHARE = 0.2


class Draw(NamedTuple):
    """Three parts without a common example; the validation part may be empty."""

    train: Data
    validation: Data
    test: Data


def draw_examples(
    data: Data,
    per_class: int | None,
    seed: int,
    *,
    test: Data | None = None,
    validation: Data | None = None,
    is_search: bool = False,
) -> Draw:
    """The examples of one seed, the same for all arms.

    Of `per_class` examples a class, drawn by the seed, or all of them, is trained. Where there is
    no `validation`, it has at most 300 of the others, or for a search among all examples a fifth of
    each class, which then is not trained on. Where there is no `test`, it has what is left of the
    others, or of all examples a fifth of each class.

    Args:
        data: labelled examples.
        per_class: training examples of each class, or `None` for all.
        seed: the same seed gives the same parts.
        test: test examples of their own.
        validation: validation examples of their own.
        is_search: whether a learning rate is to be chosen.

    Raises:
        DataError: there are too few examples.
    """
    labels = np.asarray(data.labels)
    if per_class is not None:
        train = few_shot(labels, per_class, seed)
        rng = np.random.default_rng((seed, 1))
        others = rng.permutation(np.setdiff1d(np.arange(len(data)), train))
        return _of_the_others(data, train, others, test, validation)
    left, own_test = np.arange(len(data)), test
    if own_test is None:
        left, tested = stratified_split(labels, (1 - TEST_SHARE, TEST_SHARE), seed)
        own_test = _some(data, tested, "test examples, a fifth of each class")
    if validation is None and is_search:
        shares = (1 - VALIDATION_SHARE, VALIDATION_SHARE)
        kept, chosen = stratified_split(labels[left], shares, seed)
        return Draw(data.take(left[kept]), data.take(left[chosen]), own_test)
    whole = data if len(left) == len(data) else data.take(left)
    return Draw(whole, data.take(left[:0]) if validation is None else validation, own_test)


def _of_the_others(
    data: Data, train: np.ndarray, others: np.ndarray, test: Data | None, validation: Data | None
) -> Draw:
    """Validation and test parts from what is not trained on, as far as they are not given."""
    count = 0
    if validation is None:
        count = min(VALIDATION_COUNT, len(others) if test is not None else len(others) // 2)
        validation = data.take(others[:count])
    if test is None:
        test = _some(data, others[count:], "examples beside those to train on; lower per_class")
    return Draw(data.take(train), validation, test)


def _some(data: Data, positions: np.ndarray, what: str) -> Data:
    if not len(positions):
        raise DataError(f"compare: expected {what}, found none of {len(data)} examples")
    return data.take(positions)


def classes_of(*parts: Data | None) -> Sequence[str] | int:
    """The names of the classes, which all parts share, or where they have none their number.

    Raises:
        DataError: labels are no classes, or parts have other classes; without names, classes above
            all those that can be trained on.
    """
    given: list[Any] = [part for part in parts if part is not None]
    for part in given:
        labels = part.labels
        if isinstance(labels, dict) or np.ndim(labels) != 1 or np.asarray(labels).dtype.kind == "f":
            raise DataError(
                "compare: expected one class an example as labels, integers of shape (count,), "
                "found several tasks, several labels an example, or numbers to be predicted"
            )
    if any(part.classes != given[0].classes for part in given):
        found = " and ".join(str(part.classes) for part in given)
        raise DataError(f"compare: expected the same classes in all parts, found {found}")
    if given[0].classes is not None:
        return given[0].classes
    count, others = (1 + max(int(np.max(p.labels)) for p in some) for some in (given[:1], given))
    if others > count:
        raise DataError(
            f"compare: expected test and validation labels below {count}, the classes that are "
            f"trained on, found {others - 1}; give classes= where there are more"
        )
    return count
