"""What a sweep found: the configurations that were tried, their scores, and the best model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxtransfer.models import Model
from jaxtransfer.train.grid import Configuration, ranked
from jaxtransfer.tree.summary import format_table


@dataclass(frozen=True)
class Rung:
    """Where configurations are compared.

    Attributes:
        steps: how many each of them has done.
        configurations: positions of those that came so far.
        scores: their validation scores, NaN where one has diverged.
        losses: their validation losses, without label smoothing.
    """

    steps: int
    configurations: tuple[int, ...]
    scores: tuple[float, ...]
    losses: tuple[float, ...]

    def order(self) -> list[int]:
        """Positions of the configurations from the best to the worst."""
        found = ranked(np.asarray(self.scores), np.asarray(self.losses))
        return [self.configurations[place] for place in found]


@dataclass(frozen=True)
class Sweep:
    """What `jt.sweep` found.

    Attributes:
        configurations: what was tried.
        validation: for each its last validation score, which is NaN where it has diverged: a loss,
            a gradient or an update was not finite.
        losses: for each the training loss of each step that it did.
        rungs: the comparisons by validation examples; the last one after the last step.
        model: the whole network as the best configuration trained it.
        score: the name of the validation score; higher is better.
        plan: the plan's name.
    """

    configurations: tuple[Configuration, ...]
    validation: tuple[float, ...]
    losses: tuple[tuple[float, ...], ...]
    rungs: tuple[Rung, ...]
    model: Model
    score: str
    plan: str

    @property
    def order(self) -> tuple[int, ...]:
        """Positions of all configurations from the best to the worst.

        Those that came further are before those that were left behind; of equal scores the lower
        validation loss decides.
        """
        found: dict[int, None] = {}
        for rung in reversed(self.rungs):
            found |= dict.fromkeys(rung.order())
        return tuple(found)

    @property
    def best(self) -> Configuration:
        """The configuration with the highest validation score after the last step."""
        return self.configurations[self.order[0]]

    def to_dict(self) -> dict[str, Any]:
        """All but the model, as JSON can hold it: what is not finite is `None`."""
        return {
            "plan": self.plan,
            "score": self.score,
            "best": self.best.to_dict(),
            "configurations": [one.to_dict() for one in self.configurations],
            "validation": _finite(self.validation),
            "losses": [_finite(row) for row in self.losses],
            "rungs": [
                {
                    "steps": rung.steps,
                    "configurations": list(rung.configurations),
                    "scores": _finite(rung.scores),
                    "losses": _finite(rung.losses),
                }
                for rung in self.rungs
            ],
        }

    def table(self, most: int | None = None) -> str:
        """The configurations from the best to the worst as a table.

        Args:
            most: how many rows there are at most; by default all.
        """
        return format_table(*self.rows(most))

    def rows(self, most: int | None = None) -> tuple[list[str], list[list[str]]]:
        """The header and the rows of `table`, as text; names that vary alone have a column."""
        fields = [one.to_dict() for one in self.configurations]
        varied = [name for name in fields[0] if len({row[name] for row in fields}) > 1]
        varied = varied or ["learning_rate"]
        header = [
            *(name.replace("_", " ") for name in varied),
            self.score,
            "training loss",
            "steps",
        ]
        rows = [
            [
                *(f"{fields[i][name]:g}" for name in varied),
                "diverged" if math.isnan(self.validation[i]) else f"{self.validation[i]:.4f}",
                f"{self.losses[i][-1]:.4f}",
                str(len(self.losses[i])),
            ]
            for i in self.order[:most]
        ]
        return header, rows

    def __str__(self) -> str:
        best = self.validation[self.order[0]]
        return (
            f"plan {self.plan}, {len(self.configurations)} configurations: best validation "
            f"{self.score} {best:.4f} with {self.best}"
        )


def _finite(values: Sequence[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]
