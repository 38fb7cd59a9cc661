"""Accuracies by cross-validation: each example is answered by a probe that has not seen it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from jaxtransfer.data import k_folds
from jaxtransfer.errors import DataError
from jaxtransfer.evaluate.metrics import Interval, mean_interval

Fold = tuple[np.ndarray, np.ndarray]


class Classifier(Protocol):
    """What is asked of a fitted probe here."""

    def predict(self, features: np.ndarray, /) -> np.ndarray:
        """Classes as integers, shape (count,)."""
        ...


Fit = Callable[[np.ndarray, np.ndarray], Classifier]
"""From features of shape (count, channels) and labels of shape (count,) to a classifier."""


def probe_folds(labels: np.ndarray, folds: int, seed: int) -> tuple[Fold, ...]:
    """Stratified folds in which every class is trained on: training and held-out positions.

    Args:
        labels: classes, shape (count,), integers.
        folds: how many at most; no more than examples of the rarest class.
        seed: the same seed gives the same folds.

    Raises:
        DataError: `folds` is below 2, there are fewer than two classes, or a class has one example.

    >>> len(probe_folds(np.array([0, 0, 0, 1, 1]), 5, seed=0))
    2
    """
    labels = np.asarray(labels)
    counts = np.unique(labels, return_counts=True)[1]
    least = int(counts.min()) if len(counts) else 0
    if folds < 2 or len(counts) < 2 or least < 2:
        raise DataError(
            "folds: expected at least 2 folds of at least 2 classes with at least 2 examples each, "
            f"found {folds} folds of {len(counts)} classes, the rarest with {least} examples; give "
            "more labelled images, or leave rare classes out"
        )
    return k_folds(labels, min(folds, least), seed)


def held_out_correct(
    features: np.ndarray, labels: np.ndarray, fit: Fit, folds: Sequence[Fold]
) -> np.ndarray:
    """Whether each example is answered correctly by the probe that was fitted without its fold.

    Args:
        features: shape (count, channels).
        labels: classes, shape (count,), integers.
        fit: fits a probe to the features and labels of the training part.
        folds: pairs of training and held-out positions; each example is held out once.

    Returns:
        Shape (count,), booleans; their mean is the cross-validated accuracy.
    """
    correct = np.zeros(len(labels), bool)
    for train, held_out in folds:
        probe = fit(features[train], labels[train])
        correct[held_out] = np.asarray(probe.predict(features[held_out])) == labels[held_out]
    return correct


def fold_means(correct: np.ndarray, folds: Sequence[Fold]) -> np.ndarray:
    """The accuracy on each fold's held-out part, shape (folds,)."""
    return np.array([correct[held_out].mean() for _, held_out in folds])


def fold_interval(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> Interval:
    """The mean over the folds of a k-fold cross-validation, and an interval for it.

    The training parts of folds share examples, so that their accuracies vary less than those of new
    data would: the variance is s² (1/k + 1/(k - 1)) rather than s² / k, where 1 / (k - 1) is how
    many held-out examples there are for each that is trained on, and the quantile is that of
    Student's t with k - 1 degrees of freedom.

    Args:
        values: a value for each of k folds, or a difference.
        confidence: how often the interval holds the mean, about.

    Source: Nadeau & Bengio 2003, "Inference for the Generalization Error" (Machine Learning 52),
    section 3, the corrected resampled t-test.

    Raises:
        DataError: there are fewer than two folds.

    >>> [round(x, 3) for x in fold_interval([0.8, 0.9, 1.0])]
    [0.9, 0.507, 1.293]
    """
    from scipy import stats

    count = len(values)
    if count < 2:
        raise DataError(f"fold_interval: expected at least 2 folds, found {count}")
    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    width = float(stats.t.ppf((1 + confidence) / 2, count - 1)) * deviation
    width *= (1 / count + 1 / (count - 1)) ** 0.5
    return Interval(mean, mean - width, mean + width)


def paired_interval(first: np.ndarray, second: np.ndarray, confidence: float = 0.95) -> Interval:
    """How much more often one classifier is right than another, on the same held-out examples.

    Student's t interval for the mean of the differences, example by example. Tests on differences
    of the same held-out examples find few differences that are none, other than t-tests over
    resampled training sets: Dietterich 1998, "Approximate Statistical Tests for Comparing
    Supervised Classification Learning Algorithms" (Neural Computation 10), section 5, on McNemar's.

    Args:
        first: whether each example is answered correctly, shape (count,).
        second: the same for the other classifier.
        confidence: how often the interval holds the mean, about.

    >>> [round(x, 2) for x in paired_interval(np.ones(4, bool), np.array([True, False] * 2))]
    [0.5, -0.42, 1.42]
    """
    differences = np.asarray(first, float) - np.asarray(second, float)
    return mean_interval(differences.tolist(), confidence)
