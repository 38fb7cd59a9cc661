"""Does transfer help? Arms under one budget, several seeds, and a verdict that may be no."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from types import MappingProxyType
from typing import Any

import jax

from jaxtransfer.data import ArrayData, few_shot_split
from jaxtransfer.data.digits import Split
from jaxtransfer.errors import DataError, ModelError
from jaxtransfer.evaluate.curves import CurveSummary, evaluation_steps, summarise_curve
from jaxtransfer.evaluate.metrics import Interval, accuracy, majority_accuracy, mean_interval
from jaxtransfer.evaluate.predict import predict, predict_with
from jaxtransfer.models import Model, families, init
from jaxtransfer.partition import Plan, resolve_plans
from jaxtransfer.surgery import replace_head
from jaxtransfer.train import Settings, TrainState, cross_entropy, train

NAIVE, SCRATCH = "naive", "scratch"

# Beside the naive and the scratch arm: from the name of an arm to the recipe that it carries out.
TRANSFER_ARMS: Mapping[str, str] = MappingProxyType(
    {"probe": "probe", "full": "full", "lp_ft": "lp_ft"}
)

QUANTITIES = ("start", "slope", "asymptote")

OnProgress = Callable[[str, int, int], None]
"""Called with what is being done, the number of training steps done, and their number in all."""


@dataclass(frozen=True)
class Budget:
    """What every arm gets, the naive one excepted, which needs none.

    Attributes:
        per_class: labelled training images of each class.
        steps: training steps of each run.
        batch_size: examples a step.
        learning_rates: each is tried, on training images of their own, and the one with the highest
            validation accuracy at the end of its run is taken for all seeds.
        weight_decay: decoupled weight decay of kernels.
        label_smoothing: share of the target spread over all classes.
    """

    per_class: int = 5
    steps: int = 120
    batch_size: int = 32
    learning_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    weight_decay: float = 1e-4
    label_smoothing: float = 0.0


@dataclass(frozen=True)
class Arm:
    """What one arm did.

    Attributes:
        start, slope, asymptote: mean and 95 % interval over the seeds.
        curves: for each seed the test accuracy at each of the comparison's `evaluated_at`.
        learning_rate: the one that the search chose; `None` for the naive arm.
        search: validation accuracy of each learning rate that was tried.
        versus_scratch: for start, slope and asymptote the mean difference to the scratch arm and
            its 95 % interval, paired by seed; empty for the scratch arm and where there is none.
    """

    start: Interval
    slope: Interval
    asymptote: Interval
    curves: tuple[tuple[float, ...], ...]
    learning_rate: float | None = None
    search: tuple[tuple[float, float], ...] = ()
    versus_scratch: Mapping[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """The outcome of `compare`.

    Attributes:
        arms: by name, in the order in which they are shown.
        verdict: one sentence.
        source, target: what was transferred from and to.
        seeds: of the draws of training images, and of all else that is random.
        budget: what every arm got.
        evaluated_at: numbers of steps at which the test accuracy was measured.
        starts: accuracy before training with the head rows of known classes reused, and with a new
            head.
        reused: names of the classes whose head rows were reused.
        environment: versions and machine.
    """

    arms: Mapping[str, Arm]
    verdict: str
    source: str
    target: str
    seeds: tuple[int, ...]
    budget: Budget
    evaluated_at: tuple[int, ...]
    starts: Mapping[str, Interval]
    reused: tuple[str, ...]
    environment: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON can hold it; bounds that one seed cannot give are `None`."""
        arms = {
            name: {
                **{key: _plain(getattr(arm, key)) for key in QUANTITIES},
                "versus_scratch": {key: _plain(value) for key, value in arm.versus_scratch.items()},
                "learning_rate": arm.learning_rate,
                "search": [{"learning_rate": lr, "validation": value} for lr, value in arm.search],
                "curves": [list(curve) for curve in arm.curves],
            }
            for name, arm in self.arms.items()
        }
        return {
            "arms": arms,
            "verdict": self.verdict,
            "source": self.source,
            "target": self.target,
            "seeds": list(self.seeds),
            "budget": {**asdict(self.budget), "learning_rates": list(self.budget.learning_rates)},
            "evaluated_at": list(self.evaluated_at),
            "starts": {name: _plain(value) for name, value in self.starts.items()},
            "reused": list(self.reused),
            "environment": dict(self.environment),
        }


def _plain(interval: Interval) -> dict[str, float | None]:
    return {key: None if math.isnan(v) else v for key, v in interval._asdict().items()}


def compare_arms(
    source: Model,
    data: ArrayData,
    *,
    names: tuple[str, str] = ("source", "target"),
    arms: Sequence[str] = (NAIVE, SCRATCH, *TRANSFER_ARMS),
    budget: Budget = Budget(),
    seeds: Sequence[int] = (0, 1, 2),
    on_progress: OnProgress | None = None,
) -> Comparison:
    """Train each arm on few labelled images of a target, under one budget and one search.

    The arms are *naive* (always the majority class), *scratch* (the same network with random
    weights), *probe* (the head alone trains), *full* (all trains) and *lp_ft* (the head
    first, then all). Heads of the transfer arms start with the rows of classes that the source
    knows by name. For each seed other training images are drawn, and all arms get the same; the
    rest of the data, less the validation images, is the test set.

    Args:
        source: a model of the catalog.
        data: all labelled images of the target, with names of classes.
        names: of source and target, for reports.
        arms: which to run; without `scratch` there is no verdict.
        budget: what every arm gets.
        seeds: at least one; the search for a learning rate draws with a seed of its own.
        on_progress: called after each training step.

    Raises:
        DataError: the classes have no names, or there are too few images.
        ModelError: an arm is unknown, or the source is not in the catalog.
    """
    unknown = [name for name in arms if name not in (NAIVE, SCRATCH, *TRANSFER_ARMS)]
    if unknown or not seeds:
        raise ModelError(
            f"compare: expected at least one seed and arms among {NAIVE}, {SCRATCH}, "
            f"{', '.join(TRANSFER_ARMS)}, found {len(seeds)} seeds and {unknown or 'no other arm'}"
        )
    if data.classes is None:
        raise DataError("compare: expected data with names of classes; give ArrayData its classes")
    trained = [name for name in arms if name != NAIVE]
    search_runs = len(budget.learning_rates) if len(budget.learning_rates) > 1 else 0
    count = _Count(len(trained) * (search_runs + len(seeds)) * budget.steps, on_progress)
    splits = {seed: few_shot_split(data, budget.per_class, seed) for seed in seeds}
    search_split = few_shot_split(data, budget.per_class, max(seeds) + 1)
    at = evaluation_steps(budget.steps)
    outcomes: dict[str, tuple[list[tuple[float, ...]], float | None, tuple]] = {}
    for name in arms:
        if name == NAIVE:
            flat = [majority_accuracy(s.train.labels, s.test.labels) for s in splits.values()]
            outcomes[name] = ([(value,) * len(at) for value in flat], None, ())
            continue
        rate, search = _search(source, name, search_split, max(seeds) + 1, budget, count)
        curves = [
            _curve(source, name, splits[seed], seed, budget, rate, at, count) for seed in seeds
        ]
        outcomes[name] = (curves, rate, search)
    summaries = {
        name: [summarise_curve(at, curve) for curve in curves]
        for name, (curves, _, _) in outcomes.items()
    }
    results = {
        name: Arm(
            *(mean_interval([getattr(s, key) for s in summaries[name]]) for key in QUANTITIES),
            curves=tuple(curves),
            learning_rate=rate,
            search=search,
            versus_scratch=_versus(summaries[name], summaries.get(SCRATCH), name),
        )
        for name, (curves, rate, search) in outcomes.items()
    }
    starts, reused = _starts(source, data.classes, splits)
    return Comparison(
        arms=results,
        verdict=verdict(results),
        source=names[0],
        target=names[1],
        seeds=tuple(seeds),
        budget=budget,
        evaluated_at=at,
        starts=starts,
        reused=reused,
        environment=environment(),
    )


class _Count:
    """How many training steps are done, over all runs."""

    def __init__(self, total: int, on_progress: OnProgress | None) -> None:
        self.done, self.total, self.on_progress = 0, total, on_progress

    def step(self, what: str) -> None:
        self.done += 1
        if self.on_progress is not None:
            self.on_progress(what, self.done, self.total)


def start_of_arm(
    source: Model, name: str, classes: Sequence[str], seed: int
) -> tuple[Model, tuple[Plan, ...]]:
    """The model that an arm starts from, and the plans that it carries out.

    Raises:
        ModelError: the scratch arm is asked for, and the source is not in the catalog.
    """
    if name == SCRATCH:
        scratch = replace_head(reinitialise(source, seed), classes=classes, reuse=False, key=seed)
        return scratch, resolve_plans("full", scratch)
    model = replace_head(source, classes=classes, key=seed)
    return model, resolve_plans(TRANSFER_ARMS[name], model)


def reinitialise(model: Model, seed: int) -> Model:
    """The same network with random weights.

    Raises:
        ModelError: the network is not in the catalog.
    """
    if model.spec.name not in families():
        raise ModelError(
            f"scratch arm: expected a network of the catalog, found {model.spec.name!r}, whose "
            f"random weights "
            "nobody described; leave the arm out"
        )
    fresh = init(model.spec.name, seed, **dict(model.spec.options))
    return replace(fresh, preprocess=model.preprocess)


def _settings(budget: Budget, rate: float, seed: int) -> Settings:
    return Settings(
        steps=budget.steps,
        batch_size=budget.batch_size,
        learning_rate=rate,
        weight_decay=budget.weight_decay,
        loss=cross_entropy(budget.label_smoothing),
        seed=seed,
    )


def _search(
    source: Model, name: str, split: Split, seed: int, budget: Budget, count: _Count
) -> tuple[float, tuple[tuple[float, float], ...]]:
    """The learning rate of the highest validation accuracy, the lowest of equals; all scores."""
    if len(budget.learning_rates) == 1:
        return budget.learning_rates[0], ()
    scores = []
    for rate in sorted(budget.learning_rates):
        model, plans = start_of_arm(source, name, split.train.classes or (), seed)
        tuned, _ = train(
            model,
            split.train,
            plans,
            _settings(budget, rate, seed),
            on_step=lambda number, state: count.step(f"{name}: choosing a learning rate"),
        )
        logits = predict(tuned, split.validation.images)
        scores.append((rate, accuracy(logits, split.validation.labels)))
    return max(scores, key=lambda score: score[1])[0], tuple(scores)


def _curve(
    source: Model,
    name: str,
    split: Split,
    seed: int,
    budget: Budget,
    rate: float,
    at: tuple[int, ...],
    count: _Count,
) -> tuple[float, ...]:
    """Test accuracy of one run at the steps `at`."""
    model, plans = start_of_arm(source, name, split.train.classes or (), seed)
    accuracies = [accuracy(predict(model, split.test.images), split.test.labels)]

    def measure(number: int, state: TrainState) -> None:
        if number in at:
            logits = predict_with(model, state.params, state.stats, split.test.images)
            accuracies.append(accuracy(logits, split.test.labels))
        count.step(f"{name}: seed {seed}")

    train(model, split.train, plans, _settings(budget, rate, seed), on_step=measure)
    return tuple(accuracies)


def _versus(
    mine: list[CurveSummary], scratch: list[CurveSummary] | None, name: str
) -> Mapping[str, Interval]:
    if scratch is None or name == SCRATCH:
        return {}
    return {
        key: mean_interval(
            [getattr(a, key) - getattr(b, key) for a, b in zip(mine, scratch, strict=True)]
        )
        for key in QUANTITIES
    }


def _starts(
    source: Model, classes: tuple[str, ...], splits: Mapping[int, Split]
) -> tuple[dict[str, Interval], tuple[str, ...]]:
    """Accuracy before training, with and without the head rows that the source has by name."""
    known = set(source.labels or ())
    starts = {}
    for label, reuse in (("reused_head", True), ("new_head", False)):
        values = [
            accuracy(
                predict(
                    replace_head(source, classes=classes, reuse=reuse, key=seed), split.test.images
                ),
                split.test.labels,
            )
            for seed, split in splits.items()
        ]
        starts[label] = mean_interval(values)
    return starts, tuple(name for name in classes if name in known)


def verdict(arms: Mapping[str, Arm]) -> str:
    """One sentence on whether transfer helped, from the paired differences to scratch.

    Transfer helps where the best transfer arm's asymptote lies above that of scratch by more than
    the 95 % interval, and early only where no more than its start or slope does; it is negative
    where the best one's asymptote lies below by more than the interval.
    """
    transfer = {name: arm for name, arm in arms.items() if name in TRANSFER_ARMS}
    if SCRATCH not in arms or not transfer:
        return "No verdict: it takes the scratch arm and at least one transfer arm."
    best = max(transfer, key=lambda name: transfer[name].asymptote.mean)
    versus = transfer[best].versus_scratch
    end = versus["asymptote"]
    if math.isnan(end.low):
        return f"One seed cannot tell: {best} ends {_points(end)} scratch; run more seeds."
    interval = f"95 % interval {100 * end.low:+.1f} to {100 * end.high:+.1f}"
    evidence = f"{_points(end)} scratch ({interval}, {len(arms[best].curves)} seeds)"
    ahead = " and a higher ".join(key for key in ("start", "slope") if versus[key].low > 0)
    if end.low > 0:
        also = f", with a higher {ahead}" if ahead else ""
        return f"Transfer helped: {best} ends {evidence}{also}."
    if end.high < 0:
        return f"Negative transfer: the best transfer arm, {best}, ends {evidence}."
    if ahead:
        return f"Transfer helped early only: {best} has a higher {ahead}, but ends {evidence}."
    return f"Transfer did not help: the best transfer arm, {best}, ends {evidence}."


def _points(difference: Interval) -> str:
    return f"{abs(100 * difference.mean):.1f} points {'above' if difference.mean >= 0 else 'below'}"


def environment() -> dict[str, str]:
    """Versions and machine, for reports."""
    packages = ("jaxtransfer", "jax", "jaxlib", "flax", "optax", "numpy")
    return {
        **{name: _version(name) for name in packages},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "cpu_count": str(os.cpu_count()),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # run from a clone that is not installed
        return "not installed"
