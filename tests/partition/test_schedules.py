from __future__ import annotations

import math

import pytest

from jaxtransfer.errors import PlanError
from jaxtransfer.partition import SCHEDULES, constant, linear, one_cycle, warmup_cosine


@pytest.mark.parametrize(
    ("steps", "fraction", "warmup"),
    [(100, 0.1, 10), (40, 0.25, 10), (7, 0.0, 1), (5, 0.5, 2), (2, 0.9, 1), (4, 1.0, 3)],
)
def test_the_factor_rises_in_a_line_and_falls_by_a_cosine(
    steps: int, fraction: float, warmup: int
) -> None:
    factor = warmup_cosine(steps, fraction)
    for step in range(steps + 1):
        if step < warmup:
            expected = step / warmup
        else:
            expected = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
        assert float(factor(step)) == pytest.approx(expected, abs=1e-6)
    assert max(float(factor(step)) for step in range(steps)) == 1.0
    assert float(factor(steps)) == pytest.approx(0.0, abs=1e-7)


def half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))


@pytest.mark.parametrize(
    ("steps", "fraction", "warmup"), [(10, 0.2, 2), (5, 0.5, 2), (2, 0.9, 1), (100, 0.29, 29)]
)
def test_the_other_factors_rise_as_far_and_then_fall_or_stay(
    steps: int, fraction: float, warmup: int
) -> None:
    line, cycle, flat = (make(steps, fraction) for make in (linear, one_cycle, constant))
    for step in range(steps + 1):
        share = step / warmup if step < warmup else (step - warmup) / (steps - warmup)
        rising = step < warmup
        assert float(line(step)) == pytest.approx(share if rising else 1 - share, abs=1e-6)
        ends = (1 / 25, 1.0) if rising else (1.0, 1 / 250_000)
        assert float(cycle(step)) == pytest.approx(half_cosine(*ends, share), abs=1e-6)
        assert float(flat(step)) == pytest.approx(share if rising else 1.0, abs=1e-6)


def test_a_constant_factor_needs_no_rise() -> None:
    assert [float(constant(5, 0.0)(step)) for step in range(6)] == [1.0] * 6


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_run_of_one_step_is_not_wasted(name: str) -> None:
    assert float(SCHEDULES[name](1)(0)) == 1.0


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("steps", "fraction"), [(0, 0.1), (10, -0.1), (10, 1.1)])
def test_a_schedule_needs_steps_and_a_share(name: str, steps: int, fraction: float) -> None:
    with pytest.raises(PlanError, match=rf"{name}: .*found {steps} and {fraction}"):
        SCHEDULES[name](steps, fraction)  # type: ignore[call-arg]
