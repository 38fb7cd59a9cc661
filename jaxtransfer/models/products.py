"""Products with a matrix in the form that a CPU computes fastest.

The gradient by a matrix of a product over several axes, such as batch, height and width, sums over
all of them. XLA's code for CPUs transposes a copy of an operand for it, slowly; for the same
product over one axis it does not.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
from jax import lax

from jaxtransfer.models.fast_forms import has_fast_forms


def dense(features: int, *, name: str | None = None, **options: Any) -> nn.Dense:
    """`flax.linen.Dense(features, name=name, **options)` with `channel_product`."""
    return nn.Dense(features, name=name, dot_general=channel_product, **options)


def channel_product(
    inputs: jax.Array, matrix: jax.Array, dimension_numbers: Any, **options: Any
) -> jax.Array:
    """`jax.lax.dot_general` for `flax.linen.Dense(dot_general=channel_product)`.

    Args:
        inputs: shape (…, channels).
        matrix: shape (channels, features).
        dimension_numbers: as `jax.lax.dot_general` takes them.
        options: the others of `jax.lax.dot_general`.

    Returns:
        Shape (…, features).
    """
    channels = inputs.ndim - 1
    if not has_fast_forms() or dimension_numbers != (((channels,), (0,)), ((), ())):
        return lax.dot_general(inputs, matrix, dimension_numbers, **options)
    rows = inputs.reshape(math.prod(inputs.shape[:-1]), inputs.shape[-1])
    products = lax.dot_general(rows, matrix, (((1,), (0,)), ((), ())), **options)
    return products.reshape(*inputs.shape[:-1], matrix.shape[-1])
