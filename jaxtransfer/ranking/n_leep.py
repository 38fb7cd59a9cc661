"""N-LEEP: LEEP with the components of a mixture instead of a source model's classes."""

from __future__ import annotations

from functools import partial

import jax

from jaxtransfer.errors import DataError
from jaxtransfer.ranking.inputs import (
    Array,
    Score,
    as_array,
    check_features,
    check_labels,
    score,
)
from jaxtransfer.ranking.leep import expected_prediction
from jaxtransfer.ranking.mixture import fit_mixture, log_joint
from jaxtransfer.ranking.spectrum import principal_components

COMPONENTS_PER_CLASS = 5
ENERGY = 0.8
"""The share of the variance that the principal components keep; both: Li et al. 2021."""


def n_leep(
    features: Array,
    labels: Array,
    *,
    key: jax.Array,
    components: int | None = None,
    num_classes: int | None = None,
) -> Score:
    """LEEP where a mixture of Gaussians, fitted to the features, stands for the source's classes.

    The features' leading principal components, as many as hold 80 % of the variance, are fitted by
    a mixture, whose posteriors are the probabilities that `leep` takes: no head of the source model
    is needed. With few examples a component the mixture learns single examples by heart, and the
    score of every source nears 0: take fewer components there.

    Source: Li et al. 2021, "Ranking Neural Checkpoints", arXiv 2011.11200, section 3. The paper
    does not say which covariances; diagonal ones are used here, since full ones, as in other
    implementations, have more parameters a component than a class has examples.

    Args:
        features: shape (count, features).
        labels: integers of shape (count,).
        key: draws the examples that the mixture starts from.
        components: how many Gaussians; where `None`, five for each class, but no more than
            examples.
        num_classes: how many classes there are; needed where `labels` are traced.

    Returns:
        Nats per example, at most 0, higher is better: a float computed in float64, or under `jit`
        and `vmap` a scalar in the features' precision, at least float32. Mixtures have many
        optima: another precision may end in another one.

    Raises:
        DataError: shapes, labels or values are not as they should be.

    >>> import jax, numpy as np
    >>> labels = np.arange(12) % 3
    >>> n_leep(np.eye(3)[labels], labels, key=jax.random.key(0), components=3) > -1e-6
    True
    """
    labels = as_array(labels)
    features = check_features("n_leep", features, labels)
    labels, num_classes = check_labels("n_leep", labels, num_classes)
    count = len(features)
    components = (
        min(COMPONENTS_PER_CLASS * num_classes, count) if components is None else components
    )
    if not 1 <= components <= count:
        raise DataError(
            f"n_leep: expected from 1 to {count} components, one an example at most, found "
            f"{components}"
        )
    return score(_n_leep, features, labels, key=key, components=components, num_classes=num_classes)


@partial(jax.jit, static_argnames=("components", "num_classes"))
def _n_leep(
    features: jax.Array, labels: jax.Array, key: jax.Array, components: int, num_classes: int
) -> jax.Array:
    reduced = principal_components(features, ENERGY)
    logs = log_joint(reduced, fit_mixture(reduced, key, components))
    return expected_prediction(jax.nn.softmax(logs, axis=1), labels, num_classes)
