"""The same small network as Linen variables, as an NNX State and as an Equinox module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx


@dataclass(frozen=True)
class Sample:
    """A tree of one framework, with what is known about it without looking."""

    tree: Any
    names: tuple[str, ...]
    head: str
    head_names: tuple[str, ...]
    kernels: str
    kernel_names: tuple[str, ...]
    parameters: int
    bytes: int


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(4, use_bias=False, name="stem")(x)
        x = nn.BatchNorm(use_running_average=True, name="norm")(x)
        return nn.Dense(2, name="head")(x)


class NnxNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.blocks = nnx.List([nnx.Linear(3, 4, use_bias=False, rngs=rngs)])
        self.norm = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)


class EquinoxNet(eqx.Module):
    blocks: list[eqx.nn.Linear]
    activation: Any
    head: eqx.nn.Linear

    def __init__(self, key: jax.Array) -> None:
        first, second = jax.random.split(key)
        self.blocks = [eqx.nn.Linear(3, 4, use_bias=False, key=first)]
        self.activation = jax.nn.relu
        self.head = eqx.nn.Linear(4, 2, key=second)


def linen_sample() -> Sample:
    return Sample(
        tree=LinenNet().init(jax.random.key(0), jnp.ones((1, 3))),
        names=(
            "batch_stats/norm/mean",
            "batch_stats/norm/var",
            "params/head/bias",
            "params/head/kernel",
            "params/norm/bias",
            "params/norm/scale",
            "params/stem/kernel",
        ),
        head="params/head/**",
        head_names=("params/head/bias", "params/head/kernel"),
        kernels="**/kernel",
        kernel_names=("params/head/kernel", "params/stem/kernel"),
        parameters=8 + 10 + 8 + 12,
        bytes=4 * (8 + 10 + 8 + 12),
    )


def nnx_sample() -> Sample:
    return Sample(
        tree=nnx.state(NnxNet(nnx.Rngs(0))),
        names=(
            "blocks/0/kernel/value",
            "dropout/rngs/count/value",
            "dropout/rngs/key/value",
            "head/bias/value",
            "head/kernel/value",
            "norm/bias/value",
            "norm/mean/value",
            "norm/scale/value",
            "norm/var/value",
        ),
        head="head/**",
        head_names=("head/bias/value", "head/kernel/value"),
        kernels="**/kernel/value",
        kernel_names=("blocks/0/kernel/value", "head/kernel/value"),
        # The dropout's counter and key are leaves as well: 4 and 8 bytes.
        parameters=8 + 10 + 8 + 12 + 2,
        bytes=4 * (8 + 10 + 8 + 12) + 4 + 8,
    )


def equinox_sample() -> Sample:
    return Sample(
        tree=EquinoxNet(jax.random.key(0)),
        names=("blocks/0/weight", "activation", "head/weight", "head/bias"),
        head="head/**",
        head_names=("head/weight", "head/bias"),
        kernels="**/weight",
        kernel_names=("blocks/0/weight", "head/weight"),
        parameters=10 + 12,
        bytes=4 * (10 + 12),
    )


SAMPLES = {"linen": linen_sample, "nnx": nnx_sample, "equinox": equinox_sample}


@pytest.fixture(scope="session", params=sorted(SAMPLES))
def sample(request: pytest.FixtureRequest) -> Sample:
    return SAMPLES[request.param]()
