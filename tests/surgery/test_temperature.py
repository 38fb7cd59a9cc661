from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.errors import ModelError
from jaxtransfer.models import build
from jaxtransfer.surgery import with_temperature

FEATURES = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


class Small(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(3, name="head")(nn.tanh(nn.Dense(4, name="body")(x)))


@pytest.fixture(scope="module")
def model() -> jt.Model:
    return jt.Model.from_linen(Small(), Small().init(jax.random.key(0), FEATURES))


def logits(model: jt.Model) -> Any:
    return model.apply(model.params, model.stats, jnp.asarray(FEATURES), train=False)[0]


@pytest.mark.parametrize(
    "head",
    [
        {},
        {"num_classes": 5},
        {"num_classes": 5, "hidden": [jt.Dense(4), jt.BatchNorm(), jt.Activation("gelu")]},
        {"tasks": {"a": 2, "b": ["x", "y", "z"]}},
        {"tasks": {"a": 2, "b": 3}, "hidden": [jt.Dense(4), jt.Activation("tanh")]},
    ],
    ids=["own", "dense", "hidden", "tasks", "tasks with hidden layers"],
)
def test_all_logits_are_divided_and_nothing_else_changes(model, head):
    before = jt.replace_head(model, **head) if head else model
    kept = jax.tree.map(np.array, before.params)
    after = with_temperature(before, 2.5)
    for new, old in zip(*map(jax.tree.leaves, (logits(after), logits(before))), strict=True):
        np.testing.assert_allclose(new, old / 2.5, rtol=1e-5, atol=1e-6)
    assert after.params["body"] is before.params["body"]
    assert jt.diff(before.params, kept).is_empty
    assert (after.spec, after.apply, after.labels) == (before.spec, before.apply, before.labels)
    assert after.receipt.notes[-1] == "with_temperature: head gives logits divided by 2.5"


def test_a_convolution_with_relu_and_mean_divides_along():
    network = build("squeezenet1_0", width=2, num_classes=5)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), network.params)
    network = jt.Model(network.spec, network.apply, params, {})
    maps = rng.normal(size=(2, 3, 4, 64)).astype(np.float32)
    before, after = (
        m.apply(m.params, {}, maps, train=False, start="head")[0]
        for m in (network, with_temperature(network, 0.5))
    )
    np.testing.assert_allclose(after, 2 * before, rtol=1e-5)


def test_the_heads_of_both_tokens_of_a_distilled_transformer_divide():
    sizes = {"patch": 4, "width": 8, "depth": 1, "heads": 2, "input_size": (8, 8)}
    network = build("deit_b16_distilled", **sizes, num_classes=3)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), network.params)
    network = jt.Model(network.spec, network.apply, params, {})
    tokens = rng.normal(size=(2, 16)).astype(np.float32)
    before, after = (
        m.apply(m.params, {}, tokens, train=False, start="head")[0]
        for m in (network, with_temperature(network, 4.0))
    )
    np.testing.assert_allclose(after, before / 4, rtol=1e-5, atol=1e-6)


def test_half_precision_stays(model):
    halved = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.params)
    half = jt.Model(model.spec, model.apply, halved, {})
    kernel = with_temperature(half, 3.0).params["head"]["kernel"]
    expected = (halved["head"]["kernel"].astype(jnp.float32) / 3).astype(jnp.bfloat16)
    np.testing.assert_array_equal(kernel, expected)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_is_above_0(model, temperature):
    with pytest.raises(ModelError, match="expected a temperature above 0, found"):
        with_temperature(model, temperature)


def test_a_head_of_several_layers_of_ones_own_is_told(model):
    def apply(params: Any, inputs: jax.Array) -> jax.Array:
        return inputs @ params["head"]["first"]["kernel"] @ params["head"]["last"]["kernel"]

    layer = {"kernel": jnp.ones((4, 4))}
    own = jt.Model.from_function(apply, {"head": {"first": layer, "last": layer}})
    with pytest.raises(ModelError, match=r"kernel and bias of one layer at head, found \['first'"):
        with_temperature(own, 2.0)


def test_a_network_without_a_head_is_told():
    with pytest.raises(ModelError, match="expected a network with a head"):
        with_temperature(build("squeezenet1_0", width=2, num_classes=0), 2.0)
