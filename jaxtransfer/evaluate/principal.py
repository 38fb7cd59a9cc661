"""Features in their principal axes: one decomposition serves a whole path of regularisers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from jaxtransfer.evaluate.features import BLOCK


@dataclass(frozen=True, eq=False)
class PrincipalAxes:
    """The principal axes of features; all in double precision.

    A kernel W that is fitted to centred features with a penalty on its squares lies in the space
    that the training rows span, and neither the penalty nor the products change when both are
    turned: W = axes V for the coefficients V on the turned features.

    Attributes:
        features: the features, shape (count, channels), as they came.
        mean: shape (channels,).
        axes: orthonormal columns, shape (channels, rank).
        variances: of the features along each axis, shape (rank,), the sum of squares over `count`.
    """

    features: np.ndarray
    mean: np.ndarray
    axes: np.ndarray
    variances: np.ndarray

    @property
    def unit(self) -> float:
        """The standard deviation along the widest axis; 1 where no axis is left."""
        return math.sqrt(self.variances[0]) if len(self.variances) else 1.0

    def turned(self, dtype: np.dtype) -> np.ndarray:
        """The centred features along the axes, in units of `unit`, shape (count, rank)."""
        parts = [(block @ self.axes / self.unit).astype(dtype) for _, block in _centred(self)]
        return np.concatenate(parts)

    def products(self, targets: np.ndarray) -> np.ndarray:
        """The axes' share in the centred features' products with targets, shape (rank, outputs)."""
        sums = np.zeros((len(self.mean), targets.shape[1]))
        for rows, block in _centred(self):
            sums += block.T @ targets[rows]
        return self.axes.T @ sums


def principal_axes(features: np.ndarray) -> PrincipalAxes:
    """The principal axes of features, by the smaller of their two matrices of products.

    Axes along which features do not vary, to the precision of the computation, are left out; there
    are none where all rows are equal.

    Args:
        features: shape (count, channels), finite floats.
    """
    mean = features.mean(axis=0, dtype=np.float64)
    none = PrincipalAxes(features, mean, np.zeros((len(mean), 0)), np.zeros(0))
    count, channels = features.shape
    if channels <= count:
        products = np.zeros((channels, channels))
        for _, block in _centred(none):
            products += block.T @ block
    else:
        rows = features - mean
        products = rows @ rows.T
    values, vectors = np.linalg.eigh(products)
    kept = values > values[-1] * max(count, channels) * np.finfo(np.float64).eps
    values, vectors = values[kept][::-1], vectors[:, kept][:, ::-1]
    axes = vectors if channels <= count else (features - mean).T @ (vectors / np.sqrt(values))
    return PrincipalAxes(features, mean, axes, values / count)


def _centred(axes: PrincipalAxes) -> Iterator[tuple[slice, np.ndarray]]:
    for start in range(0, len(axes.features), BLOCK):
        rows = slice(start, start + BLOCK)
        yield rows, axes.features[rows] - axes.mean
