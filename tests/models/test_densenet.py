from __future__ import annotations

import functools
import math
import re
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
from jaxtransfer.models.densenet import VARIANTS
from jaxtransfer.models.weights import load_network

SMALL: dict[str, Any] = {"blocks": (2, 1, 2), "growth": 4}


@functools.cache
def small(**options: Any) -> jt.Model:
    """A network of few layers with random values in every leaf."""
    random = np.random.default_rng(0)

    def values(leaf: Any) -> jax.Array:
        deviation = 1 / math.sqrt(math.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.1
        noise = random.normal(0, deviation, leaf.shape)
        return jnp.asarray(noise + (leaf.ndim == 1), leaf.dtype)

    return jax.tree.map(values, build("densenet121", **{**SMALL, "num_classes": 5, **options}))


def tree_of(model: jt.Model) -> dict[str, Any]:
    return {"params": model.params, "stats": model.stats}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_number_in_a_name_is_that_of_its_layers_with_weights(name):
    # Two a layer, one a transition, the stem and the head.
    blocks = VARIANTS[name].blocks
    assert name == f"densenet{2 * sum(blocks) + len(blocks) - 1 + 2}"


def test_maps_and_channels_are_those_of_the_papers_table():
    model = build("densenet121")
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    found = {}
    for stage, after in zip(model.spec.stages, (*model.spec.stages[1:], None), strict=True):
        found[stage] = images.shape[1:]
        call = functools.partial(model.apply, train=False, start=stage, stop=after)
        images = jax.eval_shape(call, model.params, model.stats, images)[0]
    assert found == {
        "stem": (224, 224, 3),
        "block1": (56, 56, 64),
        "transition1": (56, 56, 64 + 6 * 32),
        "block2": (28, 28, 128),
        "transition2": (28, 28, 128 + 12 * 32),
        "block3": (14, 14, 256),
        "transition3": (14, 14, 256 + 24 * 32),
        "block4": (7, 7, 512),
        "norm": (7, 7, 512 + 16 * 32),
        "pool": (7, 7, 1024),
        "head": (1024,),
    }
    assert images.shape == (1, 1000)


def test_a_pass_cut_at_any_stage_is_the_whole_pass():
    model = small()
    images = np.random.default_rng(2).normal(0, 1, (2, 33, 33, 3)).astype(np.float32)
    call = functools.partial(model.apply, model.params, train=True)
    whole, whole_stats = call(model.stats, images)
    stages = model.spec.stages
    for stage in ("block1", "transition2", "norm", "head"):
        features, below = call(model.stats, images, stop=stage)
        rest, stats = call(below, features, start=stage)
        np.testing.assert_array_equal(rest, whole)
        assert jt.diff(whole_stats, stats).is_empty
        moved = {name.split("/")[0] for name in jt.diff(model.stats, below).changed}
        assert moved == {s for s in stages[: stages.index(stage)] if s in model.stats}


def test_a_layer_hands_on_what_entered_it_and_adds_its_own():
    model = small()
    maps = np.random.default_rng(0).normal(size=(1, 4, 4, 8)).astype(np.float32)
    part = {"start": "block1", "stop": "transition1", "train": False}
    found, _ = model.apply(model.params, model.stats, maps, **part)
    assert found.shape == (1, 4, 4, 8 + 2 * 4)
    np.testing.assert_array_equal(found[..., :8], maps)


def dotted(name: str) -> str:
    return re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", name)


def test_torchvisions_old_and_new_names_fill_the_same_leaves(tmp_path):
    model = small()
    flat = jt.invert(tree_of(model), model.spec.rules_for("torchvision"))
    assert flat["features.denseblock2.denselayer1.conv2.weight"].shape == (4, 16, 3, 3)
    old = {dotted(name): values for name, values in flat.items()}
    assert "features.denseblock3.denselayer2.norm.1.running_var" in old
    # Of the stem, five layers, two transitions, the end and the head; four a BatchNorm.
    assert len(flat) == (1 + 4) + 5 * (2 + 2 * 4) + 2 * (1 + 4) + 4 + 2
    for names in (flat, old):
        jt.write_weights(names, tmp_path / "file.npz")
        loaded = load_network("densenet121", tmp_path / "file.npz", **SMALL)
        assert loaded.receipt is not None and loaded.receipt.rules_name == "torchvision"
        assert jt.diff(tree_of(model), tree_of(loaded)).is_empty
        # With its receipt, a file gets the names back that it had.
        written = jt.invert(
            tree_of(loaded), model.spec.rules_for("torchvision"), receipt=loaded.receipt
        )
        assert written.keys() == names.keys()


@pytest.mark.parametrize("stem", ["conv1/", "conv1_"])
def test_keras_files_with_either_name_of_the_stem_are_read(stem, tmp_path):
    source = spec_of("densenet121", **SMALL).source("keras")
    model = small(**source.options)
    flat = jt.invert(tree_of(model), source.rules)
    assert {
        "conv1/conv/conv1/conv/kernel:0",
        "conv2_block1_0_bn/conv2_block1_0_bn/gamma:0",
        "conv4_block2_2_conv/conv4_block2_2_conv/kernel:0",
        "pool3_conv/pool3_conv/kernel:0",
        "bn/bn/moving_mean:0",
        "predictions/predictions/bias:0",
    } <= set(flat)
    named = {re.sub("conv1/(?=conv|bn)", stem, name): values for name, values in flat.items()}
    jt.write_weights(named, tmp_path / "file.npz")
    loaded = load_network("densenet121", tmp_path / "file.npz", **SMALL)
    assert loaded.receipt is not None and loaded.receipt.rules_name == "keras"
    assert jt.diff(tree_of(model), tree_of(loaded)).is_empty
    assert dict(loaded.spec.options)["epsilon"] == 1.001e-5


def test_epsilon_is_that_of_every_batch_norm():
    found = {}
    for epsilon in (1e-5, 10.0):
        model = small(epsilon=epsilon)
        for stage, after, channels in [
            ("block1", "transition1", 8),
            ("transition1", "block2", 16),
            ("norm", "pool", 14),
        ]:
            maps = np.random.default_rng(0).normal(size=(1, 4, 4, channels)).astype(np.float32)
            part = {"start": stage, "stop": after, "train": False}
            found[stage, epsilon], _ = model.apply(model.params, model.stats, maps, **part)
    for stage in ("block1", "transition1", "norm"):
        assert (found[stage, 1e-5][..., -1] != found[stage, 10.0][..., -1]).any()


def test_dropout_comes_behind_each_layer_in_training():
    maps = np.random.default_rng(0).normal(size=(2, 8, 8, 8)).astype(np.float32)
    part = {"start": "block1", "stop": "transition1"}

    def run(model: jt.Model, **arguments: Any) -> np.ndarray:
        found, _ = model.apply(model.params, model.stats, maps, **part, **arguments)
        return np.asarray(found)

    never, often = small(), small(dropout=0.5)
    np.testing.assert_array_equal(run(never, train=False), run(often, train=False))
    with pytest.raises(InvalidRngError):
        run(often, train=True)
    dropped = run(often, train=True, rngs={"dropout": jax.random.key(0)})
    kept = run(never, train=True)
    np.testing.assert_array_equal(dropped[..., :8], kept[..., :8])
    first = dropped[..., 8:12]  # what the first layer adds: nothing random comes before it
    zeros = first == 0
    assert 0.3 < zeros.mean() < 0.7
    np.testing.assert_allclose(first[~zeros], 2 * kept[..., 8:12][~zeros], rtol=1e-5)


def test_bfloat16_stays_bfloat16():
    model = small()
    half = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), model.params)
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.bfloat16)
    call = functools.partial(model.apply, train=True)
    assert jax.eval_shape(call, half, model.stats, images)[0].dtype == jnp.bfloat16


def test_images_are_prepared_as_each_source_does_it():
    sources = spec_of("densenet121").sources
    assert [source.name for source in sources] == ["torchvision", "timm", "keras"]
    assert [s.preprocess.interpolation for s in sources] == ["bilinear", "bicubic", "bilinear"]
    assert {s.preprocess.mean for s in sources} == {(0.485, 0.456, 0.406)}
    assert {s.preprocess.crop_fraction for s in sources} == {0.875}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"growth": 0}, r"integers of at least 1.*\{'growth': 0\}"),
        ({"blocks": (2, 0)}, r"\{'blocks\[1\]': 0\}"),
        ({"blocks": ()}, "at least one block"),
        ({"input_size": (8, 0)}, r"\{'breadth': 0\}"),
        ({"dropout": 2}, r"rates of at least 0 and below 1, found \{'dropout': 2\}"),
    ],
)
def test_options_that_make_no_network_are_errors(options, message):
    with pytest.raises(ModelError, match=f"densenet121: .*{message}"):
        build("densenet121", **options)
