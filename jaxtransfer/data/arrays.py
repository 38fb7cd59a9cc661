"""Labelled images in memory: few-shot subsets, and batches that are a function of the step."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxtransfer.data.preprocess import check_images
from jaxtransfer.data.source import Data
from jaxtransfer.data.targets import Targets, as_array, read_targets, take_labels
from jaxtransfer.errors import DataError
from jaxtransfer.models import Preprocess
from jaxtransfer.tree import fingerprint
from jaxtransfer.types import PyTree


@dataclass(frozen=True)
class ArrayData:
    """Labelled images in memory.

    Attributes:
        images: shape (count, …), for images (count, height, width, channel).
        labels: shape (count,), int32, from 0, for classes; float32 of shape (count, classes) for
            several labels an example; float32 for numbers; a dict of these for several tasks.
        classes: the names of the classes, or `None` where they have none; for several tasks a dict.
    """

    images: np.ndarray
    labels: PyTree
    classes: Any = None
    in_memory: ClassVar[bool] = True

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: np.ndarray) -> ArrayData:
        """The examples at these positions, in this order."""
        return ArrayData(self.images[indices], take_labels(self.labels, indices), self.classes)

    def ready(self, preprocess: Preprocess) -> ArrayData:
        """The same examples with a channel axis, checked against what a network expects.

        Raises:
            DataError: as `check_images` says.
        """
        return replace(self, images=check_images(self.images, preprocess))

    def read(self, indices: np.ndarray) -> dict[str, Any]:
        """The examples at these positions as a batch of `image` and `label`."""
        return {"image": self.images[indices], "label": take_labels(self.labels, indices)}

    def fingerprint(self) -> str:
        """The hash of all images and labels."""
        return fingerprint({"images": self.images, "labels": self.labels})


def as_array_data(data: Any, classes: Any = None, targets: Targets = "classes") -> ArrayData:
    """`(images, labels)` as checked arrays.

    Args:
        data: a pair of arrays, or an `ArrayData`. Labels are what `targets` says.
        classes: the names of the classes; where labels are names and this is `None`, the names that
            occur, sorted. For tasks a dict of them.
        targets: what the labels are: "classes" for integers from 0, or names; "multi_label" for
            numbers from 0 to 1, shape (count, classes); "values" for numbers to be predicted, shape
            (count,) or (count, outputs); or one of these for each task, for a dict of labels.

    Raises:
        DataError: the lengths differ, there is no example, images are no numbers or hold NaN,
            labels are not what `targets` says, a label is not among the classes, a class is named
            twice, or `classes` are not those that an `ArrayData` has already.
    """
    if isinstance(data, ArrayData):
        given = classes if classes is None or isinstance(classes, Mapping) else tuple(classes)
        if given is not None and data.classes not in (None, given):
            raise DataError(
                f"classes: expected those of the data, {data.classes}, found {given}; leave them "
                "out, or give (images, labels) with the labels in the new order"
            )
        data, classes = (data.images, data.labels), given or data.classes
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise DataError(f"data: expected a pair (images, labels), found {type(data).__name__}")
    images = as_array(data[0], "images")
    labels, names = read_targets(data[1], classes, targets)
    shapes = [one.shape for one in jax.tree.leaves(labels)]
    if images.ndim < 2 or not len(images) or any(shape[0] != len(images) for shape in shapes):
        raise DataError(
            "data: expected images of shape (count, height, width, channel) and as many labels, "
            f"found {images.shape} and {', '.join(map(str, shapes))}; add an axis to a single image"
        )
    _check_numbers(images)
    return ArrayData(images, labels, names)


def as_data(data: Any, classes: Any = None, targets: Targets = "classes") -> Data:
    """Examples that can be trained on from what someone has: a pair of arrays, or any `Data`.

    Args:
        data: `(images, labels)`, or a `Data`, which stays as it is.
        classes: as for `as_array_data`; of a `Data` only those that it has already.
        targets: as for `as_array_data`; a `Data` knows by itself what its labels are.

    Raises:
        DataError: as `as_array_data` says.
    """
    if isinstance(data, (tuple, list)) or not isinstance(data, Data):
        return as_array_data(data, classes, targets)
    if isinstance(data, ArrayData) and targets == "classes" and _are_classes(data.labels):
        return as_array_data(data, classes)
    given = classes if classes is None or isinstance(classes, Mapping) else tuple(classes)
    if given is not None and data.classes != given:
        raise DataError(
            f"classes: expected those of the data, {data.classes}, found {given}; leave them out"
        )
    return data


def as_examples(images: Any) -> Data:
    """Images without labels as examples whose labels say nothing; a `Data` stays as it is."""
    if isinstance(images, Data):
        return images
    images = np.asarray(images)
    return ArrayData(images, np.zeros(len(images) if images.ndim else 0, np.int32))


def _are_classes(labels: Any) -> bool:
    """Whether labels are numbers or names of classes: floats are values, as `ArrayData` says."""
    return np.ndim(labels) == 1 and np.asarray(labels).dtype.kind != "f"


def _check_numbers(images: np.ndarray) -> None:
    if not (jnp.issubdtype(images.dtype, jnp.number) or images.dtype == bool):
        raise DataError(f"images: expected numbers, found {images.dtype}")
    if jnp.issubdtype(images.dtype, jnp.inexact) and not np.isfinite(images).all():
        first = int(np.argwhere(~np.isfinite(images))[0][0])
        raise DataError(
            f"images: expected finite numbers, found NaN or infinity in image {first}; mend it or "
            "leave it out"
        )


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
