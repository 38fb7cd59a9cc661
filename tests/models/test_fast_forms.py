"""What keeps parts of a program apart, and changes nothing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtransfer.models.fast_forms import apart

VALUES = [0.0, -1.5, 6e4, jnp.inf, -jnp.inf, jnp.nan]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_values_are_the_same_to_the_last_bit(dtype):
    values = jnp.array(VALUES, dtype)
    found = jax.jit(apart)(values)
    assert found.dtype == dtype
    np.testing.assert_array_equal(np.asarray(found, np.float32), np.asarray(values, np.float32))


def test_derivatives_are_those_of_the_identity():
    values, tangent = jnp.array(VALUES), jnp.arange(6.0)
    found = jax.jvp(apart, (values,), (tangent,))[1]
    np.testing.assert_array_equal(found, tangent)
    np.testing.assert_array_equal(jax.vjp(apart, values)[1](tangent)[0], tangent)
    np.testing.assert_array_equal(
        jax.vmap(jax.grad(lambda x: apart(x) * 2))(values), 2 * np.ones(6)
    )


def test_the_compiler_does_not_see_through_it():
    def twice(between):
        return lambda x: (jnp.sin(x), jnp.sin(between(x)))

    def sines(between):
        compiled = jax.jit(twice(between)).lower(jnp.ones(1000)).compile()
        return compiled.as_text().count(" sine(")

    assert sines(lambda x: x) == 1
    assert sines(apart) == 2
