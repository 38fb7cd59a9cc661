"""What a comparison of arms gives: figures, curves, intervals and costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxtransfer.errors import ModelError
from jaxtransfer.evaluate.budget import Budget
from jaxtransfer.evaluate.cost import RunCost
from jaxtransfer.evaluate.curves import CurveSummary, summarise_curve
from jaxtransfer.evaluate.metrics import Interval, mean_interval, nested_bootstrap_interval

QUANTITIES = ("start", "slope", "asymptote")
TRANSFER = "transfer"


@dataclass(frozen=True)
class ArmResult:
    """What one arm did.

    Attributes:
        start, slope, asymptote: mean and 95 % interval over the seeds, by Student's t.
        curves: for each seed the test accuracy at each of the comparison's `evaluated_at`.
        learning_rate: the one that the search chose; `None` for the naive arm.
        search: validation accuracy of each learning rate that was tried; `None` where the loss did
            not stay finite.
        versus_scratch: for start, slope and asymptote the mean difference to the scratch arm and
            its 95 % interval, paired by seed; empty for a scratch arm and where there is none. Of
            several scratch arms it is the one of the same source, else the first.
        kind: "naive", "scratch" or "transfer".
        plan: what trained, in order.
        search_edge: "lowest" or "highest" where the best rate is that of all tried, extensions
            included, so that one beyond it may be better still.
        versus_naive: the same differences to always answering the majority class.
        bootstrap: 95 % intervals without the assumption of a distribution: start, slope and
            asymptote over the seeds by percentiles, and over seeds and test examples both
            `asymptote over examples` and `versus_scratch over examples`.
        cost: what one run costs; `None` for the naive arm.
        ends: for each seed and each test example the share of the last fifth's measurements that
            were right.
    """

    start: Interval
    slope: Interval
    asymptote: Interval
    curves: tuple[tuple[float, ...], ...]
    learning_rate: float | None = None
    search: tuple[tuple[float, float | None], ...] = ()
    versus_scratch: Mapping[str, Interval] = field(default_factory=dict)
    kind: str = TRANSFER
    plan: str = ""
    search_edge: str | None = None
    versus_naive: Mapping[str, Interval] = field(default_factory=dict)
    bootstrap: Mapping[str, Interval] = field(default_factory=dict)
    cost: RunCost | None = None
    ends: tuple[np.ndarray, ...] = field(default=(), repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON can hold it, without the examples one by one."""
        return {
            "kind": self.kind,
            "plan": self.plan,
            **{key: getattr(self, key).to_dict() for key in QUANTITIES},
            "versus_scratch": plain_intervals(self.versus_scratch),
            "versus_naive": plain_intervals(self.versus_naive),
            "bootstrap": plain_intervals(self.bootstrap),
            "learning_rate": self.learning_rate,
            "search": [{"learning_rate": lr, "validation": value} for lr, value in self.search],
            "search_edge": self.search_edge,
            "cost": None if self.cost is None else self.cost.to_dict(),
            "curves": [list(curve) for curve in self.curves],
        }


@dataclass(frozen=True)
class Comparison:
    """The outcome of `compare`.

    Attributes:
        arms: by name, in the order in which they are shown.
        verdict: what they say together.
        source, target: what was transferred from and to.
        seeds: of the draws of training images, and of all else that is random.
        budget: what every arm got.
        evaluated_at: numbers of steps at which the test accuracy was measured.
        starts: accuracy before training with the head rows of known classes reused, and with a new
            head; empty where no arm starts from the source.
        reused: names of the classes whose head rows were reused.
        environment: versions and machine.
        examples: how many the parts `train`, `validation` and `test` have; the validation part is
            that of the search, where there is one.
    """

    arms: Mapping[str, ArmResult]
    verdict: str
    source: str
    target: str
    seeds: tuple[int, ...]
    budget: Budget
    evaluated_at: tuple[int, ...]
    starts: Mapping[str, Interval]
    reused: tuple[str, ...]
    environment: Mapping[str, str]
    examples: Mapping[str, int] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Training steps of each run."""
        return self.evaluated_at[-1]

    def difference(self, arm: str, other: str, quantity: str = "asymptote") -> Interval:
        """How far one arm lies above another: mean and 95 % interval, paired by seed.

        Args:
            arm: its name.
            other: the name of what it is compared with.
            quantity: "start", "slope" or "asymptote".

        Raises:
            ModelError: there is no such arm or quantity.
        """
        self._check_arms("difference", arm, other)
        if quantity not in QUANTITIES:
            raise ModelError(
                f"difference: expected one of {', '.join(QUANTITIES)}, found {quantity!r}"
            )
        mine, theirs = (
            [summarise_curve(self.evaluated_at, curve) for curve in self.arms[name].curves]
            for name in (arm, other)
        )
        return paired_differences(mine, theirs)[quantity]

    def bootstrap_difference(self, arm: str, other: str) -> Interval | None:
        """How far one arm ends above another: mean and 95 % interval over seeds and test examples.

        Args:
            arm: its name.
            other: the name of what it is compared with.

        Returns:
            The interval of `nested_bootstrap_interval`; `None` where the answers to single examples
            are not known, as of the naive arm.

        Raises:
            ModelError: there is no such arm.
        """
        self._check_arms("bootstrap_difference", arm, other)
        mine, theirs = self.arms[arm].ends, self.arms[other].ends
        if not mine or not theirs:
            return None
        return nested_bootstrap_interval([a - b for a, b in zip(mine, theirs, strict=True)])

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON can hold it; bounds that one seed cannot give are `None`."""
        return {
            "arms": {name: arm.to_dict() for name, arm in self.arms.items()},
            "verdict": self.verdict,
            "source": self.source,
            "target": self.target,
            "seeds": list(self.seeds),
            "budget": self.budget.to_dict(),
            "examples": dict(self.examples),
            "evaluated_at": list(self.evaluated_at),
            "starts": plain_intervals(self.starts),
            "reused": list(self.reused),
            "environment": dict(self.environment),
        }

    def _check_arms(self, where: str, *names: str) -> None:
        unknown = [name for name in names if name not in self.arms]
        if unknown:
            raise ModelError(
                f"{where}: expected arms among {', '.join(self.arms)}, found {', '.join(unknown)}"
            )


def paired_differences(
    mine: Sequence[CurveSummary], theirs: Sequence[CurveSummary]
) -> dict[str, Interval]:
    """Mean and 95 % interval of the differences in start, slope and asymptote, run by run."""
    return {
        key: mean_interval(
            [getattr(a, key) - getattr(b, key) for a, b in zip(mine, theirs, strict=True)]
        )
        for key in QUANTITIES
    }


def plain_intervals(intervals: Mapping[str, Interval]) -> dict[str, dict[str, float | None]]:
    """Intervals as JSON can hold them; bounds that are not known are `None`."""
    return {key: value.to_dict() for key, value in intervals.items()}
