"""Whether a classifier's probabilities are as often right as they say."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxtransfer.errors import DataError
from jaxtransfer.evaluate.answers import check_answers, check_probabilities, log_softmax


@dataclass(frozen=True)
class Calibration:
    """How confidence and accuracy go together.

    Attributes:
        expected_calibration_error: the mean distance of confidence and accuracy over the examples,
            in bins.
        maximum_calibration_error: the largest distance of a bin.
        brier_score: the mean squared distance of the probabilities from the labels, summed over the
            classes: 0 at best, 2 at worst.
        negative_log_likelihood: the mean cross-entropy in nats; infinite where a label's class got
            the probability 0.
        accuracy: the share of examples whose highest probability is the label's.
        confidence: the mean of the highest probabilities.
        edges: of the bins of confidence, shape (bins + 1,), rising from 0 to 1.
        counts: examples of each bin, shape (bins,), int64.
        bin_confidence: the mean confidence of each bin, NaN for empty ones.
        bin_accuracy: the accuracy of each bin, NaN for empty ones.
    """

    expected_calibration_error: float
    maximum_calibration_error: float
    brier_score: float
    negative_log_likelihood: float
    accuracy: float
    confidence: float
    edges: np.ndarray
    counts: np.ndarray
    bin_confidence: np.ndarray
    bin_accuracy: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON can hold them; what has no finite value is `None`."""
        return {
            name: [_finite(x) for x in value.tolist()]
            if isinstance(value, np.ndarray)
            else _finite(value)
            for name, value in vars(self).items()
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def calibration(
    outputs: Any,
    labels: Any,
    *,
    bins: int = 15,
    equal_mass: bool = False,
    probabilities: bool = False,
) -> Calibration:
    """Calibration errors, a reliability diagram's numbers, Brier score and likelihood.

    Confidence is the probability of the prediction. A bin holds its upper edge, not its lower one.

    Args:
        outputs: logits of shape (count, classes), or probabilities.
        labels: shape (count,), integers from 0.
        bins: how many bins of confidence.
        equal_mass: whether bins have equally many examples (up to one), in the order of their
            confidence, rather than the same width. Edges are then halfway between neighbours.
        probabilities: whether `outputs` are probabilities.

    Raises:
        DataError: the lengths differ, there is no example, a number is not finite, a label is no
            class, rows are no probabilities, or there are fewer bins than 1 or, with `equal_mass`,
            more than examples.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv 1706.04599, section
    2: bins and reliability diagrams, ECE in equation 3 and MCE in equation 5, and for likelihood
    equation 6; bins of equal mass from Nguyen & O'Connor 2015, arXiv 1508.05154, section 3; the
    score over all classes from Brier 1950, "Verification of Forecasts Expressed in Terms of
    Probability", equation 2.

    >>> found = calibration([[0.9, 0.1], [0.9, 0.1]], [0, 1], probabilities=True)
    >>> round(found.expected_calibration_error, 3)
    0.4
    """
    where = "calibration"
    values, truth = check_answers(where, outputs, labels)
    if bins < 1 or (equal_mass and bins > len(values)):
        most = f", at most one for each of {len(values)} examples" if equal_mass else ""
        raise DataError(f"{where}: expected at least one bin{most}, found {bins}")
    shares = check_probabilities(where, values) if probabilities else np.exp(log_softmax(values))
    # The logarithm of a softmax, which never is infinite, rather than that of a rounded 0.
    logs = _logarithm(shares) if probabilities else log_softmax(values)
    confidence = shares.max(axis=1)
    right = values.argmax(axis=1) == truth
    edges, places = (_equal_mass if equal_mass else _equal_width)(confidence, bins)
    counts = np.bincount(places, minlength=bins)
    mean_confidence, mean_right = (
        _means(values, places, counts) for values in (confidence, right.astype(np.float64))
    )
    gaps = np.abs(mean_right - mean_confidence)[counts > 0]
    rows = np.arange(len(truth))
    squares = np.square(shares).sum(axis=1) - 2 * shares[rows, truth] + 1
    return Calibration(
        expected_calibration_error=float(np.average(gaps, weights=counts[counts > 0])),
        maximum_calibration_error=float(gaps.max()),
        brier_score=float(squares.mean()),
        negative_log_likelihood=float(-logs[rows, truth].mean()),
        accuracy=float(right.mean()),
        confidence=float(confidence.mean()),
        edges=edges,
        counts=counts,
        bin_confidence=mean_confidence,
        bin_accuracy=mean_right,
    )


def _logarithm(shares: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(shares)


def _equal_width(confidence: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    edges = np.linspace(0, 1, bins + 1)
    places = np.searchsorted(edges, confidence, side="left") - 1
    return edges, np.clip(places, 0, bins - 1)


def _equal_mass(confidence: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(confidence, kind="stable")
    places = np.empty(len(confidence), np.int64)
    places[order] = np.arange(len(confidence)) * bins // len(confidence)
    firsts = np.searchsorted(places[order], np.arange(1, bins))
    ranked = confidence[order]
    inner = (ranked[firsts - 1] + ranked[firsts]) / 2
    return np.concatenate([[0.0], inner, [1.0]]), places


def _means(values: np.ndarray, places: np.ndarray, counts: np.ndarray) -> np.ndarray:
    sums = np.bincount(places, weights=values, minlength=len(counts))
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
