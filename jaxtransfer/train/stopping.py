"""When training no longer makes a network better: a function of the evaluations so far."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from jaxtransfer.errors import TrainingError
from jaxtransfer.train.events import Callback, Event

Mode: TypeAlias = Literal["auto", "min", "max"]

# By the last word of a score's name, which way it is better.
DIRECTIONS: Mapping[str, Literal["min", "max"]] = {
    "loss": "min",
    "error": "min",
    "perplexity": "min",
    "divergence": "min",
    "accuracy": "max",
    "f1": "max",
    "squared": "max",
}


@dataclass(frozen=True)
class Stall:
    """What it means that a score has stopped getting better.

    A score is better than the best before it where it is better by more than `min_delta`; NaN
    never is. It stalls when the last `patience` evaluations were no better (Goodfellow, Bengio &
    Courville 2016, "Deep Learning", algorithm 7.1).

    It has no state: from the same evaluations it always says the same, so a run that is resumed
    stops where it would have stopped.

    Attributes:
        metric: name of the score, as `evaluate` calls it.
        patience: how many evaluations in a row may be no better, from 1.
        min_delta: what a score must be better by, from 0.
        mode: whether a "min" or a "max" is better; "auto" knows of losses, errors, accuracies, F1
            and R² by their names.

    Raises:
        TrainingError: a number is out of range, the mode is unknown, or "auto" does not know which
            way the metric is better; the message lists all of it.
    """

    metric: str = "loss"
    patience: int = 5
    min_delta: float = 0.0
    mode: Mode = "auto"

    def __post_init__(self) -> None:
        problems = []
        if not self.patience >= 1:
            problems.append(f"a patience of at least 1 evaluation, found {self.patience}")
        if not 0 <= self.min_delta < math.inf:
            problems.append(f"a min_delta of at least 0, found {self.min_delta}")
        if self.mode not in ("auto", "min", "max"):
            problems.append(f"a mode among auto, min, max, found {self.mode!r}")
        elif self.mode == "auto" and direction(self.metric) is None:
            problems.append(
                f"a mode of min or max for the metric {self.metric!r}, of which is not known "
                "which way it is better, found auto"
            )
        if problems:
            raise TrainingError(f"stopping: expected {'; '.join(problems)}")

    def best(self, evaluations: Sequence[Mapping[str, Any]]) -> int | None:
        """Position of the evaluation that none after it was better than; `None` before any number.

        Raises:
            TrainingError: an evaluation does not have the metric.
        """
        best, least = None, math.inf
        for position, value in enumerate(self._costs(evaluations)):
            if value < least - (self.min_delta if best is not None else 0):
                best, least = position, value
        return best

    def reached(self, evaluations: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the last `patience` evaluations were no better than one before them.

        Args:
            evaluations: the scores of each evaluation so far, oldest first.

        Raises:
            TrainingError: an evaluation does not have the metric.

        >>> Stall(patience=2).reached([{"loss": 3.0}, {"loss": 2.0}, {"loss": 2.5}])
        False
        >>> Stall(patience=2).reached([{"loss": 2.0}, {"loss": 2.5}, {"loss": 3.0}])
        True
        """
        best = self.best(evaluations)
        return len(evaluations) - (-1 if best is None else best) - 1 >= self.patience

    def _costs(self, evaluations: Sequence[Mapping[str, Any]]) -> list[float]:
        """The metric of each evaluation, so turned that less is better."""
        for evaluation in evaluations:
            if self.metric not in evaluation:
                numbers = [name for name, value in evaluation.items() if isinstance(value, float)]
                raise TrainingError(
                    f"stopping: expected a metric among {', '.join(numbers)}, found {self.metric!r}"
                )
        mode = direction(self.metric) if self.mode == "auto" else self.mode
        sign = 1.0 if mode == "min" else -1.0
        return [sign * float(evaluation[self.metric]) for evaluation in evaluations]


def early_stopping(
    metric: str = "loss", *, patience: int = 5, min_delta: float = 0.0, mode: Mode = "auto"
) -> Callback:
    """A callback that ends a run when a score on the validation examples stops getting better.

    All evaluations of the run count, those of before a resume and of earlier plans too.

    Args:
        metric: name of the score, as `evaluate` calls it.
        patience: how many evaluations in a row may be no better, from 1.
        min_delta: what a score must be better by, from 0.
        mode: as `Stall` says.

    Raises:
        TrainingError: as `Stall` says; in the run, an evaluation does not have the metric.

    Example:
        `jt.finetune(…, callbacks=[jt.early_stopping("accuracy", patience=3)])`
    """
    stall = Stall(metric, patience, min_delta, mode)

    def stop(event: Event) -> bool:
        return event.evaluation is not None and stall.reached(event.evaluations)

    return stop


def direction(metric: str) -> Literal["min", "max"] | None:
    """Which way a score is better, by the last word of its name; `None` where that is not known.

    >>> direction("loss"), direction("age/mean_absolute_error"), direction("beauty")
    ('min', 'min', None)
    """
    return DIRECTIONS.get(metric.rpartition("/")[-1].rpartition("_")[-1])
