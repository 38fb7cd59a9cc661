"""Train a model on labelled examples by a plan, in one call."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from jaxtransfer.data import Data, as_data
from jaxtransfer.errors import ModelError, TrainingError
from jaxtransfer.models import Model
from jaxtransfer.partition import Plan, resolve_plans
from jaxtransfer.surgery import drop_background, has_head, replace_head
from jaxtransfer.train import Checkpoints, Settings, train
from jaxtransfer.train.cache import Cache, CacheReport, as_cache
from jaxtransfer.train.events import Callback, Event
from jaxtransfer.train.loop import OnStep
from jaxtransfer.train.losses import Loss
from jaxtransfer.train.precision import FLOAT32, Precision
from jaxtransfer.train.progress import progress_bar
from jaxtransfer.train.regularisers import Regulariser
from jaxtransfer.train.settings import Augment, run_identity
from jaxtransfer.train.sharding import Sharding
from jaxtransfer.train.skipping import MAX_SKIPPED
from jaxtransfer.train.targets import Targets, loss_for, targets_of


@dataclass(frozen=True)
class Result:
    """What `finetune` gives.

    Attributes:
        model: the trained model; its receipt tells where it came from and what was done.
        history: for each step `step`, `plan`, `loss`, `gradient_norm` and `skipped`; after an
            evaluation also its scores, their names behind `validation/`.
        plans: what was carried out, in order.
        cache: for each plan whether it trained on activations that were computed once, and what
            that took, or why not; empty where nobody asked for it.
    """

    model: Model
    history: list[dict[str, Any]]
    plans: tuple[Plan, ...]
    cache: tuple[CacheReport, ...] = ()


def finetune(
    model: Model,
    data: Any,
    plan: str | Plan | Sequence[Plan] = "full",
    *,
    validation: Any = None,
    epochs: float = 10,
    steps: int | None = None,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-4,
    label_smoothing: float = 0.0,
    loss: Loss | None = None,
    optimizer: str = "adamw",
    schedule: str | Callable[[int], Any] = "warmup_cosine",
    clip_norm: float | None = None,
    carry_moments: bool = True,
    augment: Augment | None = None,
    regularisers: Sequence[Regulariser] | Regulariser = (),
    accumulate: int = 1,
    precision: Precision = FLOAT32,
    remat: Sequence[str] | str = (),
    ema_decay: float | None = None,
    metric: str = "loss",
    max_skipped: int = MAX_SKIPPED,
    parallel: str = "jit",
    sharding: Sharding | None = None,
    classes: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    targets: Targets | None = None,
    seed: int = 0,
    evaluate_every: int | None = None,
    callbacks: Sequence[Callback] = (),
    on_step: OnStep | None = None,
    progress: bool = True,
    workers: int | None = None,
    checkpoint_folder: str | Path | None = None,
    save_every: int = 100,
    keep: int = 2,
    keep_best: int = 0,
    resume: bool = False,
    cache: Cache | str | None = "auto",
) -> Result:
    """Train a model on labelled examples by a plan.

    The head is replaced where it does not fit: where the names of the classes are known and differ
    from the model's labels, or where integer labels ask for more classes than the head has, or for
    fewer than a head with named classes has. The receipt says so, and which rows were reused. An
    output for a background that labels do not count is dropped.

    Args:
        model: where training starts; it stays as it is.
        data: `(images, labels)`, or a `Data` such as an `ArrayData` or what `image_folder` gives.
            Images come as they are, the model's preprocessing is applied; labels are integers from
            0, or names, or what `targets` says.
        plan: "probe" (only the head trains), "full", another recipe's name, a `Plan`, or several in
            order.
        validation: examples like `data` that are evaluated as the run goes on.
        epochs: passes over the data, all plans together.
        steps: number of steps instead of epochs.
        batch_size: examples a step, over all devices; batches are always full, and straddle epochs.
        learning_rate: the highest one; each plan warms up to it and decays.
        weight_decay: decoupled weight decay of kernels.
        label_smoothing: share of the target spread over all classes, where labels are classes.
        loss: from outputs and batch to a loss for each example; by default cross-entropy of
            classes, binary cross-entropy of several labels an example, the squared error of values,
            and of several tasks the sum of theirs.
        optimizer: a name in `jaxtransfer.partition.OPTIMIZERS`.
        schedule: a name in `jaxtransfer.partition.SCHEDULES`, or a function from the number of a
            plan's steps to a factor on the learning rate at each of them.
        clip_norm: upper bound of the norm of all trainable gradients.
        carry_moments: whether a plan takes over the optimizer's moments of the plan before it.
        augment: `augment(key, batch) -> batch`, on the device; see `jaxtransfer.augment`.
        regularisers: terms that are added to the loss, or a single one, such as `l2_sp(model)`.
        accumulate: parts that a batch is cut into, one after the other, to save memory.
        precision: the dtypes of parameters and of what is computed, such as `BFLOAT16`.
        remat: stages whose activations are computed again for the gradient, to save memory, or
            "all".
        ema_decay: share of the old average in a moving average of the trainable parameters, which
            is then what is evaluated and returned; each plan averages anew.
        metric: the score on the validation examples that a plan's patience and `keep_best` look at.
        max_skipped: a step whose loss or gradient is not finite changes nothing; so many of them
            in a row end the run with an error.
        parallel: "jit", or "pmap".
        sharding: the devices, and who holds what; by default the default device, or where there are
            several processes, all devices.
        classes: names of the classes, where labels are integers; for tasks a dict of them.
        targets: what labels are: "classes"; "multi_label" for any number of labels an example, rows
            of 0 and 1 such as `multi_hot` makes; "values" for numbers to be predicted; or a dict of
            these by task, for a dict of labels and a model with `replace_head(model, tasks={…})`.
            By default classes, and of a `Data` what its labels look like.
        seed: of a new head, the order of the examples, augmentation and dropout.
        evaluate_every: steps between evaluations; by default an epoch.
        callbacks: functions that watch the run, and end it by returning `True`.
        on_step: called with the number of steps done and the state after each step.
        progress: whether a bar is shown, where there is a terminal or a notebook.
        workers: threads that read examples which are not in memory; measured where `None`.
        checkpoint_folder: where checkpoints are kept; `None` keeps none.
        save_every: steps between checkpoints.
        keep: how many of the newest checkpoints are kept.
        keep_best: how many checkpoints with the best `metric` are kept too; above 0, there is a
            checkpoint after each evaluation.
        resume: go on from the newest checkpoint in the folder, if there is one.
        cache: what is frozen below everything that trains is computed once for each plan, and kept:
            "auto" where that can be and pays, "always" where it can be, "never", or a `Cache`,
            which has further options. `Result.cache` says what was done.

    Raises:
        DataError, PlanError, ModelError, TrainingError: what is given does not fit together.
        NonFiniteLossError: the loss or the gradient was not finite in too many steps in a row.
        CheckpointError: the folder holds another run, or a damaged checkpoint, or is in use.

    Example:
        `result = jt.finetune(model, (images, labels), plan="lp_ft", epochs=20)`
    """
    examples = as_data(data, classes, targets or "classes")
    held_out = None
    if validation is not None:
        held_out = as_data(validation, classes or examples.classes, targets or "classes")
    kinds = targets_of(examples.labels, targets)
    if keep_best and held_out is None:
        raise TrainingError(
            f"keep_best: expected validation examples, by whose {metric} checkpoints are compared, "
            "found none; give validation="
        )
    start = fit_head(model, examples, seed)
    plans = resolve_plans(plan, start)
    if steps is None:
        if not 0 < epochs < math.inf:
            raise TrainingError(f"finetune: expected epochs above 0, found {epochs}")
        # A batch size out of range is told by the settings.
        steps = max(math.ceil(epochs * len(examples) / max(batch_size, 1)), len(plans))
    settings = Settings(
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        optimizer=optimizer,
        schedule=schedule,
        clip_norm=clip_norm,
        carry_moments=carry_moments,
        loss=loss if loss is not None else loss_for(kinds, label_smoothing),
        augment=augment,
        regularisers=cast(Any, regularisers),
        accumulate=accumulate,
        precision=precision,
        remat=remat,
        ema_decay=ema_decay,
        metric=metric,
        max_skipped=max_skipped,
        parallel=parallel,
        seed=seed,
    )
    with contextlib.ExitStack() as stack:
        checkpoints = None
        if checkpoint_folder is not None:
            identity = run_identity(start, examples, plans, settings)
            if (asked := as_cache(cache)) is not None:
                identity |= asked.identity(augment is not None)
            checkpoints = stack.enter_context(
                Checkpoints(
                    checkpoint_folder,
                    identity,
                    source=start,
                    resume=resume,
                    keep=keep,
                    keep_best=keep_best,
                    metric=metric,
                )
            )
        reports: list[CacheReport] = []
        callbacks = (*callbacks, _noting(reports))
        if progress:
            callbacks = (*callbacks, stack.enter_context(progress_bar()))
        tuned, history = train(
            start,
            examples,
            plans,
            settings,
            validation=held_out,
            targets=kinds,
            evaluate_every=evaluate_every,
            callbacks=callbacks,
            on_step=on_step,
            checkpoints=checkpoints,
            save_every=save_every,
            sharding=sharding,
            workers=workers,
            cache=cache,
        )
    noted = _noted(tuned, plans, settings, len(examples))
    return Result(noted, history, plans, tuple(reports))


def _noting(reports: list[CacheReport]) -> Callback:
    """A callback that takes down what is told of each plan's cache."""

    def note(event: Event) -> None:
        if event.cache is not None and all(event.cache is not known for known in reports):
            reports.append(event.cache)

    return note


def fit_head(model: Model, data: Data, seed: int = 0) -> Model:
    """The model itself where its head fits the labels, else with a new head; see `finetune`."""
    tasks = sorted(head.task for head in model.spec.task_heads)
    labelled = sorted(data.labels) if isinstance(data.labels, Mapping) else None
    if labelled and set(labelled) <= set(tasks):
        return model
    if tasks or labelled is not None:
        raise ModelError(
            f"{model.spec.name}: expected a head for each task that has labels, found heads for "
            f"{', '.join(tasks) or 'one task alone'} and labels of "
            f"{'one task alone' if labelled is None else ', '.join(labelled)}; give labels as a "
            "dict by task, and heads by replace_head(model, tasks={…})"
        )
    model = drop_background(model) if has_head(model) else model
    if data.classes is not None:
        if model.labels == data.classes:
            return model
        if model.labels is None and model.num_classes == len(data.classes):
            return model.with_labels(data.classes)
        return replace_head(model, classes=data.classes, key=seed)
    needed, is_exact = _outputs_for(data)
    found = model.num_classes
    if not has_head(model):
        return replace_head(model, needed, key=seed)
    if found is None or found == needed:
        return model
    if found > needed and model.labels is None and not is_exact:
        return model
    return replace_head(model, needed, key=seed)


def _outputs_for(data: Data) -> tuple[int, bool]:
    """How many outputs the labels ask for, and whether more of them would not do."""
    labels = np.asarray(data.labels)
    if labels.ndim > 1:
        return labels.shape[1], True
    if np.issubdtype(labels.dtype, np.floating):
        return 1, True
    return int(labels.max()) + 1, False


def _noted(model: Model, plans: tuple[Plan, ...], settings: Settings, count: int) -> Model:
    names = " then ".join(plan.name for plan in plans)
    note = (
        f"finetune: {names}; {settings.steps} steps of {settings.batch_size} of {count} examples, "
        f"{settings.optimizer} at {settings.learning_rate:g}, seed {settings.seed}"
    )
    return replace(model, receipt=model.receipt.with_note(note))
