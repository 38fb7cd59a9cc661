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
from jaxtransfer.models.catalog import aliases, spec_of
from jaxtransfer.models.regnet import VARIANTS
from jaxtransfer.tree import named_leaves

SMALL: dict[str, Any] = {
    "blocks": (1, 2, 1, 1),
    "widths": (8, 16, 24, 40),
    "group_width": 8,
    "stem_width": 4,
    "num_classes": 5,
}


@functools.cache
def small(name: str) -> jt.Model:
    """A small network with random values in every leaf."""
    model = build(name, **SMALL)
    rng = np.random.default_rng(0)
    leaves = named_leaves({"params": model.params, "stats": model.stats})
    values = [
        jnp.asarray(
            rng.uniform(0.5, 1.5, leaf.shape)
            if leaf.ndim == 1
            else rng.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape),
            leaf.dtype,
        )
        for _, leaf in leaves
    ]
    structure = jax.tree.structure((model.params, model.stats))
    return jt.Model(model.spec, model.apply, *jax.tree.unflatten(structure, values))


SOURCES = {
    ("regnet_x_400mf", "torchvision"): [
        "stem.0.weight",
        "stem.1.running_mean",
        "trunk_output.block2.block2-1.f.c.1.bias",
        "trunk_output.block1.block1-0.proj.0.weight",
        "fc.weight",
    ],
    ("regnet_y_400mf", "torchvision"): ["trunk_output.block4.block4-0.f.se.fc2.bias"],
    ("regnet_x_400mf", "timm"): ["stem.conv.weight", "s2.b2.conv3.bn.weight", "head.fc.bias"],
    ("regnet_y_400mf", "timm"): ["s1.b1.se.fc1.weight", "s4.b1.downsample.conv.weight"],
    ("regnet_x_400mf", "transformers"): [
        "regnet.embedder.embedder.convolution.weight",
        "regnet.encoder.stages.1.layers.1.layer.2.convolution.weight",
        "classifier.1.bias",
    ],
    ("regnet_y_400mf", "transformers"): [
        "regnet.encoder.stages.1.layers.1.layer.2.attention.2.bias",
        "regnet.encoder.stages.1.layers.1.layer.3.convolution.weight",
    ],
}


@pytest.mark.parametrize(("name", "source"), SOURCES)
def test_the_rules_of_every_source_convert_and_invert(name, source):
    model = small(name)
    tree = {"params": model.params, "stats": model.stats}
    rules = model.spec.rules_for(source)
    flat = jt.invert(tree, rules)
    assert set(SOURCES[name, source]) <= set(flat) and len(flat) == len(jt.leaf_names(tree))
    assert jt.diff(tree, jt.convert(flat, rules, tree)[0]).is_empty


def test_cut_at_any_stage_the_pass_is_the_same():
    model = small("regnet_y_400mf")
    images = np.random.default_rng(2).normal(0, 1, (2, 65, 66, 3)).astype(np.float32)
    whole, whole_stats = model.apply(model.params, model.stats, images, train=True)
    for stage in model.spec.stages:
        features, below = model.apply(model.params, model.stats, images, train=True, stop=stage)
        rest, stats = model.apply(model.params, below, features, train=True, start=stage)
        np.testing.assert_array_equal(rest, whole)
        assert jt.diff(whole_stats, stats).is_empty


def test_each_stage_halves_the_image_rounding_up():
    model = build("regnet_x_400mf", **SMALL)
    images = jax.ShapeDtypeStruct((1, 65, 66, 3), jnp.float32)
    follows = dict(zip(model.spec.stages, model.spec.stages[1:], strict=False))
    found = {}
    for stage in ("stem", "layer1", "layer2", "layer3", "layer4", "pool"):
        run = functools.partial(model.apply, train=False, stop=follows[stage])
        found[stage] = jax.eval_shape(run, model.params, model.stats, images)[0].shape[1:]
    assert found == {
        "stem": (33, 33, 4),
        "layer1": (17, 17, 8),
        "layer2": (9, 9, 16),
        "layer3": (5, 5, 24),
        "layer4": (3, 3, 40),
        "pool": (40,),
    }


def test_squeeze_and_excitation_has_a_quarter_of_the_channels_that_enter_the_block():
    params = build("regnet_y_400mf", **SMALL).params
    reduced = {
        where: params[where[0]][where[1]]["squeeze_excitation"]["reduce"]["kernel"].shape
        for where in [("layer1", "0"), ("layer2", "0"), ("layer2", "1"), ("layer4", "0")]
    }
    assert reduced == {
        ("layer1", "0"): (8, 1),
        ("layer2", "0"): (16, 2),
        ("layer2", "1"): (16, 4),
        ("layer4", "0"): (40, 6),
    }
    assert "squeeze_excitation" not in build("regnet_x_400mf", **SMALL).params["layer1"]["0"]


def test_a_stage_narrower_than_a_group_is_one_group():
    params = build("regnet_x_8gf").params  # 80 channels, and groups of 120
    assert params["layer1"]["0"]["conv2"]["kernel"].shape == (3, 3, 80, 80)
    assert params["layer2"]["0"]["conv2"]["kernel"].shape == (3, 3, 120, 240)


def test_the_names_of_timm_and_transformers_are_those_of_the_papers_networks():
    for alias, ours in [
        ("regnetx_004", "regnet_x_400mf_pycls"),
        ("regnet-x-004", "regnet_x_400mf_pycls"),
        ("regnetx_004_tv", "regnet_x_400mf"),
        ("regnety_008", "regnet_y_800mf_pycls"),
        ("regnety_080_tv", "regnet_y_8gf"),
        ("regnety_016", "regnet_y_1_6gf"),
        ("regnet-y-040", "regnet_y_4gf"),
    ]:
        assert aliases()[alias] == (ours, {})
    assert VARIANTS["regnet_x_400mf"].widths[3] == 400  # torchvision's; 384 in the paper
    assert VARIANTS["regnet_x_400mf_pycls"].widths[3] == 384


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stem_width": 0}, r"at least 1.*found \{'stem_width': 0\}"),
        ({"widths": (8, 16, -8, 8)}, r"found \{'widths\[2\]': -8\}"),
        ({"widths": (8, 16)}, r"blocks and widths of 4 stages, found .*\(8, 16\)"),
        ({"widths": (8, 20, 24, 30)}, r"multiples of group_width 8, found \[20, 30\]"),
        ({"drop_path": -0.1}, r"found \{'drop_path': -0.1\}"),
    ],
)
def test_options_that_make_no_network_are_errors(options, message):
    with pytest.raises(ModelError, match=message):
        build("regnet_x_400mf", **{**SMALL, **options})


def test_stochastic_depth_needs_random_numbers_in_training_only():
    images = jax.ShapeDtypeStruct((4, 65, 65, 3), jnp.float32)

    def trace(drop_path: float, train: bool) -> None:
        model = build("regnet_x_400mf", **SMALL, drop_path=drop_path)
        run = functools.partial(model.apply, train=train)
        jax.eval_shape(run, model.params, model.stats, images)

    trace(0.0, train=True)
    trace(0.5, train=False)
    with pytest.raises(InvalidRngError):
        trace(0.5, train=True)


def test_each_source_prepares_images_in_its_way():
    spec = spec_of("regnet_y_16gf")
    found = {
        source.name: (source.preprocess.interpolation, source.preprocess.crop_fraction)
        for source in spec.sources
    }
    assert found == {
        "torchvision": ("bilinear", 0.875),
        "timm": ("bicubic", 0.875),
        "transformers": ("bicubic", 0.875),
    }
    by_file = {weights.reference.split("/")[-1].split("-")[0]: weights for weights in spec.weights}
    tuned = by_file["regnet_y_16gf_swag"]
    assert tuned.preprocess is not None and tuned.preprocess.size == (384, 384)
    assert (tuned.licence, tuned.top1) == ("CC-BY-NC-4.0", 86.012)
    linear = by_file["regnet_y_16gf_lc_swag"].preprocess
    assert linear is not None and linear.size == (224, 224) and linear.crop_fraction == 1.0
