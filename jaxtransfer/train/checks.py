"""What must fit together before the first step of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from jaxtransfer.data import Data
from jaxtransfer.errors import DataError, TrainingError
from jaxtransfer.models import Model
from jaxtransfer.partition import Plan
from jaxtransfer.train.settings import Settings
from jaxtransfer.train.state import check_plan
from jaxtransfer.train.stopping import Stall


def check_run(
    model: Model,
    data: Data,
    plans: Sequence[Plan],
    settings: Settings,
    validation: Data | None,
    evaluate_every: int | None,
    save_every: int,
) -> None:
    """Raise where a run cannot be carried out, before its first step.

    Raises:
        TrainingError: a number of steps is below 1, or a plan's patience has nothing to go by.
        DataError: there are no examples, or labels that the network has no output for.
        PlanError: a plan does not fit the network.
    """
    for name, value in (("save_every", save_every), ("evaluate_every", evaluate_every)):
        if value is not None and value < 1:
            raise TrainingError(f"{name}: expected at least 1 step, found {value}")
    for name, examples in (("data", data), ("validation", validation)):
        if examples is not None and not len(examples):
            raise DataError(f"{name}: expected at least one example, found none")
        if examples is not None:
            check_labels(examples, model, f"{name}: ")
    for plan in plans:
        check_plan(plan, model)
        if plan.patience is None:
            continue
        Stall(settings.metric, plan.patience)
        if validation is None:
            raise TrainingError(
                f"plan {plan.name!r}: expected validation examples, by whose scores its patience "
                "can be measured, found none; give validation=, or take a plan without patience"
            )


def check_labels(data: Data, model: Model, which: str = "") -> None:
    """Raise where a class of the labels has no output; labels that are no classes pass.

    Args:
        data: labelled examples.
        model: the network, with one head or with one for each task.
        which: examples these are, for the message.

    Raises:
        DataError: a label is below 0, or not below the number of the outputs.
    """
    heads = {head.task: head.num_classes for head in model.spec.task_heads}
    found = data.labels if isinstance(data.labels, Mapping) else {"": data.labels}
    outputs = heads if heads else {"": model.num_classes}
    problems = []
    for task, labels in found.items():
        count = outputs.get(task)
        is_class = isinstance(labels, np.ndarray) and labels.ndim == 1 and labels.dtype.kind in "iu"
        if not is_class or count is None:
            continue
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= count:
            problems.append(
                f"{which}labels{f' of {task}' if task else ''}: expected classes from 0, below "
                f"{count}, the number of the head's outputs, found {low if low < 0 else high}"
            )
    if problems:
        raise DataError(
            f"{'; '.join(problems)}; replace_head gives the network as many as there are classes"
        )
