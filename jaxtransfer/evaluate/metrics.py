"""Scores of predictions, and how sure one can be of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxtransfer.errors import DataError

# Resamples of a bootstrap that are drawn at a time hold no more numbers than this.
DRAWN_AT_A_TIME = 2**24


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
    Case of the Binomial", Biometrika 26(4), by quantiles of the beta distribution.

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


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    confidence: float = 0.95,
    *,
    statistic: Callable[..., Any] = np.mean,
    method: str = "percentile",
    resamples: int = 9999,
    seed: int = 0,
) -> Interval:
    """A statistic of some values and its bootstrap interval, which assumes no distribution.

    The percentile interval has the quantiles of the statistic over resamples, of as many values
    drawn with replacement, as its bounds. The BCa interval shifts and stretches these for bias and
    for a spread that depends on the statistic itself. Of a handful of values, such as three seeds,
    both are too narrow: there `mean_interval` is the honest one.

    Source: Efron & Tibshirani 1993, "An Introduction to the Bootstrap", sections 13.3 (percentile)
    and 14.3 (BCa, equations 14.9 to 14.15; resamples that tie with the statistic count half in the
    bias, as in `scipy.stats.bootstrap`).

    Args:
        values: shape (count,), one a run or an example.
        confidence: how often the interval holds the statistic of what the values were drawn from.
        statistic: from an array and `axis=` to the statistic along that axis.
        method: "percentile" or "bca".
        resamples: how many are drawn.
        seed: the same seed gives the same interval.

    Returns:
        The statistic of the values and the bounds; for a single value these are NaN.

    Raises:
        DataError: there is no value, or an argument is out of range.

    >>> bootstrap_interval([0.5, 0.5, 0.5])
    Interval(mean=0.5, low=0.5, high=0.5)
    """
    given = np.asarray(values, np.float64)
    _check_bootstrap("bootstrap_interval", given.ndim == 1 and len(given), confidence, resamples)
    if method not in ("percentile", "bca"):
        raise DataError(f"bootstrap_interval: expected percentile or bca, found {method!r}")
    estimate = float(statistic(given, axis=-1))
    if len(given) == 1:
        return Interval(estimate, float("nan"), float("nan"))
    if (given == given[0]).all():
        return Interval(estimate, estimate, estimate)
    rng = np.random.default_rng(seed)
    at_a_time = max(1, DRAWN_AT_A_TIME // len(given))
    parts = [
        statistic(given[rng.integers(0, len(given), (min(at_a_time, left), len(given)))], axis=-1)
        for left in range(resamples, 0, -at_a_time)
    ]
    drawn = np.concatenate(parts)
    tails = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    if method == "bca":
        tails = _bca_tails(given, estimate, drawn, tails, statistic)
    low, high = np.quantile(drawn, tails)
    return Interval(estimate, float(low), float(high))


def nested_bootstrap_interval(
    groups: Sequence[np.ndarray],
    confidence: float = 0.95,
    *,
    resamples: int = 9999,
    seed: int = 0,
) -> Interval:
    """The mean over groups of their means, and its percentile interval over groups and members.

    A resample draws as many groups with replacement, and of each as many members: for runs with
    several seeds, each with its test examples, both the seeds and the examples are a sample.

    Source: Davison & Hinkley 1997, "Bootstrap Methods and their Application", section 3.8, where
    both stages are drawn with replacement.

    Args:
        groups: arrays of shape (members,), such as whether each test example was right; of paired
            runs the differences.
        confidence: how often the interval holds the mean.
        resamples: how many are drawn.
        seed: the same seed gives the same interval.

    Raises:
        DataError: there is no group, a group without a member, or an argument is out of range.

    >>> nested_bootstrap_interval([np.array([1, 1, 0, 1])]).mean
    0.75
    """
    arrays = [np.asarray(group, np.float64) for group in groups]
    filled = bool(arrays) and all(array.ndim == 1 and len(array) for array in arrays)
    _check_bootstrap("nested_bootstrap_interval", filled, confidence, resamples)
    rng = np.random.default_rng(seed)
    # How often a resample has each group, shape (resamples, groups).
    times = rng.multinomial(len(arrays), np.full(len(arrays), 1 / len(arrays)), resamples)
    sums = np.zeros(resamples)
    for group, array in enumerate(arrays):
        # Members of the same value are drawn together, which is the same and far less.
        distinct, counts = np.unique(array, return_counts=True)
        for drawn_times in range(1, int(times[:, group].max()) + 1):
            has = np.flatnonzero(times[:, group] >= drawn_times)
            drawn = rng.multinomial(len(array), counts / len(array), len(has))
            sums[has] += drawn @ distinct / len(array)
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    low, high = np.quantile(sums / len(arrays), tails)
    mean = float(np.mean([array.mean() for array in arrays]))
    return Interval(mean, float(low), float(high))


def _check_bootstrap(where: str, has_values: Any, confidence: float, resamples: int) -> None:
    problems = [] if has_values else ["values of shape (count,), at least one"]
    if not 0 < confidence < 1:
        problems.append(f"a confidence above 0 and below 1, found {confidence}")
    if resamples < 1:
        problems.append(f"at least one resample, found {resamples}")
    if problems:
        raise DataError(f"{where}: expected {'; '.join(problems)}")


def _bca_tails(
    values: np.ndarray,
    estimate: float,
    drawn: np.ndarray,
    tails: np.ndarray,
    statistic: Callable[..., Any],
) -> np.ndarray:
    """The shares of resamples below the bounds of the BCa interval (equations 14.9 to 14.15)."""
    from scipy import stats

    below = (np.mean(drawn < estimate) + np.mean(drawn <= estimate)) / 2
    bias = stats.norm.ppf(np.clip(below, 0.5 / len(drawn), 1 - 0.5 / len(drawn)))
    left_out = np.array([statistic(np.delete(values, i), axis=-1) for i in range(len(values))])
    away = left_out.mean() - left_out
    spread = np.sum(away**2) ** 1.5
    acceleration = np.sum(away**3) / (6 * spread) if spread else 0.0
    shifted = bias + stats.norm.ppf(tails)
    return stats.norm.cdf(bias + shifted / (1 - acceleration * shifted))
