import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jaxtransfer.errors import DataError
from jaxtransfer.ranking import kendall, weighted_kendall

VALUES = st.integers(-3, 3).map(float) | st.floats(-1, 1)
PAIRS = st.lists(st.tuples(VALUES, VALUES), min_size=2, max_size=12).map(
    lambda rows: tuple(np.array(rows).T)
)


@settings(max_examples=60, deadline=None)
@given(PAIRS)
def test_they_are_scipys(pair):
    scores, results = pair
    with np.errstate(all="ignore"):
        plain = stats.kendalltau(scores, results).statistic
        weighted = stats.weightedtau(scores, results).statistic
    np.testing.assert_allclose(kendall(scores, results), plain, atol=1e-12)
    np.testing.assert_allclose(weighted_kendall(scores, results), weighted, atol=1e-12)


@given(PAIRS.filter(lambda pair: min(map(np.ptp, pair)) > 0))
def test_they_change_sides_and_signs(pair):
    scores, results = pair
    for score in (kendall, weighted_kendall):
        assert score(results, scores) == pytest.approx(score(scores, results))
        assert score(scores, scores) == pytest.approx(1)
        assert -1 - 1e-12 <= score(scores, results) <= 1 + 1e-12
    assert kendall(scores, -results) == pytest.approx(-kendall(scores, results))


def test_the_best_count_most():
    results = [4, 3, 2, 1]
    assert weighted_kendall([3, 4, 2, 1], results) < weighted_kendall([4, 3, 1, 2], results)
    assert kendall([3, 4, 2, 1], results) == pytest.approx(kendall([4, 3, 1, 2], results))


def test_ties_alone_have_no_correlation():
    assert math.isnan(kendall([1, 1], [0, 1]))
    assert math.isnan(weighted_kendall([0, 1], [2, 2]))


@pytest.mark.parametrize("score", [kendall, weighted_kendall])
def test_other_lengths_and_nan_are_refused(score):
    with pytest.raises(DataError, match=f"{score.__name__}: .*\\(2,\\) and \\(3,\\)"):
        score([1, 2], [1, 2, 3])
    with pytest.raises(DataError, match="two at least"):
        score([1], [1])
    with pytest.raises(DataError, match="found NaN"):
        score([1, float("nan")], [1, 2])
