"""LEEP and NCE: how well a source model's own classes foretell the target's."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from jaxtransfer.errors import DataError
from jaxtransfer.ranking.inputs import (
    Array,
    Score,
    as_array,
    check_labels,
    check_probabilities,
    one_hot,
    score,
)


def leep(source_probabilities: Array, labels: Array, *, num_classes: int | None = None) -> Score:
    """The mean log-likelihood of labels foretold through the source model's classes.

    With the source's probabilities θ(x) and the empirical joint distribution
    P(y, z) = 1/n Σᵢ θ(xᵢ)_z [yᵢ = y] it is 1/n Σᵢ log Σ_z P(yᵢ | z) θ(xᵢ)_z.

    Source: Nguyen et al. 2020, "LEEP: A New Measure to Evaluate Transferability of Learned
    Representations", arXiv 2002.12462, equations 1 and 2.

    Args:
        source_probabilities: shape (count, source classes), each row a distribution.
        labels: the target's classes, integers of shape (count,).
        num_classes: how many target classes there are; needed where `labels` are traced.

    Returns:
        Nats per example, at most 0, higher is better: a float computed in float64, or under `jit`
        and `vmap` a scalar in the probabilities' precision, at least float32.

    Raises:
        DataError: shapes, labels or values are not as they should be.

    >>> import numpy as np
    >>> round(leep(np.full((4, 2), 0.5), np.array([0, 0, 1, 1])), 4)  # log 1/2
    -0.6931
    """
    labels = as_array(labels)
    probabilities = check_probabilities("leep", source_probabilities, labels)
    labels, num_classes = check_labels("leep", labels, num_classes)
    return score(expected_prediction, probabilities, labels, num_classes=num_classes)


@partial(jax.jit, static_argnames="num_classes")
def expected_prediction(probabilities: jax.Array, labels: jax.Array, num_classes: int) -> jax.Array:
    """LEEP of any distributions over any groups, such as the components of a mixture.

    Args:
        probabilities: shape (count, groups).
        labels: integers of shape (count,).
        num_classes: how many classes there are.
    """
    joint = one_hot(labels, num_classes, probabilities.dtype).T @ probabilities
    group = jnp.sum(joint, axis=0)
    given = joint / jnp.where(group > 0, group, 1)
    expected = jnp.take_along_axis(probabilities @ given.T, labels[:, None], axis=1)
    return jnp.mean(jnp.log(expected))


def nce(
    source_labels: Array,
    labels: Array,
    *,
    num_classes: int | None = None,
    num_source_classes: int | None = None,
) -> Score:
    """The negative conditional entropy of the labels given what the source model says.

    It is Σ P(y, z) log P(y | z), over the pairs of a target class y and a source class z.

    Source: Tran et al. 2019, "Transferability and Hardness of Supervised Classification Tasks",
    arXiv 1908.08142, section 4.

    Args:
        source_labels: the source model's classes, such as the argmax of its logits, or labels of
            another task on the same examples; integers of shape (count,).
        labels: the target's classes, integers of shape (count,).
        num_classes: how many target classes there are; needed where `labels` are traced.
        num_source_classes: how many source classes there are, likewise.

    Returns:
        Nats per example, at most 0, higher is better: a float computed in float64, or under `jit`
        and `vmap` a float32 scalar, float64 within `jax.enable_x64(True)`.

    Raises:
        DataError: shapes or labels are not as they should be.

    >>> import numpy as np
    >>> round(nce(np.array([0, 0, 0, 1]), np.array([0, 1, 1, 0])), 4)
    -0.4774
    """
    labels, num_classes = check_labels("nce", labels, num_classes)
    sources, number = check_labels("nce", source_labels, num_source_classes, "source_labels")
    if len(sources) != len(labels):
        raise DataError(
            f"nce: expected as many source_labels as labels, found {len(sources)} and {len(labels)}"
        )
    return score(_nce, sources, labels, num_classes=num_classes, num_source_classes=number)


@partial(jax.jit, static_argnames=("num_classes", "num_source_classes"))
def _nce(
    sources: jax.Array, labels: jax.Array, num_classes: int, num_source_classes: int
) -> jax.Array:
    share = jnp.asarray(1 / len(labels), jax.dtypes.canonicalize_dtype(jnp.float64))
    joint = jnp.zeros((num_classes, num_source_classes), share.dtype).at[labels, sources].add(share)
    group = jnp.broadcast_to(jnp.sum(joint, axis=0), joint.shape)
    occurs = joint > 0
    logs = jnp.log(jnp.where(occurs, joint, 1)) - jnp.log(jnp.where(occurs, group, 1))
    return jnp.sum(joint * logs)
