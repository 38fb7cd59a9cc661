"""TransRate: how much more room all features take than those of one class."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxtransfer.errors import DataError
from jaxtransfer.ranking.inputs import (
    Array,
    Score,
    as_array,
    check_features,
    check_labels,
    one_hot,
    score,
)


def transrate(
    features: Array, labels: Array, *, eps: float = 1e-4, num_classes: int | None = None
) -> Score:
    """The coding rate of centred features less the mean of the classes' own.

    With R(Z) = ½ log det(I + Z'Z / (n eps)) for n rows Z it is R(Z) - 1/C Σ R(Z of a class). The
    score depends on the features' scale and size: compare sources of equally wide features, or
    scale them alike.

    Source: Huang et al. 2022, "Frustratingly Easy Transferability Estimation", arXiv 2106.09362, as
    in the paper's listing, where classes count alike whatever their size.

    Args:
        features: shape (count, features).
        labels: integers of shape (count,).
        eps: the squared distortion that the coding allows.
        num_classes: how many classes there are; needed where `labels` are traced. Classes without
            an example count for nothing.

    Returns:
        Nats, higher is better: a float computed in float64, or under `jit` and `vmap` a scalar in
        the features' precision, at least float32. Traced labels take time with the cube of the
        number of examples, known ones with that of the largest class.

    Raises:
        DataError: shapes, labels or values are not as they should be.

    >>> import numpy as np
    >>> labels = np.arange(9) % 3
    >>> features = np.eye(3)[labels]
    >>> transrate(features, labels) > transrate(features, np.arange(9) // 3)
    True
    """
    labels = as_array(labels)
    features = check_features("transrate", features, labels)
    labels, num_classes = check_labels("transrate", labels, num_classes)
    if not eps > 0:
        raise DataError(f"transrate: expected an eps above 0, found {eps}")
    if isinstance(labels, Tracer):
        return score(_by_mask, features, labels, eps=eps, num_classes=num_classes)
    return score(_by_blocks, features, _blocks(np.asarray(labels)), eps=eps)


def _blocks(labels: np.ndarray) -> np.ndarray:
    """The examples of each class that occurs, a row a class, filled up with -1."""
    counts = np.bincount(labels)
    rows = np.full((len(counts), counts.max()), -1, np.int32)
    order = np.argsort(labels, kind="stable")
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    rows[labels[order], np.arange(len(labels)) - starts] = order
    return rows[counts > 0]


@jax.jit
def _by_blocks(features: jax.Array, blocks: jax.Array, eps: float) -> jax.Array:
    features = features - jnp.mean(features, axis=0)

    def rate(block: jax.Array) -> jax.Array:
        present = (block >= 0)[:, None].astype(features.dtype)
        return _rate(features[block] * present, jnp.sum(present), eps)

    return _rate(features, float(len(features)), eps) - jnp.mean(jax.lax.map(rate, blocks))


@partial(jax.jit, static_argnames="num_classes")
def _by_mask(features: jax.Array, labels: jax.Array, eps: float, num_classes: int) -> jax.Array:
    """The same where class sizes are not known: XX' without the entries between classes.

    Its determinant is the product of the classes' own.
    """
    features = features - jnp.mean(features, axis=0)
    counts = jnp.sum(one_hot(labels, num_classes, features.dtype), axis=0)
    scaled = features / jnp.sqrt(counts[labels] * eps)[:, None]
    same = labels[:, None] == labels[None, :]
    rates = _half_log_det(jnp.where(same, scaled @ scaled.T, 0))
    return _rate(features, float(len(features)), eps) - rates / jnp.sum(counts > 0).astype(
        features.dtype
    )


def _rate(rows: jax.Array, count: jax.Array | float, eps: float) -> jax.Array:
    """½ log det(I + Z'Z / (n eps)) by the smaller of Z'Z and ZZ'."""
    gram = rows.T @ rows if rows.shape[0] > rows.shape[1] else rows @ rows.T
    return _half_log_det(gram / (count * eps))


def _half_log_det(gram: jax.Array) -> jax.Array:
    """½ log det(I + A) of a matrix without negative eigenvalues."""
    factor = jnp.linalg.cholesky(gram + jnp.eye(len(gram), dtype=gram.dtype))
    return jnp.sum(jnp.log(jnp.diagonal(factor)))
