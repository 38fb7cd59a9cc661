"""GBC: how little the classes overlap in the features."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from jaxtransfer.ranking.inputs import (
    Array,
    Score,
    as_array,
    check_features,
    check_labels,
    one_hot,
    score,
)
from jaxtransfer.ranking.spectrum import principal_components

DIMENSIONS = 64
"""How many principal components the classes are compared in (Pándy et al. 2022)."""

_FLOOR = 1e-6
"""The least variance of a class, as a share of the features': one example has none."""


def gbc(features: Array, labels: Array, *, num_classes: int | None = None) -> Score:
    """Less the sum of the Bhattacharyya coefficients of all ordered pairs of classes.

    Each class is a Gaussian with mean m and one variance s² for all d directions. With the mean
    variance v of two classes their distance is |m₁ - m₂|²/(8v) + d/2 log(v / (s₁s₂)), and the
    coefficient exp(-distance).

    Source: Pándy et al. 2022, "Transferability Estimation using Bhattacharyya Class Separability",
    arXiv 2111.12780, section 3, with spherical covariances and 64 principal components.

    Args:
        features: shape (count, features).
        labels: integers of shape (count,).
        num_classes: how many classes there are; needed where `labels` are traced. Classes without
            an example count for nothing.

    Returns:
        From -C(C - 1) for C equal classes to 0, higher is better: a float computed in float64, or
        under `jit` and `vmap` a scalar in the features' precision, at least float32.

    Raises:
        DataError: shapes, labels or values are not as they should be.

    >>> import numpy as np
    >>> labels = np.arange(6) % 2
    >>> round(gbc(np.ones((6, 4)), labels), 6)
    -2.0
    """
    labels = as_array(labels)
    features = check_features("gbc", features, labels)
    labels, num_classes = check_labels("gbc", labels, num_classes)
    return score(_gbc, features, labels, num_classes=num_classes)


@partial(jax.jit, static_argnames="num_classes")
def _gbc(features: jax.Array, labels: jax.Array, num_classes: int) -> jax.Array:
    reduced = principal_components(features, 1)[:, -DIMENSIONS:]
    size = reduced.shape[1]
    members = one_hot(labels, num_classes, features.dtype)
    counts = jnp.sum(members, axis=0)
    means = members.T @ reduced / jnp.maximum(counts, 1)[:, None]
    spreads = jnp.sum((reduced - means[labels]) ** 2, axis=1)
    overall = jnp.mean(reduced**2)
    floor = _FLOOR * jnp.where(overall > 0, overall, 1)
    variances = jnp.maximum(members.T @ spreads / (jnp.maximum(counts, 1) * size), floor)
    middle = (variances[:, None] + variances[None, :]) / 2
    squares = jnp.sum(means**2, axis=1)
    apart = jnp.maximum(squares[:, None] + squares[None, :] - 2 * means @ means.T, 0)
    logs = jnp.log(variances) / 2
    distances = apart / (8 * middle) + size / 2 * (jnp.log(middle) - logs[:, None] - logs[None, :])
    occurs = counts > 0
    pairs = occurs[:, None] & occurs[None, :] & ~jnp.eye(num_classes, dtype=bool)
    return -jnp.sum(jnp.where(pairs, jnp.exp(-distances), 0))
