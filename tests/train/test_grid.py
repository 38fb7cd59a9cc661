from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxtransfer.errors import TrainingError
from jaxtransfer.train.grid import (
    ROW_COST,
    Configuration,
    arrange,
    configurations_of,
    halving_rungs,
    ranked,
    survivors,
)


def test_a_grid_is_all_combinations_and_the_rest_is_as_in_finetune() -> None:
    found = configurations_of({"lr": np.array([0.1, 0.2]), "label_smoothing": [0, 0.1]})
    assert [(one.learning_rate, one.label_smoothing) for one in found] == [
        (0.1, 0.0),
        (0.1, 0.1),
        (0.2, 0.0),
        (0.2, 0.1),
    ]
    assert found[0] == Configuration(learning_rate=0.1)
    assert found[0].to_dict() == {
        "learning_rate": 0.1,
        "weight_decay": 1e-4,
        "label_smoothing": 0.0,
        "seed": 0,
    }


def test_all_that_is_wrong_with_a_grid_is_told_at_once() -> None:
    grid = {
        "lr": [0.1, 0.0, float("nan"), True],
        "learning_rate": [0.1],
        "momentum": [0.9],
        "weight_decay": [],
        "label_smoothing": 0.1,
        "seed": [1, 1.5],
    }
    with pytest.raises(TrainingError) as caught:
        configurations_of(grid)
    lines = str(caught.value).splitlines()[1:]
    assert [line.split(":")[0] for line in lines] == [f" - '{name}'" for name in grid]
    assert "found 0.0, nan, True" in lines[0] and "another name" in lines[1]
    assert "no such name; the names are lr, learning_rate, weight_decay" in lines[2]
    assert "at least one number, found []" in lines[3] and "found 0.1" in lines[4]
    assert "found 1.5" in lines[5]


@pytest.mark.parametrize("grid", [{}, [0.1], {"lr": [0.1, 0.1]}, {"lr": "0.1"}])
def test_what_is_no_grid_is_refused(grid: object) -> None:
    with pytest.raises(TrainingError, match="sweep: expected"):
        configurations_of(grid)  # pyright: ignore[reportArgumentType]


@given(st.integers(1, 200), st.integers(1, 500), st.integers(2, 5))
def test_rungs_rise_to_the_whole_run_and_no_round_costs_more_than_all_at_first(
    count: int, steps: int, eta: int
) -> None:
    rungs = halving_rungs(count, steps, eta)
    assert rungs[-1] == steps and rungs[0] >= 1
    assert all(a < b for a, b in zip(rungs, rungs[1:], strict=False))
    left = count
    for number, rung in enumerate(rungs):
        # Rounded up, and down: at most one configuration and one step from equal shares.
        share = steps / eta ** (len(rungs) - 1 - number)
        assert share - 1 < rung <= share
        assert left <= count / eta**number + 1.5
        left = survivors(left, eta)
    # Down to one, or to where the first rung is a single step.
    assert survivors(left, eta) <= 1 or steps // eta ** len(rungs) == 0 or left == 1


def test_equal_scores_are_told_apart_by_losses_and_nan_comes_last() -> None:
    scores = np.array([np.nan, 0.5, 0.9, 0.9, 0.9])
    losses = np.array([0.0, 1.0, 0.4, 0.3, 0.3])
    assert ranked(scores, losses).tolist() == [3, 4, 2, 1, 0]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.integers(1, 8))
def test_rows_share_a_seed_and_no_configuration_is_lost(seeds: list[int], devices: int) -> None:
    devices = min(devices, len(seeds))
    places = arrange(seeds, devices)
    assert places.ndim == 3 and len(places) == devices
    assert set(places.ravel().tolist()) == set(range(len(seeds)))
    assert all(len({seeds[i] for i in row}) == 1 for part in places for row in part)
    # Never dearer than each configuration for itself.
    _, rows, members = places.shape
    assert rows * (members + ROW_COST) <= -(-len(seeds) // devices) * (1 + ROW_COST)


def test_a_whole_grid_lies_without_gaps() -> None:
    seeds = [i % 4 for i in range(64)]
    assert arrange(seeds, 1).shape == (1, 4, 16)
    assert arrange(seeds, 8).shape == (8, 1, 8)
