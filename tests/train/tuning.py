"""Runs of `finetune` of a network that is compiled in a moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.data import ArrayData
from jaxtransfer.models import Model
from jaxtransfer.partition import Group, Plan
from jaxtransfer.transfer import Result
from jaxtransfer.tree import diff

# A rate at which nothing moves, so that losses tell of the data alone.
STILL = 1e-30
ALL = Plan((Group("**"),), name="all")
FROZEN = Group("**", frozen=True)
# What the first plan trains, the second one freezes.
NARROWING = (Plan((Group("**"),), name="wide"), Plan((Group("head/**"), FROZEN), name="narrow"))


def _points(count: int, seed: int) -> ArrayData:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count).astype(np.int32)
    points = rng.normal(size=(count, 4)) + labels[:, np.newaxis]
    return ArrayData(points.astype(np.float32), labels)


POINTS, HELD_OUT = _points(40, 0), _points(12, 1)


def tune(model: Model, plan: Any = ALL, data: Any = POINTS, **options: Any) -> Result:
    """Twelve steps of eight of forty examples: five are an epoch."""
    usual = {"steps": 12, "batch_size": 8, "learning_rate": 0.02, "progress": False}
    return jt.finetune(model, data, plan, **{**usual, **options})


class Stop(Exception):
    """The run is stopped from outside."""


def resumed(at: int, folder: Path, *arguments: Any, **options: Any) -> Result:
    """The same run, stopped at a step and taken up again; every second step is saved."""

    def stop(number: int, _: Any) -> None:
        if number == at:
            raise Stop

    kept = {"checkpoint_folder": folder, "save_every": 2, "resume": True}
    with pytest.raises(Stop):
        tune(*arguments, **options, **kept, on_step=stop)
    return tune(*arguments, **options, **kept)


def assert_same(found: Result, expected: Result) -> None:
    """The same bits."""
    assert diff(expected.model.params, found.model.params).is_empty
    assert diff(expected.model.stats, found.model.stats).is_empty
    assert found.history == expected.history


def assert_close(found: Result, expected: Result, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """The same to rounding."""
    assert losses(found) == pytest.approx(losses(expected), rel=rtol)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(np.asarray(a), b, rtol=rtol, atol=atol),
        found.model.params,
        jax.tree.map(np.asarray, expected.model.params),
    )


def losses(result: Result) -> list[float]:
    return [record["loss"] for record in result.history]


def evaluated(result: Result) -> list[int]:
    return [record["step"] for record in result.history if "validation/loss" in record]


def host(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: np.array(leaf), tree)
