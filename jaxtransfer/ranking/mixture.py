"""A mixture of Gaussians by expectation maximisation, as arrays."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

_MOST_STEPS = 100
_TOLERANCE = 1e-3
"""The defaults of scikit-learn's `GaussianMixture`: steps at most, and the gain in mean
log-likelihood that ends them."""

_FLOOR = 1e-6
"""The least variance along a feature, as a share of the features' mean variance."""


class Mixture(NamedTuple):
    """Gaussians with diagonal covariances.

    Attributes:
        weights: shape (components,), their shares, which sum to 1.
        means: shape (components, features).
        variances: shape (components, features).
    """

    weights: jax.Array
    means: jax.Array
    variances: jax.Array


def fit_mixture(features: jax.Array, key: jax.Array, components: int) -> Mixture:
    """The mixture that expectation maximisation reaches from seeds drawn by k-means++.

    Each example first belongs to the nearest seed. Source: Dempster, Laird & Rubin 1977, "Maximum
    Likelihood from Incomplete Data via the EM Algorithm"; the seeds: Arthur & Vassilvitskii 2007,
    "k-means++: The Advantages of Careful Seeding". Variances have a floor of a millionth of the
    features' mean variance; components that lose all examples keep a weight of nearly 0.

    Args:
        features: shape (count, features).
        key: draws the seeds.
        components: how many Gaussians.
    """
    mean_variance = jnp.mean(jnp.var(features, axis=0))
    floor = _FLOOR * jnp.where(mean_variance > 0, mean_variance, 1)
    seeds = features[seed_rows(features, key, components)]
    nearest = jnp.argmin(squared_distances(features, seeds), axis=1)
    first = _maximise(features, jax.nn.one_hot(nearest, components, dtype=features.dtype), floor)

    def unsettled(state: tuple[jax.Array, Mixture, jax.Array, jax.Array]) -> jax.Array:
        number, _, before, after = state
        return (number < _MOST_STEPS) & ~(jnp.abs(after - before) < _TOLERANCE)

    def step(
        state: tuple[jax.Array, Mixture, jax.Array, jax.Array],
    ) -> tuple[jax.Array, Mixture, jax.Array, jax.Array]:
        number, mixture, _, before = state
        logs = log_joint(features, mixture)
        likelihood = jnp.mean(jax.nn.logsumexp(logs, axis=1))
        mixture = _maximise(features, jax.nn.softmax(logs, axis=1), floor)
        return number + 1, mixture, before, likelihood

    never = jnp.asarray(-jnp.inf, features.dtype)
    return jax.lax.while_loop(unsettled, step, (jnp.asarray(0), first, never, -never))[1]


def log_joint(features: jax.Array, mixture: Mixture) -> jax.Array:
    """The log of p(x, component) for each example and component, shape (count, components)."""
    weights, means, variances = mixture
    precisions = 1 / variances
    squares = (
        features**2 @ precisions.T
        - 2 * features @ (means * precisions).T
        + jnp.sum(means**2 * precisions, axis=1)
    )
    scales = jnp.sum(jnp.log(2 * jnp.pi * variances), axis=1)
    return jnp.log(weights) - (squares + scales) / 2


def seed_rows(features: jax.Array, key: jax.Array, components: int) -> jax.Array:
    """The examples that k-means++ chooses, shape (components,).

    The first is any; each further one comes with a probability in proportion to its squared
    distance from the nearest chosen one, or again is any where all distances are 0.
    """
    count = len(features)
    keys = jax.random.split(key, components)
    first = jax.random.randint(keys[0], (), 0, count)
    chosen = jnp.zeros(components, first.dtype).at[0].set(first)
    nearest = jnp.sum((features - features[first]) ** 2, axis=1)

    def choose(
        number: jax.Array, state: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        chosen, nearest = state
        odds = jnp.where(jnp.any(nearest > 0), nearest, jnp.ones_like(nearest))
        row = jax.random.categorical(keys[number], jnp.log(odds)).astype(chosen.dtype)
        distances = jnp.sum((features - features[row]) ** 2, axis=1)
        return chosen.at[number].set(row), jnp.minimum(nearest, distances)

    return jax.lax.fori_loop(1, components, choose, (chosen, nearest))[0]


def squared_distances(features: jax.Array, centres: jax.Array) -> jax.Array:
    """Squared distances, shape (count, centres)."""
    squares = jnp.sum(features**2, axis=1)[:, None] + jnp.sum(centres**2, axis=1)
    return squares - 2 * features @ centres.T


def _maximise(features: jax.Array, shares: jax.Array, floor: jax.Array) -> Mixture:
    """The Gaussians of examples by their shares of shape (count, components) in them."""
    # Nothing is divided by 0 where a component has no example.
    sizes = jnp.sum(shares, axis=0) + 10 * jnp.finfo(features.dtype).eps
    means = shares.T @ features / sizes[:, None]
    variances = shares.T @ features**2 / sizes[:, None] - means**2
    return Mixture(sizes / jnp.sum(sizes), means, jnp.maximum(variances, 0) + floor)
