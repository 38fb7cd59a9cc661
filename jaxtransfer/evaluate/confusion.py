"""Which classes a classifier takes for which: confusion matrix, precision, recall and F1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxtransfer.errors import DataError
from jaxtransfer.evaluate.answers import (
    check_answers,
    check_lengths,
    check_names,
    check_numbers,
)

# What the shares of a normalised matrix sum to 1 over: a row, a column, or the whole.
NORMALISATIONS = {"labels": 1, "predictions": 0, "all": (0, 1)}


def confusion_matrix(
    answers: Any, labels: Any, num_classes: int | None = None, *, normalise: str | None = None
) -> np.ndarray:
    """How often examples of each class get each answer: a row a label, a column a prediction.

    Args:
        answers: logits or probabilities of shape (count, classes), whose highest is the prediction
            and of equal ones the first; or predictions of shape (count,), integers.
        labels: shape (count,), integers from 0.
        num_classes: how many classes there are; by default as many as `answers` has columns.
        normalise: "labels" for shares of each row, "predictions" for shares of each column, "all"
            for shares of all examples, as of 0 where there are none; by default counts.

    Returns:
        Shape (num_classes, num_classes): int64 counts, or float64 shares.

    Raises:
        DataError: the lengths differ, there is no example, a number is not finite or is no class,
            or there are predictions and no `num_classes`.

    >>> confusion_matrix([0, 1, 1], [0, 1, 0], 2).tolist()
    [[1, 1], [0, 1]]
    """
    where = "confusion_matrix"
    if normalise is not None and normalise not in NORMALISATIONS:
        raise DataError(
            f"{where}: expected normalise among {', '.join(NORMALISATIONS)}, or None, found "
            f"{normalise!r}"
        )
    predicted, truth, count = _predictions(where, answers, labels, num_classes)
    cells = np.bincount(truth * count + predicted, minlength=count * count)
    matrix = cells.reshape(count, count)
    if normalise is None:
        return matrix
    return _divided(matrix, matrix.sum(axis=NORMALISATIONS[normalise], keepdims=True))


def _predictions(
    where: str, answers: Any, labels: Any, num_classes: int | None
) -> tuple[np.ndarray, np.ndarray, int]:
    if isinstance(answers, dict) or np.ndim(answers) != 1:
        scores, truth = check_answers(where, answers, labels)
        if num_classes not in (None, scores.shape[1]):
            raise DataError(
                f"{where}: expected logits of {num_classes} classes, found {scores.shape[1]}"
            )
        return scores.argmax(axis=1), truth, scores.shape[1]
    if num_classes is None or num_classes < 1:
        raise DataError(
            f"{where}: expected num_classes of at least 1 with predictions, found {num_classes}"
        )
    predicted = check_numbers(where, answers, num_classes, "predictions")
    truth = check_numbers(where, labels, num_classes)
    check_lengths(where, predicted, truth)
    return predicted, truth, num_classes


class Confused(NamedTuple):
    """Two classes of which one was taken for the other.

    Attributes:
        label: what the examples are.
        prediction: what they were taken for.
        count: how many of them.
        share: of the examples of `label`.
    """

    label: str
    prediction: str
    count: int
    share: float


def most_confused(
    matrix: Any, classes: Sequence[str] | None = None, count: int = 10
) -> tuple[Confused, ...]:
    """The most frequent errors, as pairs of label and prediction.

    Args:
        matrix: counts, as `confusion_matrix` gives them.
        classes: the names of the classes; by default their numbers.
        count: how many pairs at most.

    Returns:
        The pairs with the most examples first, of equally many those of the lower label; pairs
        without an example are left out.

    Raises:
        DataError: the matrix has other than counts, or other than as many names as classes.

    >>> most_confused([[3, 1], [2, 0]], ["ant", "bee"])[0]
    Confused(label='bee', prediction='ant', count=2, share=1.0)
    """
    counts = check_counts("most_confused", matrix)
    names = check_names("most_confused", classes, len(counts))
    support = counts.sum(axis=1)
    errors = counts.copy()
    np.fill_diagonal(errors, 0)
    order = np.argsort(-errors, axis=None, kind="stable")[: max(count, 0)]
    rows, columns = np.unravel_index(order, counts.shape)
    return tuple(
        Confused(names[i], names[j], int(errors[i, j]), float(errors[i, j] / support[i]))
        for i, j in zip(rows, columns, strict=True)
        if errors[i, j]
    )


class Scores(NamedTuple):
    """Precision, recall and F1, each an average over the classes."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class ClassScores:
    """How well each class is recognised.

    Attributes:
        precision: the share of a class's predictions that are right, shape (classes,); 0 for a
            class that is never predicted.
        recall: the share of a class's examples that are recognised; 0 for a class without examples.
        f1: the harmonic mean of both, 2 TP / (2 TP + FP + FN); 0 where that has no value.
        support: the number of a class's examples, int64.
        accuracy: the share of all examples that are recognised.
        macro: means over the classes, each of the same weight.
        weighted: means over the classes, weighted by their support.
    """

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray
    accuracy: float
    macro: Scores
    weighted: Scores

    def to_dict(self, classes: Sequence[str] | None = None) -> dict[str, Any]:
        """All scores as JSON can hold them, a list with an entry a class, and the averages."""
        names = check_names("class_scores", classes, len(self.support))
        rows = zip(names, self.precision, self.recall, self.f1, self.support, strict=True)
        return {
            "classes": [
                {
                    "class": name,
                    "precision": float(precision),
                    "recall": float(recall),
                    "f1": float(f1),
                    "support": int(support),
                }
                for name, precision, recall, f1, support in rows
            ],
            "accuracy": self.accuracy,
            "macro": self.macro._asdict(),
            "weighted": self.weighted._asdict(),
        }


def class_scores(matrix: Any) -> ClassScores:
    """Precision, recall, F1 and support of each class, with their averages.

    Args:
        matrix: counts, as `confusion_matrix` gives them.

    Raises:
        DataError: the matrix has other than counts, or is without an example.

    Source: van Rijsbergen 1979, "Information Retrieval", chapter 7, with equal weight for precision
    and recall. What is undefined counts as 0, as in
    https://scikit-learn.org/stable/modules/generated/sklearn.metrics.precision_recall_fscore_support.html

    >>> class_scores([[3, 1], [0, 0]]).recall.tolist()
    [0.75, 0.0]
    """
    counts = check_counts("class_scores", matrix)
    right, predicted, support = np.diag(counts), counts.sum(axis=0), counts.sum(axis=1)
    each = (
        _divided(right, predicted),
        _divided(right, support),
        _divided(2 * right, predicted + support),
    )
    return ClassScores(
        *each,
        support,
        accuracy=float(right.sum() / counts.sum()),
        macro=Scores(*(float(values.mean()) for values in each)),
        weighted=Scores(*(float(np.average(values, weights=support)) for values in each)),
    )


def check_counts(where: str, matrix: Any) -> np.ndarray:
    """A confusion matrix as int64.

    Raises:
        DataError: it is not square, holds other than counts, or has no example.
    """
    found = np.asarray(matrix)
    square = found.ndim == 2 and found.shape[0] == found.shape[1]
    if not square or found.dtype.kind not in "iu" or (found < 0).any() or not found.any():
        raise DataError(
            f"{where}: expected a square matrix of counts with at least one example, found "
            f"{found.dtype} of shape {found.shape}; confusion_matrix makes it, without normalise"
        )
    return found.astype(np.int64)


def _divided(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Shares, 0 where there is nothing to take a share of."""
    return np.where(whole > 0, part / np.maximum(whole, 1), 0.0)
