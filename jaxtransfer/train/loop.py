"""Carry out plans one after the other: a thin loop over jitted steps."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import optax

from jaxtransfer.data import Data, Loader, crop_when_read, prefetch_to_device
from jaxtransfer.data.loader import Workers
from jaxtransfer.data.prefetch import Prefetched
from jaxtransfer.errors import TrainingError
from jaxtransfer.models import Model
from jaxtransfer.partition import Plan, carry_opt_state, evaluation_params
from jaxtransfer.train.activations import new_file
from jaxtransfer.train.cache import Cache, CacheReport, as_cache
from jaxtransfer.train.cached import Cached, Kept, compute_once, what_to_keep
from jaxtransfer.train.checkpoint import Checkpoints, Progress
from jaxtransfer.train.checks import check_run
from jaxtransfer.train.evaluation import evaluate
from jaxtransfer.train.events import Callback, Event
from jaxtransfer.train.measured import (
    CHECK_EVERY,
    VALIDATION,
    Record,
    Stopwatch,
    evaluations_in,
    scores_of,
)
from jaxtransfer.train.preemption import Termination, leave, watch_termination
from jaxtransfer.train.program import largest_integer, make_program
from jaxtransfer.train.settings import Settings, share_steps
from jaxtransfer.train.sharding import Sharding
from jaxtransfer.train.skipping import check_skipped
from jaxtransfer.train.state import TrainState, init_state
from jaxtransfer.train.step import Metrics, TrainStep
from jaxtransfer.train.stopping import Stall
from jaxtransfer.train.targets import Targets
from jaxtransfer.tree import leaf_names, merge
from jaxtransfer.types import PyTree

OnStep = Callable[[int, TrainState], None]
"""Called with the steps done in the whole run so far and the state, which the next step donates."""


def train(
    model: Model,
    data: Data,
    plans: Sequence[Plan],
    settings: Settings,
    *,
    validation: Data | None = None,
    targets: Targets | None = None,
    evaluate_every: int | None = None,
    callbacks: Sequence[Callback] = (),
    on_step: OnStep | None = None,
    checkpoints: Checkpoints | None = None,
    save_every: int = 100,
    sharding: Sharding | None = None,
    workers: Workers | int | None = None,
    cache: Cache | str | None = "never",
) -> tuple[Model, list[Record]]:
    """Train a model by plans, one after the other.

    Args:
        model: where training starts; it stays as it is.
        data: labels must fit the model's head.
        plans: what trains in each part of the run; all are checked before the first one starts.
        settings: how the run is carried out.
        validation: examples that are evaluated as the run goes on.
        targets: what labels are, as `evaluate` says; by default what they look like.
        evaluate_every: steps between evaluations; by default an epoch. Each plan ends with one.
        callbacks: functions that watch the run, and end it by returning `True`.
        on_step: called after each step.
        checkpoints: where to save, and to resume from.
        save_every: steps between checkpoints, from 1; one more is saved at the end, and after each
            evaluation where `checkpoints` keep the best ones.
        sharding: the devices and who holds what; by default all of it is on the default device, or,
            where there are several processes, all devices share the batch.
        workers: who reads examples that are not in memory; a number is one of threads; measured
            where `None`.
        cache: what is frozen below everything that trains is computed once for each plan, and kept:
            "auto" where that can be and pays, "always" where it can be, "never", or a `Cache`.
            Losses, parameters and scores stay what they are to rounding, unless the `Cache` has
            views or keeps fewer bits.

    Returns:
        The trained model, with the moving average where there is one, and for each step `step`,
        `plan`, `loss`, `gradient_norm` and `skipped`; after an evaluation also the scores, their
        names behind `validation/`.

    Raises:
        NonFiniteLossError: in `max_skipped` steps in a row the loss or the gradient was not finite;
            checkpoints of before stay, and none is written of what came after.
        Preempted: the process was asked to end, and has saved its state; an exit with status 0.
        TrainingError: there are fewer steps than plans, a number is out of range, a plan has a
            patience and there is nothing to evaluate, or nothing can be computed once although the
            cache is required.
        PlanError, DataError, CheckpointError, OutputError: as their descriptions say.
    """
    check_run(model, data, plans, settings, validation, evaluate_every, save_every)
    if sharding is None and jax.process_count() > 1:
        sharding = Sharding()
    per_epoch = -(-len(data) // settings.batch_size)
    ready = data.ready(model.preprocess)
    kept, crop = as_cache(cache), None
    if kept is None or kept.views == 1:  # several views are augmented before they are kept
        crop, rest = crop_when_read(settings.augment, ready)
        settings = replace(settings, augment=rest)
    run = _Run(
        plans=tuple(plans),
        lengths=share_steps(plans, settings.steps),
        settings=settings,
        loader=Loader(
            ready,
            settings.batch_size,
            settings.seed,
            workers=workers,
            rows=slice(None) if sharding is None else sharding.local_rows(settings.batch_size),
            crop=crop,
        ),
        validation=None if validation is None else validation.ready(model.preprocess),
        targets=targets,
        evaluate_every=evaluate_every or per_epoch,
        callbacks=tuple(callbacks),
        on_step=on_step,
        checkpoints=checkpoints,
        save_every=save_every,
        sharding=sharding,
        largest=largest_integer(ready),
        cache=kept,
    )
    run.check_cache(model)
    with contextlib.ExitStack() as stack:
        if checkpoints is not None:
            run.termination = stack.enter_context(watch_termination())
        return run.carry_out(model), run.history


def changed_by(plans: Sequence[Plan], params: PyTree) -> frozenset[str]:
    """The names of the parameters that at least one of the plans trains."""
    names = leaf_names(params)
    chosen = [plan.chooses(names) for plan in plans]
    return frozenset(name for i, name in enumerate(names) if any(row[i] for row in chosen))


@dataclass(frozen=True)
class _Phase:
    """A plan as it is carried out: from the step after `first` to `end`, and what has changed."""

    model: Model
    plan: Plan
    position: int
    first: int
    end: int
    changed: frozenset[str]
    validation: Data | None
    report: CacheReport | None = None


@dataclass
class _Run:
    """A run in progress: what it was asked for, and how far it has come."""

    plans: tuple[Plan, ...]
    lengths: tuple[int, ...]
    settings: Settings
    loader: Loader
    validation: Data | None
    targets: Targets | None
    evaluate_every: int
    callbacks: tuple[Callback, ...]
    on_step: OnStep | None
    checkpoints: Checkpoints | None
    save_every: int
    sharding: Sharding | None
    termination: Termination | None = None
    largest: int | None = None
    cache: Cache | None = None
    number: int = 0
    skipped: int = 0
    history: list[Record] = field(default_factory=list)
    # Kept beside the history, which a long run must not search anew each time that it looks.
    evaluations: list[Record] = field(default_factory=list)
    is_over: bool = False

    def check_cache(self, model: Model) -> None:
        """Raise where a cache is required and no plan can have one."""
        if self.cache is None or not self.cache.required:
            return
        found = {plan: self._what_to_keep(model, i) for i, plan in enumerate(self.plans)}
        if not any(isinstance(kept, Kept) for kept in found.values()):
            reasons = "".join(f"\n - {plan.name}: {reason}" for plan, reason in found.items())
            raise TrainingError(
                "cache: expected a plan for which what is frozen can be computed once, found none; "
                f"change what hinders it, or give cache='auto':{reasons}"
            )

    def _what_to_keep(self, model: Model, position: int) -> Kept | str:
        """What can be computed once for a plan, or why nothing can."""
        return what_to_keep(
            model,
            self.plans[position],
            self.settings,
            self.lengths[position],
            self.loader.data,
            self.validation,
            self.cache or Cache(),
            self.sharding,
        )

    def carry_out(self, model: Model) -> Model:
        """All plans, or those that are left after a checkpoint; the trained model."""
        progress = self.checkpoints.progress() if self.checkpoints is not None else None
        if progress is not None:
            self.number, self.history = progress.number, list(progress.history)
            self.evaluations = evaluations_in(self.history)
            self.is_over = progress.is_over
            self.skipped = check_skipped(self.history, max_skipped=self.settings.max_skipped)
        state = None
        for position in range(progress.plan if progress is not None else 0, len(self.plans)):
            restores = progress is not None and position == progress.plan
            state = self._phase(model, position, None if restores else state, restores)
            trainable = evaluation_params(state.opt_state, state.trainable)
            model = replace(model, params=merge(trainable, state.frozen), stats=state.stats)
            if self.is_over:
                break
        return model if state is None else replace(model, params=state.evaluated_params)

    def _phase(
        self, model: Model, position: int, before: TrainState | None, restores: bool
    ) -> TrainState:
        """Carry out one plan; the state after its last step."""
        plan, length, settings = self.plans[position], self.lengths[position], self.settings
        tx, step = make_program(model, plan, settings, length, self.largest, self.sharding)
        state = _start(model, plan, tx, settings, position)
        if before is not None and settings.carry_moments:
            state = replace(state, opt_state=carry_opt_state(before.opt_state, state.opt_state))
        if self.sharding is not None:
            state = self.sharding.place(state)
        changed = changed_by(self.plans[: position + 1], model.params)
        if restores and self.checkpoints is not None:
            state = self.checkpoints.restore(state, plan, changed)
        first = self.number - int(state.step)
        phase = _Phase(model, plan, position, first, first + length, changed, self.validation)
        if self.is_over or self._is_stalled(phase):
            return state
        # This process's rows of the batches from here to the end of the plan, on the devices.
        place = jax.device_put if self.sharding is None else self.sharding.put_batch
        with contextlib.ExitStack() as stack:
            found = self._computed_once(phase, state, stack)
            batches = self.loader.batches(self.number, phase.end)
            if isinstance(found, Cached):
                phase = replace(
                    phase, model=found.model, validation=found.validation, report=found.report
                )
                how = (found.settings, length, None, self.sharding)
                _, step = make_program(found.model, plan, *how)
                batches = found.batches(self.number, phase.end)
            else:
                phase = replace(phase, report=found)
            placed = stack.enter_context(prefetch_to_device(batches, place))
            return self._steps(phase, step, state, placed)

    def _computed_once(
        self, phase: _Phase, state: TrainState, stack: contextlib.ExitStack
    ) -> Cached | CacheReport | None:
        """What is frozen for this plan, computed for all examples; or why it is not."""
        if self.cache is None:
            return None
        kept = self._what_to_keep(phase.model, phase.position)
        if isinstance(kept, str):
            return CacheReport(phase.plan.name, reason=kept)
        folder = self.cache.folder if kept.where == "disk" else None
        return compute_once(
            kept,
            replace(phase.model, params=state.params, stats=state.stats),
            phase.plan,
            self.settings,
            self.loader.data,
            self.validation,
            workers=self.loader.choice[0],
            sharding=self.sharding,
            file=stack.enter_context(new_file(folder)),
        )

    def _steps(
        self, phase: _Phase, step: TrainStep, state: TrainState, batches: Prefetched
    ) -> TrainState:
        """One step after the other; what they measured is looked at now and then."""
        watch = Stopwatch(self.loader.batch_size, batches)
        pending: list[tuple[int, Metrics]] = []
        for batch in batches:
            state, metrics = step(state, batch)
            self.number += 1
            pending.append((self.number, metrics))
            if self.on_step is not None:
                self.on_step(self.number, state)
            asked = self.termination is not None and self.termination.reached(self.number)
            evaluates = self.number == phase.end or self.number % self.evaluate_every == 0
            saves = asked or self._saves(phase, evaluates)
            if not (evaluates or saves or self.number % CHECK_EVERY == 0):
                continue
            self._look(phase, state, pending, evaluates, watch)
            pending = []
            ends = self.is_over or (evaluates and self._is_stalled(phase))
            if self.checkpoints is not None and (saves or ends):
                progress = Progress(self.number, phase.position, tuple(self.history), self.is_over)
                scores = scores_of(self.history[-1])
                self.checkpoints.save(state, phase.changed, progress, scores)
                if asked:
                    self.checkpoints.wait()
                    leave(self.number, self.checkpoints.folder)
            if ends:
                break
        return state

    def _saves(self, phase: _Phase, evaluates: bool) -> bool:
        """Whether it is time for a checkpoint; where the best are kept, each evaluation is."""
        if self.checkpoints is None:
            return False
        is_measured = evaluates and self.checkpoints.keep_best > 0
        is_end = self.number == phase.end and phase.position == len(self.plans) - 1
        return is_end or is_measured or self.number % self.save_every == 0

    def _is_stalled(self, phase: _Phase) -> bool:
        """Whether the plan's patience is at an end, as the history tells since its first step."""
        if phase.plan.patience is None:
            return False
        stall = Stall(self.settings.metric, phase.plan.patience)
        return stall.reached([found for found in self.evaluations if found["step"] > phase.first])

    def _look(
        self,
        phase: _Phase,
        state: TrainState,
        pending: Sequence[tuple[int, Metrics]],
        evaluates: bool,
        watch: Stopwatch,
    ) -> None:
        """Wait for the steps so far, take down what they measured, and tell the callbacks."""
        records = [
            {"step": number, "plan": phase.plan.name, **{k: float(v) for k, v in metrics.items()}}
            for number, metrics in pending
        ]
        rate, waiting = watch.lap(len(records))
        self.skipped = check_skipped(records, self.skipped, max_skipped=self.settings.max_skipped)
        evaluation = self._evaluate(phase, state) if evaluates else None
        if evaluation is not None:
            records[-1] |= {f"{VALIDATION}{name}": value for name, value in evaluation.items()}
        self.history += records
        self.evaluations += evaluations_in(records)
        event = Event(
            step=self.number,
            steps=sum(self.lengths),
            plan=phase.plan.name,
            records=tuple(records),
            evaluation=evaluation,
            examples_per_second=rate,
            waiting=waiting,
            state=state,
            evaluations=tuple(self.evaluations),
            cache=phase.report,
        )
        # All of them are told, also where the first one ends the run.
        self.is_over = any([callback(event) is True for callback in self.callbacks])
        watch.restart()

    def _evaluate(self, phase: _Phase, state: TrainState) -> dict[str, float] | None:
        """The scores on the validation examples, where there are any."""
        if phase.validation is None:
            return None
        return evaluate(
            phase.model,
            state.evaluated_params,
            state.stats,
            phase.validation,
            loss=self.settings.loss,
            targets=self.targets,
            batch_size=self.settings.batch_size,
            workers=self.loader.choice[0],
            sharding=self.sharding,
        )


def _start(
    model: Model, plan: Plan, tx: optax.GradientTransformation, settings: Settings, position: int
) -> TrainState:
    state = init_state(
        model,
        plan,
        tx,
        settings.seed,
        with_ema=settings.ema_decay is not None,
        precision=settings.precision,
    )
    # A copy, since the step donates it: the settings may hold an array.
    rate = jnp.array(settings.learning_rate, jnp.float32, copy=True)
    return replace(
        state,
        opt_state=optax.tree.set(state.opt_state, learning_rate=rate),
        rng=jax.random.fold_in(state.rng, position),
    )
