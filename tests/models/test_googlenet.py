from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import InvalidRngError

import jaxtransfer as jt
from jaxtransfer.data.preprocess import preprocess_images
from jaxtransfer.errors import ModelError
from jaxtransfer.models import build
from jaxtransfer.models.catalog import spec_of
from jaxtransfer.models.weights import load_network

SOURCES = ("torchvision", "caffe", "tf_slim")
CAFFE: dict[str, Any] = {"batch_norm": False, "large_kernel": 5, "last_pool": 3}
SLIM: dict[str, Any] = {"bn_scale": False, "same_padding": True}


@functools.cache
def small(**options: Any) -> jt.Model:
    """A narrow network with random values in every leaf."""
    return filled(build("googlenet", **{"width": 4, "num_classes": 5, **options}))


def filled(model: jt.Model) -> jt.Model:
    random = np.random.default_rng(0)

    def values(leaf: Any) -> jax.Array:
        deviation = 1 / math.sqrt(math.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.1
        noise = random.normal(0, deviation, leaf.shape)
        return jnp.asarray(noise + (leaf.ndim == 1), leaf.dtype)

    return jax.tree.map(values, model)


def source_of(name: str) -> Any:
    return spec_of("googlenet").source(name)


def tree_of(model: jt.Model) -> dict[str, Any]:
    return {"params": model.params, "stats": model.stats}


def shapes_of(model: jt.Model, images: jax.ShapeDtypeStruct) -> dict[str, tuple[int, ...]]:
    """The shapes of what enters each stage, and of the logits."""
    stages, shapes = model.spec.stages, {}
    for stage, after in zip(stages, (*stages[1:], None), strict=True):
        shapes[stage] = images.shape
        call = functools.partial(model.apply, train=False, start=stage, stop=after)
        images = jax.eval_shape(call, model.params, model.stats, images)[0]
    return {**shapes, "logits": images.shape}


@pytest.mark.parametrize("options", [{}, CAFFE, SLIM])
def test_maps_have_the_sizes_of_the_papers_table(options):
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    expected = {
        "inception_3a": (2, 28, 28, 192),
        "inception_3b": (2, 28, 28, 256),
        "pool_3": (2, 28, 28, 480),
        "inception_4a": (2, 14, 14, 480),
        "inception_4e": (2, 14, 14, 528),
        "pool_4": (2, 14, 14, 832),
        "inception_5a": (2, 7, 7, 832),
        "pool": (2, 7, 7, 1024),
        "head": (2, 1024),
        "logits": (2, 1000),
    }
    assert expected.items() <= shapes_of(build("googlenet", **options), images).items()


def test_what_each_source_needs_is_in_the_leaves():
    torchvision, caffe, slim = (build("googlenet", **options) for options in ({}, CAFFE, SLIM))
    assert set(torchvision.params["stem"]["conv1"]["bn"]) == {"scale", "bias"}
    assert set(slim.params["stem"]["conv1"]["bn"]) == {"bias"}
    assert set(caffe.params["stem"]["conv1"]) == {"conv"} and not caffe.stats
    assert set(caffe.params["stem"]["conv1"]["conv"]) == {"kernel", "bias"}
    kernels = [m.params["inception_3a"]["5x5"]["conv"]["kernel"] for m in (torchvision, caffe)]
    assert [kernel.shape for kernel in kernels] == [(3, 3, 16, 32), (5, 5, 16, 32)]


def test_a_pass_cut_in_two_is_the_whole_pass():
    model = small(dropout=0.0)
    maps = np.random.default_rng(1).normal(size=(2, 5, 5, 52)).astype(np.float32)
    call = functools.partial(model.apply, model.params, train=True)
    whole, stats = call(model.stats, maps, start="pool_4")
    features, below = call(model.stats, maps, start="pool_4", stop="inception_5b")
    rest, rest_stats = call(below, features, start="inception_5b")
    np.testing.assert_array_equal(rest, whole)
    assert jt.diff(stats, rest_stats).is_empty
    moved = {name.split("/")[0] for name in jt.diff(model.stats, rest_stats).changed}
    assert moved == {"inception_5a", "inception_5b"}


def test_a_frozen_module_runs_as_in_evaluation_among_those_that_train():
    model = small()
    maps = np.random.default_rng(1).normal(size=(2, 3, 3, 52)).astype(np.float32)
    call = functools.partial(model.apply, model.params, model.stats, maps)
    part = {"start": "inception_5a", "stop": "inception_5b"}
    frozen = frozenset({"inception_5a"})
    evaluated, _ = call(train=False, **part)
    found, stats = call(train=True, frozen_modules=frozen, **part)
    np.testing.assert_array_equal(found, evaluated)
    assert jt.diff(model.stats, stats).is_empty
    trained, moved = call(train=True, **part)
    assert (np.asarray(trained) != np.asarray(evaluated)).any()
    assert {name.split("/")[0] for name in jt.diff(model.stats, moved).changed} == {"inception_5a"}


@pytest.mark.parametrize("options", [{}, CAFFE])
def test_bfloat16_stays_bfloat16(options):
    model = build("googlenet", width=4, dropout=0.0, **options)
    half = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), model.params)
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.bfloat16)
    call = functools.partial(model.apply, train=True)
    assert jax.eval_shape(call, half, model.stats, images)[0].dtype == jnp.bfloat16


# Names of the published files; that there are no others is what the twins show.
PUBLISHED = {
    "torchvision": {
        "conv1.conv.weight": (4, 3, 7, 7),
        "conv3.bn.running_var": (12,),
        "inception3a.branch1.conv.weight": (4, 12, 1, 1),
        "inception4e.branch3.1.conv.weight": (8, 2, 3, 3),
        "inception5b.branch4.1.bn.bias": (8,),
        "fc.weight": (5, 64),
    },
    "caffe": {
        "conv1/7x7_s2/0": (4, 3, 7, 7),
        "inception_3a/1x1/0": (4, 12, 1, 1),
        "inception_4e/5x5/0": (8, 2, 5, 5),
        "inception_5b/pool_proj/1": (8,),
        "loss3/classifier/0": (5, 64),
    },
    "tf_slim": {
        "InceptionV1/Conv2d_1a_7x7/weights": (7, 7, 3, 4),
        "InceptionV1/Mixed_3b/Branch_0/Conv2d_0a_1x1/weights": (1, 1, 12, 4),
        "InceptionV1/Mixed_4f/Branch_2/Conv2d_0b_3x3/weights": (3, 3, 2, 8),
        "InceptionV1/Mixed_5b/Branch_2/Conv2d_0a_3x3/weights": (3, 3, 2, 8),
        "InceptionV1/Mixed_5c/Branch_3/Conv2d_0b_1x1/BatchNorm/beta": (8,),
        "InceptionV1/Logits/Conv2d_0c_1x1/weights": (1, 1, 64, 5),
    },
}
ALSO_IN_FILES = {
    "torchvision": ("aux1.conv.conv.weight", "aux2.fc2.bias", "conv1.bn.num_batches_tracked"),
    "caffe": ("loss1/conv/0", "loss2/classifier/1"),
    "tf_slim": ("global_step", "InceptionV1/Conv2d_1a_7x7/weights/ExponentialMovingAverage"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_files_of_each_source_are_known_by_their_names_and_come_back_bit_for_bit(name, tmp_path):
    source = source_of(name)
    model = small(**source.options)
    flat = jt.invert(tree_of(model), source.rules)
    assert PUBLISHED[name].items() <= {key: value.shape for key, value in flat.items()}.items()
    assert len(flat) == 2 + 57 * (2 if name == "caffe" else 4 if name == "tf_slim" else 5)

    more = {key: np.ones(1, np.float32) for key in ALSO_IN_FILES[name]}
    jt.write_weights({**flat, **more}, tmp_path / "file.npz")
    loaded = load_network("googlenet", tmp_path / "file.npz", width=4)
    assert jt.diff(tree_of(model), tree_of(loaded)).is_empty
    assert loaded.receipt is not None
    assert loaded.receipt.rules_name == name and set(loaded.receipt.ignored) == set(more)
    assert dict(loaded.spec.options)["num_classes"] == 5
    assert loaded.preprocess == source.preprocess


def test_images_for_torchvision_are_what_its_transform_and_its_network_make_of_them():
    images = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), np.uint8)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    normalised = (images / 255 - mean) / std
    transformed = normalised * (std / 0.5) + (mean - 0.5) / 0.5  # `_transform_input`
    how = replace(source_of("torchvision").preprocess, size=None)
    found = preprocess_images(jnp.asarray(images), how)
    np.testing.assert_allclose(found, transformed, atol=1e-6)


def test_images_for_caffe_are_bytes_less_the_means_of_blue_green_and_red():
    images = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8)
    how = replace(source_of("caffe").preprocess, size=None)
    found = preprocess_images(jnp.asarray(images), how)
    expected = images[..., ::-1].astype(np.float32) - np.array([104, 117, 123], np.float32)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_class_zero_of_tf_slim_is_a_background():
    assert [source_of(name).preprocess.label_offset for name in SOURCES] == [0, 0, 1]


def test_dropout_comes_before_the_head_in_training():
    model = small(dropout=0.5)
    features = jnp.ones((4, 64))
    head = functools.partial(model.apply, model.params, model.stats, features, start="head")
    logits = features @ model.params["head"]["kernel"] + model.params["head"]["bias"]
    np.testing.assert_allclose(head(train=False)[0], logits, rtol=1e-5)
    with pytest.raises(InvalidRngError):
        head(train=True)
    first, again, other = (
        head(train=True, rngs={"dropout": jax.random.key(seed)})[0] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any() and (first[0] != first[1]).any()
    never = small(dropout=0.0)
    found, _ = never.apply(never.params, never.stats, features, start="head", train=True)
    np.testing.assert_allclose(found, logits, rtol=1e-5)


def test_without_classes_features_leave_as_they_are():
    model = small(num_classes=0)
    assert "head" not in model.params
    features = jnp.ones((2, 64))
    found, _ = model.apply(model.params, model.stats, features, start="head", train=True)
    np.testing.assert_array_equal(found, features)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, r"integers of at least 1.*\{'width': 0\}"),
        ({"input_size": (0, 8)}, r"\{'height': 0\}"),
        ({"last_pool": 0}, r"\{'last_pool': 0\}"),
        ({"large_kernel": 4}, "expected an odd large_kernel, found 4"),
        ({"dropout": 1.0}, r"rates of at least 0 and below 1, found \{'dropout': 1.0\}"),
    ],
)
def test_options_that_make_no_network_are_errors(options, message):
    with pytest.raises(ModelError, match=f"googlenet: .*{message}"):
        build("googlenet", **options)


def test_the_papers_network_has_a_name_of_its_own():
    assert build("bvlc_googlenet").params["inception_3a"]["5x5"]["conv"]["kernel"].shape[0] == 5
