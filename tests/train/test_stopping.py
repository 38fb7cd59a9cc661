from __future__ import annotations

import math
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxtransfer.errors import TrainingError
from jaxtransfer.train import Event, Stall, early_stopping


def run(values: list[float], metric: str = "loss") -> list[dict[str, float]]:
    return [{"step": float(i), metric: value} for i, value in enumerate(values)]


def stops_at(stall: Stall, values: list[float]) -> int | None:
    """After how many evaluations a run is over."""
    evaluations = run(values, stall.metric)
    counts = (n for n in range(1, len(values) + 1) if stall.reached(evaluations[:n]))
    return next(counts, None)


class Keras:
    """The rule of Keras's and Lightning's callbacks, step by step with a state."""

    def __init__(self, patience: int, min_delta: float) -> None:
        self.patience, self.min_delta = patience, min_delta
        self.best, self.waited = math.inf, 0

    def step(self, value: float) -> bool:
        if value < self.best - (self.min_delta if math.isfinite(self.best) else 0):
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        return self.waited >= self.patience


@given(
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.25, 2.0, math.nan]), max_size=30),
    st.integers(1, 5),
    st.sampled_from([0.0, 0.25, 0.5]),
)
def test_a_function_of_the_history_says_what_a_counter_would(
    values: list[float], patience: int, min_delta: float
) -> None:
    counter = Keras(patience, min_delta)
    expected = next((n for n, value in enumerate(values, 1) if counter.step(value)), None)
    assert stops_at(Stall("loss", patience, min_delta), values) == expected
    # An accuracy is a loss upside down.
    assert stops_at(Stall("accuracy", patience, min_delta), [-v for v in values]) == expected


def test_patience_counts_evaluations_that_are_no_better() -> None:
    assert stops_at(Stall(patience=2), [3, 2, 2, 1, 1, 1]) == 6
    assert stops_at(Stall(patience=1), [3, 2, 2]) == 3
    assert stops_at(Stall(patience=3), [3, 2, 1]) is None
    assert stops_at(Stall(patience=2, min_delta=0.5), [3, 2.8, 2.6, 2.4]) == 3
    assert stops_at(Stall(patience=2), [math.nan, math.nan]) == 2
    assert not Stall(patience=1).reached([])


def test_the_best_evaluation_is_the_first_of_equals() -> None:
    assert Stall("accuracy").best(run([0.5, 0.7, math.nan, 0.7, 0.6], "accuracy")) == 1
    assert Stall().best(run([math.nan])) is None


@pytest.mark.parametrize(
    ("metric", "rising"),
    [
        ("loss", True),
        ("colour/loss", True),
        ("mean_absolute_error", True),
        ("accuracy", False),
        ("colour/accuracy", False),
        ("f1", False),
        ("r_squared", False),
    ],
)
def test_the_better_direction_is_known_by_the_name(metric: str, rising: bool) -> None:
    assert Stall(metric, 2).reached(run([1, 2, 3], metric)) is rising
    assert Stall(metric, 2, mode="max").reached(run([1, 2, 3], metric)) is False
    assert Stall(metric, 2, mode="min").reached(run([1, 2, 3], metric)) is True


def test_what_cannot_be_watched_is_told() -> None:
    with pytest.raises(TrainingError, match=r"patience .*0; a min_delta .*-1; a mode .*'beauty'"):
        Stall("beauty", 0, -1)
    with pytest.raises(TrainingError, match="a mode among auto, min, max, found 'up'"):
        early_stopping(mode=cast(Any, "up"))
    with pytest.raises(TrainingError, match="metric among loss, accuracy, found 'f1'"):
        Stall("f1").reached([{"step": 10, "plan": "full", "loss": 1.0, "accuracy": 0.5}])


def event(evaluation: dict[str, float] | None, evaluations: list[dict[str, float]]) -> Event:
    return Event(
        step=10,
        steps=20,
        plan="full",
        records=(),
        evaluation=evaluation,
        examples_per_second=100.0,
        waiting=0.0,
        state=cast(Any, None),
        evaluations=tuple(evaluations),
    )


def test_the_callback_looks_at_all_evaluations_of_the_run_and_keeps_none() -> None:
    values = run([3, 2, 2, 2])
    stop = early_stopping(patience=2)
    assert stop(event(values[-1], values)) is True
    assert stop(event(values[2], values[:3])) is False
    # Between evaluations a run goes on.
    assert stop(event(None, values)) is False
