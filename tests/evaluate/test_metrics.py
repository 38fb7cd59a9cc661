import itertools
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
    bootstrap_interval,
    majority_accuracy,
    mean_interval,
    nested_bootstrap_interval,
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


SKEWED = np.random.default_rng(3).exponential(size=25)


@pytest.mark.parametrize("method", ["percentile", "bca"])
@pytest.mark.parametrize("statistic", [np.mean, np.median])
def test_bootstrap_intervals_are_those_of_scipy(method, statistic):
    found = bootstrap_interval(
        SKEWED, 0.9, statistic=statistic, method=method, resamples=40_000, seed=1
    )
    reference = stats.bootstrap(
        (SKEWED,),
        statistic,
        confidence_level=0.9,
        method=method,
        n_resamples=40_000,
        rng=np.random.default_rng(2),
    ).confidence_interval
    assert found.mean == pytest.approx(statistic(SKEWED))
    # Both draw; at so many resamples their quantiles are this close.
    assert found.low == pytest.approx(reference.low, abs=0.01)
    assert found.high == pytest.approx(reference.high, abs=0.015)


def test_bca_shifts_the_interval_of_skewed_values_towards_the_tail():
    plain, corrected = (bootstrap_interval(SKEWED, method=m) for m in ("percentile", "bca"))
    assert corrected.low > plain.low and corrected.high > plain.high


def test_the_percentile_interval_is_that_of_all_resamples():
    values = np.array([0.1, 0.25, 0.7, 0.95])
    means = [np.mean(one) for one in itertools.product(values, repeat=4)]
    found = bootstrap_interval(values, 0.8, resamples=100_000)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.1, 0.9])), abs=1e-9)


def test_large_samples_are_drawn_in_parts_with_the_same_spread(monkeypatch):
    values = np.random.default_rng(0).normal(size=400)
    monkeypatch.setattr("jaxtransfer.evaluate.metrics.DRAWN_AT_A_TIME", 4000)
    found = bootstrap_interval(values, resamples=5000)
    error = values.std() / 20
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=8), st.integers(0, 5))
def test_a_bootstrap_interval_lies_within_the_values_and_is_the_same_again(values, seed):
    for method in ("percentile", "bca"):
        found = bootstrap_interval(values, method=method, resamples=200, seed=seed)
        assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9
        assert found == bootstrap_interval(values, method=method, resamples=200, seed=seed)


def test_a_single_value_has_no_spread_and_equal_ones_have_none():
    assert math.isnan(bootstrap_interval([0.5]).low)
    assert bootstrap_interval([0.5, 0.5], method="bca") == (0.5, 0.5, 0.5)


def test_the_nested_bootstrap_draws_groups_and_members():
    groups = [np.array([0.0, 1.0]), np.array([0.0, 0.0, 3.0])]
    # All resamples: two groups in any order, and of each all draws of its members.
    members = {
        i: [np.mean(one) for one in itertools.product(group, repeat=len(group))]
        for i, group in enumerate(groups)
    }
    means, weights = [], []
    for first, second in itertools.product(members, repeat=2):
        for a, b in itertools.product(members[first], members[second]):
            means.append((a + b) / 2)
            weights.append(1 / (len(members[first]) * len(members[second])))
    order = np.argsort(means)
    shares = np.cumsum(np.array(weights)[order]) / np.sum(weights)
    exact = [np.array(means)[order][np.searchsorted(shares, tail)] for tail in (0.1, 0.9)]
    found = nested_bootstrap_interval(groups, 0.8, resamples=100_000)
    assert found.mean == pytest.approx((0.5 + 1.0) / 2)
    assert (found.low, found.high) == pytest.approx(tuple(exact), abs=1e-9)


def test_of_one_group_the_nested_interval_is_that_of_its_members():
    right = np.random.default_rng(0).random(500) < 0.8
    found = nested_bootstrap_interval([right])
    exact = stats.binom(500, right.mean()).ppf([0.025, 0.975]) / 500
    assert (found.low, found.high) == pytest.approx(tuple(exact), abs=0.0041)


def test_seeds_that_differ_widen_the_nested_interval():
    right = np.random.default_rng(0).random((3, 2000)) < np.array([[0.7], [0.8], [0.9]])
    alike = np.random.default_rng(0).random((3, 2000)) < 0.8
    wide, narrow = (nested_bootstrap_interval(list(one)) for one in (right, alike))
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_interval([]), "at least one"),
        (lambda: bootstrap_interval([1.0, 2.0], 1.0), "confidence above 0 and below 1, found 1.0"),
        (lambda: bootstrap_interval([1.0, 2.0], resamples=0), "at least one resample, found 0"),
        (lambda: bootstrap_interval([1.0, 2.0], method="t"), "percentile or bca, found 't'"),
        (lambda: bootstrap_interval(np.ones((2, 2))), "of shape"),
        (lambda: nested_bootstrap_interval([]), "at least one"),
        (lambda: nested_bootstrap_interval([np.ones(2), np.ones(0)]), "at least one"),
    ],
)
def test_a_bootstrap_of_nothing_is_refused(call, message):
    with pytest.raises(DataError, match=message):
        call()
