"""Labels as arrays: classes, several labels an example, numbers, or one of these for each task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np

from jaxtransfer.errors import DataError
from jaxtransfer.types import PyTree

Targets: TypeAlias = "str | Mapping[str, str]"
"""What labels are: "classes", "multi_label" or "values", or one of these for each task by name."""

KINDS = ("classes", "multi_label", "values")


def read_targets(
    labels: Any, classes: Any = None, targets: Targets = "classes"
) -> tuple[PyTree, Any]:
    """Labels as checked arrays, and the names of their classes.

    Args:
        labels: for "classes", integers from 0 or names, shape (count,); for "multi_label", numbers
            from 0 to 1, shape (count, classes); for "values", finite numbers, shape (count,) or
            (count, outputs); for tasks, a dict of these.
        classes: the names of the classes, for tasks a dict of them; where labels are names and
            this is `None`, the names that occur, sorted.
        targets: what the labels are; one of them holds for all tasks of a dict of labels.

    Returns:
        int32 for "classes", else float32, for tasks a dict; and the names, or `None`.

    Raises:
        DataError: the labels are not what `targets` says, a label is not among the classes, or a
            class is named twice.

    >>> read_targets(["dog", "cat"])
    (array([1, 0], dtype=int32), ('cat', 'dog'))
    """
    if not isinstance(targets, Mapping):
        if not isinstance(labels, Mapping):
            return _read_one(labels, classes, targets, "labels")
        targets = dict.fromkeys(labels, targets)
    given = classes or {}
    found = sorted(labels) if isinstance(labels, Mapping) else type(labels).__name__
    if found != sorted(targets) or not isinstance(given, Mapping) or set(given) - set(targets):
        raise DataError(
            f"labels: expected a dict with the tasks {sorted(targets)}, and classes a dict for "
            f"some of them or None, found labels {found} and classes {classes!r}"
        )
    read = {
        task: _read_one(labels[task], given.get(task), kind, f"labels of {task!r}")
        for task, kind in targets.items()
    }
    lengths = {task: len(one) for task, (one, _) in read.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"labels: expected as many for each task, found {lengths}")
    return {task: one for task, (one, _) in read.items()}, {
        t: names for t, (_, names) in read.items()
    }


def _read_one(labels: Any, classes: Any, kind: str, where: str) -> tuple[np.ndarray, Any]:
    names = None if classes is None else tuple(map(str, classes))
    if names is not None and len(set(names)) < len(names):
        raise DataError(f"classes: expected each name once, found {names}")
    array = as_array(labels, where)
    if kind == "classes":
        return _class_numbers(array, names, where)
    if kind == "multi_label":
        return _multi_hot_rows(array, names, where), names
    if kind == "values":
        return _values(array, names, where), None
    raise DataError(f"targets: expected one of {', '.join(KINDS)}, or a dict, found {kind!r}")


def _class_numbers(
    labels: np.ndarray, names: tuple[str, ...] | None, where: str
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    if labels.ndim != 1:
        raise DataError(
            f"{where}: expected shape (count,), found {labels.shape}; convert one-hot rows by "
            "labels.argmax(axis=1), or say that targets are 'multi_label' or 'values'"
        )
    if labels.dtype.kind in "US":
        labels = np.char.decode(labels, "utf-8") if labels.dtype.kind == "S" else labels
        names = tuple(map(str, np.unique(labels))) if names is None else names
        return _positions(labels, names, where), names
    if not labels.size:
        return labels.astype(np.int32), names
    low = labels.min()
    if labels.dtype.kind not in "iu" or low < 0:
        found = f" from {low}" if labels.dtype.kind in "iuf" else ""
        raise DataError(
            f"{where}: expected integers from 0, or names, found {labels.dtype}{found}; number the "
            "classes from 0, or name them"
        )
    if names is not None and labels.max() >= len(names):
        raise DataError(
            f"{where}: expected less than {len(names)}, the number of classes, found {labels.max()}"
        )
    return labels.astype(np.int32), names


def _multi_hot_rows(labels: np.ndarray, names: tuple[str, ...] | None, where: str) -> np.ndarray:
    columns = labels.shape[1] if labels.ndim == 2 else 0
    numeric = labels.dtype.kind in "biuf"
    if not (columns and numeric and np.all((labels >= 0) & (labels <= 1))):  # NaN fails too
        raise DataError(
            f"{where}: expected numbers from 0 to 1 of shape (count, classes), found "
            f"{labels.dtype} of shape {labels.shape}; multi_hot makes them of lists of labels"
        )
    if names is not None and columns != len(names):
        raise DataError(f"{where}: expected a column for each of {names}, found {columns}")
    return labels.astype(np.float32)


def _values(labels: np.ndarray, names: tuple[str, ...] | None, where: str) -> np.ndarray:
    numeric = labels.dtype.kind in "biuf"
    if not (labels.ndim in (1, 2) and numeric and np.isfinite(labels).all()):
        raise DataError(
            f"{where}: expected finite numbers of shape (count,) or (count, outputs), found "
            f"{labels.dtype} of shape {labels.shape}"
        )
    if names is not None:
        raise DataError(f"classes: expected None for values, found {names}")
    return labels.astype(np.float32)


def multi_hot(
    rows: Iterable[Iterable[Any]], classes: Sequence[str] | int | None = None
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Lists of labels, of any lengths, as rows of zeros and ones.

    Args:
        rows: for each example its labels: names, or integers from 0.
        classes: the names of the classes, or how many there are; `None` for the names that occur,
            sorted, or as many as the largest integer asks for.

    Returns:
        float32 of shape (count, classes), and the names, or `None` for integers without names.

    Raises:
        DataError: a label is not among the classes, or there is no class.

    >>> multi_hot([["sea", "sky"], [], ["sky"]])[0].tolist()
    [[1.0, 1.0], [0.0, 0.0], [0.0, 1.0]]
    """
    lists = [list(row) for row in rows]
    flat = [label for row in lists for label in row]
    names = None if classes is None or isinstance(classes, int) else tuple(map(str, classes))
    if any(isinstance(label, str) for label in flat):
        names = tuple(sorted(set(flat))) if names is None else names
        flat = _positions(np.array(flat), names, "labels").tolist()
    count = classes if isinstance(classes, int) else max([-1, *map(int, flat)]) + 1
    count = count if names is None else len(names)
    if count < 1 or (flat and not 0 <= min(flat) <= max(flat) < count):
        raise DataError(
            f"labels: expected integers from 0, less than {count}, the number of classes, found "
            f"{sorted(set(flat))[:5]}"
        )
    hot = np.zeros((len(lists), count), np.float32)
    hot[np.repeat(np.arange(len(lists)), [len(row) for row in lists]), np.array(flat, int)] = 1
    return hot, names


def take_labels(labels: PyTree, indices: np.ndarray) -> PyTree:
    """The labels of the examples at these positions, for one task or several."""
    return jax.tree.map(lambda array: array[indices], labels)


def as_array(values: Any, what: str) -> np.ndarray:
    """Anything like an array as one.

    Raises:
        DataError: the rows have several lengths.
    """
    try:
        array = np.asarray(values)
        if array.dtype == object and array.ndim == 1 and all(isinstance(v, str) for v in values):
            return array.astype(str)  # as a column of text comes from a table
    except ValueError as error:
        raise DataError(f"{what}: expected an array, found rows of several lengths") from error
    return array


def _positions(labels: np.ndarray, names: tuple[str, ...], where: str) -> np.ndarray:
    position = {name: i for i, name in enumerate(names)}
    unknown = sorted({str(label) for label in labels} - set(position))
    if unknown:
        raise DataError(f"{where}: expected names among {', '.join(names)}, found {unknown}")
    return np.array([position[str(label)] for label in labels], np.int32)
