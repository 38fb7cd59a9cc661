"""Scaled dot-product attention in the form that a CPU computes fastest.

XLA's code for CPUs multiplies matrices that are heads apart, as projections leave them, at a third
of the rate that it has for the same matrices side by side.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from jaxtransfer.models.fast_forms import has_fast_forms


def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """`jax.nn.dot_product_attention`: values averaged by how well their keys fit each query.

    Source: Vaswani et al. 2017, arXiv 1706.03762, equation 1. Weights are computed in float32 at
    least.

    Args:
        query: shape (batch, tokens, heads, features).
        key: shape (batch, other tokens, heads, features).
        value: the shape of `key`.

    Returns:
        The shape of `query`.
    """
    if not has_fast_forms():
        return jax.nn.dot_product_attention(query, key, value)
    heads_first = [each.swapaxes(1, 2) for each in (query, key, value)]
    mixed = _mixed(*(each.reshape(-1, *each.shape[2:]) for each in heads_first))
    return mixed.reshape(heads_first[0].shape).swapaxes(1, 2)


# The weights, of all pairs of tokens, are computed anew for the gradient: they are by far the
# largest of all that it would keep, and the product that gives them the least of its work.
@functools.partial(jax.checkpoint, prevent_cse=False)
def _mixed(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Attention within each head; all shapes are (batch times heads, tokens, features)."""
    wide = jnp.float32 if query.dtype.itemsize < 4 else query.dtype
    scale = query.shape[-1] ** -0.5
    fits = jnp.einsum("htf,hsf->hts", query, key, preferred_element_type=wide) * scale
    weights = jax.nn.softmax(fits).astype(value.dtype)
    return jnp.einsum("hts,hsf->htf", weights, value)
