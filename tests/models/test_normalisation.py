"""The normalisation by batches against the one that JAX derives, to the second derivative."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtransfer.models.fast_forms import plain_layers
from jaxtransfer.models.layers import BatchNorm
from jaxtransfer.models.normalisation import batch_moments, normalise_batch

EPSILON = 1e-3


def as_jax_derives_it(values, scale, bias):
    mean, var = batch_moments(values)
    return (values - mean) / jnp.sqrt(var + EPSILON) * scale + bias


def fast(values, scale, bias):
    return normalise_batch(values, scale, bias, EPSILON)


@pytest.fixture(params=[(6, 3), (4, 5, 3), (2, 3, 4, 5)], ids=str)
def inputs(request):
    keys = jax.random.split(jax.random.key(0), 3)
    values = 5 + 2 * jax.random.normal(keys[0], request.param)
    scale, bias = (jax.random.normal(key, request.param[-1:]) for key in keys[1:])
    return values, scale, bias


def objective(function):
    return lambda *inputs: jnp.sum(jnp.sin(function(*inputs)) * jnp.cos(inputs[0]))


def assert_close(found, expected, tolerance=2e-5):
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def test_values_and_gradients_are_those_of_the_formula(inputs):
    assert_close(fast(*inputs), as_jax_derives_it(*inputs))
    gradients = [
        jax.jit(jax.grad(objective(function), (0, 1, 2)))(*inputs)
        for function in (fast, as_jax_derives_it)
    ]
    assert_close(*gradients)


def test_forward_derivatives_are_those_of_the_formula(inputs):
    tangents = jax.tree.map(jnp.cos, inputs)
    assert_close(*(jax.jvp(function, inputs, tangents) for function in (fast, as_jax_derives_it)))


def test_second_derivatives_are_those_of_the_formula(inputs):
    def product(function):
        gradient = jax.grad(objective(function), (0, 1, 2))
        return jax.jit(lambda *inputs: jax.jvp(gradient, inputs, jax.tree.map(jnp.cos, inputs)))

    found, expected = (product(function)(*inputs) for function in (fast, as_jax_derives_it))
    assert_close(found, expected, tolerance=2e-4)


def test_it_may_be_mapped_over_configurations(inputs):
    values, scale, bias = inputs
    scales = jnp.stack([scale, 2 * scale])
    found = jax.vmap(fast, in_axes=(None, 0, None))(values, scales, bias)
    assert_close(found, jnp.stack([fast(values, each, bias) for each in scales]))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_layer_trains_alike_in_both_forms(dtype):
    layer = BatchNorm(use_running_average=False)
    x = 3 + jax.random.normal(jax.random.key(0), (4, 5, 5, 6)).astype(dtype)
    variables = layer.init(jax.random.key(1), x)

    def run(params):
        y, moved = layer.apply({**variables, "params": params}, x, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(y.astype(jnp.float32))), (y, moved)

    found = jax.jit(jax.value_and_grad(run, has_aux=True))(variables["params"])
    with plain_layers():
        plain = jax.jit(jax.value_and_grad(lambda params: run(params), has_aux=True))
        expected = plain(variables["params"])
    assert found[0][1][0].dtype == dtype
    assert_close(found, expected, 1e-5 if dtype == jnp.float32 else 2e-2)


def test_only_what_came_in_is_kept_for_the_gradient():
    """Of the size of the batch: the values that came in, and no other array."""
    values = jax.random.normal(jax.random.key(0), (64, 8))
    _, pull_back = jax.vjp(fast, values, jnp.ones(8), jnp.zeros(8))
    [kept] = (leaf for leaf in jax.tree.leaves(pull_back) if leaf.size == values.size)
    np.testing.assert_array_equal(kept, values)
