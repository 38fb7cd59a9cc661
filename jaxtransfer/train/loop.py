"""Carry out plans one after the other: a thin loop over jitted steps."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxtransfer.data.arrays import ArrayData, batch_indices
from jaxtransfer.data.preprocess import check_images, preprocess_images
from jaxtransfer.errors import DataError, NonFiniteLossError, TrainingError
from jaxtransfer.models import Model, Preprocess
from jaxtransfer.partition import Plan, warmup_cosine
from jaxtransfer.train.checkpoint import Checkpoints, Progress
from jaxtransfer.train.losses import Loss, cross_entropy
from jaxtransfer.train.state import TrainState, check_plan, init_state
from jaxtransfer.train.step import Metrics, TrainStep, make_train_step
from jaxtransfer.tree import fingerprint, leaf_names
from jaxtransfer.types import PyTree

# How many steps may run before their losses are looked at: the host must not wait for each of them.
CHECK_EVERY = 10

OnStep = Callable[[int, TrainState], None]
"""Called with the steps done in the whole run so far and the state, which the next step donates."""


@dataclass(frozen=True)
class Settings:
    """How a run is carried out.

    Attributes:
        steps: number of steps of all plans together.
        batch_size: examples a step.
        learning_rate: the highest one; each plan warms up to it and decays to 0 by half a cosine.
        weight_decay: decoupled weight decay of kernels.
        optimizer: a name in `jaxtransfer.partition.optimizer.OPTIMIZERS`.
        clip_norm: upper bound of the norm of all trainable gradients, or `None`.
        loss: from outputs and batch to a loss for each example.
        seed: of the order of the examples and of dropout, from 0.

    Raises:
        TrainingError: a number is out of range; the message lists all that are.
    """

    steps: int
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    optimizer: str = "adamw"
    clip_norm: float | None = None
    loss: Loss = cross_entropy()
    seed: int = 0

    def __post_init__(self) -> None:
        clip_fits = self.clip_norm is None or self.clip_norm > 0
        problems = [
            f"{name} {text}, found {value}"
            for name, value, fits, text in (
                ("steps", self.steps, self.steps >= 1, "of at least 1"),
                ("batch_size", self.batch_size, self.batch_size >= 1, "of at least 1"),
                ("learning_rate", self.learning_rate, self.learning_rate > 0, "above 0"),
                ("weight_decay", self.weight_decay, self.weight_decay >= 0, "of at least 0"),
                ("clip_norm", self.clip_norm, clip_fits, "above 0 or None"),
                ("seed", self.seed, self.seed >= 0, "of at least 0"),
            )
            if not (fits and (value is None or math.isfinite(value)))
        ]
        if problems:
            raise TrainingError(f"settings: expected {'; '.join(problems)}")


def share_steps(plans: Sequence[Plan], steps: int) -> tuple[int, ...]:
    """How many of the steps each plan gets: by its share, at least one, in all `steps`.

    Raises:
        TrainingError: there are fewer steps than plans.
    """
    if steps < len(plans):
        raise TrainingError(
            f"expected at least a step for each of {len(plans)} plans, found {steps}"
        )
    whole = sum(plan.share for plan in plans)
    ends = np.cumsum([plan.share for plan in plans]) / whole * steps
    # Each plan ends at least one step after the one before it, and leaves one for each to come.
    bounds = [0]
    for position, end in enumerate(ends, start=1):
        bounds.append(min(max(round(float(end)), bounds[-1] + 1), steps - (len(plans) - position)))
    return tuple(b - a for a, b in zip(bounds, bounds[1:], strict=False))


def train(
    model: Model,
    data: ArrayData,
    plans: Sequence[Plan],
    settings: Settings,
    *,
    on_step: OnStep | None = None,
    checkpoints: Checkpoints | None = None,
    save_every: int = 100,
) -> tuple[Model, list[dict[str, Any]]]:
    """Train a model by plans, one after the other; each starts with a fresh optimizer.

    Args:
        model: where training starts; it stays as it is.
        data: labels must fit the model's head.
        plans: what trains in each part of the run; all are checked before the first one starts.
        settings: how the run is carried out.
        on_step: called after each step.
        checkpoints: where to save, and to resume from.
        save_every: steps between checkpoints, from 1; one more is saved at the end.

    Returns:
        The trained model, and for each step `step`, `plan`, `loss` and `gradient_norm`.

    Raises:
        NonFiniteLossError: the loss or the gradient became NaN or infinite; checkpoints of before
            stay, and none is written of what came after.
        TrainingError: there are fewer steps than plans, or `save_every` is not at least 1.
        PlanError, DataError, CheckpointError, OutputError: as their descriptions say.
    """
    if save_every < 1:
        raise TrainingError(f"save_every: expected at least 1 step, found {save_every}")
    if not len(data):
        raise DataError("data: expected at least one example, found none")
    for plan in plans:
        check_plan(plan, model)
    images = check_images(data.images, model.preprocess)
    lengths = share_steps(plans, settings.steps)
    ends = np.cumsum(lengths).tolist()
    progress = checkpoints.progress() if checkpoints is not None else None
    history = list(progress.history) if progress else []
    number = progress.number if progress else 0

    def batch_at(step: int) -> dict[str, np.ndarray]:
        chosen = batch_indices(len(data), settings.batch_size, step, settings.seed)
        return {"image": images[chosen], "label": data.labels[chosen]}

    for position, plan in enumerate(plans):
        if progress is not None and position < progress.plan:
            continue  # what this plan changed is in the checkpoint
        changed = changed_by(plans[: position + 1], model.params)
        tx, step = _program(model.apply, plan, model.preprocess, settings, lengths[position])
        state = _start(model, plan, tx, settings, position)
        if checkpoints is not None and progress is not None and position == progress.plan:
            state = checkpoints.restore(state, plan, changed)
        pending: list[tuple[int, Metrics]] = []
        while number < ends[position]:
            state, metrics = step(state, batch_at(number))
            number += 1
            pending.append((number, metrics))
            if on_step is not None:
                on_step(number, state)
            saves = checkpoints is not None and (number % save_every == 0 or number == ends[-1])
            if saves or number == ends[position] or len(pending) == CHECK_EVERY:
                history += _records(pending, plan, settings)
                pending = []
            if checkpoints is not None and saves:
                checkpoints.save(state, changed, Progress(number, position, tuple(history)))
        model = replace(model, params=state.params, stats=state.stats)
    return model, history


def changed_by(plans: Sequence[Plan], params: PyTree) -> frozenset[str]:
    """The names of the parameters that at least one of the plans trains."""
    names = leaf_names(params)
    chosen = [plan.chooses(names) for plan in plans]
    return frozenset(name for i, name in enumerate(names) if any(row[i] for row in chosen))


def run_identity(
    model: Model, data: ArrayData, plans: Sequence[Plan], settings: Settings
) -> dict[str, Any]:
    """What makes two runs the same, as JSON can hold it: start, data, plans and settings.

    A loss is known by the name of its function.
    """
    fields = {name: getattr(settings, name) for name in Settings.__dataclass_fields__}
    spec = model.spec
    return {
        **fields,
        "loss": getattr(settings.loss, "__qualname__", type(settings.loss).__qualname__),
        "plans": [json.loads(plan.to_json()) for plan in plans],
        "network": str((spec.name, spec.options, spec.head_layers)),
        "preprocess": model.preprocess.to_dict(),
        "model": fingerprint({"params": model.params, "stats": model.stats}),
        "data": data.fingerprint(),
    }


def _start(
    model: Model, plan: Plan, tx: optax.GradientTransformation, settings: Settings, position: int
) -> TrainState:
    state = init_state(model, plan, tx, settings.seed)
    rate = jnp.float32(settings.learning_rate)
    return replace(
        state,
        opt_state=optax.tree.set(state.opt_state, learning_rate=rate),
        rng=jax.random.fold_in(state.rng, position),
    )


def _program(
    apply: Callable[..., Any], plan: Plan, preprocess: Preprocess, settings: Settings, steps: int
) -> tuple[optax.GradientTransformation, TrainStep]:
    """The optimizer and the jitted step of a plan; the learning rate is set in the state."""
    return _cached_program(
        apply,
        plan,
        preprocess,
        settings.loss,
        settings.optimizer,
        settings.weight_decay,
        settings.clip_norm,
        steps,
    )


# Runs that differ in seed and learning rate alone share one compiled step.
@functools.lru_cache(maxsize=16)
def _cached_program(
    apply: Callable[..., Any],
    plan: Plan,
    preprocess: Preprocess,
    loss: Loss,
    optimizer: str,
    weight_decay: float,
    clip_norm: float | None,
    steps: int,
) -> tuple[optax.GradientTransformation, TrainStep]:
    tx = plan.optimizer(
        1.0,
        optimizer=optimizer,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
        schedule=warmup_cosine(steps),
    )
    prepare = functools.partial(preprocess_images, how=preprocess)
    return tx, make_train_step(apply, loss, tx, plan, prepare=prepare)


def _records(
    pending: Sequence[tuple[int, Metrics]], plan: Plan, settings: Settings
) -> list[dict[str, Any]]:
    """The metrics of some steps as numbers; the first one that is not finite is an error."""
    records = [
        {
            "step": number,
            "plan": plan.name,
            **{name: float(value) for name, value in metrics.items()},
        }
        for number, metrics in pending
    ]
    for record in records:
        # A gradient that is not finite spoils the parameters, and with them the next loss.
        if not (math.isfinite(record["loss"]) and math.isfinite(record["gradient_norm"])):
            raise NonFiniteLossError(
                f"step {record['step']} of plan {plan.name!r}: expected a finite loss and a finite "
                f"gradient, found {record['loss']} and a norm of {record['gradient_norm']} at a "
                f"learning rate of up to {settings.learning_rate:g}; lower it, set clip_norm, "
                "or look for extreme values in the images and labels that the head does not have"
            )
    return records
