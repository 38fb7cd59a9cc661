import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from jaxtransfer.errors import DataError
from jaxtransfer.evaluate.metrics import (
    accuracy,
    binomial_interval,
    majority_accuracy,
    mean_interval,
)


def test_accuracy_counts_the_first_of_equal_logits():
    logits = np.array([[1.0, 1.0], [0.0, 2.0], [3.0, 1.0]])
    assert accuracy(logits, np.array([0, 1, 1])) == pytest.approx(2 / 3)
    assert accuracy(logits, np.array([1, 1, 1])) == pytest.approx(1 / 3)


@pytest.mark.parametrize("count", [0, 2])
def test_accuracy_refuses_other_lengths(count):
    with pytest.raises(DataError, match="one length above 0"):
        accuracy(np.zeros((3 if count else 0, 2)), np.zeros(count, int))


def test_majority_takes_the_lowest_of_equally_frequent_classes():
    assert majority_accuracy(np.array([2, 2, 1, 1]), np.array([1, 2, 2, 2])) == 0.25


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8).filter(lambda v: np.std(v) > 1e-6))
def test_mean_interval_is_scipys_t_interval(values):
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    interval = mean_interval(values)
    assert interval.mean == pytest.approx(np.mean(values))
    assert (interval.low, interval.high) == (pytest.approx(low), pytest.approx(high))


def test_one_value_has_no_spread_and_none_is_an_error():
    assert mean_interval([0.5]).mean == 0.5
    assert math.isnan(mean_interval([0.5]).low)
    with pytest.raises(DataError, match="at least one value"):
        mean_interval([])


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_binomial_interval_is_scipys_exact_one(trial):
    successes, count = trial
    reference = stats.binomtest(successes, count).proportion_ci(0.99, method="exact")
    interval = binomial_interval(successes, count)
    assert interval.low == pytest.approx(reference.low, abs=1e-9)
    assert interval.high == pytest.approx(reference.high, abs=1e-9)


@pytest.mark.parametrize("trial", [(1, 0), (-1, 3), (4, 3)])
def test_binomial_interval_refuses_impossible_counts(trial):
    with pytest.raises(DataError, match="0 <= successes <= count"):
        binomial_interval(*trial)
