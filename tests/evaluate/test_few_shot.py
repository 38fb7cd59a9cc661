from __future__ import annotations

import json

import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.errors import DataError

rng = np.random.default_rng(0)
LABELS = np.arange(36) % 3
ROWS = 2 * np.eye(4)[LABELS] + rng.normal(size=(36, 4))
TRAIN, TEST = slice(0, 24), slice(24, 36)
PARTS = (ROWS[TRAIN], LABELS[TRAIN], ROWS[TEST], LABELS[TEST])


@pytest.mark.parametrize("method", ["ridge", "mean", "neighbours"])
def test_each_point_is_the_accuracy_of_classifiers_on_few_examples(method):
    curve = jt.few_shot_curve(*PARTS, per_class=(2, 4), draws=2, method=method, seed=3)
    fit = {
        "ridge": lambda *data: jt.linear_probe(*data, method="ridge", seed=4),
        "mean": jt.nearest_mean,
        "neighbours": jt.nearest_neighbours,
    }[method]
    some = jt.few_shot(LABELS[TRAIN], 4, 4)
    fitted = fit(ROWS[TRAIN][some], LABELS[TRAIN][some])
    assert curve.accuracies[1][1] == np.mean(fitted.predict(ROWS[TEST]) == LABELS[TEST])
    assert curve.per_class == (2, 4) and curve.test_count == 12


def test_the_curve_by_default_and_as_json():
    curve = jt.few_shot_curve(*PARTS, method="mean")
    assert curve.per_class == (1, 2, 5)
    assert curve == jt.few_shot_curve(*PARTS, method="mean")
    assert curve != jt.few_shot_curve(*PARTS, method="mean", seed=9)
    means = [np.mean(draws) for draws in curve.accuracies]
    assert [one.mean for one in curve.intervals] == pytest.approx(means)
    written = json.loads(json.dumps(curve.to_dict(), allow_nan=False))
    assert written["points"][0]["accuracies"] == list(curve.accuracies[0])


def test_all_examples_are_drawn_once_and_have_no_interval():
    curve = jt.few_shot_curve(*PARTS, per_class=[8], method="mean")
    assert len(curve.accuracies[0]) == 1
    assert curve.to_dict()["points"][0]["low"] is None


def test_test_classes_without_training_examples_count_as_wrong():
    curve = jt.few_shot_curve(*PARTS[:3], np.full(12, 5), per_class=[1], draws=1, method="mean")
    assert curve.accuracies == ((0.0,),)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"per_class": [9]}, "too few have the classes"),
        ({"draws": 0}, "draws of at least 1"),
        ({"method": "svm"}, "among logistic, ridge, neighbours, mean"),
    ],
)
def test_what_cannot_be_drawn_is_refused(how, message):
    with pytest.raises(DataError, match=message):
        jt.few_shot_curve(*PARTS, **how)
