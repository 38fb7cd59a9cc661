from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxtransfer.train.convolutions import canonical_convolutions


class Convolutions(nn.Module):
    """Strided, grouped and dilated convolutions of one and of two dimensions."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(4, (3, 3), (2, 2), name="strided")(x))
        x = nn.silu(nn.Conv(4, (3, 3), feature_group_count=2, name="grouped")(x))
        x = nn.Conv(6, (3, 3), kernel_dilation=(2, 2), name="dilated")(x)
        x = nn.Conv(3, (3,), name="row")(x.reshape(x.shape[0], -1, 6))
        return nn.softmax(x.mean(axis=1))


def orders(jaxpr: Any) -> set[Any]:
    """The orders of axes of the convolutions of a traced function, whatever calls it makes."""
    found = set()
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            found.add(tuple(equation.params["dimension_numbers"]))
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            found |= orders(inner) if hasattr(inner, "eqns") else set()
    return found


def gradients() -> tuple[Any, Any, jax.Array]:
    module, images = Convolutions(), jax.random.normal(jax.random.key(1), (2, 9, 8, 4))
    variables = module.init(jax.random.key(0), images)

    def value(variables: Any, images: jax.Array) -> jax.Array:
        run = jax.checkpoint(module.apply)
        return jnp.sum(jnp.square(run(variables, images)))

    return jax.value_and_grad(value, (0, 1)), variables, images


def test_values_and_gradients_stay() -> None:
    function, variables, images = gradients()
    found = jax.jit(canonical_convolutions(function))(variables, images)
    expected = jax.jit(function)(variables, images)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected
    )


def test_every_convolution_has_its_channels_last() -> None:
    function, variables, images = gradients()
    last = {
        ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2)),
        ((0, 2, 1), (2, 1, 0), (0, 2, 1)),
    }
    before = orders(jax.make_jaxpr(function)(variables, images).jaxpr)
    after = orders(jax.make_jaxpr(canonical_convolutions(function))(variables, images).jaxpr)
    assert before > last and after == last


def test_what_is_recomputed_is_not_found_to_be_the_same() -> None:
    def value(x: jax.Array) -> jax.Array:
        return jnp.sum(jax.checkpoint(lambda x: jnp.sin(jnp.sin(x)))(x))

    text = str(jax.make_jaxpr(canonical_convolutions(jax.grad(value)))(jnp.ones(3)))
    assert "optimization_barrier" in text
