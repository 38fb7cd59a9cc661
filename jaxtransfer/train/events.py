"""What a run tells the functions that watch it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from jaxtransfer.train.cache import CacheReport
from jaxtransfer.train.state import TrainState


@dataclass(frozen=True)
class Event:
    """Something has been measured: the losses of the last few steps, and perhaps an evaluation.

    Attributes:
        step: number of steps done in the whole run.
        steps: how many the run has.
        plan: name of the plan that is being carried out.
        records: for each step since the last event, `step`, `plan` and the step's metrics as
            numbers.
        evaluation: scores on the validation examples, such as `loss` and `accuracy`, where they
            were evaluated after this step.
        examples_per_second: since the last event, evaluations left out.
        waiting: share of that time in which the step waited for data, from 0 to 1.
        state: the state after this step; the next step donates its arrays, so copy what you keep.
        evaluations: all evaluations of the run so far, those of before a resume too, this one last:
            `step`, `plan` and the scores of each.
        cache: whether the plan trains on activations that were computed once, the same report in
            all events of a plan; `None` where nobody asked for it.
    """

    step: int
    steps: int
    plan: str
    records: tuple[dict[str, Any], ...]
    evaluation: dict[str, float] | None
    examples_per_second: float
    waiting: float
    state: TrainState
    evaluations: tuple[dict[str, Any], ...] = ()
    cache: CacheReport | None = None


Callback: TypeAlias = Callable[[Event], object]
"""A plain function that watches a run; the run ends early where it returns `True`."""
