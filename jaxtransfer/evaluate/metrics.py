"""Scores of predictions, and how sure one can be of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxtransfer.errors import DataError


class Interval(NamedTuple):
    """A mean and the bounds that it lies between."""

    mean: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float | None]:
        """As JSON can hold it; bounds that a single value cannot give are `None`.

        >>> Interval(0.5, float("nan"), float("nan")).to_dict()
        {'mean': 0.5, 'low': None, 'high': None}
        """
        return {name: None if math.isnan(v) else v for name, v in self._asdict().items()}


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """The share of examples whose highest logit is the label's; of equal ones the first counts.

    Args:
        logits: shape (count, classes).
        labels: shape (count,), integers.

    Raises:
        DataError: the lengths differ, or there is no example.

    >>> accuracy(np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([1, 1]))
    0.5
    """
    if len(logits) != len(labels) or len(labels) == 0:
        raise DataError(
            f"accuracy: expected logits and labels of one length above 0, found {len(logits)} and "
            f"{len(labels)}"
        )
    return float(np.mean(np.argmax(logits, axis=-1) == labels))


def majority_accuracy(train_labels: np.ndarray, test_labels: np.ndarray) -> float:
    """Accuracy of the naive classifier, which always answers the most frequent training class.

    Of classes that are equally frequent it takes the lowest.

    >>> majority_accuracy(np.array([0, 1, 1]), np.array([1, 0, 1, 1]))
    0.75
    """
    majority = int(np.argmax(np.bincount(train_labels)))
    return float(np.mean(test_labels == majority))


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The mean of some runs' values and Student's t interval for it.

    The interval is mean ± t(n - 1) s / √n with the sample deviation s and n values (Student 1908,
    "The Probable Error of a Mean"). A single value tells nothing of the spread: its bounds are NaN.

    Args:
        values: one value a run.
        confidence: how often the interval holds the mean of all possible runs.

    Raises:
        DataError: there is no value.

    >>> [round(x, 3) for x in mean_interval([0.8, 0.9, 1.0])]
    [0.9, 0.652, 1.148]
    """
    from scipy import stats

    if len(values) == 0:
        raise DataError("mean_interval: expected at least one value, found none")
    mean = float(np.mean(values))
    if len(values) == 1:
        return Interval(mean, float("nan"), float("nan"))
    error = float(np.std(values, ddof=1)) / len(values) ** 0.5
    width = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1)) * error
    return Interval(mean, mean - width, mean + width)


def binomial_interval(successes: int, count: int, confidence: float = 0.99) -> Interval:
    """The share of successes and its exact interval.

    Source: Clopper & Pearson 1934, "The Use of Confidence or Fiducial Limits Illustrated in the
        Case of the
    Binomial", by quantiles of the beta distribution.

    Args:
        successes: from 0 to `count`.
        count: number of trials.
        confidence: how often the interval holds the true share, at the least.

    Raises:
        DataError: `successes` is out of range, or `count` is not positive.

    >>> [round(x, 3) for x in binomial_interval(8, 10)]
    [0.8, 0.352, 0.989]
    """
    from scipy import stats

    if count < 1 or not 0 <= successes <= count:
        raise DataError(
            f"binomial_interval: expected 0 <= successes <= count, found {successes}, {count}"
        )
    tail = (1 - confidence) / 2
    low = stats.beta.ppf(tail, successes, count - successes + 1) if successes else 0.0
    high = stats.beta.ppf(1 - tail, successes + 1, count - successes) if successes < count else 1.0
    return Interval(successes / count, float(low), float(high))
