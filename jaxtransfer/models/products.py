"""Products with a matrix in the form that a CPU computes fastest.

The gradient by a matrix of a product over several axes, such as batch, height and width, sums over
all of them. XLA's code for CPUs transposes a copy of an operand for it, slowly; for the same
product over one axis it does not.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxtransfer.models.fast_forms import apart, has_fast_forms

Activation = Callable[[jax.Array], jax.Array]


def dense(
    features: int, *, activation: Activation | None = None, name: str | None = None, **options: Any
) -> nn.Dense:
    """`flax.linen.Dense(features, name=name, **options)` with `channel_product`.

    Args:
        features: that leave it.
        activation: an elementwise function of what enters it, which then is not kept for the
            gradient.
        name: of the submodule.
        options: the others of `flax.linen.Dense`.
    """
    product = channel_product
    if activation is not None:
        product = functools.partial(activated_product, activation)
    return nn.Dense(features, name=name, dot_general=product, **options)


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
    if not _is_over_channels(inputs, dimension_numbers):
        return lax.dot_general(inputs, matrix, dimension_numbers, **options)
    return _product_of_rows(apart(inputs), matrix, **options)


def _is_over_channels(inputs: jax.Array, dimension_numbers: Any) -> bool:
    """Whether forms are fast, and the last axis of the inputs is multiplied by a matrix's first."""
    return has_fast_forms() and dimension_numbers == (((inputs.ndim - 1,), (0,)), ((), ()))


def _product_of_rows(inputs: jax.Array, matrix: jax.Array, **options: Any) -> jax.Array:
    rows = inputs.reshape(math.prod(inputs.shape[:-1]), inputs.shape[-1])
    products = lax.dot_general(rows, matrix, (((1,), (0,)), ((), ())), **options)
    return products.reshape(*inputs.shape[:-1], matrix.shape[-1])


def activated_product(
    activation: Activation,
    inputs: jax.Array,
    matrix: jax.Array,
    dimension_numbers: Any,
    **options: Any,
) -> jax.Array:
    """`channel_product` of `activation(inputs)`, of which the gradient keeps the inputs alone.

    What an activation makes of them, and its slopes, are of the size of the widest layers of a
    transformer; computing them anew takes less time than touching memory for them.

    Args:
        activation: elementwise.
        inputs: shape (…, channels).
        matrix: shape (channels, features).
        dimension_numbers: as `jax.lax.dot_general` takes them.
        options: the others of `jax.lax.dot_general`.

    Returns:
        Shape (…, features).
    """

    def product_of_activated(inputs: jax.Array, matrix: jax.Array) -> jax.Array:
        return channel_product(activation(inputs), matrix, dimension_numbers, **options)

    if not _is_over_channels(inputs, dimension_numbers):
        return product_of_activated(inputs, matrix)
    multiply = functools.partial(_product_of_rows, **options)  # linear, as derivatives must be
    product = jax.custom_jvp(product_of_activated)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def by_inputs(inputs: jax.Array, matrix: jax.Array, tangent: jax.Array) -> jax.Array:
        return multiply(jax.jvp(activation, (apart(inputs),), (tangent,))[1], matrix)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def by_matrix(inputs: jax.Array, tangent: jax.Array) -> jax.Array:
        return multiply(activation(apart(inputs)), tangent)

    def product_jvp(
        primals: tuple[jax.Array, jax.Array], tangents: tuple[Any, Any]
    ) -> tuple[jax.Array, jax.Array]:
        terms = []  # of what is frozen nothing is computed
        if not isinstance(tangents[0], SymbolicZero):
            terms.append(by_inputs(*primals, tangents[0]))
        if not isinstance(tangents[1], SymbolicZero):
            terms.append(by_matrix(primals[0], tangents[1]))
        return product(*primals), functools.reduce(jnp.add, terms)

    product.defjvp(product_jvp, symbolic_zeros=True)
    return product(inputs, matrix)
