"""Does transfer help? Arms under one budget, several seeds, and a verdict that may be no."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtransfer.data import Data
from jaxtransfer.errors import DataError, ModelError
from jaxtransfer.evaluate.arms import DEFAULT_ARMS, NAIVE, SCRATCH, Arm, Initialise, as_arms
from jaxtransfer.evaluate.budget import Budget, Search
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
from jaxtransfer.evaluate.results import (
    QUANTITIES,
    TRANSFER,
    ArmResult,
    Comparison,
    paired_differences,
)
from jaxtransfer.evaluate.runs import OnProgress, Run, Runner
from jaxtransfer.evaluate.verdict import verdict
from jaxtransfer.models import Model


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
    is_searched = len(budget.learning_rates) > 1
    if is_searched and not len(searched.validation):
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
            "validation": len(searched.validation) if is_searched else 0,
            "test": len(first.test),
        },
    )


def _check(arms: Mapping[str, Arm | None], budget: Budget, seeds: Sequence[int]) -> None:
    problems = [] if seeds else ["at least one seed, found none"]
    if len(set(seeds)) < len(seeds):
        problems.append(f"seeds, each once, found {list(seeds)}")
    if seeds and min(seeds) < 0:
        problems.append(f"seeds of at least 0, found {min(seeds)}")
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
        versus = paired_differences(mine, [summarise_curve(at, run.curve) for run in others])
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
        versus_naive=paired_differences(mine, naive),
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


def _starts(runner: Runner, draws: Mapping[int, Any]) -> dict[str, Interval]:
    """Accuracy before training, with and without the head rows that the source has by name."""
    return {
        label: mean_interval(
            [runner.start(Arm(), seed, draw.test, reuse=reuse) for seed, draw in draws.items()]
        )
        for label, reuse in (("reused_head", True), ("new_head", False))
    }
