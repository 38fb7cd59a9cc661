from __future__ import annotations

import functools
import io
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import RidgeClassifierCV

import jaxtransfer as jt
from jaxtransfer.errors import ModelError
from jaxtransfer.models import build
from jaxtransfer.models.weights import load_network

SMALL: dict[str, Any] = {"width": 2, "num_classes": 5}


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


def sides(model: jt.Model, size: int) -> list[int]:
    """Of the maps that leave the stem and each fire module."""
    inputs = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return [
        jax.eval_shape(
            functools.partial(model.apply, train=False, stop=stage), model.params, {}, inputs
        )[0].shape[1]
        for stage in model.spec.stages[1:]
    ]


@pytest.mark.parametrize("name", ["squeezenet1_0", "squeezenet1_1"])
def test_cut_at_any_stage_the_pass_is_the_same(name):
    model = small(name)
    inputs = np.random.default_rng(1).normal(size=(1, 45, 45, 3)).astype(np.float32)
    whole, _ = model.apply(model.params, {}, inputs, train=False)
    for stage in model.spec.stages:
        features, _ = model.apply(model.params, {}, inputs, train=False, stop=stage)
        rest, _ = model.apply(model.params, {}, features, train=False, start=stage)
        np.testing.assert_array_equal(rest, whole)


def test_maps_have_the_sizes_of_the_paper():
    # Table 1 of the paper, but for the padding that it has at the stem.
    assert sides(build("squeezenet1_0", **SMALL), 227) == [55] * 3 + [27] * 4 + [13] * 2
    assert sides(build("squeezenet1_1", **SMALL), 227) == [56] * 2 + [28] * 2 + [14] * 5
    down = build("squeezenet1_1", **SMALL, ceil_pooling=False)
    assert sides(down, 227) == [56] + [56] + [27] * 2 + [13] * 5


def test_the_head_is_a_convolution_whose_padding_is_a_border_of_biases():
    model, padded = small("squeezenet1_0"), small("squeezenet1_0", head_padding=1)
    maps = np.random.default_rng(0).normal(size=(2, 3, 4, 64)).astype(np.float32)
    kernel, bias = (np.asarray(model.params["head"][name]) for name in ("kernel", "bias"))
    assert kernel.shape == (1, 1, 64, 5)
    scores = np.maximum(maps @ kernel[0, 0] + bias, 0)
    for network, border in ((model, 0), (padded, 2 * (3 + 4) + 4)):
        found, _ = network.apply(network.params, {}, maps, train=False, start="head")
        total = scores.sum((1, 2)) + border * np.maximum(bias, 0)
        np.testing.assert_allclose(found, total / (12 + border), rtol=1e-5, atol=1e-6)


def test_without_classes_the_features_are_the_means_of_the_last_maps():
    model = small("squeezenet1_1", num_classes=0)
    maps = np.random.default_rng(0).normal(size=(2, 3, 4, 64)).astype(np.float32)
    found, _ = model.apply(model.params, {}, maps, train=True, start="head")
    np.testing.assert_allclose(found, maps.mean((1, 2)), rtol=1e-5, atol=1e-6)
    assert "head" not in model.params and model.num_classes is None


def test_dropout_is_drawn_in_training_alone():
    model, without = small("squeezenet1_0"), small("squeezenet1_0", dropout=0.0)
    maps = np.ones((2, 2, 2, 64), np.float32)
    plain, _ = model.apply(model.params, {}, maps, train=False, start="head")
    same, _ = without.apply(model.params, {}, maps, train=True, start="head")
    np.testing.assert_array_equal(same, plain)
    rngs = {"dropout": jax.random.key(0)}
    drawn, _ = model.apply(model.params, {}, maps, train=True, start="head", rngs=rngs)
    assert np.any(np.asarray(drawn) != plain)
    with pytest.raises(Exception, match="dropout"):
        model.apply(model.params, {}, maps, train=True, start="head")


@pytest.mark.parametrize(
    ("name", "source", "tensor"),
    [
        ("squeezenet1_0", "torchvision", "features.12.expand3x3.weight"),
        ("squeezenet1_1", "torchvision", "features.11.squeeze.bias"),
        ("squeezenet1_0", "caffe", "fire9/expand1x1/0"),
        ("squeezenet1_0", "deep_compression", "fire9/conv3x3_2/b"),
        ("squeezenet1_1", "keras", "fire9/expand3x3/uniform25"),
    ],
)
def test_rules_convert_and_invert(name, source, tensor):
    tree = {"params": small(name).params, "stats": {}}
    rules = small(name).spec.rules_for(source)
    flat = jt.invert(tree, rules)
    back, receipt = jt.convert(flat, rules, tree)
    assert jt.diff(tree, back).is_empty and len(receipt.entries) == len(flat) == 52
    assert tensor in flat


def test_what_each_source_needs():
    old, new = (build(name, **SMALL).spec for name in ("squeezenet1_0", "squeezenet1_1"))
    for name in ("caffe", "deep_compression"):
        assert old.source(name).options == {"input_size": (227, 227), "head_padding": 1}
        assert old.source(name).preprocess.mean == (104.0, 117.0, 123.0)
    assert new.source("caffe").options == {"input_size": (227, 227)}
    assert new.source("keras").options["ceil_pooling"] is False
    assert new.source("keras").preprocess.channel_order == "bgr"
    assert new.source("torchvision").preprocess.channel_order == "rgb"


def test_it_runs_in_bfloat16():
    model = small("squeezenet1_1")
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), model.params)
    forward = functools.partial(model.apply, train=True, rngs={"dropout": jax.random.key(0)})
    inputs = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.bfloat16)
    assert jax.eval_shape(forward, params, {}, inputs)[0].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, r"\{'width': 0\}"),
        ({"head_padding": -1}, "head_padding of at least 0, found -1"),
        ({"dropout": 2}, r"rates of at least 0 and below 1, found \{'dropout': 2\}"),
    ],
)
def test_options_that_make_no_network_are_errors(options, message):
    with pytest.raises(ModelError, match=message):
        build("squeezenet1_0", **options)


# ---------------------------------------------------------------------------------------------
# Published weights


@pytest.fixture(scope="module")
def compressed(real_data: Path) -> jt.Model:
    folder = real_data / "weights" / "squeezenet_v1.0_deepcompression"
    return _without_crop(load_network("squeezenet1_0", folder / "decoded_float32.npz"))


@pytest.fixture(scope="module")
def features(real_data: Path) -> jt.Model:
    folder = real_data / "weights" / "squeezenet_v1.1_keras_notop"
    path = folder / "squeezenet_weights_tf_dim_ordering_tf_kernels_notop.h5"
    return _without_crop(load_network("squeezenet1_1", path, input_size=(224, 224)))


def _without_crop(model: jt.Model) -> jt.Model:
    """For images that are cut out already."""
    assert model.preprocess is not None
    return replace(model, preprocess=replace(model.preprocess, crop_fraction=1.0))


def _central_crops(archive: Path, ending: str, side: int) -> tuple[list[str], np.ndarray]:
    """The names of the images in a zip file, and their central squares."""
    with zipfile.ZipFile(archive) as file:
        names = [name for name in file.namelist() if name.endswith(ending)]
        crops = []
        for name in names:
            image = Image.open(io.BytesIO(file.read(name))).convert("RGB")
            left, top = ((length - side) // 2 for length in image.size)
            crops.append(np.asarray(image.crop((left, top, left + side, top + side))))
    return names, np.stack(crops)


@pytest.mark.pretrained
def test_the_compressed_network_gives_the_reference_scores(real_data, compressed):
    reference = np.load(real_data / "reference" / "squeezenet_v1.0_scores_16.npz")
    assert compressed.receipt.rules_name == "deep_compression"
    assert compressed.preprocess.size == (227, 227)
    scores = jt.predict(compressed, reference["input_rgb_u8"])
    np.testing.assert_allclose(scores, reference["scores"], rtol=1e-4, atol=1e-4)


@pytest.mark.pretrained
@pytest.mark.slow
def test_its_accuracy_on_one_image_of_each_class(real_data, compressed):
    folder = real_data / "datasets" / "imagenet_samples"
    synsets = (folder / "imagenet_synsets.txt").read_text().split()
    names, crops = _central_crops(folder / "all1000_short256.zip", ".JPEG", 227)
    labels = np.array([synsets.index(name.split("_")[0]) for name in names])
    best = np.argsort(-np.asarray(jt.predict(compressed, crops)), axis=1)[:, :5]
    right = best == labels[:, None]
    assert (right[:, 0].sum(), right.any(1).sum()) == (635, 838)  # of 1,000


@pytest.mark.pretrained
def test_a_file_without_a_head_gives_the_reference_features(real_data, features):
    path = real_data / "reference" / "keras_notop_features_hymenoptera_val8.npz"
    reference = np.load(path)
    assert features.receipt.rules_name == "keras" and features.num_classes is None
    found = jt.predict(features, reference["input_u8"])
    expected = reference["squeezenet_v1_1_fire9_gap"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.pretrained
@pytest.mark.slow
def test_a_ridge_probe_tells_ants_from_bees(real_data, features):
    """Features of unit length; the penalty is the best of leave-one-out on the training images."""
    archive = real_data / "datasets" / "hymenoptera_short256.zip"
    names, crops = _central_crops(archive, ".jpg", 224)
    found = np.asarray(jt.predict(features, crops))
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    bees = np.array(["/bees/" in name for name in names])
    trains = np.array([name.startswith("train/") for name in names])
    probe = RidgeClassifierCV(alphas=np.logspace(-3, 6, 19)).fit(found[trains], bees[trains])
    right = np.asarray(probe.predict(found[~trains])) == bees[~trains]
    assert right.size == 153 and right.sum() == 142  # 92.8 %
