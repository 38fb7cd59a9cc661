"""Maxima over windows against those of JAX: values and derivatives, also where values are equal."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtransfer.models.fast_forms import plain_layers
from jaxtransfer.models.pooling import window_max

# Size, stride and padding in height and width.
CASES = {
    "2x2": (2, 2, ((0, 0), (0, 0))),
    "3x3 over edges": (3, 2, ((1, 1), (1, 1))),
    "3x3, the last windows not full": (3, 2, ((0, 1), (0, 2))),
    "each place": (3, 1, ((1, 1), (1, 1))),
    "with gaps": (2, 3, ((0, 0), (0, 0))),
    "one place": (1, 2, ((0, 0), (0, 0))),
}


def both(function, *args):
    """What the function gives with the package's form and with JAX's own, traced anew for each."""
    fast = jax.jit(lambda *args: function(*args))(*args)
    with plain_layers():
        return fast, jax.jit(lambda *args: function(*args))(*args)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_jax(case, dtype):
    size, stride, pads = CASES[case]
    x = jax.random.normal(jax.random.key(0), (2, 9, 8, 3), dtype)
    # Half of the values are equal, as behind a ReLU: the first of a window gets its gradient.
    for values in (x, jnp.maximum(x, 0), jnp.zeros_like(x)):

        def value(x):
            largest = window_max(x, size, stride, pads)
            weights = jnp.arange(largest.size, dtype=jnp.float32).reshape(largest.shape)
            return jnp.sum(jnp.float32(largest) * weights), largest

        found, expected = both(jax.grad(value, has_aux=True), values)
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == other.dtype == dtype
            np.testing.assert_allclose(np.float32(one), np.float32(other), rtol=2**-7)


def test_derivatives_forwards_and_of_each_example_are_those_of_jax():
    x, tangent = jax.random.normal(jax.random.key(0), (2, 3, 9, 8, 2))
    pool = functools.partial(window_max, size=3, stride=2, pads=((1, 1), (1, 1)))
    found, expected = both(lambda x, t: jax.jvp(pool, (x,), (t,)), x, tangent)
    np.testing.assert_array_equal(found, expected)

    def of_one(x):
        return jnp.sum(jnp.sin(pool(x[jnp.newaxis])))

    found, expected = both(jax.vmap(jax.grad(of_one)), x)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_what_is_no_number_stays_so():
    x = jnp.zeros((1, 4, 4, 1)).at[0, 0, 0, 0].set(jnp.nan)
    found, expected = both(lambda x: window_max(x, 2, 2, ((0, 0), (0, 0))), x)
    np.testing.assert_array_equal(found, expected)
