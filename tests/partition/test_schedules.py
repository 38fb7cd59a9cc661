from __future__ import annotations

import math

import pytest

from jaxtransfer.errors import PlanError
from jaxtransfer.partition import warmup_cosine


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


def test_a_run_of_one_step_is_not_wasted() -> None:
    assert float(warmup_cosine(1)(0)) == 1.0


@pytest.mark.parametrize(("steps", "fraction"), [(0, 0.1), (10, -0.1), (10, 1.1)])
def test_a_schedule_needs_steps_and_a_share(steps: int, fraction: float) -> None:
    with pytest.raises(PlanError, match=rf"found {steps} and {fraction}"):
        warmup_cosine(steps, fraction)
