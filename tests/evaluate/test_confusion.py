from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from jaxtransfer.errors import DataError
from jaxtransfer.evaluate.confusion import class_scores, confusion_matrix, most_confused

CLASSES = 5


@st.composite
def answered(draw: Any) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and labels, of which some classes may be without either."""
    pairs = st.tuples(st.integers(0, CLASSES - 1), st.integers(0, CLASSES - 1))
    found = np.array(draw(st.lists(pairs, min_size=1, max_size=30)))
    return found[:, 0], found[:, 1]


@given(answered(), st.sampled_from([None, "labels", "predictions", "all"]))
def test_the_matrix_is_that_of_scikit_learn(answers, normalise):
    predicted, labels = answers
    theirs = {None: None, "labels": "true", "predictions": "pred", "all": "all"}
    expected = metrics.confusion_matrix(
        labels, predicted, labels=np.arange(CLASSES), normalize=theirs[normalise]
    )
    found = confusion_matrix(predicted, labels, CLASSES, normalise=normalise)
    np.testing.assert_allclose(found, expected, atol=1e-15)
    assert found.dtype == (np.int64 if normalise is None else np.float64)


@given(answered())
def test_scores_are_those_of_scikit_learn(answers):
    predicted, labels = answers
    found = class_scores(confusion_matrix(predicted, labels, CLASSES))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes without a prediction are part of the test
        undefined: Any = 0
        report: Any = metrics.classification_report(
            labels, predicted, labels=np.arange(CLASSES), output_dict=True, zero_division=undefined
        )
        accuracy = metrics.accuracy_score(labels, predicted)
    for number in range(CLASSES):
        mine = (found.precision, found.recall, found.f1, found.support)
        theirs = report[str(number)]
        assert [v[number] for v in mine] == pytest.approx(list(theirs.values()), abs=1e-15)
    for name in ("macro", "weighted"):
        theirs = report[f"{name} avg"]
        assert list(getattr(found, name)) == pytest.approx(list(theirs.values())[:3], abs=1e-15)
    assert found.accuracy == pytest.approx(accuracy)


def test_of_equal_logits_the_first_class_is_the_prediction():
    logits = np.array([[1.0, 1.0, 0.0], [0.0, 2.0, 2.0]], np.float32)
    np.testing.assert_array_equal(
        confusion_matrix(logits, [0, 2]), [[1, 0, 0], [0, 0, 0], [0, 1, 0]]
    )


def test_the_most_frequent_errors_come_first_and_ties_in_order():
    matrix = [[5, 2, 0], [1, 0, 3], [2, 0, 9]]
    found = most_confused(matrix, ["ant", "bee", "cow"])
    assert [(c.label, c.prediction, c.count) for c in found] == [
        ("bee", "cow", 3),
        ("ant", "bee", 2),
        ("cow", "ant", 2),
        ("bee", "ant", 1),
    ]
    assert [c.share for c in found] == pytest.approx([3 / 4, 2 / 7, 2 / 11, 1 / 4])
    assert most_confused(matrix, count=1) == (found[0]._replace(label="1", prediction="2"),)
    assert most_confused(np.eye(3, dtype=int)) == ()


def test_scores_are_json_with_the_names_of_the_classes():
    told = json.loads(json.dumps(class_scores([[3, 1], [0, 2]]).to_dict(["ant", "bee"])))
    assert told["classes"][0] == {
        "class": "ant",
        "precision": 1.0,
        "recall": 0.75,
        "f1": pytest.approx(6 / 7),
        "support": 4,
    }
    assert told["accuracy"] == pytest.approx(5 / 6)


LOGITS = np.zeros((2, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((LOGITS, [0]), "as many answers as labels, and at least one, found 2 and 1"),
        ((LOGITS[:0], []), r"both above 0, found float64 of shape \(0, 3\)"),
        ((LOGITS, [0, 3]), r"labels from 0 and below 3.*found \[3\], first in row 1"),
        ((LOGITS, [-1, 0]), r"found \[-1\], first in row 0"),
        ((LOGITS, [0.0, 1.0]), "labels as integers of shape"),
        ((LOGITS, np.eye(3)[:2]), r"argmax\(axis=1\)"),
        ((LOGITS + np.array([[0], [np.nan]]), [0, 1]), "in 1 of 2 rows, first in row 1"),
        (({"a": LOGITS, "b": LOGITS}, [0, 1]), "those of the tasks a, b"),
        ((LOGITS, [0, 1], 4), "logits of 4 classes, found 3"),
        (([0, 1], [0, 1]), "num_classes of at least 1 with predictions, found None"),
        (([0, 4], [0, 1], 3), r"predictions from 0 and below 3"),
        (([], [], 3), "integers of shape"),
        ((np.array([], int), np.array([], int), 3), "at least one, found 0 and 0"),
    ],
)
def test_what_cannot_be_counted_is_told(arguments, message):
    with pytest.raises(DataError, match=f"confusion_matrix: .*{message}"):
        confusion_matrix(*arguments)


def test_an_unknown_normalisation_is_told():
    with pytest.raises(DataError, match="normalise among labels, predictions, all"):
        confusion_matrix(LOGITS, [0, 1], normalise="true")


@pytest.mark.parametrize("matrix", [np.ones((2, 3), int), np.zeros((2, 2), int), np.eye(2), -1])
def test_scores_need_counts(matrix):
    with pytest.raises(DataError, match="square matrix of counts with at least one example"):
        class_scores(matrix)
    with pytest.raises(DataError, match="square matrix of counts"):
        most_confused(matrix)


def test_names_are_as_many_as_classes():
    with pytest.raises(DataError, match="expected 2 names of classes, found 1"):
        most_confused(np.ones((2, 2), int), ["ant"])
