"""What every classifier on features asks of its features and labels."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxtransfer.data.targets import as_array
from jaxtransfer.errors import DataError

BLOCK = 4096
"""Rows that are brought to double precision, or compared, at a time, so that memory is bounded."""


class Labelled(NamedTuple):
    """Checked features with their classes.

    Attributes:
        features: shape (count, channels), floats.
        labels: shape (count,), int64, from 0.
        num_classes: how many classes there are; some may have no example.
    """

    features: np.ndarray
    labels: np.ndarray
    num_classes: int

    def take(self, positions: np.ndarray) -> Labelled:
        """The examples at these positions, in this order."""
        return Labelled(self.features[positions], self.labels[positions], self.num_classes)


def check_features(where: str, features: Any, channels: int | None = None) -> np.ndarray:
    """Features as an array of floats, checked.

    Args:
        where: what messages begin with.
        features: shape (count, channels), numbers.
        channels: how many channels there must be, if that is known.

    Raises:
        DataError: they are no rows of finite numbers, or have another number of channels.
    """
    array = as_array(features, where)
    is_number = jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool
    if array.ndim != 2 or 0 in array.shape[1:] or not is_number:
        raise DataError(
            f"{where}: expected numbers of shape (count, channels), found {array.dtype} of shape "
            f"{array.shape}; average maps and tokens over their positions, as jt.features does"
        )
    if channels not in (None, array.shape[1]):
        raise DataError(
            f"{where}: expected {channels} channels, as the training features have, found "
            f"{array.shape[1]}"
        )
    array = array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        raise DataError(
            f"{where}: expected finite numbers, found NaN or infinity in {(~finite).sum()} of "
            f"{len(array)} rows, first in row {int(np.argmin(finite))}; mend them or leave them out"
        )
    return array


def check_labelled(
    where: str,
    features: Any,
    labels: Any,
    num_classes: int | None = None,
    channels: int | None = None,
) -> Labelled:
    """Features and labels as checked arrays.

    Args:
        where: what messages begin with.
        features: shape (count, channels), numbers.
        labels: shape (count,), integers from 0.
        num_classes: how many classes there are; by default as many as the labels tell.
        channels: how many channels there must be, if that is known.

    Raises:
        DataError: there is no example, they are as `check_features` says, labels are no classes, or
            the lengths differ.
    """
    rows = check_features(where, features, channels)
    classes = as_array(labels, where)
    if classes.shape != (len(rows),) or not len(rows) or classes.dtype.kind not in "iu":
        raise DataError(
            f"{where}: expected an integer label for each of {len(rows)} rows of features, and at "
            f"least one row, found {classes.dtype} of shape {classes.shape}"
        )
    limit = int(classes.max()) + 1 if num_classes is None else num_classes
    if classes.min() < 0 or classes.max() >= limit:
        raise DataError(
            f"{where}: expected labels from 0 to {limit - 1}, found {classes.min()} to "
            f"{classes.max()}"
        )
    return Labelled(rows, classes.astype(np.int64), limit)
