"""Products over several axes against those of JAX."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxtransfer.models.fast_forms import plain_layers
from jaxtransfer.models.products import channel_product, dense


def dimensions(ndim):
    return (((ndim - 1,), (0,)), ((), ()))


@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 5), (2, 3, 4, 5), (0, 3, 5)])
def test_values_and_gradients_are_those_of_jax(shape):
    inputs = jax.random.normal(jax.random.key(0), shape)
    matrix = jax.random.normal(jax.random.key(1), (5, 7))

    def run(function):
        def value(inputs, matrix):
            outputs = function(inputs, matrix, dimensions(len(shape)))
            return jnp.sum(jnp.sin(outputs)), outputs

        return jax.jit(jax.value_and_grad(value, (0, 1), has_aux=True))(inputs, matrix)

    found, expected = run(channel_product), run(lax.dot_general)
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_other_products_are_left_to_jax():
    a, b = jnp.arange(6.0).reshape(2, 3), jnp.arange(12.0).reshape(4, 3)
    found = channel_product(a, b, (((1,), (1,)), ((), ())))
    np.testing.assert_allclose(found, a @ b.T)


def test_options_are_passed_on():
    ones = jnp.ones((2, 3, 5), jnp.bfloat16)
    found = channel_product(
        ones, ones[0, 0, :, None], dimensions(3), preferred_element_type=jnp.float32
    )
    assert found.dtype == jnp.float32 and found.shape == (2, 3, 1)


def test_the_layer_has_the_leaves_and_the_values_of_flax():
    x = jax.random.normal(jax.random.key(0), (2, 3, 5))
    layers = (dense(4, use_bias=False), nn.Dense(4, use_bias=False))
    variables = [layer.init(jax.random.key(1), x) for layer in layers]
    assert jax.tree.structure(variables[0]) == jax.tree.structure(variables[1])
    outputs = [layer.apply(variables[0], x) for layer in layers]
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-6)


def test_the_product_is_one_over_rows_where_forms_are_fast():
    def text(function):
        x = jnp.ones((2, 3, 5))
        return str(jax.make_jaxpr(functools.partial(function))(x, jnp.ones((5, 7))))

    def run(x, matrix):
        return channel_product(x, matrix, dimensions(3))

    assert "f32[6,5]" in text(run)
    with plain_layers():
        assert "f32[6,5]" not in text(lambda *inputs: run(*inputs))
