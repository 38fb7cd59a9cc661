from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from jaxtransfer.errors import DataError
from jaxtransfer.evaluate.calibration import calibration


def answers(seed: int = 0, count: int = 200, classes: int = 4):
    rng = np.random.default_rng(seed)
    logits = 3 * rng.normal(size=(count, classes)).astype(np.float32)
    labels = np.where(
        rng.random(count) < 0.6, logits.argmax(axis=1), rng.integers(0, classes, count)
    )
    return logits, labels


def softmax(logits):
    shares = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def by_the_equations(shares, labels, bins):
    """Guo et al. 2017, equations 3 and 5, bin by bin: ((m - 1) / M, m / M]."""
    confidence, right = shares.max(axis=1), shares.argmax(axis=1) == labels
    error, most = 0.0, 0.0
    for m in range(1, bins + 1):
        inside = (confidence > (m - 1) / bins) & (confidence <= m / bins)
        if inside.any():
            gap = abs(right[inside].mean() - confidence[inside].mean())
            error, most = error + inside.sum() / len(labels) * gap, max(most, gap)
    return error, most


@given(st.integers(0, 50), st.sampled_from([1, 2, 15, 50]), st.booleans())
def test_errors_are_those_of_the_equations(seed, bins, probabilities):
    logits, labels = answers(seed, count=40)
    shares = softmax(logits)
    given_ = shares if probabilities else logits
    found = calibration(given_, labels, bins=bins, probabilities=probabilities)
    error, most = by_the_equations(shares, labels, bins)
    assert found.expected_calibration_error == pytest.approx(error, abs=1e-12)
    assert found.maximum_calibration_error == pytest.approx(most, abs=1e-12)
    assert found.counts.sum() == 40 and len(found.edges) == bins + 1


def test_a_bin_holds_its_upper_edge():
    found = calibration(np.array([[0.5, 0.5], [0.75, 0.25]]), [0, 1], bins=4, probabilities=True)
    np.testing.assert_array_equal(found.counts, [0, 1, 1, 0])
    np.testing.assert_array_equal(found.bin_accuracy, [np.nan, 1, 0, np.nan])
    np.testing.assert_array_equal(found.bin_confidence, [np.nan, 0.5, 0.75, np.nan])
    assert found.expected_calibration_error == 0.625
    assert found.maximum_calibration_error == 0.75


def test_likelihood_and_brier_score_are_those_of_scikit_learn():
    logits, labels = answers()
    shares, found = softmax(logits), calibration(logits, labels)
    assert found.negative_log_likelihood == pytest.approx(metrics.log_loss(labels, shares))
    one_hot = np.eye(4)[labels]
    assert found.brier_score == pytest.approx(np.square(shares - one_hot).sum(axis=1).mean())
    two = labels < 2
    binary = calibration(logits[two, :2], labels[two])
    expected = metrics.brier_score_loss(labels[two], softmax(logits[two, :2])[:, 1])
    assert binary.brier_score == pytest.approx(2 * expected)  # over both classes
    assert found.accuracy == pytest.approx(np.mean(logits.argmax(axis=1) == labels))
    assert found.confidence == pytest.approx(shares.max(axis=1).mean())


@pytest.mark.parametrize("count", [7, 20, 41])
def test_bins_of_equal_mass_have_as_many_examples_up_to_one(count):
    logits, labels = answers(count=count)
    found = calibration(logits, labels, bins=7, equal_mass=True)
    assert found.counts.sum() == count and np.ptp(found.counts) <= 1
    confidence = np.sort(softmax(logits).max(axis=1))
    groups = np.split(confidence, np.cumsum(found.counts)[:-1])
    np.testing.assert_allclose(found.bin_confidence, [group.mean() for group in groups])
    assert (np.diff(found.edges) >= 0).all() and (found.edges[0], found.edges[-1]) == (0, 1)
    for low, high, group in zip(found.edges, found.edges[1:], groups, strict=False):
        assert low <= group.min() and group.max() <= high
    gaps = np.abs(found.bin_accuracy - found.bin_confidence)
    expected = np.average(gaps, weights=found.counts)
    assert found.expected_calibration_error == pytest.approx(expected)


def test_the_calibrated_and_the_certain():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 20_000)
    labels = np.where(rng.random(20_000) < confidence, 0, 1)
    honest = calibration(np.stack([confidence, 1 - confidence], axis=1), labels, probabilities=True)
    assert honest.expected_calibration_error < 0.02  # the noise of 1,300 examples a bin is 0.013
    certain = calibration(1e6 * np.eye(3), [0, 1, 2])
    assert certain.expected_calibration_error == certain.negative_log_likelihood == 0
    assert certain.brier_score == 0


def test_json_has_none_where_a_number_has_no_value():
    told = calibration(np.eye(2), [1, 1], bins=2, probabilities=True).to_dict()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["negative_log_likelihood"] is None
    assert told["bin_accuracy"] == [None, 0.5]
    assert told["counts"] == [0, 2]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"bins": 0}, "at least one bin, found 0"),
        ({"bins": 3, "equal_mass": True}, "at most one for each of 2 examples, found 3"),
        ({"probabilities": True}, "2 other rows, first 0 with the sum 3"),
    ],
)
def test_what_has_no_calibration_is_told(more, message):
    with pytest.raises(DataError, match=f"calibration: .*{message}"):
        calibration(np.array([[1.0, 2.0], [2.0, 2.0]]), [0, 1], **more)


def test_negative_probabilities_are_told():
    with pytest.raises(DataError, match="1 other rows, first 1 with the sum 1"):
        calibration(np.array([[0.5, 0.5], [-0.5, 1.5]]), [0, 1], probabilities=True)
