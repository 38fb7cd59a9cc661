"""The spectrum of features, and how much of some targets lies along each of its directions."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Spectrum(NamedTuple):
    """Features X = U S V' and targets Y, along the k = min(count, features) directions of U.

    Attributes:
        variances: S², shape (k,), ascending; 0 for directions that rounding hides.
        energies: (U'Y)², shape (k, targets); 0 there too.
        rank: how many directions remain, a scalar in the features' dtype.
    """

    variances: jax.Array
    energies: jax.Array
    rank: jax.Array


def spectrum(features: jax.Array, targets: jax.Array) -> Spectrum:
    """The squared singular values of features, and the targets' squared parts along their vectors.

    The eigenvectors of the smaller of X'X and XX' are enough, which is many times cheaper than a
    singular value decomposition: where examples outnumber features, U'Y = S⁻¹V'X'Y. Eigenvalues
    below k times the dtype's epsilon times the largest are noise and count as 0.

    Args:
        features: shape (count, features).
        targets: shape (count, targets), in the same dtype.
    """
    count, size = features.shape
    if count > size:
        variances, vectors = jnp.linalg.eigh(features.T @ features)
        energies = (vectors.T @ (features.T @ targets)) ** 2
    else:
        variances, vectors = jnp.linalg.eigh(features @ features.T)
        energies = (vectors.T @ targets) ** 2
    noise = min(count, size) * jnp.finfo(features.dtype).eps * variances[-1]
    kept = variances > jnp.maximum(noise, 0)
    variances = jnp.where(kept, variances, 0)
    if count > size:
        energies = energies / jnp.where(kept, variances, 1)[:, None]
    energies = jnp.where(kept[:, None], energies, 0)
    return Spectrum(variances, energies, jnp.sum(kept).astype(features.dtype))
