"""How good the features of a source are for a target: classifiers, curves and stages at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxtransfer.data import Data
from jaxtransfer.evaluate.classifiers import CLASSIFIERS, check_method
from jaxtransfer.evaluate.few_shot import FewShotCurve, few_shot_curve
from jaxtransfer.evaluate.metrics import Interval, binomial_interval
from jaxtransfer.evaluate.stages import StageProbes, probe_stages
from jaxtransfer.models import Model
from jaxtransfer.train import features


@dataclass(frozen=True)
class ProbeReport:
    """What the features of a source are good for; see `probe_source`.

    Attributes:
        source: what the model is called.
        target: what the data is called.
        train_count: number of training examples.
        test_count: number of test examples.
        accuracies: by method, the share of the test examples and its 95 % interval.
        curves: few-shot curves, one a method.
        stages: the scores of the stages, if they were asked for.
    """

    source: str
    target: str
    train_count: int
    test_count: int
    accuracies: dict[str, Interval]
    curves: tuple[FewShotCurve, ...]
    stages: StageProbes | None = None

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON can hold it."""
        return {
            "source": self.source,
            "target": self.target,
            "train_count": self.train_count,
            "test_count": self.test_count,
            "accuracies": {name: one._asdict() for name, one in self.accuracies.items()},
            "few_shot": [curve.to_dict() for curve in self.curves],
            "stages": None if self.stages is None else self.stages.to_dict(),
        }


def probe_source(
    model: Model,
    train: Data,
    test: Data,
    *,
    names: tuple[str, str],
    methods: Sequence[str] = tuple(CLASSIFIERS),
    stages: bool = False,
    draws: int = 5,
    seed: int = 0,
) -> ProbeReport:
    """Fit classifiers to the features that enter a model's head, and score them.

    Args:
        model: a `Model`.
        train: labelled examples to fit on; few-shot curves draw from them.
        test: others with the same classes.
        names: what source and target are called.
        methods: names in `CLASSIFIERS`.
        stages: whether the first method is fitted to what enters each stage, too.
        draws: how often examples are drawn for each number of a few-shot curve.
        seed: of the draws, and of what regularisers are chosen on.

    Raises:
        DataError: images or labels cannot be read, or there is no such method.
        ModelError: the network cannot stop at its head.
    """
    for method in methods:
        check_method("probe_source", method)
    rows, test_rows = features(model, train), features(model, test)
    labels, test_labels = np.asarray(train.labels), np.asarray(test.labels)
    classes = int(max(labels.max(), test_labels.max())) + 1
    accuracies = {}
    for method in methods:
        fitted = CLASSIFIERS[method](rows, labels, num_classes=classes, seed=seed)
        right = int(np.sum(fitted.predict(test_rows) == test_labels))
        accuracies[method] = binomial_interval(right, len(test_labels), confidence=0.95)
    how: dict[str, Any] = {"draws": draws, "seed": seed}
    curves = [
        few_shot_curve(rows, labels, test_rows, test_labels, method=method, **how)
        for method in methods
    ]
    scores = probe_stages(model, train, test, method=methods[0], seed=seed) if stages else None
    counts = len(labels), len(test_labels)
    return ProbeReport(*names, *counts, accuracies, tuple(curves), scores)
