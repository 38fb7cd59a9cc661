"""Classifiers without training: the nearest examples, and the nearest mean of a class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxtransfer.errors import DataError
from jaxtransfer.evaluate.features import check_features, check_labelled
from jaxtransfer.evaluate.nearest import nearest_rows, unit_rows

METRICS = ("cosine", "euclidean")


@dataclass(frozen=True, eq=False)
class NearestNeighbours:
    """Labelled features whose nearest ones vote on others; see `nearest_neighbours`.

    Attributes:
        features: shape (count, channels), float32, of length 1.
        labels: shape (count,), int32.
        num_classes: how many classes there are.
        k: how many neighbours vote.
        temperature: by what their cosines are divided.
    """

    features: np.ndarray
    labels: np.ndarray
    num_classes: int
    k: int
    temperature: float

    def logits(self, features: Any) -> np.ndarray:
        """The logarithm of each class's votes.

        Args:
            features: shape (count, channels), finite numbers.

        Returns:
            Shape (count, classes), float32; minus infinity where no neighbour has the class. Their
            softmax is the share of the votes.

        Raises:
            DataError: the features are no such rows.
        """
        rows = check_features("nearest_neighbours", features, self.features.shape[1])
        rows = unit_rows(rows).astype(np.float32)
        cosines, at = nearest_rows(rows, self.features, self.k)
        # Logarithms are added, since exp(s / T) has no bounds.
        votes = np.full((len(rows), self.num_classes), -np.inf)
        places: Any = np.arange(len(rows))[:, np.newaxis], self.labels[at]
        np.logaddexp.at(votes, places, cosines.astype(np.float64) / self.temperature)
        return votes.astype(np.float32)

    def predict(self, features: Any) -> np.ndarray:
        """The class with the most votes; of equal ones the lowest. Shape (count,), integers."""
        return self.logits(features).argmax(axis=-1)


def nearest_neighbours(
    features: Any,
    labels: Any,
    *,
    k: int = 20,
    temperature: float = 0.07,
    num_classes: int | None = None,
) -> NearestNeighbours:
    """A classifier by the vote of the `k` training examples with the highest cosine.

    A neighbour with cosine s votes exp(s / T) for its class: Wu et al. 2018, "Unsupervised Feature
    Learning via Non-Parametric Instance Discrimination" (arXiv 1805.01978), section 3.4, with
    T = 0.07; k = 20 as in Caron et al. 2021, "Emerging Properties in Self-Supervised Vision
    Transformers" (DINO, arXiv 2104.14294), appendix F. Features are compared in blocks, so memory
    stays bounded.

    Args:
        features: shape (count, channels), finite numbers, such as `jt.features` gives.
        labels: shape (count,), integers from 0.
        k: how many neighbours vote, from 1; all of them where there are fewer.
        temperature: T, above 0; the smaller it is, the more the nearest ones count.
        num_classes: how many classes there are; by default as many as the labels tell.

    Raises:
        DataError: features or labels are not of that kind, or `k` or `temperature` is out of range.

    >>> votes = nearest_neighbours([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]], [0, 0, 1], k=1)
    >>> votes.predict([[3.0, 1.0], [0.0, 2.0]])
    array([0, 1])
    """
    known = check_labelled("nearest_neighbours", features, labels, num_classes)
    if k < 1 or k % 1 or not 0 < temperature < float("inf"):
        raise DataError(
            f"nearest_neighbours: expected a whole k of at least 1 and a temperature above 0, "
            f"found k={k} and temperature={temperature}"
        )
    count = min(int(k), len(known.labels))
    rows = unit_rows(known.features).astype(np.float32)
    classes = known.labels.astype(np.int32)
    return NearestNeighbours(rows, classes, known.num_classes, count, float(temperature))


@dataclass(frozen=True, eq=False)
class NearestMean:
    """The mean of each class, to which others are compared; see `nearest_mean`.

    Attributes:
        means: shape (classes, channels), float64; zero where a class has no example.
        present: shape (classes,), whether the class has an example.
        metric: "cosine" or "euclidean".
    """

    means: np.ndarray
    present: np.ndarray
    metric: str

    def logits(self, features: Any) -> np.ndarray:
        """The cosine with each mean, or minus the squared distance from it.

        Args:
            features: shape (count, channels), finite numbers.

        Returns:
            Shape (count, classes), float64; minus infinity for classes without examples.

        Raises:
            DataError: the features are no such rows.
        """
        rows = check_features("nearest_mean", features, self.means.shape[1]).astype(np.float64)
        if self.metric == "cosine":
            scores = unit_rows(rows) @ self.means.T
        else:
            # Seen from the middle of the means, so that no large numbers are subtracted.
            middle = self.means[self.present].mean(axis=0)
            rows, means = rows - middle, self.means - middle
            lengths = np.square(rows).sum(axis=1)[:, np.newaxis] + np.square(means).sum(axis=1)
            scores = 2 * rows @ means.T - lengths
        return np.where(self.present, scores, -np.inf)

    def predict(self, features: Any) -> np.ndarray:
        """The class whose mean is nearest; of equal ones the lowest. Shape (count,), integers."""
        return self.logits(features).argmax(axis=-1)


def nearest_mean(
    features: Any, labels: Any, *, metric: str = "cosine", num_classes: int | None = None
) -> NearestMean:
    """A classifier by the class whose mean is nearest.

    With "cosine", features and means are scaled to length 1: Rebuffi et al. 2017, "iCaRL" (arXiv
    1611.07725), section 2.1. With "euclidean" the score is minus the squared distance: Snell et al.
    2017, "Prototypical Networks for Few-shot Learning" (arXiv 1703.05175), equations 1 and 2.

    Args:
        features: shape (count, channels), finite numbers, such as `jt.features` gives.
        labels: shape (count,), integers from 0.
        metric: "cosine" or "euclidean".
        num_classes: how many classes there are; by default as many as the labels tell.

    Raises:
        DataError: features or labels are not of that kind, or there is no such metric.

    >>> nearest_mean([[0.0], [2.0], [9.0]], [0, 0, 1], metric="euclidean").predict([[4.0], [6.0]])
    array([0, 1])
    """
    known = check_labelled("nearest_mean", features, labels, num_classes)
    if metric not in METRICS:
        raise DataError(f"nearest_mean: expected a metric among {METRICS}, found {metric!r}")
    rows = known.features.astype(np.float64)
    rows = unit_rows(rows) if metric == "cosine" else rows
    counts = np.bincount(known.labels, minlength=known.num_classes)
    sums = np.zeros((known.num_classes, rows.shape[1]))
    np.add.at(sums, known.labels, rows)
    means = sums / np.maximum(counts, 1)[:, np.newaxis]
    return NearestMean(unit_rows(means) if metric == "cosine" else means, counts > 0, metric)
