"""Does transfer help? Arms under one budget, several seeds, and a verdict that may be no."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxtransfer.data import Data
from jaxtransfer.errors import DataError, ModelError
from jaxtransfer.evaluate.arms import DEFAULT_ARMS, NAIVE, SCRATCH, Arm, Initialise, as_arms
from jaxtransfer.evaluate.budget import Budget, Search
from jaxtransfer.evaluate.cost import RunCost
from jaxtransfer.evaluate.curves import CurveSummary, evaluation_steps, summarise_curve
from jaxtransfer.evaluate.draws import classes_of, draw_examples
from jaxtransfer.evaluate.environment import environment
from jaxtransfer.evaluate.metrics import (
    Interval,
    bootstrap_interval,
    majority_accuracy,
    mean_interval,
    nested_bootstrap_interval,
)
from jaxtransfer.evaluate.runs import OnProgress, Run, Runner
from jaxtransfer.evaluate.verdict import verdict
from jaxtransfer.models import Model

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
            **{key: _plain(getattr(self, key)) for key in QUANTITIES},
            "versus_scratch": _plains(self.versus_scratch),
            "versus_naive": _plains(self.versus_naive),
            "bootstrap": _plains(self.bootstrap),
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
            that of the search.
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
        unknown = [name for name in (arm, other) if name not in self.arms]
        if unknown or quantity not in QUANTITIES:
            raise ModelError(
                f"difference: expected arms among {', '.join(self.arms)} and one of "
                f"{', '.join(QUANTITIES)}, found {unknown or quantity}"
            )
        mine, theirs = (
            [summarise_curve(self.evaluated_at, curve) for curve in self.arms[name].curves]
            for name in (arm, other)
        )
        return _differences(mine, theirs)[quantity]

    def bootstrap_difference(self, arm: str, other: str) -> Interval | None:
        """How far one arm ends above another: mean and 95 % interval over seeds and test examples.

        Args:
            arm: its name.
            other: the name of what it is compared with.

        Returns:
            The interval of `nested_bootstrap_interval`; `None` where the answers to single examples
            are not known, as of the naive arm.
        """
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
            "starts": _plains(self.starts),
            "reused": list(self.reused),
            "environment": dict(self.environment),
        }


def compare_arms(
    source: Model,
    data: Data,
    *,
    test: Data | None = None,
    validation: Data | None = None,
    names: tuple[str, str] = ("source", "target"),
    arms: Sequence[str] | Mapping[str, Any] = DEFAULT_ARMS,
    budget: Budget | None = None,
    settings: Mapping[str, Any] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    initialise: Initialise | None = None,
    on_progress: OnProgress | None = None,
) -> Comparison:
    """Train each arm on labelled images of a target, under one budget and one search.

    The arms are *naive* (always the majority class), *scratch* (the same network with random
    weights), and any recipes and plans that train the source, such as *probe* (the head alone
    trains), *full* (all trains) and *lp_ft* (the head first, then all). Heads of the transfer arms
    start with the rows of classes that the source knows by name. For each seed other training
    images are drawn, and all arms get the same.

    The learning rate is searched for each arm by the same rule, once, with a seed of its own: all
    of the budget's rates, then `extensions` more where the best one lies on the edge.

    Args:
        source: the model to transfer from.
        data: labelled images of the target, one class each.
        test: test images; by default those of `data` that are not trained on.
        validation: images that learning rates are chosen by; by default some of `data`.
        names: of source and target, for reports.
        arms: which to run: names, or a dict as `as_arms` says; without a scratch arm there is no
            verdict.
        budget: what every arm gets; by default `Budget()`.
        settings: fields of `jaxtransfer.train.Settings` for all arms, such as `augment`.
        seeds: at least one.
        initialise: random weights for a network that is not in the catalog; see `reinitialise`.
        on_progress: called after each training step.

    Raises:
        DataError: there are too few images, or labels are no classes.
        ModelError: an arm is none of the above, or a scratch arm's network has no random weights.
        PlanError, TrainingError: a plan or a setting does not fit.
        NonFiniteLossError: a seed's run diverged, or a search at all rates.
    """
    specified, budget = as_arms(arms), budget or Budget()
    _check(specified, budget, seeds)
    classes = classes_of(data, test, validation)
    search_seed = max(seeds) + 1
    draw = functools.partial(
        draw_examples, data, budget.per_class, test=test, validation=validation
    )
    draws = {seed: draw(seed) for seed in seeds}
    first, searched = draws[seeds[0]], draw(search_seed, is_search=True)
    if len(budget.learning_rates) > 1 and not len(searched.validation):
        raise DataError(
            "compare: expected validation images to choose a learning rate by, found none; give "
            "validation=, lower per_class, or give the budget a single rate"
        )
    at = evaluation_steps(budget.steps_for(len(first.train)))
    trained = {name: arm for name, arm in specified.items() if arm is not None}
    runner = Runner(source, classes, budget, settings or {}, at, initialise, on_progress)
    runner.expect(trained.values(), len(seeds))
    flat = [majority_accuracy(d.train.labels, d.test.labels) for d in draws.values()]
    naive = [CurveSummary(value, 0.0, value) for value in flat]
    outcomes: dict[str, tuple[Search, list[Run]]] = {}
    for name, arm in trained.items():
        search = runner.search(name, arm, searched, search_seed)
        runs = [runner.run(name, arm, draws[seed], seed, search.rate) for seed in seeds]
        outcomes[name] = (search, runs)
    references = _references(trained, source)
    results = {
        name: _naive_result(naive, len(at))
        if arm is None
        else _result(arm, outcomes, name, references.get(name), naive, at)
        for name, arm in specified.items()
    }
    uses_source = any(arm.source is None for arm in trained.values())
    known = set(source.labels or ()) if uses_source and not isinstance(classes, int) else set()
    return Comparison(
        arms=results,
        verdict=verdict(results),
        source=names[0],
        target=names[1],
        seeds=tuple(seeds),
        budget=budget,
        evaluated_at=at,
        starts=_starts(runner, draws) if uses_source else {},
        reused=() if isinstance(classes, int) else tuple(n for n in classes if n in known),
        environment=environment(),
        examples={
            "train": len(first.train),
            "validation": len(searched.validation),
            "test": len(first.test),
        },
    )


def _check(arms: Mapping[str, Arm | None], budget: Budget, seeds: Sequence[int]) -> None:
    problems = [] if seeds else ["at least one seed, found none"]
    if len(set(seeds)) < len(seeds):
        problems.append(f"seeds, each once, found {list(seeds)}")
    for name, arm in arms.items():
        rates = None if arm is None else arm.learning_rates
        if rates is not None and len(rates) != len(budget.learning_rates):
            problems.append(
                f"as many learning rates of {name!r} as the budget has, for the same chance, "
                f"{len(budget.learning_rates)}, found {len(rates)}"
            )
    if problems:
        raise ModelError(f"compare: expected {'; '.join(problems)}")


def _references(arms: Mapping[str, Arm], source: Model) -> dict[str, str]:
    """For each transfer arm the scratch arm of the same source, else the first one."""
    scratch = {name: arm.source or source for name, arm in arms.items() if arm.from_scratch}
    found = {}
    for name, arm in arms.items():
        if scratch and not arm.from_scratch:
            own = [key for key, model in scratch.items() if model is (arm.source or source)]
            found[name] = own[0] if own else next(iter(scratch))
    return found


def _naive_result(naive: Sequence[CurveSummary], measurements: int) -> ArmResult:
    return ArmResult(
        *_intervals(naive),
        curves=tuple((one.start,) * measurements for one in naive),
        kind=NAIVE,
        plan="the majority class",
    )


def _result(
    arm: Arm,
    outcomes: Mapping[str, tuple[Search, list[Run]]],
    name: str,
    reference: str | None,
    naive: Sequence[CurveSummary],
    at: tuple[int, ...],
) -> ArmResult:
    search, runs = outcomes[name]
    mine = [summarise_curve(at, run.curve) for run in runs]
    bootstrap = {key: bootstrap_interval([getattr(one, key) for one in mine]) for key in QUANTITIES}
    bootstrap["asymptote over examples"] = nested_bootstrap_interval([run.end for run in runs])
    versus = {}
    if reference is not None:
        others = outcomes[reference][1]
        versus = _differences(mine, [summarise_curve(at, run.curve) for run in others])
        bootstrap["versus_scratch over examples"] = nested_bootstrap_interval(
            [a.end - b.end for a, b in zip(runs, others, strict=True)]
        )
    return ArmResult(
        *_intervals(mine),
        curves=tuple(run.curve for run in runs),
        learning_rate=search.rate,
        search=search.tried,
        versus_scratch=versus,
        kind=SCRATCH if arm.from_scratch else TRANSFER,
        plan=runs[0].plan,
        search_edge=search.edge,
        versus_naive=_differences(mine, naive),
        bootstrap=bootstrap,
        cost=runs[0].cost_with([run.seconds for run in runs]),
        ends=tuple(run.end for run in runs),
    )


def _intervals(summaries: Sequence[CurveSummary]) -> tuple[Interval, Interval, Interval]:
    """Those of start, slope and asymptote."""
    start, slope, asymptote = (
        mean_interval([getattr(one, key) for one in summaries]) for key in QUANTITIES
    )
    return start, slope, asymptote


def _differences(
    mine: Sequence[CurveSummary], theirs: Sequence[CurveSummary]
) -> dict[str, Interval]:
    return {
        key: mean_interval(
            [getattr(a, key) - getattr(b, key) for a, b in zip(mine, theirs, strict=True)]
        )
        for key in QUANTITIES
    }


def _starts(runner: Runner, draws: Mapping[int, Any]) -> dict[str, Interval]:
    """Accuracy before training, with and without the head rows that the source has by name."""
    return {
        label: mean_interval(
            [runner.start(Arm(), seed, draw.test, reuse=reuse) for seed, draw in draws.items()]
        )
        for label, reuse in (("reused_head", True), ("new_head", False))
    }


def _plain(interval: Interval) -> dict[str, float | None]:
    return {key: None if math.isnan(v) else v for key, v in interval._asdict().items()}


def _plains(intervals: Mapping[str, Interval]) -> dict[str, dict[str, float | None]]:
    return {key: _plain(value) for key, value in intervals.items()}
