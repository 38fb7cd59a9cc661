"""Which checkpoints are kept: the newest ones, and the best ones by a metric."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtransfer.train.stopping import direction


class Preservation:
    """Which checkpoints Orbax keeps: the newest ones, and the best ones of those with a score."""

    def __init__(self, newest: int, best: int) -> None:
        self.newest = newest
        self.best = best
        self.scores: dict[int, float] = {}

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """For each checkpoint, in order of their steps, whether it is kept."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        best = [step for step in best_of(self.scores) if step in steps]
        kept = {*sorted(steps)[-self.newest :], *best[: self.best]}
        return [step in kept for step in steps]


def best_of(scores: Mapping[int, float]) -> list[int]:
    """Steps by their scores, the best first, of equals the earlier one first."""
    return sorted(scores, key=lambda number: (-scores[number], number))


def score_of(metrics: Mapping[str, float] | None, metric: str | None) -> float | None:
    """The value of a metric, turned so that more is better; `None` if it was not measured."""
    value = None if metrics is None or metric is None else metrics.get(metric)
    if metric is None or value is None or not math.isfinite(value):
        return None
    return -value if direction(metric) == "min" else value
