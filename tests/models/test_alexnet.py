from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.errors import ModelError
from jaxtransfer.models import build
from jaxtransfer.models.layers import local_response_norm

SMALL: dict[str, Any] = {"widths": (2, 4, 4, 4, 4), "hidden": 6, "num_classes": 5}
NAMES = ("alexnet", "bvlc_alexnet", "caffenet")


@functools.cache
def small(name: str, **options: Any) -> jt.Model:
    """A network with random values in every leaf."""
    model = build(name, **{**SMALL, **options})
    rng = np.random.default_rng(0)
    values = [
        rng.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape).astype(np.float32)
        for leaf in jax.tree.leaves(model.params)
    ]
    params = jax.tree.unflatten(jax.tree.structure(model.params), values)
    return jt.Model(model.spec, model.apply, params, {}, model.preprocess)


def side_before(model: jt.Model, stage: str, size: int) -> int:
    forward = functools.partial(model.apply, train=False, stop=stage)
    inputs = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(forward, model.params, {}, inputs)[0].shape[1]


@pytest.mark.parametrize("name", NAMES)
def test_cut_at_any_stage_the_pass_is_the_same(name):
    model = small(name)
    inputs = np.random.default_rng(1).normal(0, 60, (1, 99, 99, 3)).astype(np.float32)
    whole, _ = model.apply(model.params, {}, inputs, train=False)
    for stage in model.spec.stages:
        features, _ = model.apply(model.params, {}, inputs, train=False, stop=stage)
        rest, _ = model.apply(model.params, {}, features, train=False, start=stage)
        np.testing.assert_array_equal(rest, whole)


def test_maps_have_the_sizes_of_the_papers():
    stages = ("conv2", "conv3", "pool")
    for name, size, sides in [
        ("alexnet", 224, [27, 13, 6]),
        ("caffenet", 227, [27, 13, 6]),
        ("bvlc_alexnet", 227, [27, 13, 6]),
        # Caffe rounds up: of 52 comes 26, of that 13.
        ("caffenet", 215, [26, 13, 6]),
        ("alexnet", 211, [25, 12, 5]),
    ]:
        assert [side_before(small(name), stage, size) for stage in stages] == sides
    assert build("alexnet", **SMALL).preprocess.size == (224, 224)
    assert build("caffenet", **SMALL).preprocess.size == (227, 227)


def test_two_towers_are_groups_of_channels():
    one, two = (build(name).params for name in ("alexnet", "caffenet"))
    assert [one[f"conv{i}"]["kernel"].shape[-2:] for i in range(1, 6)] == [
        (3, 64),
        (64, 192),
        (192, 384),
        (384, 256),
        (256, 256),
    ]
    assert [two[f"conv{i}"]["kernel"].shape[-2:] for i in range(1, 6)] == [
        (3, 96),
        (48, 256),
        (256, 384),
        (192, 384),
        (192, 256),
    ]


def test_normalisation_and_pooling_change_places():
    """The same weights, and by hand what differs: the maps that leave the first stage."""
    before, after = small("bvlc_alexnet"), small("caffenet")
    inputs = np.random.default_rng(1).normal(0, 200, (1, 39, 39, 3)).astype(np.float32)
    maps = [
        model.apply(before.params, {}, inputs, train=False, stop="conv2")[0]
        for model in (before, after)
    ]
    assert not np.allclose(maps[0], maps[1], rtol=1e-3)
    kernel, bias = before.params["conv1"]["kernel"], before.params["conv1"]["bias"]
    convolved = jax.lax.conv_general_dilated(
        jnp.asarray(inputs), kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    rectified = np.maximum(np.asarray(convolved) + np.asarray(bias), 0)  # 8x8, pooled to 4x4
    padded = np.pad(rectified, ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=-np.inf)
    pooled = np.stack(
        [padded[:, i : i + 7 : 2, j : j + 7 : 2] for i in range(3) for j in range(3)]
    ).max(0)
    np.testing.assert_allclose(maps[1], local_response_norm(jnp.asarray(pooled)), rtol=1e-4)


def test_local_response_normalisation_is_that_of_the_paper():
    values = np.random.default_rng(0).normal(0, 100, (1, 1, 1, 7)).astype(np.float32)
    expected = np.empty_like(values)
    for channel in range(7):
        neighbours = values[..., max(channel - 2, 0) : channel + 3]
        scale = 1 + 1e-4 / 5 * (neighbours**2).sum(-1)
        expected[..., channel] = values[..., channel] / scale**0.75
    np.testing.assert_allclose(local_response_norm(jnp.asarray(values)), expected, rtol=1e-5)


@pytest.mark.parametrize(("name", "drops_input"), [("alexnet", True), ("caffenet", False)])
def test_dropout_is_where_each_library_has_it(name, drops_input):
    model = small(name, dropout=0.75)
    features = np.ones((64, 36 * 4), np.float32)
    rngs = {"dropout": jax.random.key(0)}
    arguments: dict[str, Any] = {"start": "fc6", "stop": "fc7"}
    plain, _ = model.apply(model.params, {}, features, train=False, **arguments)
    drawn, _ = model.apply(model.params, {}, features, train=True, rngs=rngs, **arguments)
    active = np.asarray(plain) > 0
    # What leaves is zero or four times as large, unless it was what enters that was dropped.
    is_scaled = np.isclose(drawn, 4 * np.asarray(plain), rtol=1e-5) | (np.asarray(drawn) == 0)
    assert is_scaled[active].all() == (not drops_input)
    without = small(name, dropout=0.0)
    same, _ = without.apply(model.params, {}, features, train=True, **arguments)
    np.testing.assert_array_equal(same, plain)


@pytest.mark.parametrize(("name", "source"), [("alexnet", "torchvision"), ("caffenet", "caffe")])
def test_rules_convert_and_invert(name, source):
    tree = {"params": small(name).params, "stats": {}}
    rules = small(name).spec.rules_for(source)
    flat = jt.invert(tree, rules)
    back, receipt = jt.convert(flat, rules, tree)
    assert jt.diff(tree, back).is_empty and len(receipt.entries) == len(flat) == 16
    assert flat["features.10.weight" if name == "alexnet" else "conv5/0"].shape[0] == 4


def test_caffes_networks_take_bytes_in_blue_green_red():
    preprocess = build("caffenet", **SMALL).preprocess
    assert (preprocess.channel_order, preprocess.scale) == ("bgr", None)
    np.testing.assert_allclose(preprocess.mean, (104, 117, 123), atol=0.5)
    assert build("alexnet", **SMALL).preprocess.mean == (0.485, 0.456, 0.406)


def test_it_runs_in_bfloat16():
    model = small("bvlc_alexnet")
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), model.params)
    forward = functools.partial(model.apply, train=True, rngs={"dropout": jax.random.key(0)})
    inputs = jax.ShapeDtypeStruct((2, 227, 227, 3), jnp.bfloat16)
    assert jax.eval_shape(forward, params, {}, inputs)[0].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": (2, 4, 4, 4)}, r"as many widths as there are convolutions, 5.*\(2, 4, 4, 4\)"),
        ({"widths": ()}, r"found \(\)"),
        ({"widths": (2, 4, 4, 3, 4)}, r"groups \(1, 2, 1, 2, 2\) divide, found \(2, 4, 4, 3, 4\)"),
        ({"widths": (3, 4, 4, 4, 4)}, r"found \(3, 4, 4, 4, 4\)"),
        ({"widths": (2, 4, 0, 4, 4)}, r"\{'widths\[2\]': 0\}"),
        ({"hidden": 0}, r"\{'hidden': 0\}"),
        ({"dropout": -0.5}, r"rates of at least 0 and below 1, found \{'dropout': -0.5\}"),
    ],
)
def test_options_that_make_no_network_are_errors(options, message):
    with pytest.raises(ModelError, match=message):
        build("caffenet", **options)


def test_an_image_too_small_is_an_error():
    with pytest.raises(ModelError, match="give the network larger images"):
        build("alexnet", **SMALL, input_size=62)
    assert build("alexnet", **SMALL, input_size=63).num_classes == 5
