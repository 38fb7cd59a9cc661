"""How good a classifier on features is from a few labelled examples a class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxtransfer.data import few_shot
from jaxtransfer.errors import DataError
from jaxtransfer.evaluate.classifiers import CLASSIFIERS, check_method
from jaxtransfer.evaluate.features import check_labelled
from jaxtransfer.evaluate.metrics import Interval, mean_interval

PER_CLASS = (1, 2, 5, 10, 25)


@dataclass(frozen=True)
class FewShotCurve:
    """Accuracies over the number of training examples; see `few_shot_curve`.

    Attributes:
        method: the classifier's name.
        per_class: numbers of training examples of each class.
        accuracies: for each of them the test accuracy of every draw.
        test_count: number of test examples.
    """

    method: str
    per_class: tuple[int, ...]
    accuracies: tuple[tuple[float, ...], ...]
    test_count: int

    @property
    def intervals(self) -> tuple[Interval, ...]:
        """For each number the mean over the draws and its 95 % interval; see `mean_interval`."""
        return tuple(mean_interval(draws) for draws in self.accuracies)

    def to_dict(self) -> dict[str, Any]:
        """The curve as JSON can hold it; the bounds of a single draw are `None`."""
        points = []
        for count, draws, interval in zip(
            self.per_class, self.accuracies, self.intervals, strict=True
        ):
            known = {k: None if math.isnan(v) else v for k, v in interval._asdict().items()}
            points.append({"per_class": count, **known, "accuracies": list(draws)})
        return {"method": self.method, "test_count": self.test_count, "points": points}


def few_shot_curve(
    features: Any,
    labels: Any,
    test_features: Any,
    test_labels: Any,
    *,
    per_class: Sequence[int] | None = None,
    draws: int = 5,
    method: str = "ridge",
    seed: int = 0,
) -> FewShotCurve:
    """Test accuracies of a classifier that is fitted to ever more examples of each class.

    For each number the examples are drawn several times, as `few_shot` draws them. The interval of
    their mean tells how much depends on which examples were drawn, not on the test examples.

    Args:
        features: shape (count, channels), finite numbers, such as `jt.features` gives.
        labels: shape (count,), integers from 0.
        test_features: the same of the test examples, none of which should be among the others.
        test_labels: their labels.
        per_class: numbers of examples of each class; by default those of 1, 2, 5, 10 and 25 that
            the rarest class has.
        draws: how often examples are drawn for each number, from 1.
        method: a name in `CLASSIFIERS`: "logistic", "ridge", "neighbours" or "mean".
        seed: of the draws.

    Raises:
        DataError: features or labels are not of that kind, a class has too few examples, `draws`
            is below 1, or there is no such method.
    """
    fit = CLASSIFIERS[check_method("few_shot_curve", method)]
    train = check_labelled("few_shot_curve", features, labels)
    test = check_labelled("few_shot_curve, test", test_features, test_labels)
    if draws < 1:
        raise DataError(f"few_shot_curve: expected draws of at least 1, found {draws}")
    if per_class is None:
        rarest = np.unique(train.labels, return_counts=True)[1].min()
        per_class = [count for count in PER_CLASS if count <= rarest]
    classes = max(train.num_classes, test.num_classes)
    curve = []
    for count in per_class:
        scores = []
        for draw in range(draws):
            some = train.take(few_shot(train.labels, count, seed + draw))
            fitted = fit(some.features, some.labels, num_classes=classes, seed=seed + draw)
            scores.append(float(np.mean(fitted.predict(test.features) == test.labels)))
        curve.append(tuple(scores))
    return FewShotCurve(method, tuple(per_class), tuple(curve), len(test.labels))
