"""Normalisation by the batch's own statistics, with a gradient of two sums.

Derived step by step, as JAX does it, the gradient goes over the batch more often, and keeps more of
it: the deviations from the mean beside what came in.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxtransfer.models.fast_forms import apart


def batch_moments(values: jax.Array, axis_name: str | None = None) -> tuple[jax.Array, jax.Array]:
    """The means and variances of channels, the variances those of the batch as a whole.

    Args:
        values: shape (…, channels).
        axis_name: of the devices that the batch is spread over, where each computes for itself.

    Returns:
        Two arrays of shape (channels,).
    """

    def mean_of(some: jax.Array) -> jax.Array:
        mean = jnp.mean(some, tuple(range(some.ndim - 1)))
        return mean if axis_name is None else lax.pmean(mean, axis_name)

    mean = mean_of(values)
    # Not the mean of squares less the square of the mean, which cancel where the deviation is small
    # beside the mean: errors ten times as large in networks of many layers.
    # By another mean for the compiler than that of `normalise`, or it would keep the deviations.
    return mean, mean_of(lax.square(values - apart(mean)))


def normalise(
    values: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    epsilon: float,
) -> jax.Array:
    """Values (…, channels) less `mean`, over the root of `var`, times `scale`, plus `bias`.

    Source: Ioffe & Szegedy 2015, arXiv 1502.03167, algorithm 1.

    Args:
        values: shape (…, channels).
        mean: shape (channels,), as the arrays after it.
        var: the variances.
        scale: the factors, called gamma elsewhere.
        bias: the offsets, called beta elsewhere.
        epsilon: added to the variances.
    """
    return (values - mean) * (lax.rsqrt(var + epsilon) * scale) + bias


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def normalise_batch(
    values: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> jax.Array:
    """`normalise` by the `batch_moments` of the values themselves.

    Source: Ioffe & Szegedy 2015, arXiv 1502.03167; the gradient is that of section 3 with its terms
    collected, so that the gradients by scale and bias are all the sums it needs.

    Args:
        values: shape (…, channels).
        scale: shape (channels,).
        bias: shape (channels,).
        epsilon: added to the variances.
    """
    return normalise(values, *batch_moments(values), scale, bias, epsilon)


@normalise_batch.defjvp
def _normalise_batch_jvp(
    epsilon: float,
    primals: tuple[jax.Array, jax.Array, jax.Array],
    tangents: tuple[jax.Array, jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    values, scale, _ = primals
    axes = tuple(range(values.ndim - 1))
    mean, var = batch_moments(values)

    @functools.partial(jax.checkpoint, prevent_cse=False)  # keeps what came in, and nothing beside
    def slope(
        values: jax.Array, mean: jax.Array, inverse: jax.Array, scale: jax.Array, *by: jax.Array
    ) -> jax.Array:
        by_values, by_scale, by_bias = by
        normalised, factor = (values - mean) * inverse, inverse * scale
        constant = by_bias - factor * jnp.mean(by_values, axes)
        linear = by_scale - factor * jnp.mean(normalised * by_values, axes)
        return factor * by_values + constant + normalised * linear

    inverse = lax.rsqrt(var + epsilon)
    return normalise_batch(*primals, epsilon), slope(values, mean, inverse, scale, *tangents)
