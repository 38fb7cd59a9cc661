"""What the labels of a run stand for, and the loss that goes with it where nobody names one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import numpy as np

from jaxtransfer.errors import TrainingError
from jaxtransfer.train.losses import (
    Loss,
    binary_cross_entropy,
    cross_entropy,
    multi_task,
    squared_error,
)
from jaxtransfer.train.scores import Target, target_of
from jaxtransfer.types import PyTree

Targets: TypeAlias = "Target | Mapping[str, Target]"

LOSSES: dict[str, Callable[[float], Loss]] = {
    "classes": cross_entropy,
    "multi_label": lambda label_smoothing: binary_cross_entropy(),
    "values": lambda label_smoothing: squared_error(),
}
"""By what labels are, the loss for a share of label smoothing, which classes alone have."""


def targets_of(labels: PyTree, targets: Any = None) -> Targets:
    """What labels are, for several tasks a dict by task.

    Args:
        labels: arrays as `Data` has them.
        targets: what they are, where that is known; else it is found out as by `target_of`.

    Raises:
        TrainingError: there is no such kind of target, or the tasks are not those of the labels.

    >>> targets_of({"age": np.array([1.5, 2.0]), "kind": np.array([0, 2])})
    {'age': 'values', 'kind': 'classes'}
    """
    found = jax.tree.map(lambda array: target_of(np.asarray(array)), labels)
    if targets is None:
        return found
    kinds = targets.values() if isinstance(targets, Mapping) else [targets]
    tasks = sorted(found) if isinstance(found, Mapping) else None
    given = sorted(targets) if isinstance(targets, Mapping) else None
    if tasks != given or not set(kinds) <= LOSSES.keys():
        where = "" if tasks is None else f" for each of the tasks {', '.join(tasks)}"
        raise TrainingError(f"targets: expected one of {', '.join(LOSSES)}{where}, found {targets}")
    return dict(targets) if isinstance(targets, Mapping) else targets


def loss_for(targets: Targets, label_smoothing: float = 0.0) -> Loss:
    """The usual loss for labels of a kind; for several tasks the sum of theirs.

    Classes have the cross-entropy, several labels an example that of each output by itself, values
    the squared error.

    Args:
        targets: what labels are, for several tasks a dict by task.
        label_smoothing: of classes.

    Raises:
        TrainingError: labels shall be smoothed, and none of them are classes.

    >>> loss_for("values") is squared_error()
    True
    """
    by_task = targets if isinstance(targets, Mapping) else {"": targets}
    if label_smoothing and "classes" not in by_task.values():
        raise TrainingError(
            f"label_smoothing: expected 0 where labels are no classes, found {label_smoothing}"
        )
    losses = {task: LOSSES[kind](label_smoothing) for task, kind in by_task.items()}
    return multi_task(losses) if isinstance(targets, Mapping) else losses[""]
