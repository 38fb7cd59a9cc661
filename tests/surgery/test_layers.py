from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.errors import ModelError
from jaxtransfer.surgery.layers import (
    ACTIVATIONS,
    head_from_json,
    head_module,
    head_to_json,
    init_head,
    tasks_from_json,
    tasks_to_json,
)

LAYERS = (
    jt.Pool(),
    jt.BatchNorm(),
    jt.Dropout(0.5),
    jt.Dense(7),
    jt.Activation("tanh"),
    jt.LayerNorm(),
    jt.Dense(2),
)


@pytest.mark.parametrize(
    ("kind", "argument", "message"),
    [
        (jt.Dense, 0, "features of at least 1, found 0"),
        (jt.Dense, 2.5, "found 2.5"),
        (jt.Dropout, 1.0, "rate from 0, below 1, found 1.0"),
        (jt.Dropout, -0.1, "found -0.1"),
        (jt.Dropout, "0.5", "found '0.5'"),
        (jt.Activation, "swish", "one of relu, gelu, silu, tanh, found 'swish'"),
    ],
)
def test_layers_that_cannot_be_are_errors(kind, argument, message):
    with pytest.raises(ModelError, match=message):
        kind(argument)


def test_layers_go_through_json():
    assert head_from_json(json.loads(json.dumps(head_to_json(LAYERS)))) == LAYERS


HEADS = (jt.TaskHead("species", LAYERS, ("ant", "bee")), jt.TaskHead("colour", (jt.Dense(3),)))


def test_tasks_go_through_json():
    assert tasks_from_json(json.loads(json.dumps(tasks_to_json(HEADS)))) == HEADS
    assert [head.num_classes for head in HEADS] == [2, 3]


@pytest.mark.parametrize(
    ("task", "layers", "classes", "message"),
    [
        ("a/b", (jt.Dense(1),), None, "a name without '/' for the task"),
        ("", (jt.Dense(1),), None, "a name without '/' for the task"),
        ("a", (), None, "Dense as the last layer"),
        ("a", (jt.Dense(1), jt.Pool()), None, "Dense as the last layer"),
        ("a", (jt.Dense(2),), ("x",), "2 classes"),
    ],
)
def test_heads_of_tasks_that_cannot_be_are_errors(task, layers, classes, message):
    with pytest.raises(ModelError, match=f"TaskHead: expected {message}, found TaskHead"):
        jt.TaskHead(task, layers, classes)


@pytest.mark.parametrize("described", [[3], [{"task": "a"}], [{"task": "a", "layers": []}]])
def test_described_heads_of_tasks_that_are_none_are_errors(described):
    with pytest.raises(ModelError, match="expected task, layers and classes of each"):
        tasks_from_json(described)


@pytest.mark.parametrize("shape", [(2, 5), (2, 3, 5), (2, 3, 4, 5)])
def test_a_pool_is_the_mean_over_positions(shape):
    features = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    pooled = head_module((jt.Pool(), jt.Pool())).apply({}, features, train=False)
    np.testing.assert_allclose(pooled, features.reshape(2, -1, 5).mean(1), rtol=1e-5, atol=1e-6)


def test_layers_start_as_they_are_documented():
    params, stats = init_head(jax.random.key(0), [jt.BatchNorm(), jt.Dense(500)], 400)
    kernel = params["1"]["kernel"]
    assert abs(float(kernel.std()) - 400**-0.5) < 1e-3  # LeCun: variance 1 / inputs
    assert float(jnp.abs(params["1"]["bias"]).max()) == 0
    np.testing.assert_array_equal(params["0"]["scale"], np.ones(400))
    np.testing.assert_array_equal(stats["0"]["var"], np.ones(400))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("relu", 1.5), ("gelu", 1.3997892), ("silu", 1.2263618), ("tanh", 0.9051483)],
)
def test_activations_are_the_functions_of_their_names(name, expected):
    np.testing.assert_allclose(ACTIVATIONS[name](jnp.float32(1.5)), expected, rtol=1e-6)
