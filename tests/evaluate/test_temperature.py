from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, special

from jaxtransfer.errors import DataError
from jaxtransfer.evaluate.calibration import calibration
from jaxtransfer.evaluate.temperature import temperature_scaling


def answers(seed: int, scale: float):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(60, 5))
    right = rng.random(60) < 0.7
    labels = np.where(right, logits.argmax(axis=1), rng.integers(0, 5, 60))
    return scale * logits, labels


@given(st.integers(0, 100), st.sampled_from([1e-8, 0.1, 1.0, 30.0, 1e12]))
def test_the_temperature_is_where_scipy_finds_the_highest_likelihood(seed, scale):
    logits, labels = answers(seed, scale)

    def loss(log_temperature):
        logs = special.log_softmax(logits / (scale * np.exp(log_temperature)), axis=1)
        return -logs[np.arange(len(labels)), labels].mean()

    expected: Any = optimize.minimize_scalar(
        loss, bounds=(-8, 8), method="bounded", options={"xatol": 1e-9}
    )
    found = temperature_scaling(logits, labels)
    assert np.log(found / scale) == pytest.approx(expected.x, abs=1e-6)


def test_too_confident_answers_get_a_temperature_above_1_and_better_probabilities():
    rng = np.random.default_rng(0)
    honest = 2 * rng.normal(size=(4000, 3))
    shares = special.softmax(honest, axis=1)
    labels = (rng.random(4000)[:, None] > shares.cumsum(axis=1)).sum(axis=1)
    temperature = temperature_scaling(5 * honest, labels)
    assert temperature == pytest.approx(5, rel=0.1)  # the labels were drawn by these probabilities
    before, after = (calibration(5 * honest / t, labels) for t in (1, temperature))
    assert after.expected_calibration_error < before.expected_calibration_error / 3
    assert after.negative_log_likelihood < before.negative_log_likelihood
    assert after.accuracy == before.accuracy


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (np.eye(3), [0, 1, 2]),  # all right: the surer the better
        (np.eye(3), [1, 2, 0]),  # all wrong: the less sure the better
        (np.zeros((2, 3)), [0, 1]),  # no opinion
        (np.eye(2), [0, 0]),  # exactly chance
        (np.ones((2, 1)), [0, 0]),  # one class alone
    ],
)
def test_where_no_temperature_is_best_it_is_told(logits, labels):
    with pytest.raises(DataError, match="no temperature is best"):
        temperature_scaling(logits, labels)
