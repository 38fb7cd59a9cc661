from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxtransfer.models import Model
from jaxtransfer.models.layers import BatchNorm
from jaxtransfer.models.synchronised import batch_axis

INPUTS = np.random.default_rng(0).normal(2.0, 3.0, (8, 3, 4)).astype(np.float32)


class ByZoo(nn.Module):
    """One BatchNorm of the zoo."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return BatchNorm(name="head")(x, use_running_average=not train)


class ByFlax(nn.Module):
    """One BatchNorm of Flax, in a module of its own call."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return nn.BatchNorm(use_running_average=not train, name="head")(x)


class ByNnx(nnx.Module):
    """One BatchNorm of NNX."""

    def __init__(self) -> None:
        self.head = nnx.BatchNorm(4, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(x)


def model_of(kind: type) -> Model:
    if kind is ByNnx:
        return Model.from_nnx(ByNnx())
    module = kind()
    return Model.from_linen(module, module.init(jax.random.key(0), INPUTS, train=False))


@pytest.mark.parametrize("kind", [ByZoo, ByFlax, ByNnx])
@pytest.mark.parametrize("devices", [2, 4])
def test_the_statistics_are_those_of_all_devices(kind: type, devices: int) -> None:
    model = model_of(kind)

    def forward(inputs: jax.Array) -> tuple[jax.Array, Any]:
        return model.apply(model.params, model.stats, inputs, train=True)

    def spread(inputs: jax.Array) -> tuple[jax.Array, Any]:
        with batch_axis("batch"):
            return forward(inputs)

    parts = INPUTS.reshape(devices, -1, 3, 4)
    found, stats = jax.pmap(spread, axis_name="batch")(parts)
    expected, expected_stats = forward(jnp.asarray(INPUTS))
    np.testing.assert_allclose(found.reshape(8, 3, 4), expected, rtol=1e-5, atol=1e-5)
    for a, b in zip(jax.tree.leaves(stats), jax.tree.leaves(expected_stats), strict=True):
        for device in range(devices):
            np.testing.assert_allclose(a[device], b, rtol=1e-5)
    # Outside of it nothing is left behind.
    again, _ = forward(jnp.asarray(INPUTS))
    np.testing.assert_array_equal(again, expected)
