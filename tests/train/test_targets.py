from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jaxtransfer.errors import TrainingError
from jaxtransfer.train.losses import (
    binary_cross_entropy,
    cross_entropy,
    multi_task,
    squared_error,
)
from jaxtransfer.train.targets import loss_for, targets_of

ROWS = np.array([[0.0, 1.0], [1.0, 1.0]], np.float32)


def test_what_is_said_of_labels_goes_before_what_they_look_like() -> None:
    assert targets_of(ROWS) == "multi_label"
    assert targets_of(ROWS, "values") == "values"
    labels = {"a": ROWS, "b": np.array([0, 2])}
    assert targets_of(labels) == {"a": "multi_label", "b": "classes"}
    said = {"a": "values", "b": "classes"}
    assert targets_of(labels, said) == said


@pytest.mark.parametrize(
    ("labels", "targets"),
    [(ROWS, "numbers"), (ROWS, {"a": "values"}), ({"a": ROWS}, "values"), ({"a": ROWS}, {})],
)
def test_targets_that_do_not_fit_the_labels_are_refused(labels: Any, targets: Any) -> None:
    with pytest.raises(TrainingError, match="targets: expected one of classes, multi_label, va"):
        targets_of(labels, targets)


def test_each_kind_has_its_loss() -> None:
    assert loss_for("classes", 0.1) is cross_entropy(0.1)
    assert loss_for("multi_label") is binary_cross_entropy()
    assert loss_for("values") is squared_error()
    several = {"a": squared_error(), "b": cross_entropy(0.1)}
    assert loss_for({"a": "values", "b": "classes"}, 0.1) is multi_task(several)


@pytest.mark.parametrize("targets", ["values", {"a": "multi_label"}])
def test_only_classes_are_smoothed(targets: Any) -> None:
    with pytest.raises(TrainingError, match="no classes, found 0.1"):
        loss_for(targets, 0.1)
