from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.errors import MappingError, ModelError
from jaxtransfer.models import build
from jaxtransfer.models.layers import adaptive_average_pool
from jaxtransfer.models.weights import load_network
from jaxtransfer.tree import named_leaves

SMALL: dict[str, Any] = {"width": 2, "hidden": 6, "num_classes": 5, "input_size": (32, 32)}


@functools.cache
def small(name: str = "vgg11", **options: Any) -> jt.Model:
    """A network with random values in every leaf."""
    model = build(name, **{**SMALL, **options})
    rng = np.random.default_rng(0)

    def values(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if leaf.ndim == 1:
            return rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
        return rng.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape).astype(leaf.dtype)

    leaves, structure = jax.tree.flatten((model.params, model.stats))
    params, stats = jax.tree.unflatten(structure, [values(leaf) for leaf in leaves])
    return jt.Model(model.spec, model.apply, params, stats, model.preprocess)


def images(height: int, width: int | None = None, batch: int = 2) -> np.ndarray:
    shape = (batch, height, width or height, 3)
    return np.random.default_rng(1).normal(0, 1, shape).astype(np.float32)


def shape_at(model: jt.Model, stage: str | None, size: int, **keywords: Any) -> tuple[int, ...]:
    forward = functools.partial(model.apply, train=False, stop=stage, **keywords)
    inputs = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    return jax.eval_shape(forward, model.params, model.stats, inputs)[0].shape


# ---------------------------------------------------------------------------------------------
# The network


@pytest.mark.parametrize(("layers", "deepest"), [(11, 2), (13, 2), (16, 3), (19, 4)])
@pytest.mark.parametrize("norm", ["", "_bn"])
def test_the_name_counts_the_layers_with_weights(layers, deepest, norm):
    model = build(f"vgg{layers}{norm}", **SMALL)
    names = jt.leaf_names(model.params)
    kernels = [name for name in names if name.endswith("kernel")]
    assert len(kernels) == layers
    assert len([name for name in names if name.endswith("scale")]) == (layers - 3 if norm else 0)
    assert f"stage5/conv{deepest}/kernel" in names
    assert f"stage5/conv{deepest + 1}/kernel" not in names


@pytest.mark.parametrize("options", [{"name": "vgg11_bn"}, {"name": "vgg11", "sliding": True}])
def test_cut_at_any_stage_the_pass_is_the_same(options):
    model = small(**options, dropout=0.0)
    inputs, train = images(48), options["name"] == "vgg11_bn"
    whole, whole_stats = model.apply(model.params, model.stats, inputs, train=train)
    for stage in model.spec.stages:
        features, below = model.apply(model.params, model.stats, inputs, train=train, stop=stage)
        rest, stats = model.apply(model.params, below, features, train=train, start=stage)
        np.testing.assert_array_equal(rest, whole)
        assert jt.diff(whole_stats, stats).is_empty
    assert jt.diff(model.stats, whole_stats).is_empty == (not train)


def test_each_stage_halves_the_image():
    down, up = build("vgg11", **SMALL), build("vgg11", **SMALL, ceil_pooling=True)
    sizes = [75]
    for stage in ("stage2", "stage3", "stage4", "stage5", "pool"):
        sizes.append(sizes[-1] // 2)
        assert shape_at(down, stage, 75)[1:3] == (sizes[-1], sizes[-1])
    assert [shape_at(up, stage, 75)[1] for stage in ("stage2", "stage3", "pool")] == [38, 19, 3]


def test_dense_layers_slide_over_larger_maps_only():
    averaged, sliding = small(), small(sliding=True)
    exact = images(224, batch=1)
    forward = jax.jit(averaged.apply, static_argnames="train")
    expected, _ = forward(averaged.params, averaged.stats, exact, train=False)
    slide = jax.jit(sliding.apply, static_argnames="train")
    found, _ = slide(averaged.params, averaged.stats, exact, train=False)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    # A map of 7x9 has three windows, and the features are the mean of theirs.
    maps = np.random.default_rng(0).normal(size=(1, 7, 9, 16)).astype(np.float32)
    features, _ = sliding.apply(sliding.params, {}, maps, train=False, start="pool", stop="head")
    each = [
        averaged.apply(averaged.params, {}, window, train=False, start="pool", stop="head")[0]
        for window in (maps[:, :, 0:7], maps[:, :, 1:8], maps[:, :, 2:9])
    ]
    np.testing.assert_allclose(features, sum(each) / 3, rtol=1e-5, atol=1e-6)
    assert shape_at(sliding, "fc6", 288) == (2, 3, 3, 7 * 7 * 16)
    assert shape_at(averaged, "fc6", 288) == (2, 7 * 7 * 16)


@pytest.mark.parametrize(("length", "count"), [(9, 7), (2, 7), (14, 7), (7, 7), (1, 6), (13, 6)])
def test_adaptive_pooling_has_the_bins_of_pytorch(length, count):
    inputs = np.random.default_rng(0).normal(size=(2, length, 3, 4)).astype(np.float32)
    expected = np.stack(
        [
            inputs[:, int(np.floor(i * length / count)) : int(np.ceil((i + 1) * length / count))]
            .mean(1)
            for i in range(count)
        ],
        axis=1,
    )  # fmt: skip
    rows = adaptive_average_pool(jnp.asarray(inputs), count, 3)
    np.testing.assert_allclose(rows, expected, rtol=1e-5, atol=1e-6)
    turned = adaptive_average_pool(jnp.asarray(inputs.swapaxes(1, 2)), 3, count)
    np.testing.assert_allclose(turned, expected.swapaxes(1, 2), rtol=1e-5, atol=1e-6)


def test_an_image_too_small_for_five_halvings_is_an_error():
    with pytest.raises(ModelError, match=r"map of at least 1x1, found \(1, 0, 0, 16\).*larger"):
        build("vgg11", **{**SMALL, "input_size": (31, 31)})


def test_without_the_dense_layers_the_head_gets_the_global_mean():
    model = build("vgg11", **{**SMALL, "hidden": 0})
    assert model.spec.stages[-2:] == ("pool", "head")
    assert shape_at(model, "head", 64) == (2, 16)
    assert model.params["head"]["kernel"].shape == (16, 5)
    features = build("vgg11", **{**SMALL, "num_classes": 0})
    assert shape_at(features, None, 64) == (2, 6) and "head" not in features.params


def test_it_runs_in_bfloat16():
    model = small("vgg11_bn", sliding=True)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), model.params)
    inputs = jax.ShapeDtypeStruct((2, 70, 70, 3), jnp.bfloat16)
    for train in (False, True):
        forward = functools.partial(model.apply, train=train, rngs={"dropout": jax.random.key(0)})
        logits, stats = jax.eval_shape(forward, params, model.stats, inputs)
        assert logits.dtype == jnp.bfloat16
        assert {leaf.dtype for _, leaf in named_leaves(stats)} == {jnp.dtype(jnp.float32)}


def test_dropout_is_drawn_in_training_alone():
    model, without = small(), small(dropout=0.0)
    features = np.ones((4, 7 * 7 * 16), np.float32)

    def hidden(model: jt.Model, train: bool, seed: int | None = None, **keywords: Any) -> Any:
        rngs = None if seed is None else {"dropout": jax.random.key(seed)}
        return model.apply(
            model.params, {}, features, train=train, rngs=rngs, start="fc6", stop="fc7", **keywords
        )[0]

    plain = hidden(model, False)
    np.testing.assert_array_equal(hidden(without, True), plain)
    drawn = np.asarray(hidden(model, True, 0))
    kept = drawn != 0
    assert 0 < kept.sum() < (np.asarray(plain) != 0).sum()
    np.testing.assert_allclose(drawn[kept], 2 * np.asarray(plain)[kept], rtol=1e-6)
    assert np.any(drawn != hidden(model, True, 1))
    np.testing.assert_array_equal(hidden(model, True, 0, frozen_modules=frozenset({"fc6"})), plain)
    with pytest.raises(Exception, match="dropout"):
        hidden(model, True)


# ---------------------------------------------------------------------------------------------
# Sources


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("vgg13_bn", "torchvision"),
        ("vgg11", "timm"),
        ("vgg16", "keras"),
        ("vgg19", "caffe"),
    ],
)
def test_rules_convert_and_invert(name, source):
    model = small(name)
    tree = {"params": model.params, "stats": model.stats}
    rules = model.spec.rules_for(source)
    flat = jt.invert(tree, rules)
    back, receipt = jt.convert(flat, rules, tree)
    assert jt.diff(tree, back).is_empty and len(receipt.entries) == len(flat)


def test_the_rules_have_the_names_of_published_files():
    def names(architecture: str, source: str) -> dict[str, tuple[int, ...]]:
        model = small(architecture)
        flat = jt.invert(
            {"params": model.params, "stats": model.stats}, model.spec.rules_for(source)
        )
        return {name: array.shape for name, array in flat.items()}

    torchvision = names("vgg16_bn", "torchvision")
    assert torchvision["features.40.weight"] == (16, 16, 3, 3)
    assert torchvision["features.41.running_var"] == (16,)
    assert torchvision["classifier.0.weight"] == (6, 7 * 7 * 16)
    timm = names("vgg16", "timm")
    assert timm["features.28.weight"] == (16, 16, 3, 3)
    assert timm["pre_logits.fc1.weight"] == (6, 16, 7, 7)
    assert timm["pre_logits.fc2.weight"] == (6, 6, 1, 1)
    keras = names("vgg16", "keras")
    assert keras["block5_conv3/block5_conv3_W_1:0"] == (3, 3, 16, 16)
    assert keras["predictions/predictions_b_1:0"] == (5,)
    caffe = names("vgg19", "caffe")
    assert caffe["conv5_4/0"] == (16, 16, 3, 3) and caffe["fc8/1"] == (5,)


def test_keras_and_caffe_have_the_two_networks_of_the_authors():
    for name in ("vgg11", "vgg16_bn"):
        assert [source.name for source in build(name, **SMALL).spec.sources] == [
            "torchvision",
            "timm",
        ]
    spec = build("vgg16", **SMALL).spec
    for name in ("keras", "caffe"):
        preprocess = spec.source(name).preprocess
        assert (preprocess.channel_order, preprocess.scale) == ("bgr", None)
        assert preprocess.mean == (103.939, 116.779, 123.68)
    assert spec.source("torchvision").preprocess.std == (0.229, 0.224, 0.225)


@pytest.mark.parametrize("source", ["torchvision", "timm", "keras", "caffe"])
def test_a_whole_file_fills_the_network_without_its_dense_layers(tmp_path, source):
    whole = small("vgg16")
    flat = jt.invert({"params": whole.params, "stats": {}}, whole.spec.rules_for(source))
    jt.write_weights(flat, tmp_path / "whole.npz")
    body = load_network("vgg16", tmp_path / "whole.npz", width=2, hidden=0, input_size=(32, 32))
    assert body.receipt is not None and len(body.receipt.ignored) == 6
    assert set(body.params) == {f"stage{i}" for i in range(1, 6)}
    for stage, params in body.params.items():
        assert jt.diff(params, whole.params[stage]).is_empty
    with pytest.raises(MappingError, match="fc6"):
        load_network("vgg16", _without_dense(flat, tmp_path), width=2, input_size=(32, 32))


def _without_dense(flat: dict[str, np.ndarray], folder: Any) -> Any:
    """A file such as Keras calls "notop"."""
    dense = ("classifier", "pre_logits", "head", "fc", "predictions")
    body = {name: array for name, array in flat.items() if not name.startswith(dense)}
    return jt.write_weights(body, folder / "notop.npz") or folder / "notop.npz"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, r"integers of at least 1.*found \{'width': 0\}"),
        ({"hidden": -1}, r"found \{'hidden': -1\}"),
        ({"dropout": 1.0}, r"rates of at least 0 and below 1, found \{'dropout': 1.0\}"),
    ],
)
def test_options_that_make_no_network_are_errors(options, message):
    with pytest.raises(ModelError, match=message):
        build("vgg11", **options)
