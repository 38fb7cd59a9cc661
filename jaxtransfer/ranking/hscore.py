"""H-score: how much of the features' variance, direction by direction, the classes explain."""

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
from jaxtransfer.ranking.spectrum import Spectrum, spectrum


def h_score(features: Array, labels: Array, *, num_classes: int | None = None) -> Score:
    """The trace of cov(f)⁺ cov(E[f | y]): from 0 to the number of classes less one.

    The pseudo-inverse leaves out directions whose variance is below min(count, features) times the
    dtype's epsilon times the largest. With no more examples than features the classes always
    explain everything, so that the score says nothing there: take `regularised_h_score`.

    Source: Bao et al. 2019, "An Information-Theoretic Approach to Transferability in Task Transfer
    Learning", definition 2.

    Args:
        features: shape (count, features).
        labels: integers of shape (count,).
        num_classes: how many classes there are; needed where `labels` are traced. Classes without
            an example count for nothing.

    Returns:
        A number without unit, higher is better: a float computed in float64, or under `jit` and
        `vmap` a scalar in the features' precision, at least float32.

    Raises:
        DataError: shapes, labels or values are not as they should be.

    >>> import numpy as np
    >>> labels = np.arange(9) % 3
    >>> round(h_score(np.eye(3)[labels], labels), 6)
    2.0
    """
    features = check_features("h_score", features, as_array(labels))
    labels, num_classes = check_labels("h_score", labels, num_classes)
    return score(_h_score, features, labels, num_classes=num_classes)


def regularised_h_score(features: Array, labels: Array, *, num_classes: int | None = None) -> Score:
    """The H-score with a covariance shrunk towards a multiple of the identity.

    It is the trace of Σₐ⁻¹ (1 - a) cov(E[f | y]) with Σₐ = (1 - a) Σ + a tr(Σ)/d I, where Σ is the
    covariance of the features and a the shrinkage of Ledoit & Wolf 2004, "A well-conditioned
    estimator for large-dimensional covariance matrices", as
    https://scikit-learn.org/stable/modules/generated/sklearn.covariance.ledoit_wolf.html computes
    it. Unlike the H-score it tells sources apart where there are few examples.

    Source: Ibrahim et al. 2021, "Newer is not always better: Rethinking transferability metrics,
    their peculiarities, stability and performance", arXiv 2110.06893, section 4. Both covariances
    are divided by the number of examples, as in Ledoit & Wolf.

    Args:
        features: shape (count, features).
        labels: integers of shape (count,).
        num_classes: how many classes there are; needed where `labels` are traced.

    Returns:
        A number without unit, higher is better, in the precision of `h_score`.

    Raises:
        DataError: shapes, labels or values are not as they should be.

    >>> import numpy as np
    >>> labels = np.arange(9) % 3
    >>> 0 < regularised_h_score(np.eye(3)[labels], labels) < 2
    True
    """
    features = check_features("regularised_h_score", features, as_array(labels))
    labels, num_classes = check_labels("regularised_h_score", labels, num_classes)
    return score(_regularised, features, labels, num_classes=num_classes)


@partial(jax.jit, static_argnames="num_classes")
def _h_score(features: jax.Array, labels: jax.Array, num_classes: int) -> jax.Array:
    return jnp.sum(_class_spectrum(_centred(features), labels, num_classes).energies)


@partial(jax.jit, static_argnames="num_classes")
def _regularised(features: jax.Array, labels: jax.Array, num_classes: int) -> jax.Array:
    count, size = features.shape
    features = _centred(features)
    variances, energies, _ = _class_spectrum(features, labels, num_classes)
    # Along each principal direction: the variance, and that of the class means.
    within, between = variances / count, variances * jnp.sum(energies, axis=1) / count
    mean = jnp.sum(within) / size
    squares = jnp.sum(within**2)
    distance = squares / size - mean**2
    noise = (jnp.mean(jnp.sum(features**2, axis=1) ** 2) - squares) / (count * size)
    shrinkage = jnp.where(distance > 0, jnp.clip(noise / distance, 0, 1), 0)
    shrunk = (1 - shrinkage) * within + shrinkage * mean
    return jnp.sum((1 - shrinkage) * between / jnp.where(shrunk > 0, shrunk, 1))


def _centred(features: jax.Array) -> jax.Array:
    return features - jnp.mean(features, axis=0)


def _class_spectrum(features: jax.Array, labels: jax.Array, num_classes: int) -> Spectrum:
    """The spectrum with a unit vector for each class, so that energies are shares of variance."""
    members = one_hot(labels, num_classes, features.dtype)
    return spectrum(features, members / jnp.sqrt(jnp.maximum(jnp.sum(members, axis=0), 1)))
