"""Two tasks out of one: the classes of a data set, divided at random."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from jaxtransfer.data.arrays import ArrayData
from jaxtransfer.data.stored import StoredData
from jaxtransfer.errors import DataError

Examples = TypeVar("Examples", bound=Any)
"""`ArrayData` or `StoredData`."""


def split_classes(*parts: Examples, seed: int) -> tuple[tuple[Examples, ...], tuple[Examples, ...]]:
    """Two tasks whose classes are two random halves of those that the data has.

    Source: Yosinski et al. 2014, "How transferable are features in deep neural networks?" (arXiv
    1411.1792), section 3, which divides the classes of ImageNet so.

    Args:
        parts: data of the same classes, such as a training and a test part; all are divided alike.
        seed: the same seed gives the same halves.

    Returns:
        For each half all parts with the examples of its classes, whose labels count from 0 in the
        old order. Of an odd number of classes the first half gets one more.

    Raises:
        DataError: there is no data, labels are no classes, there are fewer than two, or parts have
            other classes than the first one.

    >>> digits = ArrayData(np.zeros((4, 2)), np.array([0, 1, 2, 3]), ("a", "b", "c", "d"))
    >>> (first,), (second,) = split_classes(digits, seed=0)
    >>> first.classes, first.labels.tolist(), second.classes
    (('a', 'c'), [0, 1], ('b', 'd'))
    """
    count = _count_classes(parts)
    order = np.random.default_rng(seed).permutation(count)
    first, second = np.sort(order[: (count + 1) // 2]), np.sort(order[(count + 1) // 2 :])
    return (
        tuple(_only(part, first) for part in parts),
        tuple(_only(part, second) for part in parts),
    )


def _count_classes(parts: tuple[Examples, ...]) -> int:
    """How many classes there are: those with names, else up to the highest label of all parts."""
    problems = [
        f"{type(part).__name__} with labels {np.asarray(getattr(part, 'labels', None)).dtype}"
        for part in parts
        if not isinstance(part, (ArrayData, StoredData))
        or not isinstance(part.labels, np.ndarray)
        or part.labels.ndim != 1
        or part.labels.dtype.kind not in "iu"
    ]
    if not parts or problems:
        raise DataError(
            "split_classes: expected ArrayData or StoredData whose labels are classes, integers of "
            f"shape (count,), found {', '.join(problems) or 'no data'}"
        )
    named = {part.classes for part in parts}
    highest = max((int(part.labels.max()) for part in parts if len(part)), default=-1)
    count = highest + 1 if named == {None} else len(parts[0].classes or ())
    if len(named) > 1 or count < 2:
        found = f"{count} classes" if len(named) == 1 else f"{len(named)} different lists of them"
        raise DataError(
            f"split_classes: expected at least two classes, the same in all parts, found {found}"
        )
    return count


def _only(part: Examples, classes: np.ndarray) -> Examples:
    labels = np.asarray(part.labels)
    kept = part.take(np.flatnonzero(np.isin(labels, classes)))
    numbers = np.searchsorted(classes, np.asarray(kept.labels)).astype(labels.dtype)
    names = None if part.classes is None else tuple(part.classes[i] for i in classes)
    return replace(kept, labels=numbers, classes=names)
