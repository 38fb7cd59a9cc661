"""A classifier's answers and the labels that belong to them, checked before anything is counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxtransfer.errors import DataError

# How far probabilities may sum from 1: more than what float16 rounds a thousand of them by.
SUM_TOLERANCE = 1e-2


def check_scores(where: str, scores: Any) -> np.ndarray:
    """Logits or probabilities as float64 of shape (count, classes).

    Raises:
        DataError: the shape is another one, there is no example or no class, or a number is not
            finite.
    """
    if isinstance(scores, dict):
        raise DataError(
            f"{where}: expected one array of logits, found those of the tasks "
            f"{', '.join(map(str, scores))}; give the logits and the labels of one task"
        )
    found = np.asarray(scores)
    if found.ndim != 2 or not found.size or found.dtype.kind not in "biufV":
        raise DataError(
            f"{where}: expected numbers of shape (count, classes), both above 0, found "
            f"{found.dtype} of shape {found.shape}"
        )
    values = found.astype(np.float64)
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        raise DataError(
            f"{where}: expected finite numbers, found NaN or infinity in {np.sum(~finite)} of "
            f"{len(values)} rows, first in row {int(np.argmin(finite))}; look for images that hold "
            "NaN, or for weights that diverged"
        )
    return values


def check_numbers(where: str, numbers: Any, num_classes: int, name: str = "labels") -> np.ndarray:
    """Numbers of classes as int64 of shape (count,), each from 0 and below `num_classes`.

    Raises:
        DataError: they are no integers, not one a row, or out of range.
    """
    found = np.asarray(numbers)
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise DataError(
            f"{where}: expected {name} as integers of shape (count,), found {found.dtype} of shape "
            f"{found.shape}; rows of one number a class become integers by argmax(axis=1)"
        )
    wrong = (found < 0) | (found >= num_classes)
    if wrong.any():
        raise DataError(
            f"{where}: expected {name} from 0 and below {num_classes}, the number of classes, "
            f"found {sorted({int(value) for value in found[wrong]})[:5]}, first in row "
            f"{int(np.argmax(wrong))}"
        )
    return found.astype(np.int64)


def check_answers(where: str, scores: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """Logits or probabilities with their labels: float64 (count, classes) and int64 (count,).

    Raises:
        DataError: as `check_scores` and `check_numbers` say, or the lengths differ.
    """
    values = check_scores(where, scores)
    numbers = check_numbers(where, labels, values.shape[1])
    check_lengths(where, values, numbers)
    return values, numbers


def check_lengths(where: str, answers: np.ndarray, labels: np.ndarray) -> None:
    """Raise unless there is a label for each answer, and at least one.

    Raises:
        DataError: there is not.
    """
    if len(answers) != len(labels) or not len(labels):
        raise DataError(
            f"{where}: expected as many answers as labels, and at least one, found {len(answers)} "
            f"and {len(labels)}"
        )


def check_names(where: str, classes: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """The names of the classes; their numbers where they have no names.

    Raises:
        DataError: there are more or fewer names than classes.

    >>> check_names("table", None, 2)
    ('0', '1')
    """
    if classes is None:
        return tuple(map(str, range(count)))
    if len(classes) != count:
        raise DataError(f"{where}: expected {count} names of classes, found {len(classes)}")
    return tuple(map(str, classes))


def check_probabilities(where: str, values: np.ndarray) -> np.ndarray:
    """Rows that are at least 0 and sum to 1, brought to a sum of 1 exactly.

    Raises:
        DataError: they are not.
    """
    sums = values.sum(axis=1)
    wrong = (values.min(axis=1) < 0) | (np.abs(sums - 1) > SUM_TOLERANCE)
    if wrong.any():
        raise DataError(
            f"{where}: expected probabilities, rows of numbers from 0 that sum to 1, found "
            f"{np.sum(wrong)} other rows, first {int(np.argmax(wrong))} with the sum "
            f"{sums[np.argmax(wrong)]:g}; leave probabilities=True out for logits"
        )
    return values / sums[:, None]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Logarithms of the probabilities of each row, without overflow.

    >>> np.exp(log_softmax(np.array([[1000.0, 1000.0]]))).tolist()
    [[0.5, 0.5]]
    """
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
