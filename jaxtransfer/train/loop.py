"""Carry out plans one after the other: a thin loop over jitted steps."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxtransfer.data import Data, Loader, prefetch_to_device, preprocess_images
from jaxtransfer.data.loader import Workers
from jaxtransfer.data.prefetch import Prefetched
from jaxtransfer.errors import DataError, TrainingError
from jaxtransfer.models import Model, Preprocess
from jaxtransfer.partition import SCHEDULES, Plan, carry_opt_state, evaluation_params
from jaxtransfer.train.checkpoint import Checkpoints, Progress
from jaxtransfer.train.evaluation import evaluate
from jaxtransfer.train.events import Callback, Event
from jaxtransfer.train.preemption import Termination, leave, watch_termination
from jaxtransfer.train.settings import Settings, share_steps
from jaxtransfer.train.sharding import Sharding
from jaxtransfer.train.skipping import check_skipped
from jaxtransfer.train.state import TrainState, check_plan, init_state
from jaxtransfer.train.step import Metrics, TrainStep, make_train_step
from jaxtransfer.train.stopping import Stall
from jaxtransfer.tree import leaf_names, merge
from jaxtransfer.types import PyTree

# How many steps may run before their losses are looked at: the host must not wait for each of them.
CHECK_EVERY = 10
# What scores on the validation examples are called in the history.
VALIDATION = "validation/"

OnStep = Callable[[int, TrainState], None]
"""Called with the steps done in the whole run so far and the state, which the next step donates."""

Record = dict[str, Any]


def train(
    model: Model,
    data: Data,
    plans: Sequence[Plan],
    settings: Settings,
    *,
    validation: Data | None = None,
    evaluate_every: int | None = None,
    callbacks: Sequence[Callback] = (),
    on_step: OnStep | None = None,
    checkpoints: Checkpoints | None = None,
    save_every: int = 100,
    sharding: Sharding | None = None,
    workers: Workers | int | None = None,
) -> tuple[Model, list[Record]]:
    """Train a model by plans, one after the other.

    Args:
        model: where training starts; it stays as it is.
        data: labels must fit the model's head.
        plans: what trains in each part of the run; all are checked before the first one starts.
        settings: how the run is carried out.
        validation: examples that are evaluated as the run goes on.
        evaluate_every: steps between evaluations; by default an epoch. Each plan ends with one.
        callbacks: functions that watch the run, and end it by returning `True`.
        on_step: called after each step.
        checkpoints: where to save, and to resume from.
        save_every: steps between checkpoints, from 1; one more is saved at the end.
        sharding: the devices and who holds what; by default all of it is on the default device, or,
            where there are several processes, all devices share the batch.
        workers: who reads examples that are not in memory; a number is one of threads; measured
            where `None`.

    Returns:
        The trained model, with the moving average where there is one, and for each step `step`,
        `plan`, `loss`, `gradient_norm` and `skipped`; after an evaluation also the scores, their
        names behind `validation/`.

    Raises:
        NonFiniteLossError: in `max_skipped` steps in a row the loss or the gradient was not finite;
            checkpoints of before stay, and none is written of what came after.
        Preempted: the process was asked to end, and has saved its state; an exit with status 0.
        TrainingError: there are fewer steps than plans, a number is out of range, or a plan has a
            patience and there is nothing to evaluate.
        PlanError, DataError, CheckpointError, OutputError: as their descriptions say.
    """
    _check(model, data, plans, validation, evaluate_every, save_every)
    if sharding is None and jax.process_count() > 1:
        sharding = Sharding()
    per_epoch = -(-len(data) // settings.batch_size)
    ready = data.ready(model.preprocess)
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
        ),
        validation=None if validation is None else validation.ready(model.preprocess),
        evaluate_every=evaluate_every or per_epoch,
        callbacks=tuple(callbacks),
        on_step=on_step,
        checkpoints=checkpoints,
        save_every=save_every,
        sharding=sharding,
        largest=_largest_integer(ready),
    )
    with contextlib.ExitStack() as stack:
        if checkpoints is not None:
            run.termination = stack.enter_context(watch_termination())
        return run.carry_out(model), run.history


def _largest_integer(data: Data) -> int | None:
    """The largest value of the dtype of images of integers; `None` for other inputs."""
    images = data.read(np.arange(1))["image"]
    is_integer = isinstance(images, np.ndarray) and images.dtype.kind in "iu"
    return int(np.iinfo(images.dtype).max) if is_integer else None


def changed_by(plans: Sequence[Plan], params: PyTree) -> frozenset[str]:
    """The names of the parameters that at least one of the plans trains."""
    names = leaf_names(params)
    chosen = [plan.chooses(names) for plan in plans]
    return frozenset(name for i, name in enumerate(names) if any(row[i] for row in chosen))


def _check(
    model: Model,
    data: Data,
    plans: Sequence[Plan],
    validation: Data | None,
    evaluate_every: int | None,
    save_every: int,
) -> None:
    for name, value in (("save_every", save_every), ("evaluate_every", evaluate_every)):
        if value is not None and value < 1:
            raise TrainingError(f"{name}: expected at least 1 step, found {value}")
    for name, examples in (("data", data), ("validation", validation)):
        if examples is not None and not len(examples):
            raise DataError(f"{name}: expected at least one example, found none")
    check_labels(data, model)
    for plan in plans:
        check_plan(plan, model)
        if plan.patience is not None and validation is None:
            raise TrainingError(
                f"plan {plan.name!r}: expected validation examples, by whose scores its patience "
                "can be measured, found none; give validation=, or take a plan without patience"
            )


def check_labels(data: Data, model: Model) -> None:
    """Raise where a class of the labels has no output.

    Raises:
        DataError: a label is not below the number of the model's outputs.
    """
    labels = data.labels
    is_class = isinstance(labels, np.ndarray) and labels.ndim == 1 and labels.dtype.kind in "iu"
    outputs = model.num_classes
    if is_class and outputs is not None and not model.spec.task_heads and labels.max() >= outputs:
        raise DataError(
            f"labels: expected classes below {outputs}, the number of the head's outputs, found "
            f"{labels.max()}; replace_head gives the network as many as there are classes"
        )


@dataclass
class _Run:
    """A run in progress: what it was asked for, and how far it has come."""

    plans: tuple[Plan, ...]
    lengths: tuple[int, ...]
    settings: Settings
    loader: Loader
    validation: Data | None
    evaluate_every: int
    callbacks: tuple[Callback, ...]
    on_step: OnStep | None
    checkpoints: Checkpoints | None
    save_every: int
    sharding: Sharding | None
    termination: Termination | None = None
    largest: int | None = None
    number: int = 0
    skipped: int = 0
    history: list[Record] = field(default_factory=list)
    is_over: bool = False

    def carry_out(self, model: Model) -> Model:
        """All plans, or those that are left after a checkpoint; the trained model."""
        progress = self.checkpoints.progress() if self.checkpoints is not None else None
        if progress is not None:
            self.number, self.history = progress.number, list(progress.history)
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
        return model if state is None else replace(model, params=_evaluated_params(state))

    def _phase(
        self, model: Model, position: int, before: TrainState | None, restores: bool
    ) -> TrainState:
        """Carry out one plan; the state after its last step."""
        plan, settings = self.plans[position], self.settings
        tx, step = _program(
            model, plan, settings, self.lengths[position], self.largest, self.sharding
        )
        state = _start(model, plan, tx, settings, position)
        if before is not None and settings.carry_moments:
            state = replace(state, opt_state=carry_opt_state(before.opt_state, state.opt_state))
        if self.sharding is not None:
            state = self.sharding.place(state)
        changed = changed_by(self.plans[: position + 1], model.params)
        if restores and self.checkpoints is not None:
            state = self.checkpoints.restore(state, plan, changed)
        first = self.number - int(state.step)
        end = first + self.lengths[position]
        if self.is_over or self._is_stalled(plan, first):
            return state
        pending: list[tuple[int, Metrics]] = []
        with self._batches(end) as batches:
            watch = _Watch(self.loader.batch_size, batches)
            for batch in batches:
                state, metrics = step(state, batch)
                self.number += 1
                pending.append((self.number, metrics))
                if self.on_step is not None:
                    self.on_step(self.number, state)
                is_last = self.number == end
                asked = self.termination is not None and self.termination.reached(self.number)
                evaluates = is_last or self.number % self.evaluate_every == 0
                saves = self._saves(end if position == len(self.plans) - 1 else None) or asked
                if evaluates or saves or self.number % CHECK_EVERY == 0:
                    self._look(model, state, plan, pending, evaluates, watch)
                    pending = []
                    ends = self.is_over or (evaluates and self._is_stalled(plan, first))
                    if saves or ends:
                        self._save(state, changed, position)
                    if asked and self.checkpoints is not None:
                        self.checkpoints.wait()
                        leave(self.number, self.checkpoints.folder)
                    if ends:
                        break
        return state

    def _batches(self, end: int) -> Prefetched:
        """This process's rows of the batches from here to the end of the plan, on the devices."""
        place = jax.device_put if self.sharding is None else self.sharding.put_batch
        return prefetch_to_device(self.loader.batches(self.number, end), place)

    def _saves(self, end: int | None) -> bool:
        if self.checkpoints is None:
            return False
        return self.number % self.save_every == 0 or self.number == end

    def _save(self, state: TrainState, changed: frozenset[str], position: int) -> None:
        if self.checkpoints is None:
            return
        scores = _scores(self.history[-1])
        progress = Progress(self.number, position, tuple(self.history), self.is_over)
        self.checkpoints.save(state, changed, progress, scores)

    def _is_stalled(self, plan: Plan, first: int) -> bool:
        """Whether the plan's patience is at an end, as the history tells since its first step."""
        if plan.patience is None:
            return False
        stall = Stall(self.settings.metric, plan.patience)
        return stall.reached(_evaluations(self.history[first:]))

    def _look(
        self,
        model: Model,
        state: TrainState,
        plan: Plan,
        pending: Sequence[tuple[int, Metrics]],
        evaluates: bool,
        watch: _Watch,
    ) -> None:
        """Wait for the steps so far, take down what they measured, and tell the callbacks."""
        records = [
            {"step": number, "plan": plan.name, **{k: float(v) for k, v in metrics.items()}}
            for number, metrics in pending
        ]
        rate, waiting = watch.lap(len(records))
        self.skipped = check_skipped(records, self.skipped, max_skipped=self.settings.max_skipped)
        evaluation = None
        if evaluates and self.validation is not None:
            evaluation = evaluate(
                model,
                _evaluated_params(state),
                state.stats,
                self.validation,
                loss=self.settings.loss,
                batch_size=self.settings.batch_size,
                workers=self.loader.choice[0],
                sharding=self.sharding,
            )
            records[-1] |= {f"{VALIDATION}{name}": value for name, value in evaluation.items()}
        self.history += records
        event = Event(
            step=self.number,
            steps=sum(self.lengths),
            plan=plan.name,
            records=tuple(records),
            evaluation=evaluation,
            examples_per_second=rate,
            waiting=waiting,
            state=state,
            evaluations=tuple(_evaluations(self.history)),
        )
        # All of them are told, also where the first one ends the run.
        self.is_over = any([callback(event) is True for callback in self.callbacks])
        watch.restart()


@dataclass
class _Watch:
    """How fast the steps are, and how long they waited for data."""

    batch_size: int
    batches: Prefetched
    _begun: float = field(default_factory=time.perf_counter)
    _waited: float = 0.0

    def lap(self, steps: int) -> tuple[float, float]:
        """Examples a second and the share of time spent waiting, since the last restart."""
        seconds = max(time.perf_counter() - self._begun, 1e-9)
        waited = self.batches.waiting_seconds - self._waited
        return steps * self.batch_size / seconds, min(waited / seconds, 1.0)

    def restart(self) -> None:
        """Begin anew: what was done since the lap was no training."""
        self._begun, self._waited = time.perf_counter(), self.batches.waiting_seconds


def _evaluations(history: Sequence[Record]) -> list[dict[str, Any]]:
    """Step, plan and scores of each evaluation."""
    return [
        {"step": record["step"], "plan": record["plan"], **scores}
        for record in history
        if (scores := _scores(record))
    ]


def _scores(record: Record) -> dict[str, float]:
    """What an evaluation after a step found; nothing where there was none."""
    return {
        name.removeprefix(VALIDATION): value
        for name, value in record.items()
        if name.startswith(VALIDATION)
    }


def _evaluated_params(state: TrainState) -> PyTree:
    """The parameters that answer: the moving average, or what the optimizer says, or they all."""
    if state.ema is not None:
        return merge(state.ema, state.frozen)
    return merge(evaluation_params(state.opt_state, state.trainable), state.frozen)


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


def _prepare_augmented(images: jax.Array, how: Preprocess, largest: int | None) -> jax.Array:
    """Preprocess what an augmentation has made of images, of integers up to `largest` or floats."""
    # Integers were divided by their largest value, whatever the network wants them divided by.
    if largest is not None and how.scale != largest:
        images = images * jnp.float32(largest / (how.scale or 1))
    # What was brought to the network's size is not cut again.
    if images.shape[1:3] == how.size:
        how = replace(how, crop_fraction=1.0)
    return preprocess_images(images, how)


def _program(
    model: Model,
    plan: Plan,
    settings: Settings,
    steps: int,
    largest: int | None,
    sharding: Sharding | None,
) -> tuple[optax.GradientTransformation, TrainStep]:
    """The optimizer and the jitted step of a plan; the learning rate is set in the state."""
    # Runs that differ in these alone share one compiled step.
    shared = replace(settings, steps=1, learning_rate=1.0, seed=0, regularisers=())
    tx, step = _cached_program(
        model.apply, model.spec.stages, plan, model.preprocess, shared, steps, largest, sharding
    )
    return tx, step.with_regularisers(settings.regularisers)


@functools.lru_cache(maxsize=16)
def _cached_program(
    apply: Callable[..., Any],
    stages: tuple[str, ...],
    plan: Plan,
    preprocess: Preprocess,
    settings: Settings,
    steps: int,
    largest: int | None,
    sharding: Sharding | None,
) -> tuple[optax.GradientTransformation, TrainStep]:
    schedule = settings.schedule
    build = SCHEDULES[schedule] if isinstance(schedule, str) else schedule
    tx = plan.optimizer(
        1.0,
        optimizer=settings.optimizer,
        weight_decay=settings.weight_decay,
        clip_norm=settings.clip_norm,
        schedule=build(steps),
    )
    if settings.augment is None:
        prepare = functools.partial(preprocess_images, how=preprocess)
    else:
        prepare = functools.partial(_prepare_augmented, how=preprocess, largest=largest)
    step = make_train_step(
        apply,
        settings.loss,
        tx,
        plan,
        prepare=prepare,
        augment=settings.augment,
        stages=stages,
        accumulate=settings.accumulate,
        precision=settings.precision,
        remat=settings.remat,
        ema_decay=settings.ema_decay,
        sharding=sharding,
        parallel=settings.parallel,
    )
    return tx, step
