"""LogME: how much evidence features give for the labels under a linear model."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp

from jaxtransfer.ranking.inputs import (
    Array,
    Score,
    as_array,
    check_features,
    check_labels,
    check_targets,
    one_hot,
    score,
)
from jaxtransfer.ranking.spectrum import spectrum

_TOLERANCE = 1e-5
"""The largest relative step of the fixed point that ends it; the evidence is flat there, so that
its own error is of the order of the square."""

_MOST_STEPS = 200


def logme(features: Array, labels: Array, *, num_classes: int | None = None) -> Score:
    """The logarithm of the maximum evidence per example, averaged over classes or outputs.

    Each class is a target of zeros and ones, y = Xw + noise with w ~ N(0, 1/α) and noise
    ~ N(0, 1/β). With the eigenvalues σ of X'X, the parts x of y along the left singular vectors and
    t = α/β, the fixed point repeats t = γ r / ((n - γ) m) with γ = Σ σ/(σ + t), m = Σ σx²/(σ + t)²
    and r = |y|² - Σ x² + Σ x²t²/(σ + t)². At the maximum the evidence is
    n/2 (log n - log(r + tm) - 1 - log 2π) - ½ Σ log(1 + σ/t).

    Source: You et al. 2021, "LogME: Practical Assessment of Pre-trained Models for Transfer
    Learning", arXiv 2102.11005, section 4; the fixed point: You et al. 2022, "Ranking and Tuning
    Pre-trained Models", JMLR 23, arXiv 2110.10545, algorithm 3. The authors' code differs where it
    stops after 11 steps, keeps α and β finite by adding 1e-5, and, with fewer examples than
    features, leaves the directions without data out of log |A|. Features that predict a target
    exactly would have infinite evidence; here the dtype's epsilon bounds t and the residual.

    Args:
        features: shape (count, features). They are taken as they are, as in the paper: neither
            centred nor scaled.
        labels: integers of shape (count,) for classes; floats of shape (count,) or
            (count, outputs) for regression.
        num_classes: how many classes there are; needed where `labels` are traced. Classes without
            an example count for nothing.

    Returns:
        Nats per example, higher is better: a float computed in float64, or under `jit` and `vmap`
        a scalar in the features' precision, at least float32.

    Raises:
        DataError: shapes, labels or values are not as they should be.

    >>> import numpy as np
    >>> labels = np.arange(6) % 2
    >>> noise = np.random.default_rng(0).normal(size=(6, 1))
    >>> logme(labels[:, None] + 0.1 * noise, labels) > logme(noise, labels)
    True
    """
    targets = as_array(labels)
    features = check_features("logme", features, targets)
    if jnp.issubdtype(targets.dtype, jnp.floating):
        return score(_of_targets, features, check_targets("logme", targets))
    targets, num_classes = check_labels("logme", targets, num_classes)
    return score(_of_classes, features, targets, num_classes=num_classes)


@partial(jax.jit, static_argnames="num_classes")
def _of_classes(features: jax.Array, labels: jax.Array, num_classes: int) -> jax.Array:
    targets = one_hot(labels, num_classes, features.dtype)
    occurs = jnp.any(targets > 0, axis=0)
    return jnp.mean(_evidence(features, targets), where=occurs)


@jax.jit
def _of_targets(features: jax.Array, targets: jax.Array) -> jax.Array:
    return jnp.mean(_evidence(features, targets.astype(features.dtype)))


def _evidence(features: jax.Array, targets: jax.Array) -> jax.Array:
    """The maximum evidence per example for each column of `targets`, shape (targets,)."""
    count = len(features)
    limits = jnp.finfo(features.dtype)
    variances, energies, rank = spectrum(features, targets)
    total = jnp.sum(targets**2, axis=0)
    outside = jnp.maximum(total - jnp.sum(energies, axis=0), 0)
    largest = jnp.where(variances[-1] > 0, variances[-1], 1)
    sigma = variances[:, None]

    def step(ratio: jax.Array) -> jax.Array:
        explained = jnp.sum(sigma / (sigma + ratio), axis=0)
        weights = jnp.sum(sigma * energies / (sigma + ratio) ** 2, axis=0)
        residual = outside + jnp.sum(energies * (ratio / (sigma + ratio)) ** 2, axis=0)
        # n - γ, summed so that nothing cancels where there are as many directions as examples.
        left = (count - rank) + jnp.sum(jnp.where(sigma > 0, ratio / (sigma + ratio), 0), axis=0)
        ratio = explained * residual / jnp.maximum(left * weights, limits.tiny)
        return jnp.clip(ratio, limits.eps * largest, largest / limits.eps)

    def unsettled(state: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        number, before, after = state
        return (number < _MOST_STEPS) & jnp.any(jnp.abs(after - before) > _TOLERANCE * before)

    # The mean eigenvalue, so that scaling the features changes nothing.
    start = jnp.full_like(total, 1) * jnp.maximum(jnp.mean(variances), limits.eps * largest)
    state = (jnp.asarray(1), start, step(start))
    ratio = jax.lax.while_loop(unsettled, lambda s: (s[0] + 1, s[2], step(s[2])), state)[2]
    misfit = outside + jnp.sum(energies * ratio / (sigma + ratio), axis=0)
    misfit = jnp.maximum(misfit, jnp.maximum(limits.eps * total, limits.tiny))
    fit = math.log(count / (2 * math.pi)) - jnp.log(misfit) - 1
    return fit / 2 - jnp.sum(jnp.log1p(sigma / ratio), axis=0) / (2 * count)
