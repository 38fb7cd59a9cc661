"""The hallway: load a model, fine-tune it, and see whether the transfer helped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxtransfer import hub
from jaxtransfer.data import ArrayData, as_array_data, load_digits
from jaxtransfer.errors import TrainingError
from jaxtransfer.evaluate.comparison import (
    NAIVE,
    SCRATCH,
    TRANSFER_ARMS,
    Budget,
    Comparison,
    OnProgress,
    compare_arms,
)
from jaxtransfer.models import Model, load_model
from jaxtransfer.partition import Plan, resolve_plans
from jaxtransfer.surgery import replace_head
from jaxtransfer.train import Checkpoints, Settings, cross_entropy, train
from jaxtransfer.train.loop import OnStep, run_identity
from jaxtransfer.train.losses import Loss

EMBEDDED_SOURCE = "checkpoints/glyphs"
DIGITS = "handwritten digits"


@dataclass(frozen=True)
class Result:
    """What `finetune` gives.

    Attributes:
        model: the trained model; its receipt tells where it came from and what was done.
        history: for each step `step`, `plan`, `loss` and `gradient_norm`.
        plans: what was carried out, in order.
    """

    model: Model
    history: list[dict[str, Any]]
    plans: tuple[Plan, ...]


def load(reference: str | Path, *, model: Model | None = None) -> Model:
    """A model with verified weights.

    Args:
        reference: a folder that `Model.save` wrote, or `checkpoints/NAME` for one that comes with
            the package.
        model: for a network that is not in the catalog, a model of that network; its weights are
            not used.

    Raises:
        ReferenceNotFoundError: there is no model there.
        FormatError, MappingError: the files are damaged, or do not fill the network exactly.

    Example:
        `model = jt.load("checkpoints/glyphs")`
    """
    return load_model(hub.resolve(reference), model)


def finetune(
    model: Model,
    data: Any,
    plan: str | Plan | Sequence[Plan] = "full",
    *,
    epochs: float = 10,
    steps: int | None = None,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-4,
    label_smoothing: float = 0.0,
    loss: Loss | None = None,
    optimizer: str = "adamw",
    clip_norm: float | None = None,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    on_step: OnStep | None = None,
    checkpoint_folder: str | Path | None = None,
    save_every: int = 100,
    resume: bool = False,
) -> Result:
    """Train a model on labelled images by a plan.

    The head is replaced where it does not fit: where the names of the classes are known and differ
        from
    the model's labels, or where integer labels ask for more classes than the head has, or for fewer
    than a head with named classes has. The receipt says so, and which rows were reused.

    Args:
        model: where training starts; it stays as it is.
        data: `(images, labels)`, or an `ArrayData`. Images come as they are, the model's
            preprocessing is applied; labels are integers from 0, or names.
        plan: "probe" (only the head trains), "full", another recipe's name, a `Plan`, or several in
            order.
        epochs: passes over the data, all plans together.
        steps: number of steps instead of epochs.
        batch_size: examples a step; batches are always full, and straddle epochs.
        learning_rate: the highest one; each plan warms up to it and decays to 0.
        weight_decay: decoupled weight decay of kernels.
        label_smoothing: share of the target spread over all classes.
        loss: from outputs and batch to a loss for each example, instead of cross-entropy.
        optimizer: "adamw", "sgd", "lion" or "rmsprop".
        clip_norm: upper bound of the norm of all trainable gradients.
        classes: names of the classes, where labels are integers.
        seed: of a new head, the order of the examples and dropout.
        on_step: called with the number of steps done and the state after each step.
        checkpoint_folder: where checkpoints are kept; `None` keeps none.
        save_every: steps between checkpoints.
        resume: go on from the newest checkpoint in the folder, if there is one.

    Raises:
        DataError, PlanError, ModelError: what is given does not fit together.
        NonFiniteLossError: the loss became NaN or infinite.
        CheckpointError: the folder holds another run, or a damaged checkpoint.

    Example:
        `result = jt.finetune(model, (images, labels), plan="lp_ft", epochs=20)`
    """
    examples = as_array_data(data, classes)
    start = fit_head(model, examples, seed)
    plans = resolve_plans(plan, start)
    if steps is None:
        if not epochs > 0:
            raise TrainingError(f"finetune: expected epochs above 0, found {epochs}")
        steps = math.ceil(epochs * len(examples) / batch_size)
    settings = Settings(
        steps=max(steps, len(plans)),
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        optimizer=optimizer,
        clip_norm=clip_norm,
        loss=loss if loss is not None else cross_entropy(label_smoothing),
        seed=seed,
    )
    if checkpoint_folder is None:
        tuned, history = train(start, examples, plans, settings, on_step=on_step)
    else:
        identity = run_identity(start, examples, plans, settings)
        with Checkpoints(checkpoint_folder, identity, resume=resume) as checkpoints:
            tuned, history = train(
                start,
                examples,
                plans,
                settings,
                on_step=on_step,
                checkpoints=checkpoints,
                save_every=save_every,
            )
    return Result(_noted(tuned, plans, settings, len(examples)), history, plans)


def fit_head(model: Model, data: ArrayData, seed: int = 0) -> Model:
    """The model itself where its head fits the labels, else with a new head; see `finetune`."""
    if data.classes is not None:
        if model.labels == data.classes:
            return model
        if model.labels is None and model.num_classes == len(data.classes):
            return model.with_labels(data.classes)
        return replace_head(model, classes=data.classes, key=seed)
    needed = int(data.labels.max()) + 1
    found = model.num_classes
    if found is None or found == needed or (found > needed and model.labels is None):
        return model
    return replace_head(model, needed, key=seed)


def _noted(model: Model, plans: tuple[Plan, ...], settings: Settings, count: int) -> Model:
    names = " then ".join(plan.name for plan in plans)
    note = (
        f"finetune: {names}; {settings.steps} steps of {settings.batch_size} of {count} examples, "
        f"{settings.optimizer} at {settings.learning_rate:g}, seed {settings.seed}"
    )
    return replace(model, receipt=model.receipt.with_note(note))


def compare(
    source: str | Path | Model = EMBEDDED_SOURCE,
    data: ArrayData | None = None,
    *,
    target: str = DIGITS,
    arms: Sequence[str] = (NAIVE, SCRATCH, *TRANSFER_ARMS),
    budget: Budget | None = None,
    seeds: int | Sequence[int] = 3,
    on_progress: OnProgress | None = None,
) -> Comparison:
    """Does transfer help? Train arms with and without it under one budget, over several seeds.

    See `jaxtransfer.evaluate.comparison.compare_arms` for the arms and the method, and
    `jaxtransfer.evaluate.curves` for what start, slope and asymptote are.

    Args:
        source: a model, or a reference to one.
        data: all labelled images of the target, with names of classes; by default scikit-learn's
            handwritten digits.
        target: what the data is called in reports.
        arms: which arms to run.
        budget: what every arm gets; by default `Budget()`.
        seeds: how many seeds, or which.
        on_progress: called after each training step.

    Example:
        `print(jt.compare(seeds=5).verdict)`
    """
    model = source if isinstance(source, Model) else load(source)
    return compare_arms(
        model,
        load_digits() if data is None else data,
        names=(model.spec.name if isinstance(source, Model) else str(source), target),
        arms=arms,
        budget=budget or Budget(),
        seeds=range(seeds) if isinstance(seeds, int) else seeds,
        on_progress=on_progress,
    )
