from __future__ import annotations

import functools
import io
import re
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import InvalidRngError
from PIL import Image
from sklearn.linear_model import Ridge

import jaxtransfer as jt
from jaxtransfer.errors import MappingError, ModelError
from jaxtransfer.models import build, families, init
from jaxtransfer.models.catalog import spec_of
from jaxtransfer.models.layers import round_channels
from jaxtransfer.models.mobile import BlockSizes, Layers
from jaxtransfer.models.weights import load_network
from jaxtransfer.tree import named_leaves

# Every kind of layer that the frame has, and little of each.
SMALL: dict[str, dict[str, Any]] = {
    "v1": {"name": "mobilenet_v1", "width": 1 / 16, "blocks": (1, 2, 1, 1, 1)},
    "v2": {"name": "mobilenet_v2", "width": 0.1, "blocks": (1, 2, 1, 1, 1, 1, 1), "last_width": 16},
    "v3": {
        "name": "mobilenet_v3_small",
        "width": 0.1,
        "blocks": (1, 1, 1, 1, 1),
        "hidden_width": 16,
    },
}
SOURCES = [
    (version, source.name)
    for version, options in SMALL.items()
    for source in spec_of(**options).sources
]


@functools.cache
def small(version: str, **options: Any) -> jt.Model:
    """A network with random values in every leaf, biases and statistics included."""
    model = build(**SMALL[version], num_classes=5, **options)
    rng = np.random.default_rng(0)
    trees = (model.params, model.stats)
    values = [
        jnp.asarray(
            rng.uniform(0.5, 1.5, leaf.shape)
            if leaf.ndim == 1
            else rng.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape),
            leaf.dtype,
        )
        for _, leaf in named_leaves(trees)
    ]
    params, stats = jax.tree.unflatten(jax.tree.structure(trees), values)
    return jt.Model(model.spec, model.apply, params, stats, model.preprocess)


def images_of(size: int, batch: int = 2) -> np.ndarray:
    return np.random.default_rng(2).normal(0, 1, (batch, size, size, 3)).astype(np.float32)


# ---------------------------------------------------------------------------------------------
# The networks


@pytest.mark.parametrize("train", [False, True])
def test_cut_at_any_stage_the_pass_is_the_same(train):
    model = small("v3", dropout=0.0)
    images = images_of(33)
    apply = model.apply  # not compiled as a whole: all the cuts share what their steps compile to
    whole, whole_stats = apply(model.params, model.stats, images, train=train)
    stages = model.spec.stages
    assert stages == (
        "stem",
        *(f"layer{n}" for n in range(1, 6)),
        "last_conv",
        "pool",
        "hidden",
        "head",
    )
    for stage in stages:
        features, below = apply(model.params, model.stats, images, train=train, stop=stage)
        rest, stats = apply(model.params, below, features, train=train, start=stage)
        np.testing.assert_array_equal(rest, whole)
        assert jt.diff(whole_stats, stats).is_empty
    assert jt.diff(model.stats, whole_stats).is_empty == (not train)


@pytest.mark.parametrize(
    ("version", "stages"),
    [
        ("v1", ("stem", *(f"layer{n}" for n in range(1, 6)), "pool", "head")),
        ("v2", ("stem", *(f"layer{n}" for n in range(1, 8)), "last_conv", "pool", "head")),
    ],
)
def test_stages_and_what_leaves_them(version, stages):
    model = small(version)
    assert model.spec.stages == stages
    features = functools.partial(model.apply, train=False)
    shapes = {
        stage: jax.eval_shape(
            functools.partial(features, stop=stage), model.params, model.stats, images_of(64)
        )[0].shape
        for stage in stages[1:]
    }
    assert shapes["layer1"][1:3] == (32, 32) and shapes["layer2"][1:3] == (32, 32)
    assert shapes["layer3"][1:3] == (16, 16)
    assert shapes["pool"][1:3] == (2, 2) and len(shapes["head"]) == 2


def test_channels_are_those_of_the_papers():
    def layers_of(name: str, **options: Any) -> Layers:
        return families()[name].build(name, **options)[1].layers

    def channels(layers: Layers) -> list[list[int]]:
        return [[sizes.features for sizes in blocks] for blocks in layers]

    first = layers_of("mobilenet_v1", width=0.25)
    assert channels(first) == [[16], [32] * 2, [64] * 2, [128] * 6, [256] * 2]
    second = layers_of("mobilenet_v2")
    assert channels(second) == [[16], [24] * 2, [32] * 3, [64] * 4, [96] * 3, [160] * 3, [320]]
    assert second[0][0] == BlockSizes(16)
    assert second[2][0] == BlockSizes(32, stride=2, expanded=144)
    large = layers_of("mobilenet_v3_large")
    assert channels(large) == [[16], [24] * 2, [40] * 3, [80] * 4, [112] * 2, [160] * 3]
    assert large[2][0] == BlockSizes(40, 2, size=5, expanded=72, squeezed=24, activation="relu")
    assert [sizes.expanded for sizes in large[3]] == [240, 200, 184, 184]
    minimal = layers_of("mobilenet_v3_large_minimal")
    assert minimal[2][0] == BlockSizes(40, 2, expanded=72, activation="relu")
    narrow = layers_of("mobilenet_v3_small_075")
    assert narrow[1][1] == BlockSizes(24, expanded=88, activation="relu")


def test_only_bottlenecks_have_shortcuts():
    """With all that adds to the input turned off, it comes out as it went in, or not at all."""
    for version, is_kept in (("v1", False), ("v2", True)):
        model = small(version)
        x = jnp.abs(images_of(8)[..., :1]) * jnp.ones(8)
        block = jax.tree.map(jnp.zeros_like, model.params["layer2"]["1"])
        params = {**model.params, "layer2": {"0": block}}
        module = model.apply.module.clone(
            layers=(model.apply.module.layers[0], model.apply.module.layers[1][1:])
        )
        found = module.apply(
            {"params": params, "batch_stats": {"layer2": {"0": model.stats["layer2"]["1"]}}},
            x,
            train=False,
            start="layer2",
            stop="pool" if version == "v1" else "last_conv",
        )
        np.testing.assert_array_equal(found, x if is_kept else jnp.zeros_like(x))


def test_the_ways_of_padding_differ_where_they_should():
    same, end, symmetric = (small("v1", padding=p) for p in ("same", "end", "symmetric"))

    def before_pool(model: jt.Model, size: int) -> jax.Array:
        return model.apply(model.params, model.stats, images_of(size), train=False, stop="layer3")[
            0
        ]

    # 32 and 16 are even: a strided window begins at the first pixel in all that TensorFlow does.
    np.testing.assert_array_equal(before_pool(same, 32), before_pool(end, 32))
    assert np.abs(before_pool(same, 32) - before_pool(symmetric, 32)).max() > 1e-3
    # 33 gives 17, which the first version of Keras halves downwards.
    assert before_pool(same, 33).shape[1:3] == (9, 9)
    assert before_pool(end, 33).shape[1:3] == (8, 8)
    np.testing.assert_array_equal(before_pool(same, 33), before_pool(symmetric, 33))


def test_dropout_is_random_in_training_alone():
    model = small("v3", dropout=0.5)
    features = np.ones((2, 16), np.float32)
    head = functools.partial(model.apply, model.params, model.stats, features, start="head")
    first, again, other = (
        head(train=True, rngs={"dropout": jax.random.key(seed)})[0] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    with pytest.raises(InvalidRngError):
        head(train=True)
    dense = model.params["head"]
    expected = features @ dense["kernel"] + dense["bias"]
    np.testing.assert_allclose(head(train=False)[0], expected, rtol=1e-5)
    calm = small("v3", dropout=0.0)
    found, _ = calm.apply(calm.params, calm.stats, features, train=True, start="head")
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(("version", "features"), [("v1", 64), ("v2", 16), ("v3", 16)])
def test_without_classes_features_come_out_and_nothing_is_dropped(version, features):
    model = build(**SMALL[version], num_classes=0)
    shape = {"v1": 64, "v2": 16, "v3": 16}[version]
    x = np.ones((2, shape), np.float32)
    found, _ = model.apply(
        {name: {} for name in model.params}, model.stats, x, train=True, start="head"
    )
    np.testing.assert_array_equal(found, x)
    forward = functools.partial(model.apply, train=False)
    out, _ = jax.eval_shape(forward, model.params, model.stats, images_of(33))
    assert out.shape == (2, features) and "head" not in model.params


@pytest.mark.parametrize("version", SMALL)
@pytest.mark.parametrize("train", [False, True])
def test_bfloat16_stays_bfloat16(version, train):
    model = small(version, dropout=0.0)
    half = functools.partial(jax.tree.map, lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16))
    forward = functools.partial(model.apply, train=train)
    # Statistics are in float32 whatever the rest is in.
    with jax.numpy_dtype_promotion("standard"):
        out, stats = jax.eval_shape(forward, half(model.params), model.stats, half(images_of(33)))
    assert out.dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(stats))


def test_frozen_stages_keep_their_statistics():
    model = small("v2", dropout=0.0)
    forward = functools.partial(model.apply, train=True, frozen_modules=frozenset({"stem/bn"}))
    _, stats = jax.jit(forward)(model.params, model.stats, images_of(33))
    changed = {name.split("/")[0] for name in jt.diff(model.stats, stats).changed}
    assert changed == set(model.stats) - {"stem"}


# ---------------------------------------------------------------------------------------------
# Options


@pytest.mark.parametrize(
    ("version", "options", "message"),
    [
        (
            "v1",
            {"padding": "valid"},
            r"padding among \('symmetric', 'same', 'end'\), found 'valid'",
        ),
        ("v2", {"padding": "end"}, r"padding among \('symmetric', 'same'\), found 'end'"),
        ("v1", {"activation": "gelu"}, "expected activation 'relu6' or 'relu', found 'gelu'"),
        ("v2", {"width": 0}, "width above 0, found 0"),
        ("v3", {"dropout": 1.0}, "dropout from 0 to less than 1, found 1.0"),
        ("v3", {"epsilon": 0.0, "momentum": 2}, "epsilon above 0, found 0.0; momentum from 0 to 1"),
        ("v2", {"blocks": (1, 2)}, r"blocks for 7 stages.*found \(1, 2\)"),
        ("v3", {"blocks": (1, 0, 1, 1, 1)}, "each an integer of at least 1"),
        ("v3", {"blocks": (1, 3, 1, 1, 1)}, r"at most \(1, 2, 3, 2, 3\) blocks"),
        ("v3", {"hidden_width": -1}, "hidden_width of at least 0, found -1"),
        ("v1", {"num_classes": 2.5}, r"\{'num_classes': 2.5\}"),
        ("v2", {"last_width": 0}, r"\{'last_width': 0\}"),
    ],
)
def test_options_that_make_no_network_are_errors(version, options, message):
    with pytest.raises(ModelError, match=message):
        spec_of(**{**SMALL[version], **options})


def test_channels_are_rounded_to_multiples_of_eight_and_never_by_more_than_a_tenth_down():
    assert [round_channels(c) for c in (1, 8, 11.9, 12, 18, 100)] == [8, 8, 16, 16, 24, 104]
    assert all(round_channels(c) >= 0.9 * c for c in range(1, 2000))


@pytest.mark.parametrize(
    ("alias", "name", "options"),
    [
        ("mobilenetv1_100", "mobilenet_v1", {}),
        ("mobilenet_v2_0.35_96", "mobilenet_v2_035", {"input_size": (96, 96)}),
        (
            "tf_mobilenetv3_small_100",
            "mobilenet_v3_small",
            {"padding": "same", "epsilon": 1e-3},
        ),
    ],
)
def test_names_of_other_libraries_stand_for_their_networks(alias, name, options):
    spec = spec_of(alias)
    assert spec.name == name and dict(spec.options).items() >= options.items()


# ---------------------------------------------------------------------------------------------
# Files of weights


@pytest.mark.parametrize(("version", "source"), SOURCES)
def test_rules_convert_and_invert(version, source):
    options = {
        name: value
        for name, value in spec_of(**SMALL[version]).source(source).options.items()
        if name == "use_bias"
    }
    model = small(version, **options)
    tree = {"params": model.params, "stats": model.stats}
    rules = model.spec.rules_for(source)
    flat = jt.invert(tree, rules)
    back, receipt = jt.convert(flat, rules, tree)
    assert jt.diff(tree, back).is_empty
    assert len(receipt.entries) == len(flat) == len(named_leaves(tree))


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("mobilenet_v1", "keras", {"conv_pw_13_bn/conv_pw_13_bn/gamma:0"}),
        ("mobilenet_v1", "timm", {"blocks.3.5.conv_dw.weight", "blocks.4.1.bn2.running_var"}),
        (
            "mobilenet_v1",
            "transformers",
            {"mobilenet_v1.layer.25.convolution.weight", "classifier.bias"},
        ),
        (
            "mobilenet_v1",
            "tf_slim",
            {
                "MobilenetV1/Conv2d_13_depthwise/depthwise_weights",
                "MobilenetV1/Conv2d_13_pointwise/BatchNorm/moving_mean",
            },
        ),
        (
            "mobilenet_v2",
            "torchvision",
            {"features.17.conv.3.running_mean", "features.1.conv.2.weight", "features.18.0.weight"},
        ),
        ("mobilenet_v2", "timm", {"blocks.6.0.conv_pwl.weight", "blocks.0.0.bn2.bias"}),
        (
            "mobilenet_v2",
            "transformers",
            {
                "mobilenet_v2.layer.15.reduce_1x1.normalization.bias",
                "mobilenet_v2.conv_stem.reduce_1x1.convolution.weight",
            },
        ),
        (
            "mobilenet_v2",
            "keras",
            {
                "mobl16_conv_16_expand/mobl16_conv_16_expand/kernel:0",
                "bn0_conv_0_bn_depthwise/bn0_conv_0_bn_depthwise/beta:0",
                "Logits/Logits/kernel:0",
                "block_16_expand/block_16_expand/kernel:0",
                "expanded_conv_depthwise_BN/expanded_conv_depthwise_BN/beta:0",
                "predictions/predictions/kernel:0",
            },
        ),
        (
            "mobilenet_v3_large",
            "torchvision",
            {
                "features.4.block.2.fc1.weight",
                "features.15.block.3.1.running_var",
                "classifier.3.bias",
            },
        ),
        ("mobilenet_v3_large", "timm", {"blocks.6.0.bn1.weight", "blocks.2.0.se.conv_reduce.bias"}),
        (
            "mobilenet_v3_large",
            "keras",
            {
                "expanded_conv_3/squeeze_excite/Conv_1/expanded_conv_3/squeeze_excite/Conv_1/bias:0",
                "expanded_conv_14/project/BatchNorm/expanded_conv_14/project/BatchNorm/beta:0",
                "expanded_conv_14_project_bn/expanded_conv_14_project_bn/beta:0",
            },
        ),
    ],
)
def test_the_full_networks_have_the_names_of_their_libraries(name, source, expected):
    """The last and the odd ones, which only come out right if all are counted right."""
    rules = spec_of(name).rules_for(source)
    assert expected <= {source for rule in rules for source in rule.sources}


def test_keras_files_have_the_names_of_two_releases():
    """The second version by today's names alone; those of the published files have a twin."""
    model = small("v2")
    tree = {"params": model.params, "stats": model.stats}
    rules = model.spec.rules_for("keras")
    today = [rule for rule in rules if not re.match("mobl|bn[0-9]|Logits", rule.sources[0])]
    flat = jt.invert(tree, today)
    assert {"block_1_expand/block_1_expand/kernel:0", "predictions/predictions/bias:0"} <= set(flat)
    assert jt.diff(tree, jt.convert(flat, rules, tree)[0]).is_empty


def test_files_without_a_head_give_features(tmp_path):
    for version, options in (("v1", {}), ("v3", {"hidden_width": 0})):
        blocks = {**SMALL[version], **options}
        model = build(**blocks, num_classes=0)
        zeros = jax.tree.map(
            lambda leaf: np.zeros(leaf.shape, leaf.dtype),
            {"params": model.params, "stats": model.stats},
        )
        jt.write_weights(jt.invert(zeros, model.spec.rules_for("keras")), tmp_path / "body.npz")
        name = blocks.pop("name")
        loaded = load_network(name, tmp_path / "body.npz", **blocks)
        assert loaded.num_classes is None and "no head" in " ".join(loaded.receipt.notes)
        assert loaded.preprocess.mean == (0.5, 0.5, 0.5)
        if version == "v3":
            blocks["hidden_width"] = 16
            with pytest.raises(MappingError, match="params/hidden/kernel"):
                load_network(name, tmp_path / "body.npz", **blocks)


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("mobilenet_v1", "keras", ((0.5,) * 3, 0.875, "bilinear", 0)),
        ("mobilenet_v1", "timm", ((0.5,) * 3, 0.875, "bicubic", 0)),
        ("mobilenet_v1", "transformers", ((0.5,) * 3, 0.875, "bilinear", 1)),
        ("mobilenet_v1", "tf_slim", ((0.5,) * 3, 0.875, "bilinear", 1)),
        ("mobilenet_v1", "mlperf_tiny", ((0.0,), 1.0, "bilinear", 0)),
        ("mobilenet_v2", "torchvision", ((0.485, 0.456, 0.406), 0.875, "bilinear", 0)),
        ("mobilenet_v2", "timm", ((0.485, 0.456, 0.406), 0.875, "bicubic", 0)),
        ("mobilenet_v2", "transformers", ((0.5,) * 3, 0.875, "bilinear", 1)),
        ("mobilenet_v3_large", "timm_tf", ((0.5,) * 3, 0.875, "bilinear", 0)),
        ("mobilenet_v3_large", "keras", ((0.5,) * 3, 0.875, "bilinear", 0)),
    ],
)
def test_images_are_prepared_as_each_source_does(name, source, expected):
    how = spec_of(name).source(source).preprocess
    assert (how.mean, how.crop_fraction, how.interpolation, how.label_offset) == expected
    assert how.scale == 255.0 and how.channel_order == "rgb"


# ---------------------------------------------------------------------------------------------
# Real weights

KERAS_FILE = "weights/mobilenet_v1_0.25_224_keras_notop/mobilenet_2_5_224_tf_no_top.h5"


@pytest.fixture(scope="module")
def narrow(real_data: Path) -> jt.Model:
    """ImageNet's MobileNet of width 0.25 without its head, from a file of Keras."""
    return load_network("mobilenet_v1_025", real_data / KERAS_FILE)


def features_of(model: jt.Model, images: np.ndarray) -> np.ndarray:
    """What leaves the network for bytes; 51 images at a time, which divides all that is asked."""
    forward = jax.jit(functools.partial(model.apply, train=False))
    mean, std = (np.float32(each[0]) for each in (model.preprocess.mean, model.preprocess.std))
    scaled = (images / np.float32(model.preprocess.scale) - mean) / std
    parts = [scaled[start : start + 51] for start in range(0, len(scaled), 51)]
    return np.concatenate([forward(model.params, model.stats, part)[0] for part in parts])


@pytest.mark.pretrained
def test_features_of_the_published_network(narrow, real_data):
    assert narrow.receipt.rules_name == "keras" and narrow.num_classes is None
    with np.load(real_data / "reference/keras_notop_features_hymenoptera_val8.npz") as reference:
        found = features_of(narrow, reference["input_u8"])
        expected = reference["mobilenet_v1_025_gap"]
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.pretrained
@pytest.mark.slow
def test_a_probe_tells_ants_from_bees(narrow, real_data):
    """Short side 256, centre 224, ridge regression with alpha 65 on the features as they are.

    137 of 153 are right, 89.5 %; what random weights say tells nothing.
    """
    images, labels = read_insects(real_data / "datasets/hymenoptera_short256.zip")
    random = init("mobilenet_v1_025", num_classes=0, padding="end", epsilon=1e-3)
    random = jt.Model(random.spec, random.apply, random.params, random.stats, narrow.preprocess)

    def accuracy(model: jt.Model) -> float:
        train, val = (features_of(model, images[split]) for split in ("train", "val"))
        probe = Ridge(alpha=65).fit(train, labels["train"])
        return float(np.mean((probe.predict(val) > 0.5) == labels["val"]))

    assert accuracy(narrow) >= 0.88
    assert accuracy(random) <= 0.70


def read_insects(path: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Images of ants (0) and bees (1) as bytes, and their labels, by split."""

    def prepared(image: Image.Image) -> np.ndarray:
        ratio = 256 / min(image.size)
        if ratio != 1:
            width, height = (max(round(side * ratio), 256) for side in image.size)
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = ((side - 224) // 2 for side in image.size)
        return np.asarray(image.crop((left, top, left + 224, top + 224)))

    images, labels = {}, {}
    with zipfile.ZipFile(path) as archive:
        for split in ("train", "val"):
            names = sorted(
                name
                for name in archive.namelist()
                if name.startswith(split) and name.lower().endswith((".jpg", ".jpeg", ".png"))
            )
            images[split] = np.stack(
                [prepared(Image.open(io.BytesIO(archive.read(n))).convert("RGB")) for n in names]
            )
            labels[split] = np.array(["/bees/" in name for name in names], np.float32)
    return images, labels


@pytest.mark.pretrained
def test_the_person_detector_of_mlperf_tiny(real_data):
    """Logits that Keras 3.15 on TensorFlow 2.21 gives for the same images."""
    model = load_network("mobilenet_v1_025", real_data / "weights/mlperf_tiny_keras/vww_96.h5")
    assert model.receipt.rules_name == "mlperf_tiny" and model.num_classes == 2
    assert model.preprocess.size == (96, 96) and model.preprocess.mean == (0.0,)
    # Of each weight that trains, Adam keeps two averages; and it counts its steps.
    assert len(model.receipt.ignored) == 2 * len(named_leaves(model.params)) + 1
    coarse = np.random.RandomState(0).randint(0, 256, (4, 6, 6, 3))
    found = features_of(model, np.repeat(np.repeat(coarse, 16, 1), 16, 2))
    expected = [
        [0.6934815, -0.66237485],
        [1.6491276, -1.6136837],
        [1.5759403, -1.5409651],
        [1.3393112, -1.3044276],
    ]
    np.testing.assert_allclose(found, expected, atol=1e-4)
