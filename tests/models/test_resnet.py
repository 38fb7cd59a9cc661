from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import InvalidRngError

import jaxtransfer as jt
from jaxtransfer.errors import ModelError
from jaxtransfer.models import build
from jaxtransfer.models.catalog import spec_of
from jaxtransfer.models.fast_forms import plain_layers
from jaxtransfer.models.layers import conv
from jaxtransfer.models.recognise import _likely_families, _nearest_in_size
from jaxtransfer.models.resnet import _pad_shortcut
from jaxtransfer.tree import count_parameters, named_leaves

SHORT = (1, 2, 1, 1)
SMALL: dict[str, dict[str, Any]] = {
    "basic": {"name": "resnet18", "width": 4, "num_classes": 5},
    "bottleneck": {"name": "resnet50", "width": 4, "num_classes": 5},
    "short": {"name": "resnet50", "width": 4, "num_classes": 5, "blocks": SHORT},
    "dropped": {
        "name": "resnet18",
        "width": 4,
        "num_classes": 5,
        "blocks": (1, 1, 1, 1),
        "drop_path": 0.5,
    },
    "pad": {"name": "cifar_resnet8", "width": 4, "input_size": (8, 8)},
    "projection": {
        "name": "cifar_resnet8",
        "width": 4,
        "input_size": (8, 8),
        "shortcut": "projection",
    },
}


@functools.cache
def small(kind: str) -> jt.Model:
    return randomised(build(**SMALL[kind]))


def randomised(model: jt.Model) -> jt.Model:
    """The network with random values in every leaf, biases and statistics included."""
    leaves = named_leaves({"params": model.params, "stats": model.stats})
    rng = np.random.default_rng(0)
    values = [
        jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype)
        if leaf.ndim == 1
        else jnp.asarray(
            rng.normal(0, leaf.shape[-2] ** -0.5 / leaf.shape[0], leaf.shape), leaf.dtype
        )
        for _, leaf in leaves
    ]
    structure = jax.tree.structure((model.params, model.stats))
    params, stats = jax.tree.unflatten(structure, values)
    return jt.Model(model.spec, model.apply, params, stats, model.preprocess)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        # https://docs.pytorch.org/vision/stable/models.html, column "Params" of each model's page.
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
        # 0.27M in table 6 of the paper. Convolutions: 3*3*(3*16 + 6*16*16 + 16*32 + 5*32*32 + 32*64
        # + 5*64*64) = 267,696; two numbers for each of the 7*16 + 6*32 + 6*64 = 688 channels that
        # are normalised, 1,376; 64*10 + 10 = 650 in the head. Shortcuts of option A have none.
        ("cifar_resnet20", 269_722),
    ],
)
def test_parameters_are_as_many_as_published(name, count):
    model = build(name)
    assert count_parameters(model.params) == count
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(model))


@pytest.mark.parametrize(
    ("depth", "blocks"),
    [(8, 1), (14, 2), (20, 3), (32, 5), (44, 7), (56, 9), (110, 18)],
)
def test_cifar_networks_have_six_n_plus_two_layers_with_weights(depth, blocks):
    names = jt.leaf_names(build(f"cifar_resnet{depth}", width=1).params)
    assert len([name for name in names if name.endswith("kernel")]) == depth == 6 * blocks + 2


@pytest.mark.parametrize("kind", ["short", "pad", "projection"])
@pytest.mark.parametrize("train", [False, True])
def test_cut_at_any_stage_the_pass_is_the_same(kind, train):
    model = small(kind)
    size = 65 if kind == "short" else 8
    images = np.random.default_rng(2).normal(0, 1, (2, size, size, 3)).astype(np.float32)
    apply = model.apply  # not compiled as a whole: all the cuts share what their steps compile to
    whole, whole_stats = apply(model.params, model.stats, images, train=train)
    stages = model.spec.stages
    for stage in stages:
        features, below = apply(model.params, model.stats, images, train=train, stop=stage)
        rest, stats = apply(model.params, below, features, train=train, start=stage)
        np.testing.assert_array_equal(rest, whole)
        assert jt.diff(whole_stats, stats).is_empty
        # What lies above the cut has not moved before it is run.
        moved = {name.split("/")[0] for name in jt.diff(model.stats, below).changed}
        expected = {s for s in stages[: stages.index(stage)] if s in model.stats}
        assert moved == (expected if train else set())
    assert jt.diff(model.stats, whole_stats).is_empty == (not train)


def test_a_cut_that_makes_no_sense_is_an_error():
    model = small("pad")
    images = jnp.zeros((1, 8, 8, 3))
    with pytest.raises(ModelError, match=r"stages among stem, layer1.*found \['layer7'\]"):
        model.apply(model.params, model.stats, images, train=False, stop="layer7")
    with pytest.raises(ModelError, match="expected start before stop"):
        model.apply(model.params, model.stats, images, train=False, start="pool", stop="layer1")


@pytest.mark.parametrize(("size", "stride"), [(6, 2), (7, 2), (5, 1)])
def test_option_a_subsamples_and_pads_channels_on_both_sides(size, stride):
    inputs = np.random.default_rng(0).normal(size=(2, size, size, 4)).astype(np.float32)
    expected = np.zeros((2, -(-size // stride), -(-size // stride), 8), np.float32)
    for row in range(expected.shape[1]):
        for column in range(expected.shape[2]):
            expected[:, row, column, 2:6] = inputs[:, row * stride, column * stride, :]
    np.testing.assert_array_equal(_pad_shortcut(jnp.asarray(inputs), 8, stride), expected)


@pytest.mark.parametrize(("size", "stride"), [(1, 2), (3, 1), (3, 2), (7, 2)])
@pytest.mark.parametrize("side", [7, 8])
def test_convolutions_are_padded_by_the_same_number_on_every_side(size, stride, side):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(1, side, side, 2)).astype(np.float32)
    kernel = rng.normal(size=(size, size, 2, 3)).astype(np.float32)
    pad = size // 2
    padded = np.pad(inputs, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    count = (side + 2 * pad - size) // stride + 1
    expected = np.zeros((1, count, count, 3), np.float32)
    for row in range(count):
        for column in range(count):
            top, left = row * stride, column * stride
            window = padded[0, top : top + size, left : left + size]
            expected[0, row, column] = np.einsum("hwi,hwio->o", window, kernel)
    found = conv(3, size, stride, name="conv").apply({"params": {"kernel": kernel}}, inputs)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", [65, 66])
def test_each_stage_halves_the_image_rounding_up(side):
    model = build(**SMALL["short"])
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    expected = side
    for stage, halvings in [
        ("layer1", 2),
        ("layer2", 0),
        ("layer3", 1),
        ("layer4", 1),
        ("pool", 1),
    ]:
        for _ in range(halvings):
            expected = -(-expected // 2)
        features, _ = jax.eval_shape(
            functools.partial(model.apply, train=False, stop=stage),
            model.params,
            model.stats,
            images,
        )
        assert features.shape[1:3] == (expected, expected)


@pytest.mark.parametrize(
    ("where", "expected"),
    [("3x3", ["1, 1", "2, 2", "1, 1", "2, 2"]), ("1x1", ["2, 2", "1, 1", "1, 1", "2, 2"])],
)
def test_bottlenecks_have_their_stride_on_the_convolution_that_is_named(where, expected):
    model = build(**SMALL["short"], stride_on=where)
    block = model.params["layer2"]["0"]
    assert [block[f"conv{number}"]["kernel"].shape[0] for number in (1, 2, 3)] == [1, 3, 1]
    images = jax.ShapeDtypeStruct((1, 16, 16, 16), jnp.float32)
    layer = functools.partial(model.apply, train=False, start="layer2", stop="layer3")
    with plain_layers():
        text = str(jax.make_jaxpr(layer)(model.params, model.stats, images))
    strides = [part.split(")")[0] for part in text.split("window_strides=(")[1:]]
    assert strides[:4] == expected  # the last one is the shortcut's


def test_in_wide_networks_and_those_with_groups_bottlenecks_are_wider_inside():
    def kernels(name: str) -> list[tuple[int, ...]]:
        block = build(name).params["layer4"]["2"]
        return [block[f"conv{number}"]["kernel"].shape for number in (1, 2, 3)]

    # Table 1 of the ResNeXt paper: 1x1 of 1024, 3x3 of 1024 in 32 groups, 1x1 of 2048.
    assert kernels("resnext50_32x4d") == [(1, 1, 2048, 1024), (3, 3, 32, 1024), (1, 1, 1024, 2048)]
    assert kernels("wide_resnet50_2") == [
        (1, 1, 2048, 1024),
        (3, 3, 1024, 1024),
        (1, 1, 1024, 2048),
    ]


def torchvision_names(blocks: tuple[int, ...], bottleneck: bool) -> set[str]:
    """The names in torchvision's state dict, but for `num_batches_tracked`."""

    def norm(name: str) -> set[str]:
        return {f"{name}.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var")}

    names = {"conv1.weight", *norm("bn1"), "fc.weight", "fc.bias"}
    for stage, count in enumerate(blocks, start=1):
        for block in range(count):
            where = f"layer{stage}.{block}"
            for number in range(1, 4 if bottleneck else 3):
                names |= {f"{where}.conv{number}.weight", *norm(f"{where}.bn{number}")}
            if block == 0 and (bottleneck or stage > 1):
                names |= {f"{where}.downsample.0.weight", *norm(f"{where}.downsample.1")}
    return names


@pytest.mark.parametrize(
    ("kind", "blocks"), [("basic", (2, 2, 2, 2)), ("bottleneck", (3, 4, 6, 3))]
)
def test_torchvision_rules_convert_and_invert(kind, blocks):
    model = small(kind)
    tree = {"params": model.params, "stats": model.stats}
    rules = model.spec.rules_for("torchvision")
    flat = jt.invert(tree, rules)
    assert set(flat) == torchvision_names(blocks, kind == "bottleneck")
    assert flat["conv1.weight"].shape == (4, 3, 7, 7)
    assert flat["fc.weight"].shape == (5, 32 if kind == "basic" else 128)

    counters = {
        name.replace("running_var", "num_batches_tracked"): np.int64(3)
        for name in flat
        if name.endswith("running_var")
    }
    back, receipt = jt.convert({**flat, **counters}, rules, tree, ignore="**num_batches_tracked")
    assert jt.diff(tree, back).is_empty
    assert len(receipt.entries) == len(flat)
    assert len(receipt.ignored) == len(counters)


def test_the_full_networks_have_torchvisions_names():
    for name, blocks, bottleneck in [
        ("resnet18", (2, 2, 2, 2), False),
        ("resnet50", (3, 4, 6, 3), True),
    ]:
        model = build(name)
        rules = model.spec.rules_for("torchvision")
        names = jt.leaf_names({"params": model.params, "stats": model.stats})
        sources = {next(s[0] for rule in rules if (s := rule.sources_for(n))) for n in names}
        assert sources == torchvision_names(blocks, bottleneck)


@pytest.mark.parametrize("kind", ["pad", "projection"])
def test_rules_for_the_published_cifar_networks(kind):
    model = small(kind)
    tree = {"params": model.params, "stats": model.stats}
    rules = model.spec.rules_for("pytorch_resnet_cifar10")
    flat = jt.invert(tree, rules)
    assert {"conv1.weight", "linear.weight", "linear.bias"} <= set(flat)
    assert ("layer2.0.shortcut.0.weight" in flat) == (kind == "projection")
    assert jt.diff(tree, jt.convert(flat, rules, tree)[0]).is_empty


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shortcut": "none"}, "shortcut 'pad', 'projection' or 'convolution', found 'none'"),
        ({"biases": "stem"}, "expected biases 'none' or 'all', found 'stem'"),
        ({"padding": "VALID"}, "expected padding None or 'SAME', found 'VALID'"),
        ({"width": 0}, r"integers of at least 1.*found \{'width': 0\}"),
        ({"num_classes": 2.5}, r"\{'num_classes': 2.5\}"),
        ({"input_size": (0, 8)}, r"\{'height': 0\}"),
    ],
)
def test_options_that_make_no_network_are_errors(options, message):
    with pytest.raises(ModelError, match=message):
        build("cifar_resnet8", **options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet18", {"width": 0}, r"integers of at least 1.*found \{'width': 0\}"),
        ("resnet18", {"input_size": 0}, r"\{'height': 0, 'breadth': 0\}"),
        ("resnet18", {"groups": 2}, "expected groups 1 in a network of basic blocks, found 2"),
        ("resnet18", {"blocks": (1, 0, 1, 1)}, r"found \{'blocks\[1\]': 0\}"),
        ("resnet18", {"blocks": (1, 1)}, r"expected blocks for 4 stages, found \(1, 1\)"),
        ("resnet50", {"drop_path": 1.0}, r"below 1, found \{'drop_path': 1.0\}"),
        ("resnet50", {"stride_on": "5x5"}, "expected stride_on '3x3' or '1x1', found '5x5'"),
        ("resnet50", {"stem_pool": "none"}, "expected stem_pool 'padded' or 'ceil', found 'none'"),
        ("resnet50", {"biases": True}, "expected biases 'none', 'stem' or 'all', found True"),
        ("resnext50_32x4d", {"width": 8}, "expected width 16 at least, found 8"),
    ],
)
def test_options_that_make_no_large_network_are_errors(name, options, message):
    with pytest.raises(ModelError, match=message):
        build(name, **options)


# Sources

# For sources of networks, a few of their names; blocks are cut down.
SOURCES = {
    ("resnet18", "torchvision"): ["layer3.2.bn2.running_var", "layer2.0.downsample.1.bias"],
    ("resnet50", "timm"): ["layer3.2.conv3.weight", "fc.bias"],
    ("resnext50_32x4d", "timm"): ["layer1.0.conv2.weight"],
    ("resnet18", "transformers"): [
        "resnet.embedder.embedder.convolution.weight",
        "resnet.encoder.stages.1.layers.3.layer.1.normalization.running_mean",
        "resnet.encoder.stages.1.layers.0.shortcut.convolution.weight",
        "classifier.1.weight",
    ],
    ("resnet50", "transformers"): ["resnet.encoder.stages.2.layers.2.layer.2.convolution.weight"],
    ("resnet50", "keras"): [
        "conv1_conv/conv1_conv/bias:0",
        "conv2_block1_0_bn/conv2_block1_0_bn/gamma:0",
        "conv4_block3_3_conv/conv4_block3_3_conv/kernel:0",
        "conv5_block1_1_bn/conv5_block1_1_bn/moving_variance:0",
        "probs/probs/kernel:0",
    ],
    ("resnet50", "caffe"): [
        "conv1/0",
        "conv1/1",
        "bn_conv1/0",
        "scale_conv1/1",
        "res2a_branch1/0",
        "scale3d_branch2c/1",
        "bn5a_branch2b/1",
        "fc1000/1",
    ],
    ("resnet101", "caffe"): [
        "res3a_branch2a/0",
        "res3b3_branch2a/0",
        "bn4b2_branch2c/1",
        "res5a_branch2c/0",
    ],
}


@functools.cache
def of_source(name: str, source: str) -> jt.Model:
    """A narrow and short network with random values, as a source has it."""
    sizes = {"width": 16 if "resnext" in name else 4, "num_classes": 5, "blocks": (1, 4, 3, 1)}
    return randomised(build(name, **sizes, **spec_of(name).source(source).options))


@pytest.mark.parametrize(("name", "source"), SOURCES)
def test_the_rules_of_every_source_convert_and_invert(name, source):
    model = of_source(name, source)
    tree = {"params": model.params, "stats": model.stats}
    rules = model.spec.rules_for(source)
    flat = jt.invert(tree, rules)
    assert set(SOURCES[name, source]) <= set(flat)
    assert len(flat) == len(jt.leaf_names(tree))
    back, _ = jt.convert(flat, rules, tree)
    assert jt.diff(tree, back).is_empty


def test_only_one_network_of_caffe_has_a_bias_in_its_stem():
    assert "bias" in of_source("resnet50", "caffe").params["stem"]["conv"]
    assert "bias" not in of_source("resnet50", "caffe").params["layer1"]["0"]["conv1"]
    assert "bias" not in of_source("resnet101", "caffe").params["stem"]["conv"]


def test_the_head_of_keras_may_be_called_probs_or_predictions():
    model = of_source("resnet50", "keras")
    tree, rules = {"params": model.params, "stats": model.stats}, model.spec.rules_for("keras")
    flat = {name.replace("probs", "predictions"): a for name, a in jt.invert(tree, rules).items()}
    assert jt.diff(tree, jt.convert(flat, rules, tree)[0]).is_empty


@pytest.mark.parametrize(
    ("source", "mean", "std", "crop", "interpolation", "order", "scale"),
    [
        (
            "torchvision",
            (0.485, 0.456, 0.406),
            (0.229, 0.224, 0.225),
            0.875,
            "bilinear",
            "rgb",
            255,
        ),
        ("timm", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 0.95, "bicubic", "rgb", 255),
        (
            "transformers",
            (0.485, 0.456, 0.406),
            (0.229, 0.224, 0.225),
            0.875,
            "bicubic",
            "rgb",
            255,
        ),
        ("keras", (103.939, 116.779, 123.68), (1.0,), 0.875, "bilinear", "bgr", None),
        ("caffe", (103.939, 116.779, 123.68), (1.0,), 0.875, "bilinear", "bgr", None),
    ],
)
def test_each_source_prepares_images_in_its_way(
    source, mean, std, crop, interpolation, order, scale
):
    how = spec_of("resnet50").source(source).preprocess
    assert (how.mean, how.std, how.scale) == (mean, std, scale)
    assert (how.crop_fraction, how.interpolation, how.channel_order) == (crop, interpolation, order)
    assert (how.size, how.channels, how.label_offset) == ((224, 224), 3, 0)


def test_published_weights_of_torchvision_tell_their_hash_and_preprocessing():
    second, first = spec_of("resnet50").weights[:2]
    assert first.reference.endswith("/resnet50-0676ba61.pth#sha256=0676ba61")
    assert (first.top1, first.preprocess) == (76.13, None)
    assert second.reference.endswith("/resnet50-11ad3fa6.pth#sha256=11ad3fa6")
    assert second.preprocess is not None and second.preprocess.crop_fraction == 224 / 232


def test_families_are_found_by_the_names_of_any_of_their_networks():
    """The deep networks of Caffe have names of their own, and basic ones are not there."""
    model = of_source("resnet101", "caffe")
    tree = {"params": model.params, "stats": model.stats}
    ((family, source),) = _likely_families(list(jt.invert(tree, model.spec.rules_for("caffe"))))
    assert (family.name, source) == ("resnet", "caffe")
    assert _nearest_in_size(family, source, 20_000_000) == ["resnet50", "resnet101", "resnet152"]


def test_tensors_that_a_source_ignores_do_not_count_when_a_family_is_sought():
    rules = spec_of("cifar_resnet8").rules_for("mlperf_tiny")
    names = [f"model_weights/{rule.source}" for rule in rules]
    moments = [f"optimizer_weights/Adam/{name}/{moment}:0" for name in names for moment in "mv"]
    found = [(family.name, source) for family, source in _likely_families(names + moments)]
    assert ("cifar_resnet", "mlperf_tiny") in found


# Behaviour in training and in other dtypes


def test_stochastic_depth_is_random_in_training_only():
    model = small("dropped")
    run = jax.jit(functools.partial(model.apply, train=True, start="layer2", stop="pool"))
    inputs = np.random.default_rng(2).normal(0, 1, (8, 9, 9, 4)).astype(np.float32)

    def trained(seed: int) -> jax.Array:
        rngs = {"dropout": jax.random.key(seed)}
        return run(model.params, model.stats, inputs, rngs=rngs)[0]

    assert not np.array_equal(trained(0), trained(1))
    np.testing.assert_array_equal(trained(0), trained(0))
    images = jax.ShapeDtypeStruct((4, 33, 33, 3), jnp.float32)

    def trace(train: bool, stop: str | None) -> Any:
        apply = functools.partial(model.apply, train=train, stop=stop)
        return jax.eval_shape(apply, model.params, model.stats, images)

    trace(False, None)  # without random numbers
    trace(True, "layer2")  # the rate rises from 0 in the first block
    with pytest.raises(InvalidRngError):
        trace(True, "layer3")


def test_the_network_computes_in_bfloat16():
    model = small("short")
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model.params)
    images = jax.ShapeDtypeStruct((2, 65, 65, 3), jnp.bfloat16)
    for train in (False, True):
        run = functools.partial(model.apply, train=train)
        logits, stats = jax.eval_shape(run, params, model.stats, images)
        assert logits.dtype == jnp.bfloat16 and logits.shape == (2, 5)
        assert {leaf.dtype for leaf in jax.tree.leaves(stats)} == {np.dtype(np.float32)}


def test_images_are_prepared_as_the_weights_expect():
    assert build("resnet18").preprocess.mean == (0.485, 0.456, 0.406)
    assert build("resnet18", in_channels=1).preprocess.mean == (0.0,)
    assert build("cifar_resnet8", in_channels=1, input_size=[8, 12]).preprocess.size == (8, 12)
