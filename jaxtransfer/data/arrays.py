"""Labelled images in memory: few-shot subsets, and batches that are a function of the step."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from jaxtransfer.data.preprocess import check_images
from jaxtransfer.errors import DataError
from jaxtransfer.models import Preprocess
from jaxtransfer.tree import fingerprint


@dataclass(frozen=True)
class ArrayData:
    """Labelled images in memory.

    Attributes:
        images: shape (count, …), for images (count, height, width, channel).
        labels: shape (count,), int32, from 0.
        classes: the names of the classes, or `None` where they have none.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...] | None = None
    in_memory: ClassVar[bool] = True

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> ArrayData:
        """The examples at these positions, in this order."""
        return ArrayData(self.images[indices], self.labels[indices], self.classes)

    def ready(self, preprocess: Preprocess) -> ArrayData:
        """The same examples with a channel axis, checked against what a network expects.

        Raises:
            DataError: as `check_images` says.
        """
        return replace(self, images=check_images(self.images, preprocess))

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The examples at these positions as a batch of `image` and `label`."""
        return {"image": self.images[indices], "label": self.labels[indices]}

    def fingerprint(self) -> str:
        """The hash of all images and labels."""
        return fingerprint({"images": self.images, "labels": self.labels})


def as_array_data(data: Any, classes: Sequence[str] | None = None) -> ArrayData:
    """`(images, labels)` as checked arrays.

    Args:
        data: a pair of arrays, or an `ArrayData`. Labels are integers from 0, or names.
        classes: the names of the classes; where labels are names and this is `None`, the names that
            occur, sorted.

    Raises:
        DataError: the lengths differ, there is no example, images are no numbers or hold NaN,
            labels are neither integers from 0 nor names, a label is not among the classes, a class
            is named twice, or `classes` are not those that an `ArrayData` has already.
    """
    names = None if classes is None else tuple(map(str, classes))
    if isinstance(data, ArrayData):
        if names is not None and data.classes not in (None, names):
            raise DataError(
                f"classes: expected those of the data, {data.classes}, found {names}; leave them "
                "out, or give (images, labels) with the labels in the new order"
            )
        data, names = (data.images, data.labels), names or data.classes
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise DataError(f"data: expected a pair (images, labels), found {type(data).__name__}")
    if names is not None and len(set(names)) < len(names):
        raise DataError(f"classes: expected each name once, found {names}")
    images, labels = _as_array(data[0], "images"), _as_array(data[1], "labels")
    if labels.ndim != 1 or images.ndim < 2 or len(images) != len(labels) or len(labels) == 0:
        raise DataError(
            "data: expected images of shape (count, height, width, channel) and labels of shape "
            f"(count,), found {images.shape} and {labels.shape}; convert one-hot rows by "
            "labels.argmax(axis=1), and add an axis to a single image"
        )
    _check_numbers(images)
    if labels.dtype.kind in "US":
        labels = np.char.decode(labels, "utf-8") if labels.dtype.kind == "S" else labels
        names = tuple(map(str, np.unique(labels))) if names is None else names
        return ArrayData(images, _positions(labels, names), names)
    if labels.dtype.kind not in "iu" or labels.min() < 0:
        low = f" from {labels.min()}" if labels.dtype.kind in "iuf" else ""
        raise DataError(
            f"labels: expected integers from 0, or names, found {labels.dtype}{low}; number the "
            "classes from 0, or name them"
        )
    if names is not None and labels.max() >= len(names):
        raise DataError(
            f"labels: expected less than {len(names)}, the number of classes, found {labels.max()}"
        )
    return ArrayData(images, labels.astype(np.int32), names)


def _as_array(values: Any, what: str) -> np.ndarray:
    try:
        array = np.asarray(values)
        if array.dtype == object and what == "labels" and all(isinstance(v, str) for v in values):
            return array.astype(str)  # as a column of text comes from a table
    except ValueError as error:
        raise DataError(f"{what}: expected an array, found rows of several lengths") from error
    return array


def _check_numbers(images: np.ndarray) -> None:
    if not (jnp.issubdtype(images.dtype, jnp.number) or images.dtype == bool):
        raise DataError(f"images: expected numbers, found {images.dtype}")
    if jnp.issubdtype(images.dtype, jnp.inexact) and not np.isfinite(images).all():
        first = int(np.argwhere(~np.isfinite(images))[0][0])
        raise DataError(
            f"images: expected finite numbers, found NaN or infinity in image {first}; mend it or "
            "leave it out"
        )


def _positions(labels: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    position = {name: i for i, name in enumerate(names)}
    unknown = sorted({str(label) for label in labels} - set(position))
    if unknown:
        raise DataError(f"labels: expected names among {', '.join(names)}, found {unknown}")
    return np.array([position[str(label)] for label in labels], np.int32)


def few_shot(labels: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """Positions of `per_class` examples of each class, drawn without replacement and shuffled.

    Args:
        labels: shape (count,), integers.
        per_class: how many examples of each class.
        seed: the same seed gives the same examples.

    Raises:
        DataError: a class has fewer examples.

    >>> sorted(np.array([0, 1, 0, 1])[few_shot(np.array([0, 1, 0, 1]), 1, seed=0)].tolist())
    [0, 1]
    """
    classes, counts = np.unique(labels, return_counts=True)
    short = {int(c): int(n) for c, n in zip(classes, counts, strict=True) if n < per_class}
    if per_class < 1 or short:
        raise DataError(
            f"few_shot: expected per_class from 1 to the {counts.min() if len(counts) else 0} "
            f"examples of the rarest class, found {per_class}; too few have the classes {short}"
        )
    rng = np.random.default_rng(seed)
    chosen = [
        rng.choice(np.flatnonzero(labels == c), size=per_class, replace=False) for c in classes
    ]
    return rng.permutation(np.concatenate(chosen))


def batch_indices(count: int, batch_size: int, step: int, seed: int) -> np.ndarray:
    """Positions of the examples of one step's batch: an endless stream of shuffled epochs.

    The batch is a function of its arguments alone, so a run that goes on at any step sees what it
    would have seen. Every batch is full; the last one of an epoch is filled from the next epoch.

    Args:
        count: number of examples, from 1.
        batch_size: number of examples in a batch, from 1.
        step: number of the step, from 0.
        seed: the same seed gives the same order.

    Returns:
        Integers from 0, below `count`, shape (batch_size,).

    >>> [batch_indices(4, 2, step, seed=0).tolist() for step in (0, 1)]
    [[2, 0], [1, 3]]
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, offsets = np.divmod(positions, count)
    orders = {epoch: _epoch_order(count, int(epoch), seed) for epoch in np.unique(epochs)}
    return np.array([orders[epoch][offset] for epoch, offset in zip(epochs, offsets, strict=True)])


@functools.lru_cache(maxsize=8)
def _epoch_order(count: int, epoch: int, seed: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)
