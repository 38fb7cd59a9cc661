"""PARC: whether examples that a source model tells apart are those that the labels tell apart."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxtransfer.errors import DataError
from jaxtransfer.ranking.inputs import (
    Array,
    Score,
    as_array,
    check_features,
    check_labels,
    score,
)


def parc(
    source_probabilities: Array,
    labels: Array,
    *,
    key: jax.Array | None = None,
    examples: int = 500,
    num_classes: int | None = None,
) -> Score:
    """Spearman's correlation between the distances of examples and those of their labels.

    The distance of two examples is one less Pearson's correlation of their rows, that of two labels
    the same for rows of zeros and a one; over all pairs. Equal distances share the mean of their
    ranks, and a row without spread correlates with none.

    Source: Bolya et al. 2021, "Scalable Diverse Model Selection for Accessible Transfer Learning",
    arXiv 2111.06977, section 4, which gives the correlation times 100, for 500 examples.

    Args:
        source_probabilities: the source's probabilities or features, shape (count, outputs).
        labels: the target's classes, integers of shape (count,).
        key: chooses the examples, where there are more than `examples`.
        examples: how many are compared at most; memory grows with the square.
        num_classes: only checked against `labels`: distances do not depend on it.

    Returns:
        A correlation from -1 to 1, higher is better, 0 where all labels or all distances are equal:
        a float computed in float64, or under `jit` and `vmap` a scalar in the probabilities'
        precision, at least float32.

    Raises:
        DataError: shapes, labels or values are not as they should be, there are fewer than two
            examples, or more than `examples` without a key.

    >>> import numpy as np
    >>> labels = np.arange(6) % 3
    >>> round(parc(np.eye(3)[labels], labels), 6)
    1.0
    """
    labels = as_array(labels)
    rows = check_features("parc", source_probabilities, labels)
    if not isinstance(labels, Tracer):
        labels, _ = check_labels("parc", labels, num_classes)
    if len(rows) < 2 or examples < 2:
        raise DataError(f"parc: expected two examples at least, found {min(len(rows), examples)}")
    if len(rows) > examples and key is None:
        raise DataError(
            f"parc: expected a key to choose {examples} of {len(rows)} examples by, found none; "
            f"give `key=jax.random.key(0)`, or `examples={len(rows)}` to compare all of them"
        )
    return score(_parc, rows, labels, key=key, examples=min(len(rows), examples))


@partial(jax.jit, static_argnames="examples")
def _parc(rows: jax.Array, labels: jax.Array, key: jax.Array | None, examples: int) -> jax.Array:
    if key is not None and examples < len(rows):
        chosen = jax.random.choice(key, len(rows), (examples,), replace=False)
        rows, labels = rows[chosen], labels[chosen]
    centred = rows - jnp.mean(rows, axis=1, keepdims=True)
    norms = jnp.linalg.norm(centred, axis=1, keepdims=True)
    directions = centred / jnp.where(norms > 0, norms, 1)
    first, second = jnp.tril_indices(examples, -1)
    distances = 1 - (directions @ directions.T)[first, second]
    # Label distances take two values, whose ranks correlate as zeros and ones do.
    different = (labels[first] != labels[second]).astype(rows.dtype)
    return _correlation(_ranks(distances), different)


def _ranks(values: jax.Array) -> jax.Array:
    """Ranks from 0; equal values share the mean of theirs."""
    ordered = jnp.sort(values)
    below = jnp.searchsorted(ordered, values, side="left")
    upto = jnp.searchsorted(ordered, values, side="right")
    return (below + upto - 1).astype(values.dtype) / 2


def _correlation(first: jax.Array, second: jax.Array) -> jax.Array:
    first, second = first - jnp.mean(first), second - jnp.mean(second)
    spread = jnp.sqrt(jnp.sum(first**2) * jnp.sum(second**2))
    return jnp.sum(first * second) / jnp.where(spread > 0, spread, 1)
