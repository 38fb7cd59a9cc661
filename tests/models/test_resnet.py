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
from jaxtransfer.models.layers import conv
from jaxtransfer.models.resnet import _pad_shortcut
from jaxtransfer.tree import count_parameters, named_leaves

SMALL: dict[str, dict[str, Any]] = {
    "basic": {"name": "resnet18", "width": 4, "num_classes": 5},
    "bottleneck": {"name": "resnet50", "width": 4, "num_classes": 5},
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


@pytest.mark.parametrize("kind", ["bottleneck", "pad", "projection"])
@pytest.mark.parametrize("train", [False, True])
def test_cut_at_any_stage_the_pass_is_the_same(kind, train):
    model = small(kind)
    size = 65 if kind == "bottleneck" else 8
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
    model = build("resnet50", width=4)
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


def test_bottlenecks_have_their_stride_on_the_three_by_three_convolution():
    model = small("bottleneck")
    block = model.params["layer2"]["0"]
    assert [block[f"conv{number}"]["kernel"].shape[0] for number in (1, 2, 3)] == [1, 3, 1]
    text = str(
        jax.make_jaxpr(functools.partial(model.apply, train=False, start="layer2", stop="layer3"))(
            model.params, model.stats, jnp.zeros((1, 16, 16, 16))
        )
    )
    strides = [part.split(")")[0] for part in text.split("window_strides=(")[1:]]
    assert strides[:4] == ["1, 1", "2, 2", "1, 1", "2, 2"]


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
        ({"shortcut": "none"}, "expected shortcut 'pad' or 'projection', found 'none'"),
        ({"width": 0}, r"integers of at least 1.*found \{'width': 0\}"),
        ({"num_classes": 2.5}, r"\{'num_classes': 2.5\}"),
        ({"input_size": (0, 8)}, r"\{'height': 0\}"),
    ],
)
def test_options_that_make_no_network_are_errors(options, message):
    with pytest.raises(ModelError, match=message):
        build("cifar_resnet8", **options)
    if "input_size" not in options and "shortcut" not in options:
        with pytest.raises(ModelError, match=message):
            build("resnet18", **options)


def test_images_are_prepared_as_the_weights_expect():
    assert build("resnet18").preprocess.mean == (0.485, 0.456, 0.406)
    assert build("resnet18", in_channels=1).preprocess.mean == (0.0,)
    assert build("cifar_resnet8", in_channels=1, input_size=[8, 12]).preprocess.size == (8, 12)
