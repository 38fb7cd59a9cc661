"""Elementwise functions that keep their slope: values and derivatives are those of JAX."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtransfer.models.elementwise import gelu_by_erf, smooth
from jaxtransfer.models.fast_forms import plain_layers
from jaxtransfer.models.layers import ACTIVATIONS, quick_gelu

FUNCTIONS = {
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: nn.gelu(x, approximate=True),
    "quick_gelu": quick_gelu,
    "silu": nn.silu,
    "hard_swish": nn.hard_swish,
}
X = jnp.concatenate([jnp.linspace(-12, 12, 4001), jnp.array([0.0, -0.0, 1e-20, -40, 40])])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_derivatives_are_those_of_jax(name):
    found, expected = ACTIVATIONS[name], FUNCTIONS[name]
    np.testing.assert_allclose(found(X), expected(X), atol=2e-6, rtol=1e-6)

    def slopes(function):
        first = jax.vmap(jax.grad(function))
        return jax.jit(first)(X), jax.jit(jax.vmap(jax.grad(jax.grad(function))))(X)

    for one, other in zip(slopes(found), slopes(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=5e-6, rtol=1e-5)
    for one, other in zip(*(jax.jvp(f, (X,), (X,)) for f in (found, expected)), strict=True):
        np.testing.assert_allclose(one, other, atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_gelu_is_as_exact_in_halves(dtype):
    found, expected = ACTIVATIONS["gelu"](X.astype(dtype)), FUNCTIONS["gelu"](X.astype(dtype))
    assert found.dtype == dtype
    np.testing.assert_allclose(
        found.astype(jnp.float32), expected.astype(jnp.float32), atol=2e-2, rtol=2e-2
    )


def test_what_is_not_finite_stays_so():
    values = jnp.array([jnp.inf, jnp.nan])
    np.testing.assert_array_equal(gelu_by_erf(values), values)


def test_the_slope_alone_is_kept():
    x = jax.random.normal(jax.random.key(0), (8, 16))
    _, pull_back = jax.vjp(ACTIVATIONS["gelu"], x)
    assert [leaf.shape for leaf in jax.tree.leaves(pull_back)] == [x.shape]
    with plain_layers():
        _, pull_back = jax.vjp(ACTIVATIONS["gelu"], x)
    assert len(jax.tree.leaves(pull_back)) > 1


def test_the_fast_form_is_taken_on_cpus_alone():
    function = smooth(jnp.sin, fast=jnp.cos)
    assert function(0.0) == 1
    with plain_layers():
        assert function(0.0) == 0
