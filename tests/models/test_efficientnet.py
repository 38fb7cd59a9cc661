from __future__ import annotations

import functools
import re
from dataclasses import replace
from typing import Any

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.data.preprocess import preprocess_images
from jaxtransfer.errors import ModelError
from jaxtransfer.models import build, families
from jaxtransfer.models.efficientnet import (
    V1_VARIANTS,
    V2_VARIANTS,
    VARIANTS,
    Block,
    Convention,
    Row,
    efficientnet,
)
from jaxtransfer.models.weights import load_network
from jaxtransfer.tree import named_leaves

TINY: dict[str, Any] = {"width": 1 / 8, "depth": 0.1, "num_classes": 3}
STEADY: dict[str, Any] = {**TINY, "dropout": 0.0, "drop_path": 0.0}
SOURCES = [
    (name, source)
    for name, sources in [
        ("efficientnet_b0", ("torchvision", "timm", "timm_tf", "keras", "transformers")),
        ("efficientnet_v2_s", ("torchvision", "timm", "timm_tf", "keras")),
    ]
    for source in sources
]


@functools.cache
def filled(name: str, **options: Any) -> jt.Model:
    """A network with random values in every leaf, statistics included."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(-0.5, 0.5, leaf.shape) + (leaf.ndim == 1), leaf.dtype),
        build(name, **options),
    )


def tree_of(model: jt.Model) -> dict[str, Any]:
    return {"params": model.params, "stats": model.stats}


# How the networks are scaled.


@pytest.mark.parametrize(
    ("name", "channels", "blocks"),
    [
        # Table 1 of arXiv 1905.11946.
        ("efficientnet_b0", (32, 16, 24, 40, 80, 112, 192, 320, 1280), (1, 2, 2, 3, 3, 4, 1)),
        # Width 1.4 and depth 1.8; width 2.0 and depth 3.1.
        ("efficientnet_b4", (48, 24, 32, 56, 112, 160, 272, 448, 1792), (2, 4, 4, 6, 6, 8, 2)),
        ("efficientnet_b7", (64, 32, 48, 80, 160, 224, 384, 640, 2560), (4, 7, 7, 10, 10, 13, 4)),
        # Table 4 of arXiv 2104.00298.
        ("efficientnet_v2_s", (24, 24, 48, 64, 128, 160, 256, 1280), (2, 4, 4, 6, 9, 15)),
    ],
)
def test_channels_and_blocks_are_those_of_the_papers(name, channels, blocks):
    _, network = efficientnet(name)
    rows = [row.features for row in network.rows]
    assert (network.stem_features, *rows, network.top_features) == channels
    assert tuple(row.blocks for row in network.rows) == blocks


def test_squeezed_channels_are_a_quarter_of_those_that_enter_the_block():
    params = build("efficientnet_b0").params  # its channels are those of the table above
    squeezed = {
        (stage, block): params[stage][block]["squeeze_excitation"]["reduce"]["kernel"].shape
        for stage, block in [("stage1", "0"), ("stage2", "0"), ("stage2", "1")]
    }
    assert squeezed == {
        ("stage1", "0"): (32, 8),
        ("stage2", "0"): (96, 4),
        ("stage2", "1"): (144, 6),
    }
    blocks = build("efficientnet_v2_s", **TINY).params["stage3"]
    assert all("squeeze_excitation" not in block for block in blocks.values())


def test_each_variant_has_the_image_size_of_its_paper():
    sizes = [efficientnet(name)[0].input_size for name in VARIANTS]
    sides = [224, 240, 260, 300, 380, 456, 528, 600, 384, 480, 480]
    assert sizes == [(side, side) for side in sides]
    assert build("efficientnet_b3", **TINY, input_size=96).preprocess.size == (96, 96)


# The forward pass.


IMAGES = np.random.default_rng(2).normal(0, 1, (2, 33, 17, 3)).astype(np.float32)


def test_cut_at_a_stage_the_pass_is_the_same():
    model = filled("efficientnet_v2_s", **STEADY)

    @jax.jit
    def passes(params: Any, stats: Any, images: jax.Array) -> dict[str, Any]:
        apply = functools.partial(model.apply, params, train=True)
        found = {"whole": apply(stats, images)}
        for stage in ("stage1", "stage5", "head"):
            features, below = apply(stats, images, stop=stage)
            found[stage] = apply(below, features, start=stage)
        return found

    found = passes(model.params, model.stats, IMAGES)
    whole, whole_stats = found.pop("whole")
    assert np.ptp(whole) > 0 and not jt.diff(model.stats, whole_stats).is_empty
    for logits, stats in found.values():
        np.testing.assert_array_equal(logits, whole)
        assert jt.diff(whole_stats, stats).is_empty


def test_frozen_stages_keep_their_statistics():
    model = filled("efficientnet_v2_s", **STEADY)
    frozen = frozenset({"stem", "stage1", "stage4"})
    forward = functools.partial(model.apply, train=True, frozen_modules=frozen)
    _, stats = jax.jit(forward)(model.params, model.stats, IMAGES)
    moved = {name.split("/")[0] for name in jt.diff(model.stats, stats).changed}
    assert moved == set(model.stats) - frozen


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_v2_s"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_leaves_has_the_dtype_of_what_enters(name, dtype):
    model = build(name, **STEADY)
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), model.params)
    images = jax.ShapeDtypeStruct((2, 37, 50, 3), dtype)
    for train in (False, True):
        forward = functools.partial(model.apply, train=train)
        # Statistics are in float32 whatever the rest is in.
        with jax.numpy_dtype_promotion("standard"):
            logits, stats = jax.eval_shape(forward, params, model.stats, images)
        assert (logits.shape, logits.dtype) == ((2, 3), dtype)
        assert {leaf.dtype for leaf in jax.tree.leaves(stats)} == {jnp.dtype(jnp.float32)}


def test_without_classes_the_averaged_channels_come_out():
    model = build("efficientnet_b0", **{**TINY, "num_classes": 0, "dropout": 0.5})
    images = jax.ShapeDtypeStruct((2, 40, 40, 3), jnp.float32)
    for forward in (
        functools.partial(model.apply, train=False),
        # Nothing of the head is random, where there is none.
        functools.partial(model.apply, train=True, start="pool"),
    ):
        entering = images if "start" not in forward.keywords else jnp.zeros((2, 2, 2, 160))
        features, _ = jax.eval_shape(forward, model.params, model.stats, entering)
        assert features.shape == (2, 160) and "head" not in model.params


# What is random in training.


def test_branches_are_left_out_the_more_often_the_deeper_they_lie():
    _, network = efficientnet("efficientnet_b0", drop_path=0.2)
    rates = [rate for position in range(7) for rate in network._drop_paths(position)]
    np.testing.assert_allclose(rates, [0.2 * block / 16 for block in range(16)])


def test_a_branch_that_is_left_out_leaves_the_input():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(32, 3, 3, 8)), jnp.float32)

    @functools.partial(jax.jit, static_argnums=0)
    def block(rate: float, **rngs: jax.Array) -> jax.Array:
        row, convention = Row(True, 1, 3, 1, 8, 1), Convention(None, 1e-3, 0.9)
        module = Block(row, 1, rate, convention)
        variables = module.init(jax.random.key(0), x, train=False)
        return module.apply(variables, x, train=True, mutable=["batch_stats"], rngs=rngs)[0]

    branch = block(0.0) - x
    output = block(0.5, dropout=jax.random.key(1))
    left_out = np.all(output == x, axis=(1, 2, 3))
    assert 4 < left_out.sum() < 28
    np.testing.assert_allclose((output - x)[~left_out], 2 * branch[~left_out], rtol=1e-4, atol=1e-5)
    with pytest.raises(flax.errors.InvalidRngError):
        block(0.5)


def test_the_head_does_not_see_all_features_in_training():
    model = filled("efficientnet_b0", **{**TINY, "dropout": 0.5, "drop_path": 0.0})
    features = np.ones((2, 160), np.float32)
    head = functools.partial(model.apply, model.params, model.stats, features, start="head")
    steady, _ = head(train=False)
    np.testing.assert_array_equal(steady[0], steady[1])
    dropped, _ = head(train=True, rngs={"dropout": jax.random.key(0)})
    assert not np.array_equal(dropped[0], dropped[1])
    with pytest.raises(flax.errors.InvalidRngError):
        head(train=True)


# Sources of weights.


@pytest.mark.parametrize(("name", "source"), SOURCES)
def test_rules_convert_and_invert(name, source):
    model = filled(name, **{**STEADY, "depth": 0.3})
    tree, rules = tree_of(model), model.spec.rules_for(source)
    flat = jt.invert(tree, rules)
    back, receipt = jt.convert(flat, rules, tree)
    assert jt.diff(tree, back).is_empty
    assert len(receipt.entries) == len(flat) == len(named_leaves(tree))


@pytest.mark.parametrize(
    ("name", "source", "names"),
    [
        (
            "efficientnet_b0",
            "torchvision",
            {
                "features.0.0.weight": (32, 3, 3, 3),
                "features.1.0.block.0.0.weight": (32, 1, 3, 3),
                "features.6.3.block.2.fc1.weight": (48, 1152, 1, 1),
                "features.8.1.running_var": (1280,),
                "classifier.1.weight": (1000, 1280),
            },
        ),
        (
            "efficientnet_v2_s",
            "timm",
            {
                "conv_stem.weight": (24, 3, 3, 3),
                "blocks.0.1.conv.weight": (24, 24, 3, 3),
                "blocks.1.0.conv_exp.weight": (96, 24, 3, 3),
                "blocks.5.14.conv_dw.weight": (1536, 1, 3, 3),
                "blocks.5.14.se.conv_expand.bias": (1536,),
            },
        ),
        (
            "efficientnet_b0",
            "keras",
            {
                "stem_conv/stem_conv/kernel:0": (3, 3, 3, 32),
                "block1a_dwconv/block1a_dwconv/depthwise_kernel:0": (3, 3, 32, 1),
                "block6d_se_reduce/block6d_se_reduce/bias:0": (48,),
                "predictions/predictions/kernel:0": (1280, 1000),
            },
        ),
        (
            "efficientnet_v2_s",
            "keras",
            {
                "block1b_project_conv/block1b_project_conv/kernel:0": (3, 3, 24, 24),
                "block6o_dwconv2/block6o_dwconv2/depthwise_kernel:0": (3, 3, 1536, 1),
            },
        ),
        (
            "efficientnet_b0",
            "transformers",
            {
                "efficientnet.encoder.blocks.15.projection.project_conv.weight": (320, 1152, 1, 1),
                "efficientnet.encoder.top_bn.running_mean": (1280,),
            },
        ),
    ],
)
def test_full_networks_have_the_names_of_the_published_files(name, source, names):
    model = build(name)
    like = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), tree_of(model))
    flat = jt.invert(like, model.spec.rules_for(source))
    assert {tensor: flat[tensor].shape for tensor in names} == names


@pytest.mark.parametrize(
    ("name", "source", "padding", "epsilon", "momentum"),
    [
        ("efficientnet_b4", "torchvision", None, 1e-5, 0.9),
        ("efficientnet_b5", "torchvision", None, 1e-3, 0.99),
        ("efficientnet_v2_m", "torchvision", None, 1e-3, 0.9),
        ("efficientnet_b5", "timm", None, 1e-5, 0.9),
        ("efficientnet_b5", "timm_tf", "SAME", 1e-3, 0.9),
        ("efficientnet_b5", "keras", "SAME", 1e-3, 0.99),
        ("efficientnet_v2_m", "keras", "SAME", 1e-3, 0.9),
        ("efficientnet_b5", "transformers", "SAME", 1e-3, 0.99),
    ],
)
def test_each_source_has_its_padding_and_normalisation(name, source, padding, epsilon, momentum):
    options = efficientnet(name)[0].source(source).options
    assert options == {"padding": padding, "epsilon": epsilon, "momentum": momentum}
    _, network = efficientnet(name, **options)
    convention = network.convention
    assert (convention.padding, convention.epsilon, convention.momentum) == (
        padding,
        epsilon,
        momentum,
    )
    if source == "torchvision":  # it is the usual one
        assert efficientnet(name)[1].convention == convention


def test_the_same_names_are_told_apart_by_the_options_of_the_network(tmp_path):
    # timm's networks and those that it has for TensorFlow's weights have the same names.
    model = filled("efficientnet_b0", **STEADY)
    jt.write_weights(jt.invert(tree_of(model), model.spec.rules_for("timm")), tmp_path / "a.npz")

    def loaded(name: str, **how: Any) -> tuple[str, str | None]:
        found = load_network(name, tmp_path / "a.npz", **TINY, **how)
        return found.receipt.rules_name, dict(found.spec.options)["padding"]

    assert loaded("efficientnet_b0") == ("timm", None)
    assert loaded("tf_efficientnet_b0") == ("timm_tf", "SAME")
    assert loaded("efficientnet_b0", source="timm_tf") == ("timm_tf", "SAME")
    assert loaded("tf_efficientnet_b0", source="timm") == ("timm", None)


def test_a_file_of_keras_without_its_top_gives_features(tmp_path):
    model = filled("efficientnet_b0", **STEADY)
    flat = jt.invert(tree_of(model), model.spec.rules_for("keras"))
    flat = {name: array for name, array in flat.items() if not name.startswith("predictions")}
    constants = {
        f"normalization/{name}:0": np.ones(3, np.float32) for name in ("mean", "variance", "count")
    }
    jt.write_weights({**flat, **constants}, tmp_path / "notop.npz")
    loaded = load_network("efficientnet_b0", tmp_path / "notop.npz", width=1 / 8, depth=0.1)
    assert loaded.num_classes is None and set(loaded.receipt.ignored) == set(constants)


def test_timms_names_stand_for_options():
    assert build("tf_efficientnetv2_m", **TINY).apply.module.convention.padding == "SAME"
    assert build("efficientnetv2_m", **TINY).apply.module.convention.epsilon == 1e-5


# Images.


def test_images_are_prepared_as_each_source_does():
    images = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8)
    scaled = images.astype(np.float64) / 255
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    usual = (scaled - mean) / deviation
    # What the layers of Keras compute, with deviations stored as variances; and the processor of
    # transformers, whose deviations are [0.47853944, 0.4732864, 0.47434163].
    keras = (scaled - mean) / np.sqrt(deviation) / np.sqrt(deviation)
    twice = (scaled - mean) / [0.47853944, 0.4732864, 0.47434163]
    expected = {
        ("efficientnet_b0", "torchvision"): usual,
        ("efficientnet_b0", "timm_tf"): usual,
        ("efficientnet_b0", "keras"): keras,
        ("efficientnet_b0", "transformers"): twice / [0.47853944, 0.4732864, 0.47434163],
        ("efficientnet_v2_s", "torchvision"): usual,
        ("efficientnet_v2_l", "torchvision"): 2 * scaled - 1,
        ("efficientnet_v2_s", "timm"): usual,
        ("efficientnet_v2_s", "timm_tf"): 2 * scaled - 1,
        ("efficientnet_v2_s", "keras"): images / 128.0 - 1,
    }
    for (name, source), values in expected.items():
        how = efficientnet(name, input_size=(8, 8))[0].source(source).preprocess
        found = preprocess_images(jnp.asarray(images), replace(how, size=None))
        np.testing.assert_allclose(found, values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "source", "size", "resized", "interpolation"),
    [
        ("efficientnet_b0", "torchvision", 224, 256, "bicubic"),
        ("efficientnet_b1", "torchvision", 240, 255, "bilinear"),
        ("efficientnet_b2", "torchvision", 288, 288, "bicubic"),
        ("efficientnet_b7", "timm_tf", 600, 632, "bicubic"),
        ("efficientnet_b7", "keras", 600, 632, "bicubic"),
        ("efficientnet_b7", "transformers", 600, 600, "nearest"),
        ("efficientnet_v2_s", "torchvision", 384, 384, "bilinear"),
        ("efficientnet_v2_l", "timm_tf", 480, 480, "bicubic"),
    ],
)
def test_images_are_resized_and_cropped_as_each_source_does(
    name, source, size, resized, interpolation
):
    how = efficientnet(name)[0].source(source).preprocess
    assert (how.size, how.interpolation) == ((size, size), interpolation)
    assert round(size / how.crop_fraction) == resized


@pytest.mark.parametrize("name", VARIANTS)
def test_published_weights_are_stated(name):
    weights = families()[name].weights[name]
    assert weights[0].source == "torchvision" and weights[0].preprocess is None
    assert len({entry.reference for entry in weights}) == len(weights)
    for entry in weights:
        if entry.source == "torchvision":
            assert re.fullmatch(r"https://.*-([0-9a-f]{8})\.pth#sha256=\1", entry.reference)
        # Adversarial training was done with images in [-1, 1], what else timm has of V1 was not.
        if ".ap_in1k" in entry.reference:
            assert entry.preprocess is not None and entry.preprocess.mean == (0.5, 0.5, 0.5)
    expected = {"keras", "timm_tf", "torchvision"}
    expected |= {"transformers"} if name in V1_VARIANTS else set()
    assert {entry.source for entry in weights} - {"timm"} == expected
    assert any(".in21k" in entry.reference for entry in weights) == (name in V2_VARIANTS)


# Errors.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding": "VALID"}, "expected padding None or 'SAME', found 'VALID'"),
        ({"width": 0}, r"numbers above 0, found \{'width': 0\}"),
        ({"width": -1.0, "depth": -2}, r"\{'width': -1.0, 'depth': -2\}"),
        ({"dropout": 1.0}, r"rates of at least 0 and below 1, found \{'dropout': 1.0\}"),
        ({"drop_path": -0.1}, r"\{'drop_path': -0.1\}"),
        ({"num_classes": -1}, r"\{'num_classes': -1\}"),
        ({"input_size": (0, 8)}, r"\{'height': 0\}"),
    ],
)
def test_options_that_make_no_network_are_errors(options, message):
    for name in ("efficientnet_b0", "efficientnet_v2_s"):
        with pytest.raises(ModelError, match=message):
            build(name, **options)
