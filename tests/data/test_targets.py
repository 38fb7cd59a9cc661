from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from jaxtransfer.data import as_array_data, multi_hot, read_targets
from jaxtransfer.errors import DataError

IMAGES = np.zeros((3, 2, 2, 1), np.float32)


def test_several_labels_an_image_are_rows_of_numbers() -> None:
    rows = np.array([[1, 0], [1, 1], [0, 0]])
    data = as_array_data((IMAGES, rows), ["sea", "sky"], "multi_label")
    assert data.labels.dtype == np.float32 and data.labels.tolist() == rows.tolist()
    assert data.classes == ("sea", "sky")
    assert data.take(np.array([1])).labels.tolist() == [[1, 1]]
    soft, names = read_targets(rows * 0.5, targets="multi_label")
    assert soft.max() == 0.5 and names is None


def test_numbers_are_kept_as_floats() -> None:
    for values in (np.array([1, -2, 3]), np.array([[0.5, 2.0], [1, 1], [-3, 0]])):
        data = as_array_data((IMAGES, values), targets="values")
        assert data.labels.dtype == np.float32 and data.labels.tolist() == values.tolist()
        assert data.classes is None


def test_each_task_has_labels_of_its_own_kind() -> None:
    labels = {"kind": ["dog", "cat", "dog"], "age": [1.5, 2, 3], "tags": [[1], [0], [1]]}
    targets = {"age": "values", "kind": "classes", "tags": "multi_label"}
    data = as_array_data((IMAGES, labels), {"tags": ["big"]}, targets)
    assert len(data) == 3
    assert data.classes == {"age": None, "kind": ("cat", "dog"), "tags": ("big",)}
    batch = data.read(np.array([2, 0]))
    found = {task: array.tolist() for task, array in batch["label"].items()}
    assert found == {"age": [3, 1.5], "kind": [1, 1], "tags": [[1], [1]]}
    assert data.fingerprint() != data.take(np.array([0, 2, 1])).fingerprint()
    again = as_array_data(data, targets=targets)
    assert again.classes == data.classes and again.labels["kind"].tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("labels", "classes", "targets", "message"),
    [
        ([0, 1, 0], None, "class", "targets: expected one of classes, multi_label, values, or a"),
        ([0, 1, 0], None, "multi_label", "shape (count, classes), found int64 of shape (3,)"),
        ([[0, 2], [1, 1]], None, "multi_label", "numbers from 0 to 1 of shape (count, classes)"),
        ([[0, np.nan]], None, "multi_label", "numbers from 0 to 1"),
        ([[0, 1]], ["a"], "multi_label", "a column for each of ('a',), found 2"),
        ([["a"], ["a", "b"]], None, "multi_label", "found rows of several lengths"),
        ([["a", "b"]], None, "multi_label", "found <U1 of shape (1, 2); multi_hot makes them"),
        ([0.5, np.inf], None, "values", "expected finite numbers of shape (count,) or (count, out"),
        (["a"], None, "values", "found <U1 of shape (1,)"),
        ([0.5], ["a"], "values", "classes: expected None for values, found ('a',)"),
        ([[0], [1]], None, "classes", "expected shape (count,), found (2, 1); convert one-hot"),
        ([0], None, {"a": "classes"}, "expected a dict with the tasks ['a'], "),
        ({"b": [0]}, None, {"a": "classes"}, "found labels ['b'] and classes None"),
        ({"a": [0]}, ("x",), {"a": "classes"}, "found labels ['a'] and classes ('x',)"),
        ({"a": [-1]}, None, {"a": "classes"}, "labels of 'a': expected integers from 0"),
        (
            {"a": [0], "b": [0, 1]},
            None,
            {"a": "classes", "b": "classes"},
            "expected as many for each task, found {'a': 1, 'b': 2}",
        ),
    ],
)
def test_labels_that_are_not_what_they_are_said_to_be_are_an_error(
    labels: Any, classes: Any, targets: Any, message: str
) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        read_targets(labels, classes, targets)


def test_labels_must_be_as_many_as_images() -> None:
    with pytest.raises(DataError, match=re.escape("found (3, 2, 2, 1) and (2,), (2, 1)")):
        targets = {"a": "classes", "b": "multi_label"}
        as_array_data((IMAGES, {"a": [0, 1], "b": [[0], [1]]}), targets=targets)


def test_lists_of_labels_become_rows_of_zeros_and_ones() -> None:
    rows, names = multi_hot([["b"], [], ["a", "b", "b"]])
    assert rows.dtype == np.float32 and names == ("a", "b")
    assert rows.tolist() == [[0, 1], [0, 0], [1, 1]]
    assert multi_hot([["b"]], ["c", "b"])[0].tolist() == [[0, 1]]
    assert multi_hot([[2], []])[0].tolist() == [[0, 0, 1], [0, 0, 0]]
    assert multi_hot([[0]], 2) == (pytest.approx(np.array([[1, 0]])), None)
    assert multi_hot([[]], ["a", "b"])[0].tolist() == [[0, 0]]


@pytest.mark.parametrize(
    ("rows", "classes", "message"),
    [
        ([["x"]], ["a"], "names among a, found ['x']"),
        ([[2]], 2, "less than 2, the number of classes, found [2]"),
        ([[-1]], None, "found [-1]"),
        ([[]], None, "less than 0, the number of classes"),
    ],
)
def test_lists_of_unknown_labels_are_an_error(rows: Any, classes: Any, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        multi_hot(rows, classes)
