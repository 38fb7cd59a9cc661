from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.errors import ModelError
from jaxtransfer.models.function import FunctionApply


def dense(params, x):
    return x @ params["kernel"] + params["bias"]


def plain(params, inputs):
    x = jax.nn.relu(dense(params["body"], inputs.reshape(len(inputs), -1)))
    return dense(params["head"], x)


def with_stats(params, stats, inputs, *, train, frozen_modules=frozenset()):
    x = inputs.reshape(len(inputs), -1)
    mean = stats["body"]["mean"]
    if train and "body" not in frozen_modules:
        mean = x.mean(0)
        stats = {"body": {"mean": 0.9 * stats["body"]["mean"] + 0.1 * mean}}
    x = jax.nn.relu(dense(params["body"], x - mean))
    return dense(params["head"], x), stats


@pytest.fixture(scope="module")
def params():
    first, second = jax.random.split(jax.random.key(0))
    return {
        "body": {"kernel": jax.random.normal(first, (64, 8)) / 8, "bias": jnp.zeros(8)},
        "head": {"kernel": jax.random.normal(second, (8, 3)) / 3, "bias": jnp.zeros(3)},
    }


STATS = {"body": {"mean": jnp.zeros(64)}}


def test_a_function_of_parameters_and_inputs_keeps_the_statistics():
    apply = FunctionApply(lambda params, inputs: inputs * params)
    assert apply(2, STATS, 3, train=True) == (6, STATS)


@pytest.mark.parametrize("train", [True, False])
def test_the_function_gets_the_keywords_that_it_takes(train):
    def echo(params, inputs, train, *, rngs, training=None, deterministic=None, other=5):
        return train, rngs, training, deterministic, other

    apply = FunctionApply(echo)
    assert not apply.takes_stats  # `train` is not a third argument by position
    assert not apply.can_stop
    outputs, _ = apply(0, {}, 1, train=train, rngs={"dropout": 2})
    assert outputs == (train, {"dropout": 2}, train, not train, 5)


def test_a_function_that_cuts_itself_gets_start_stop_and_frozen_modules():
    def echo(params, inputs, *, start=None, stop=None, frozen_modules=frozenset()):
        return start, stop, frozen_modules

    apply = FunctionApply(echo)
    assert apply.can_stop
    frozen = frozenset({"a"})
    found, _ = apply(0, {}, 1, train=True, start="b", stop="c", frozen_modules=frozen)
    assert found == ("b", "c", frozen)


def test_a_cut_that_the_function_cannot_make_is_an_error(params):
    with pytest.raises(ModelError, match="plain: expected a function that takes start= and stop="):
        FunctionApply(plain)(params, {}, jnp.zeros((1, 64)), train=False, stop="head")


def test_frozen_statistics_need_a_function_that_can_freeze_them():
    def cannot(params, stats, inputs):
        return inputs, stats

    apply = FunctionApply(cannot)
    with pytest.raises(ModelError, match=r"takes frozen_modules=.*\['body'\]"):
        apply({}, STATS, 1, train=True, frozen_modules=frozenset({"body"}))
    assert apply({}, STATS, 1, train=False, frozen_modules=frozenset({"body"})) == (1, STATS)


def test_statistics_must_come_back():
    with pytest.raises(ModelError, match=r"expected \(outputs, new_stats\).*found int"):
        FunctionApply(lambda params, stats, inputs: 1)({}, STATS, 1, train=True)


def test_statistics_that_nobody_takes_are_an_error(params):
    with pytest.raises(ModelError, match="found one without stats"):
        jt.Model.from_function(plain, params, STATS)


def test_functions_are_compared_by_identity_of_the_function():
    assert FunctionApply(plain) == FunctionApply(plain)
    assert hash(FunctionApply(plain)) == hash(FunctionApply(plain))
    assert FunctionApply(plain) != FunctionApply(with_stats)


@pytest.mark.parametrize("function", [plain, with_stats])
@pytest.mark.parametrize("name", ["probe", "full", "own"])
def test_a_network_of_ones_own_learns(function, name, params, separable):
    stats = STATS if function is with_stats else None
    start = jt.Model.from_function(function, params, stats)
    plan = name
    if name == "own":
        slow = jt.Group("body/kernel", lr_scale=0.1, stats="frozen")
        plan = jt.Plan((slow, jt.Group("body/bias", frozen=True), jt.Group("head/**")))
    result = jt.finetune(start, separable, plan, steps=80, batch_size=16, learning_rate=0.03)
    images, labels = separable
    assert (jt.predict(result.model, images).argmax(-1) == labels).mean() >= 0.95

    changes = jt.diff(params, result.model.params)
    frozen = {"probe": {"body/kernel", "body/bias"}, "full": set(), "own": {"body/bias"}}[name]
    assert set(changes.unchanged) == frozen
    if function is with_stats:
        assert jt.diff(STATS, result.model.stats).is_empty == (name != "full")


def test_an_equinox_module_learns(separable):
    network = eqx.nn.MLP(64, 3, 8, 1, key=jax.random.key(0))
    arrays, rest = eqx.partition(network, eqx.is_array)

    def forward(arrays, images):
        return jax.vmap(eqx.combine(arrays, rest))(images.reshape(len(images), -1))

    start = jt.Model.from_function(forward, arrays, head="layers/1")
    assert jt.leaf_names(start.params)[0] == "layers/0/weight"
    result = jt.finetune(start, separable, "full", steps=80, batch_size=16, learning_rate=0.03)
    images, labels = separable
    trained = eqx.combine(result.model.params, rest)
    logits = jax.vmap(trained)(images.reshape(len(images), -1))
    assert (np.asarray(logits).argmax(-1) == labels).mean() >= 0.95
    assert jt.diff(arrays, result.model.params).unchanged == ()

    probed = jt.finetune(start, separable, "probe", steps=80, batch_size=16, learning_rate=0.1)
    assert set(jt.diff(arrays, probed.model.params).unchanged) == {
        "layers/0/weight",
        "layers/0/bias",
    }
