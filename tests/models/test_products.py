"""Products over several axes against those of JAX."""

from __future__ import annotations

import contextlib
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxtransfer.models.fast_forms import plain_layers
from jaxtransfer.models.layers import ACTIVATIONS
from jaxtransfer.models.products import activated_product, channel_product, dense


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


# ---------------------------------------------------------------------------------------------
# Of what an activation makes of the inputs


def of_activated(inputs, matrix):
    gelu = ACTIVATIONS["gelu"]
    return activated_product(gelu, inputs, matrix, dimensions(inputs.ndim))


def of_gelu(inputs, matrix):
    return jax.nn.gelu(inputs, approximate=False) @ matrix


@pytest.fixture
def operands():
    shapes = ((3, 4, 5), (5, 7))
    return tuple(jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes))


def objective(function):
    return lambda *operands: jnp.sum(jnp.sin(function(*operands)))


def assert_close(found, expected):
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("trained", [(0,), (1,), (0, 1)], ids=str)
def test_activated_products_have_the_values_and_gradients_of_the_formula(trained, operands):
    found, expected = (
        jax.jit(jax.value_and_grad(objective(function), trained))(*operands)
        for function in (of_activated, of_gelu)
    )
    assert_close(found, expected)


def test_activated_products_have_forward_and_second_derivatives(operands):
    tangents = jax.tree.map(jnp.cos, operands)

    def derivatives(function):
        gradient = jax.grad(objective(function), (0, 1))
        return jax.jvp(function, operands, tangents), jax.jvp(gradient, operands, tangents)

    assert_close(derivatives(of_activated), derivatives(of_gelu))


def test_activated_products_may_be_mapped(operands):
    inputs, matrix = operands
    matrices = jnp.stack([matrix, 2 * matrix])
    gradients = [
        jax.vmap(jax.grad(objective(function)), (None, 0))(inputs, matrices)
        for function in (of_activated, of_gelu)
    ]
    assert_close(*gradients)


@pytest.mark.parametrize("plain", [False, True])
def test_activated_products_keep_their_inputs_alone_where_forms_are_fast(plain, operands):
    inputs, matrix = operands
    with plain_layers() if plain else contextlib.nullcontext():
        _, pull_back = jax.vjp(lambda *operands: of_activated(*operands), inputs, matrix)
    kept = [leaf for leaf in jax.tree.leaves(pull_back) if leaf.shape[-1:] == inputs.shape[-1:]]
    assert all((leaf == inputs).all() for leaf in kept) is not plain


def test_nothing_is_computed_for_a_matrix_that_is_frozen(operands):
    inputs, matrix = operands
    gradient = jax.grad(lambda inputs: jnp.sum(of_activated(inputs, matrix)))
    assert str(jax.make_jaxpr(gradient)(inputs)).count("dot_general") == 2


def test_other_activated_products_are_left_to_jax(operands):
    inputs, matrix = operands
    product = functools.partial(activated_product, jax.nn.relu)
    found = product(inputs, matrix.T, (((2,), (1,)), ((), ())))
    np.testing.assert_allclose(found, jax.nn.relu(inputs) @ matrix, rtol=1e-5)


def test_the_product_is_one_over_rows_where_forms_are_fast():
    def text(function):
        x = jnp.ones((2, 3, 5))
        return str(jax.make_jaxpr(functools.partial(function))(x, jnp.ones((5, 7))))

    def run(x, matrix):
        return channel_product(x, matrix, dimensions(3))

    assert "f32[6,5]" in text(run)
    with plain_layers():
        assert "f32[6,5]" not in text(lambda *inputs: run(*inputs))
