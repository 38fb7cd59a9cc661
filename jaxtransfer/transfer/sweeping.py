"""Many configurations of a plan side by side, in one call."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from jaxtransfer.data import as_data
from jaxtransfer.errors import TrainingError
from jaxtransfer.models import Model
from jaxtransfer.partition import Plan, resolve_plans
from jaxtransfer.train.grid import configurations_of
from jaxtransfer.train.scores import Target
from jaxtransfer.train.settings import Settings
from jaxtransfer.train.sweep import Sweep
from jaxtransfer.train.sweep_run import train_sweep
from jaxtransfer.transfer.tuning import fit_head


def sweep(
    model: Model,
    data: Any,
    grid: Mapping[str, Sequence[float]],
    *,
    validation: Any,
    plan: str | Plan = "probe",
    epochs: float = 10,
    steps: int | None = None,
    batch_size: int = 32,
    optimizer: str = "adamw",
    schedule: str | Callable[[int], Any] = "warmup_cosine",
    clip_norm: float | None = None,
    classes: Any = None,
    targets: Target | None = None,
    halving: int | None = None,
    devices: Sequence[Any] | None = None,
    memory: int = 2**31,
) -> Sweep:
    """Train all combinations of hyperparameters side by side, and keep the best.

    What the plan freezes up to the first stage that trains is computed once, in evaluation mode.
    The rest is one vmapped program of all configurations over these features. Each configuration
    gives what `finetune` gives with its settings, to rounding: the same new head, the same order of
    the examples, the same schedule and optimizer. One that has a step whose loss or gradient is not
    finite has diverged: its score is NaN, and the others go on.

    With `halving`, eta, configurations are compared after about steps / eta^k steps, k falling to
    0, and each time the best 1 / eta of them go on, rounded up: successive halving. Their learning
    rates follow the schedule of the whole run all along, so that those that come to the end are
    what they would be without halving. For 9 configurations, 90 steps and 3: all for 10 steps, 3
    up to step 30, and 1 up to step 90.

    Source: Jamieson & Talwalkar 2016, "Non-stochastic Best Arm Identification and Hyperparameter
    Optimization" (arXiv 1502.07943); Li et al. 2018, "Hyperband" (arXiv 1603.06560), algorithm 1.

    Args:
        model: a `Model`; its head is replaced where it does not fit the labels, as by `finetune`.
        data: labelled examples, or a pair (images, labels), which are not augmented.
        grid: the values to try by name: `lr` or `learning_rate`, `weight_decay`, `seed` and
            `label_smoothing`; what is not named is as by default in `finetune`.
        validation: other labelled examples, by which configurations are compared: by accuracy, or
            by R² where labels are numbers; between equal ones the lower loss decides.
        plan: what trains: a plan, or the name of a recipe with one.
        epochs: passes over the data where `steps` is `None`.
        steps: of each configuration.
        batch_size: examples a step.
        optimizer: a name in `jaxtransfer.partition.OPTIMIZERS`.
        schedule: as for `finetune`.
        clip_norm: upper bound of the norm of all gradients of a configuration.
        classes: names of the classes, where labels are integers.
        targets: what the labels of a pair are: "classes", which is the default, "multi_label" or
            "values", as for `finetune`.
        halving: eta, from 2; `None` for whole runs of all configurations.
        devices: the configurations are spread over them; by default all that this process has.
        memory: bytes of each device that features and configurations may take together; as many
            configurations are trained at a time as fit, by an estimate.

    Raises:
        TrainingError: a name or a value of the grid or an argument is wrong, or not even one
            configuration fits into `memory`.
        DataError, PlanError, ModelError: what is given does not fit together.
        NonFiniteLossError: all configurations that were left have diverged.

    Example:
        `jt.sweep(model, data, {"lr": [1e-3, 1e-2], "seed": [0, 1]}, validation=held_out).best`
    """
    configurations = configurations_of(grid)
    examples = as_data(data, classes, targets or "classes")
    held_out = as_data(validation, classes or examples.classes, targets or "classes")
    seeds = sorted({one.seed for one in configurations})
    starts = {seed: fit_head(model, examples, seed) for seed in seeds}
    plans = resolve_plans(plan, starts[seeds[0]])
    if len(plans) != 1:
        raise TrainingError(
            f"sweep: expected one plan, found {', '.join(p.name for p in plans)}; take each alone"
        )
    if steps is None:
        if not 0 < epochs < math.inf:
            raise TrainingError(f"sweep: expected epochs above 0, found {epochs}")
        steps = math.ceil(epochs * len(examples) / max(batch_size, 1))
    found = train_sweep(
        starts,
        examples,
        held_out,
        plans[0],
        configurations,
        Settings(
            steps=steps,
            batch_size=batch_size,
            optimizer=optimizer,
            schedule=schedule,
            clip_norm=clip_norm,
        ),
        halving=halving,
        devices=devices,
        memory=memory,
    )
    return replace(found, model=_noted(found, steps, batch_size, len(examples), optimizer))


def _noted(found: Sweep, steps: int, batch_size: int, count: int, optimizer: str) -> Model:
    note = (
        f"sweep: {found.plan}; {steps} steps of {batch_size} of {count} examples, {optimizer}; of "
        f"{len(found.configurations)} configurations the best by validation {found.score}: "
        f"{found.best}"
    )
    return replace(found.model, receipt=found.model.receipt.with_note(note))
