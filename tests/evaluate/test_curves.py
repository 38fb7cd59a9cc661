import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxtransfer.errors import DataError
from jaxtransfer.evaluate.curves import evaluation_steps, summarise_curve


def test_start_slope_and_asymptote_of_a_curve_on_paper():
    # From 0.2 to 0.8: nine tenths of the way is 0.74, first reached at step 40.
    curve = summarise_curve([0, 20, 40, 80, 90, 100], [0.2, 0.5, 0.76, 0.79, 0.8, 0.81])
    assert curve.start == 0.2
    assert curve.asymptote == pytest.approx((0.79 + 0.8 + 0.81) / 3)
    assert curve.slope == pytest.approx((0.76 - 0.2) / 40)


def test_a_curve_that_falls_has_a_negative_slope_over_all_its_steps():
    curve = summarise_curve([0, 50, 100], [0.9, 0.7, 0.5])
    assert curve.slope == pytest.approx(-0.4 / 100)
    assert curve.asymptote == 0.5


def test_a_flat_curve_has_no_slope():
    assert summarise_curve([0, 5, 10], [0.3, 0.3, 0.3]).slope == 0


def test_a_curve_that_is_there_at_once_is_steep():
    early = summarise_curve([0, 1, 100], [0.1, 0.9, 0.9])
    late = summarise_curve([0, 50, 100], [0.1, 0.9, 0.9])
    assert early.slope == pytest.approx(0.8)
    assert early.slope == pytest.approx(50 * late.slope)


@pytest.mark.parametrize(
    ("steps", "accuracies"),
    [([0], [0.1]), ([1, 2], [0.1, 0.2]), ([0, 2, 2], [0, 0, 0]), ([0, 1], [0.5])],
)
def test_what_is_no_curve_is_refused(steps, accuracies):
    with pytest.raises(DataError, match="rise from 0"):
        summarise_curve(steps, accuracies)


@given(st.integers(1, 100_000))
def test_measurements_rise_from_0_to_the_end(steps):
    at = evaluation_steps(steps)
    assert at[0] == 0 and at[-1] == steps
    assert list(at) == sorted(set(at))
    assert len(at) <= 10
    assert sum(step >= 0.8 * steps for step in at) >= min(steps, 1)
