from __future__ import annotations

import functools
import math
import re
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

SOURCES = ("torchvision", "timm", "keras", "tf_keras", "tf_slim")
TENSORFLOW: dict[str, Any] = {"bn_scale": False, "count_padding": False}


@functools.cache
def small(**options: Any) -> jt.Model:
    """A narrow network with random values in every leaf."""
    random = np.random.default_rng(0)

    def values(leaf: Any) -> jax.Array:
        deviation = 1 / math.sqrt(math.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.1
        noise = random.normal(0, deviation, leaf.shape)
        return jnp.asarray(noise + (leaf.ndim == 1), leaf.dtype)

    return jax.tree.map(values, build("inception_v3", **{"width": 1, "num_classes": 5, **options}))


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


def test_maps_have_the_sizes_of_the_papers_table():
    expected = {
        "mixed_5b": (1, 35, 35, 192),
        "mixed_5c": (1, 35, 35, 256),
        "mixed_5d": (1, 35, 35, 288),
        "mixed_6a": (1, 35, 35, 288),
        "mixed_6b": (1, 17, 17, 768),
        "mixed_7a": (1, 17, 17, 768),
        "mixed_7b": (1, 8, 8, 1280),
        "mixed_7c": (1, 8, 8, 2048),
        "pool": (1, 8, 8, 2048),
        "head": (1, 2048),
        "logits": (1, 1000),
    }
    images = jax.ShapeDtypeStruct((1, 299, 299, 3), jnp.float32)
    assert expected.items() <= shapes_of(build("inception_v3"), images).items()


def test_the_smallest_images_leave_one_pixel():
    model = build("inception_v3", width=1, input_size=75)
    shapes = shapes_of(model, jax.ShapeDtypeStruct((1, 75, 75, 3), jnp.float32))
    assert shapes["pool"] == (1, 1, 1, 64)
    with pytest.raises(ModelError, match="at least 75, .* found 75x74"):
        build("inception_v3", input_size=(75, 74))


def test_a_pass_cut_in_two_is_the_whole_pass():
    model = small(dropout=0.0)
    maps = np.random.default_rng(1).normal(size=(2, 3, 3, 40)).astype(np.float32)
    call = functools.partial(model.apply, model.params, train=True)
    whole, stats = call(model.stats, maps, start="mixed_7b")
    features, below = call(model.stats, maps, start="mixed_7b", stop="mixed_7c")
    rest, rest_stats = call(below, features, start="mixed_7c")
    np.testing.assert_array_equal(rest, whole)
    assert jt.diff(stats, rest_stats).is_empty
    moved = {name.split("/")[0] for name in jt.diff(model.stats, rest_stats).changed}
    assert moved == {"mixed_7b", "mixed_7c"}


def test_only_at_the_rim_does_it_matter_whether_padding_counts():
    maps = np.random.default_rng(0).normal(size=(1, 7, 7, 6)).astype(np.float32)

    def pooled(model: jt.Model) -> np.ndarray:
        # The channels of the pooling branch come last: 32 of 256, here 1 of 8.
        part = {"start": "mixed_5b", "stop": "mixed_5c", "train": False}
        return np.asarray(model.apply(model.params, model.stats, maps, **part)[0])

    counted, left_out = pooled(small()), pooled(small(count_padding=False))
    np.testing.assert_array_equal(counted[..., :-1], left_out[..., :-1])
    np.testing.assert_allclose(counted[:, 1:-1, 1:-1], left_out[:, 1:-1, 1:-1], rtol=1e-5)
    rim = np.ones((7, 7), bool)
    rim[1:-1, 1:-1] = False
    found = counted[0, rim, -1], left_out[0, rim, -1]
    passed = found[1] > 0  # by ReLU
    assert passed.any() and (found[0] != found[1])[passed].all()


def test_bfloat16_stays_bfloat16():
    model = build("inception_v3", width=1, dropout=0.0)
    half = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), model.params)
    images = jax.ShapeDtypeStruct((2, 75, 75, 3), jnp.bfloat16)
    call = functools.partial(model.apply, train=True)
    assert jax.eval_shape(call, half, model.stats, images)[0].dtype == jnp.bfloat16


# Names of the published files; that there are no others is what the twins show.
PUBLISHED = {
    "torchvision": {
        "Conv2d_1a_3x3.conv.weight": (1, 3, 3, 3),
        "Mixed_6e.branch7x7dbl_5.bn.running_mean": (6,),
        "Mixed_7c.branch3x3dbl_3b.conv.weight": (12, 12, 3, 1),
        "fc.weight": (5, 64),
    },
    "timm": {"Mixed_7a.branch7x7x3_4.conv.weight": (6, 6, 3, 3), "fc.bias": (5,)},
    "keras": {
        "conv2d_1/conv2d_1/kernel:0": (3, 3, 3, 1),
        "conv2d_93/conv2d_93/kernel:0": (3, 1, 12, 12),
        "batch_normalization_94/batch_normalization_94/beta:0": (6,),
        "predictions/predictions/kernel:0": (64, 5),
    },
    "tf_keras": {
        "conv2d/conv2d/kernel:0": (3, 3, 3, 1),
        "batch_normalization_93/batch_normalization_93/moving_variance:0": (6,),
    },
    "tf_slim": {
        "InceptionV3/Conv2d_1a_3x3/weights": (3, 3, 3, 1),
        "InceptionV3/Mixed_5c/Branch_1/Conv_1_0c_5x5/weights": (5, 5, 1, 2),
        "InceptionV3/Mixed_7b/Branch_1/Conv2d_0b_3x1/BatchNorm/beta": (12,),
        "InceptionV3/Logits/Conv2d_1c_1x1/weights": (1, 1, 64, 5),
    },
}
ALSO_IN_FILES = {
    "torchvision": ("AuxLogits.conv0.conv.weight", "Mixed_5b.branch1x1.bn.num_batches_tracked"),
    "timm": ("AuxLogits.fc.weight",),
    "tf_slim": (
        "global_step",
        "InceptionV3/AuxLogits/Conv2d_2b_1x1/biases",
        "InceptionV3/Conv2d_1a_3x3/BatchNorm/beta/RMSProp_1",
    ),
}


@pytest.mark.parametrize("name", SOURCES)
def test_files_of_each_source_are_known_by_their_names_and_come_back_bit_for_bit(name, tmp_path):
    source = spec_of("inception_v3").source(name)
    model = small(**source.options)
    flat = jt.invert(tree_of(model), source.rules)
    assert PUBLISHED[name].items() <= {key: value.shape for key, value in flat.items()}.items()
    assert len(flat) == 2 + 94 * (5 if name in ("torchvision", "timm") else 4)

    more = {key: np.ones(1, np.float32) for key in ALSO_IN_FILES.get(name, ())}
    jt.write_weights({**flat, **more}, tmp_path / "file.npz")
    loaded = load_network("inception_v3", tmp_path / "file.npz", width=1)
    assert jt.diff(tree_of(model), tree_of(loaded)).is_empty
    assert loaded.receipt is not None and set(loaded.receipt.ignored) == set(more)
    # timm's files have torchvision's names: which of the two it is must be said.
    known = "torchvision" if name == "timm" else name
    assert loaded.receipt.rules_name == known
    assert loaded.preprocess == spec_of("inception_v3").source(known).preprocess
    assert dict(loaded.spec.options)["num_classes"] == 5


def test_keras_counts_the_same_layers_from_one_or_from_zero():
    model = small(**TENSORFLOW)
    old, new = (jt.invert(tree_of(model), model.spec.rules_for(n)) for n in ("keras", "tf_keras"))

    def one_less(name: str) -> str:
        return re.sub(
            r"(conv2d|batch_normalization)_(\d+)",
            lambda found: found[1] + (f"_{int(found[2]) - 1}" if found[2] != "1" else ""),
            name,
        )

    renamed = {one_less(name): values for name, values in old.items()}
    assert renamed.keys() == new.keys()
    assert all(np.array_equal(renamed[name], new[name]) for name in new)


def test_images_for_torchvision_are_what_its_transform_and_its_network_make_of_them():
    images = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    normalised = (images / 255 - mean) / std
    transformed = normalised * (std / 0.5) + (mean - 0.5) / 0.5  # `_transform_input`
    how = replace(spec_of("inception_v3").source("torchvision").preprocess, size=None)
    np.testing.assert_allclose(preprocess_images(jnp.asarray(images), how), transformed, atol=1e-6)


def test_images_are_prepared_as_each_source_does_it():
    spec = spec_of("inception_v3")
    found = {source.name: source.preprocess for source in spec.sources}
    assert {how.size for how in found.values()} == {(299, 299)}
    assert found["torchvision"].crop_fraction == 299 / 342
    assert found["timm"].interpolation == "bicubic"
    assert {name: how.label_offset for name, how in found.items() if how.label_offset} == {
        "tf_slim": 1
    }
    gluon = next(weights for weights in spec.weights if "gluon" in weights.reference)
    assert gluon.preprocess is not None and gluon.preprocess.mean == (0.485, 0.456, 0.406)


def test_dropout_comes_before_the_head_in_training():
    model = small(dropout=0.5)
    features = jnp.ones((4, 64))
    head = functools.partial(model.apply, model.params, model.stats, features, start="head")
    logits = features @ model.params["head"]["kernel"] + model.params["head"]["bias"]
    np.testing.assert_allclose(head(train=False)[0], logits, rtol=1e-5)
    with pytest.raises(InvalidRngError):
        head(train=True)
    found, _ = head(train=True, rngs={"dropout": jax.random.key(0)})
    assert (found[0] != found[1]).any()
    never = small(dropout=0.0)
    found, _ = never.apply(never.params, never.stats, features, start="head", train=True)
    np.testing.assert_allclose(found, logits, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, r"integers of at least 1.*\{'width': 0\}"),
        ({"num_classes": -1}, r"\{'num_classes': -1\}"),
        ({"dropout": -0.1}, r"rates of at least 0 and below 1, found \{'dropout': -0.1\}"),
    ],
)
def test_options_that_make_no_network_are_errors(options, message):
    with pytest.raises(ModelError, match=f"inception_v3: .*{message}"):
        build("inception_v3", **options)
