"""The fast attention against JAX's own: values, derivatives and dtypes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtransfer.models.attention import attend
from jaxtransfer.models.fast_forms import plain_layers
from jaxtransfer.train.ordering import ordered_gradient


def inputs(tokens: int = 7, others: int = 7, features: int = 8, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(2, each, 3, features) for each in (tokens, others, others)]
    return [
        jax.random.normal(k, shape).astype(dtype) for k, shape in zip(keys, shapes, strict=True)
    ]


@pytest.mark.parametrize(("tokens", "others"), [(7, 7), (1, 5), (6, 1)])
def test_values_and_gradients_are_those_of_jax(tokens, others):
    def run(function):
        def value(*arrays):
            outputs = function(*arrays)
            return jnp.sum(jnp.sin(outputs)), outputs

        return jax.jit(jax.value_and_grad(value, (0, 1, 2), has_aux=True))(*inputs(tokens, others))

    found, expected = run(attend), run(jax.nn.dot_product_attention)
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_weights_of_halves_are_computed_in_float32(dtype):
    found = attend(*inputs(dtype=dtype))
    with jax.numpy_dtype_promotion("standard"):  # which JAX's own needs for halves
        expected = jax.nn.dot_product_attention(*inputs(dtype=dtype))
    assert found.dtype == dtype
    np.testing.assert_allclose(
        found.astype(jnp.float32), expected.astype(jnp.float32), rtol=2e-2, atol=1e-2
    )


def test_the_gradient_keeps_no_weights():
    tokens, others = 11, 13

    def kept(function):
        _, pull = jax.vjp(function, *inputs(tokens, others))
        return [leaf.shape for leaf in jax.tree.leaves(pull)]

    assert any(shape[-2:] == (tokens, others) for shape in kept(jax.nn.dot_product_attention))
    assert not any(shape[-2:] == (tokens, others) for shape in kept(attend))


def test_no_weights_of_one_layer_are_there_while_another_is_computed():
    tokens = 256
    arrays = inputs(tokens, tokens, features=64)
    weights = 2 * 3 * tokens**2 * 4

    def memory(function, layers):
        def value(arrays):
            query, *memory = arrays
            for _ in range(layers):
                query = function(query, *memory)
            return jnp.sum(jnp.sin(query)), None

        step = jax.jit(lambda arrays: ordered_gradient(value)(arrays))
        analysis = step.lower(arrays).compile().memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    def growth(function):
        return (memory(function, 6) - memory(function, 2)) / 4

    assert growth(jax.nn.dot_product_attention) > weights
    assert growth(attend) < weights / 2


def test_it_may_be_mapped():
    stacked = [jnp.stack([each, 2 * each]) for each in inputs()]
    found = jax.vmap(attend)(*stacked)
    np.testing.assert_allclose(found[1], attend(*[2 * each for each in inputs()]), rtol=1e-5)


def test_elsewhere_it_is_that_of_jax():
    with plain_layers():
        found = attend(*inputs())
    np.testing.assert_array_equal(found, jax.nn.dot_product_attention(*inputs()))
