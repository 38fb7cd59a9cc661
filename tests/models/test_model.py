from __future__ import annotations

from dataclasses import replace
from typing import Any

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxtransfer as jt
from jaxtransfer.errors import ModelError
from jaxtransfer.models import build


class Net(nn.Module):
    """Names in alphabetical order are not in the order of the forward pass."""

    @nn.compact
    def __call__(self, x, train: bool):
        token = self.param("a_token", nn.initializers.ones, (1,))
        x = nn.Dense(4, name="stem")(x + token)
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        x = nn.Dense(4, name="body")(x).mean((1, 2))
        return nn.Dense(3, name="logits")(x)


@pytest.fixture(scope="module")
def variables():
    return jax.jit(lambda x: Net().init(jax.random.key(0), x, False))(jnp.zeros((1, 4, 4, 2)))


@pytest.fixture(scope="module")
def model(variables) -> jt.Model:
    return jt.Model.from_linen(Net(), variables, input_shape=(4, 4, 2), labels=["a", "b", "c"])


def params_of(**leaves: tuple[int, ...]) -> dict:
    return jt.tree.unflatten({name.replace("__", "/"): jnp.zeros(s) for name, s in leaves.items()})


def answer(params, inputs):
    return inputs


# A pytree


def test_parameters_and_statistics_are_the_leaves(model):
    leaves, structure = jax.tree.flatten(model)
    expected = jax.tree.leaves((model.params, model.stats))
    assert all(a is b for a, b in zip(leaves, expected, strict=True))
    again = jax.tree.unflatten(structure, leaves)
    assert isinstance(again, jt.Model)
    assert (again.spec, again.apply, again.labels, again.receipt, again.preprocess) == (
        model.spec,
        model.apply,
        model.labels,
        model.receipt,
        model.preprocess,
    )
    assert jt.leaf_names(model)[0] == "params/a_token"


def test_maps_give_a_model(model):
    doubled = jax.tree.map(lambda leaf: 2 * leaf, model)
    assert isinstance(doubled, jt.Model)
    np.testing.assert_array_equal(
        doubled.params["stem"]["kernel"], 2 * model.params["stem"]["kernel"]
    )
    total = jax.tree.map(jnp.add, model, doubled)
    np.testing.assert_allclose(
        total.params["stem"]["kernel"], 3 * model.params["stem"]["kernel"], rtol=1e-6
    )


def test_a_model_goes_through_jit_without_compiling_twice(model, variables):
    traces = []

    @jax.jit
    def forward(model, images):
        traces.append(None)
        return model.apply(model.params, model.stats, images, train=False)[0], model

    images = jnp.ones((2, 4, 4, 2))
    logits, back = forward(model, images)
    assert logits.shape == (2, 3)
    assert jax.tree.structure(back) == jax.tree.structure(model)
    twin = jt.Model.from_linen(Net(), variables, input_shape=(4, 4, 2), labels=["a", "b", "c"])
    assert jax.tree.structure(twin) == jax.tree.structure(model)
    forward(twin, images)
    assert len(traces) == 1
    forward(model.with_labels(["x", "y", "z"]), images)
    assert len(traces) == 2


def test_a_model_cannot_be_changed(model):
    with pytest.raises(AttributeError):
        model.labels = None


# What is found out about a user's own network


def test_stages_are_in_the_order_of_the_forward_pass_where_the_input_is_known(model, variables):
    assert model.spec.stages == ("a_token", "stem", "norm", "body", "logits")
    assert (model.spec.head, model.spec.stem) == ("logits", "a_token")
    assert (model.spec.input_size, model.spec.in_channels, model.spec.name) == ((4, 4), 2, "Net")
    unknown = jt.Model.from_linen(Net(), variables)
    assert unknown.spec.stages == ("a_token", "body", "norm", "stem", "logits")
    assert unknown.spec.input_size is None


def test_frozen_dicts_become_dicts_and_the_users_own_are_not_shared(variables):
    model = jt.Model.from_linen(Net(), flax.core.freeze(variables))
    assert type(model.params) is dict and type(model.params["stem"]) is dict
    assert model.params["stem"]["kernel"] is variables["params"]["stem"]["kernel"]
    mine = {"params": {"head": {"kernel": jnp.ones((2, 2))}}}
    model = jt.Model.from_linen(nn.Dense(2), mine)
    mine["params"]["head"]["kernel"] = jnp.zeros((2, 2))
    assert float(model.params["head"]["kernel"].sum()) == 4


@pytest.mark.parametrize(
    ("params", "head"),
    [
        (params_of(fc__kernel=(2, 3), head__kernel=(3, 3)), "head"),
        (params_of(z__kernel=(2, 2), classifier__dense__kernel=(2, 3)), "classifier"),
        (
            params_of(Dense_0__kernel=(2, 2), Dense_1__kernel=(2, 2), LayerNorm_0__scale=(2,)),
            "Dense_1",
        ),
        (params_of(Dense_0__kernel=(2, 2), Embed_0__embedding=(5, 2)), "Dense_0"),
        (
            params_of(Dense_10__kernel=(2, 2), Dense_2__kernel=(2, 2), Dense_9__kernel=(2, 2)),
            "Dense_10",
        ),
        (params_of(w=(2, 3), scale=(2,)), "w"),
        (params_of(a=(), b=()), "b"),
    ],
)
def test_the_head_is_guessed_from_names_and_shapes(params, head):
    model = jt.Model.from_function(answer, params)
    assert model.spec.head == head
    assert model.spec.stages[-1] == head
    assert set(model.spec.stages) == set(params)


def test_head_and_stages_may_be_given():
    params = params_of(b__kernel=(2, 2), a__x__kernel=(2, 2), a__y__kernel=(2, 3))
    model = jt.Model.from_function(answer, params, head="a/y", stages=["b", "pool", "a"])
    assert model.spec.head == "a/y"
    assert model.spec.stages == ("b", "pool", "a")
    assert model.num_classes == 3
    assert jt.Model.from_function(answer, params, stages=["a", "b"]).spec.head == "b"
    numbered = params_of(Dense_0__kernel=(2, 2), Dense_1__kernel=(2, 2))
    backwards = jt.Model.from_function(answer, numbered, stages=["Dense_1", "Dense_0"])
    assert backwards.spec.head == "Dense_0"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "haed"}, r"head 'haed': no parameters are there; the nearest paths are head"),
        ({"head": "head/kern"}, r"nearest paths are head/kernel"),
        ({"stages": ["head"]}, r"\['stem'\] of the parameters' keys are not among them"),
        ({"input_shape": (4, 4)}, r"input_shape \(4, 4\): expected \(height, width, channels\)"),
        ({"labels": ["a"]}, "expected 3 labels, found 1"),
    ],
)
def test_what_does_not_fit_the_parameters_is_an_error(options, message):
    params = params_of(stem__kernel=(2, 2), head__kernel=(2, 3))
    with pytest.raises(ModelError, match=message):
        jt.Model.from_function(answer, params, **options)


def test_all_problems_are_told_at_once():
    params = params_of(stem__kernel=(2, 2), head__kernel=(2, 3))
    with pytest.raises(ModelError, match=r"(?s)haed.*stem.*height, width, channels"):
        jt.Model.from_function(
            answer,
            params,
            head="haed",
            stages=["haed"],
            input_shape=(1, 2),  # type: ignore[arg-type]
        )


@pytest.mark.parametrize(
    ("module", "variables", "message"),
    [
        (nn.Dense(2), {"batch_stats": {}}, r"found \['batch_stats'\]"),
        (nn.Dense(2), {"params": {}, "cache": {}}, r"found \['cache', 'params'\]"),
        (nn.Dense(2), [1], "found Dense and list"),
        (nnx.Linear(2, 2, rngs=nnx.Rngs(0)), {"params": {}}, "NNX modules enter by from_nnx"),
        (nn.Dense(2), {"params": {}}, "expected a tree of parameters, found no leaves"),
    ],
)
def test_only_linen_modules_with_their_variables_are_taken(module, variables, message):
    with pytest.raises(ModelError, match=message):
        jt.Model.from_linen(module, variables)


# Classes


class TwoLayerHead(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(7, name="z_first")(x.mean((1, 2)))
        return nn.Dense(5, name="a_second")(x)


class WithTwoLayerHead(nn.Module):
    @nn.compact
    def __call__(self, x):
        return TwoLayerHead(name="head")(nn.Dense(3, name="stem")(x))


def test_the_number_of_classes_is_that_of_labels_kernel_or_forward_pass(model):
    assert model.num_classes == 3
    assert replace(model, labels=None).num_classes == 3
    assert build("resnet18", num_classes=12).num_classes == 12
    module = WithTwoLayerHead()
    variables = module.init(jax.random.key(0), jnp.zeros((1, 4, 4, 2)))
    assert jt.Model.from_linen(module, variables, input_shape=(4, 4, 2)).num_classes == 5
    assert jt.Model.from_linen(module, variables).num_classes is None
    assert jt.Model.from_function(answer, [jnp.zeros((2, 3))]).num_classes is None


def test_labels_must_be_as_many_as_outputs(model):
    renamed = model.with_labels(["x", "y", "z"])
    assert renamed.labels == ("x", "y", "z") and model.labels == ("a", "b", "c")
    assert renamed.params is model.params
    with pytest.raises(ModelError, match="expected 3 labels, found 2; replace the head"):
        model.with_labels(["x", "y"])


# Data about a network


def test_rules_of_an_unknown_source_are_an_error():
    spec = build("resnet18").spec
    assert spec.rules_for("torchvision")
    with pytest.raises(
        ModelError, match="source of weights among .*torchvision.*, found 'nowhere'"
    ):
        spec.rules_for("nowhere")


def test_preprocessing_goes_through_json_and_can_be_hashed():
    lists: Any = {"size": [8, 6], "mean": [0.5], "std": [2.0, 1.0, 3.0]}
    how = jt.Preprocess(channels=3, **lists)
    assert how.size == (8, 6)
    assert hash(how) == hash(jt.Preprocess.from_dict(how.to_dict()))
    assert how == jt.Preprocess.from_dict(how.to_dict())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": (0, 8)}, r"size \(0, 8\)"),
        ({"channels": 2}, "channels 2"),
        ({"scale": 0.0}, "scale 0"),
        ({"std": (1.0, 0.0)}, "no std of 0"),
        ({"mean": ()}, "expected numbers"),
        ({"crop_fraction": 1.5}, "crop_fraction 1.5"),
        ({"channel_order": "gbr"}, "channel_order 'gbr'"),
    ],
)
def test_preprocessing_that_cannot_be_carried_out_is_an_error(fields, message):
    with pytest.raises(ModelError, match=message):
        jt.Preprocess(**fields)


def test_unknown_preprocessing_is_an_error():
    with pytest.raises(ModelError, match="expected the fields of Preprocess, found .*'blur'"):
        jt.Preprocess.from_dict({"blur": 3})
