from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxtransfer.errors import TrainingError
from jaxtransfer.train.lr_curve import falling_part, suggest, suggest_from


def curve(count: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """A flat part, a fall that is steepest at 1e-3, a floor at about 0.02, and a rise."""
    rates = np.geomspace(1e-7, 10, count)
    fall = 2.0 / (1 + np.exp(2.5 * (np.log10(rates) + 3)))
    rise = np.where(rates > 0.02, 3 * np.log10(np.maximum(rates / 0.02, 1)) ** 2, 0)
    return rates, 0.3 + fall + rise


def test_the_suggestions_lie_where_their_definitions_say() -> None:
    rates, losses = curve()
    found = suggest(rates, losses)
    slopes = np.diff(losses) / np.diff(np.log(rates))
    assert found.steep == rates[np.argmin(slopes)]
    np.testing.assert_allclose(found.steep, 1e-3, rtol=0.2)
    np.testing.assert_allclose(found.minimum, rates[np.argmin(losses)] / 10)
    # The loss falls from the first rate to the lowest loss: the valley is about half of that.
    lowest = int(np.argmin(losses))
    assert abs(int(np.searchsorted(rates, found.valley)) - lowest / 2) <= 2
    assert found.steep / 30 < found.slide < rates[lowest]


def longest_fall(losses: list[float]) -> int:
    """The number of points of the longest falling subsequence, by trying all of them."""
    best: dict[int, int] = {}
    for i, here in enumerate(losses):
        best[i] = 1 + max((best[j] for j in range(i) if losses[j] > here), default=0)
    return max(best.values())


@given(st.lists(st.integers(0, 20), min_size=2, max_size=40))
def test_suggestions_are_rates_that_were_tried(heights: list[int]) -> None:
    rates = np.geomspace(1e-6, 1.0, len(heights))
    found = suggest(rates, heights)
    assert {found.valley, found.steep, found.slide} <= set(rates.tolist())
    assert found.minimum == rates[int(np.argmin(heights))] / 10
    fall, end = longest_fall([float(h) for h in heights]), 0
    for end in range(len(heights)):
        if longest_fall([float(h) for h in heights[: end + 1]]) == fall:
            break
    start = end - fall
    at = int(np.flatnonzero(rates == found.valley)[0])
    assert at == max(start + int(fall / 3) + int(fall / 6), 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_comes_after_a_loss_that_is_not_finite_is_left_out(bad: float) -> None:
    rates, losses = curve()
    ended = losses.copy()
    ended[70:] = [bad, *losses[71:] - 100]
    assert suggest(rates, ended) == suggest(rates[:70], losses[:70])


@pytest.mark.parametrize("count", [2, 3, 10])
def test_short_curves_have_suggestions_too(count: int) -> None:
    found = suggest(*curve(count))
    assert all(1e-8 <= rate <= 10 for rate in (found.valley, found.steep, found.slide))


def test_a_curve_without_two_finite_losses_says_nothing() -> None:
    with pytest.raises(TrainingError, match="at least two finite losses .*found 1 of 3; lower lo"):
        suggest([0.1, 1.0, 10.0], [1.0, np.nan, 0.5])


def test_the_flat_and_the_diverged_part_are_left_out() -> None:
    losses = np.array([1.0, 0.999, 0.998, 0.9, 0.5, 0.2, 0.9, 0.1, 50.0, 0.3])
    assert falling_part(losses) == slice(3, 6)
    assert falling_part(np.array([1.0, 9.0])) == slice(0, 1)
    assert falling_part(np.array([1.0, 0.5, np.nan])) == slice(1, 2)
    rising = falling_part(np.array([1.0, 1.1, 1.2]))
    assert rising == slice(0, 3)


def test_a_part_that_is_too_short_gives_way_to_the_whole_curve() -> None:
    rates, losses = curve(12)
    assert suggest_from(rates, losses, slice(11, 12)) == suggest(rates, losses)
    assert suggest_from(rates, losses, slice(2, 9)) == suggest(rates[2:9], losses[2:9])
