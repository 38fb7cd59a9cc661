from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxtransfer as jt
from jaxtransfer import hub
from jaxtransfer.errors import (
    JaxTransferError,
    MappingError,
    ModelError,
    ReferenceNotFoundError,
)
from jaxtransfer.models import build


def test_load_tells_what_there_is():
    with pytest.raises(ReferenceNotFoundError, match="checkpoints/glyphs"):
        jt.load("checkpoints/glyph")


def test_a_saved_model_is_loaded_by_its_folder_or_its_weights(model, tmp_path):
    model.save(tmp_path / "net")
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    replicated = NamedSharding(mesh, PartitionSpec())
    for path in (tmp_path / "net", tmp_path / "net" / "model.safetensors"):
        loaded = jt.load(path, sharding=replicated)
        assert jt.diff(loaded.params, model.params).is_empty
        assert {leaf.sharding for leaf in jax.tree.leaves(loaded.params)} == {replicated}


def test_weights_in_a_plain_folder_are_found(model, tmp_path):
    leaves = {"params": model.params, "stats": model.stats}
    (tmp_path / "config.json").write_text('{"model_type": "of someone else"}')
    with pytest.raises(ReferenceNotFoundError, match="expected weights in its main folder"):
        jt.load(model, tmp_path)
    jt.write_weights(leaves, tmp_path / "weights.npz")
    loaded = jt.load(model, tmp_path)
    assert jt.diff(loaded.params, model.params).is_empty
    assert loaded.receipt.file == "weights.npz"
    jt.write_weights(leaves, tmp_path / "weights.safetensors")
    assert jt.load(model, tmp_path).receipt.file == "weights.safetensors"
    jt.write_weights(leaves, tmp_path / "other.safetensors")
    with pytest.raises(ReferenceNotFoundError, match=r"other\.safetensors, weights\.safetensors"):
        jt.load(model, tmp_path)


@pytest.fixture(scope="module")
def resnet_file(tmp_path_factory) -> Path:
    """A narrow ResNet-18 as torchvision would save it, with 7 classes."""
    empty = build("resnet18", width=4, num_classes=7)
    rng = np.random.default_rng(0)
    leaves = jax.tree.map(
        lambda leaf: rng.random(leaf.shape, np.float32),
        {"params": empty.params, "stats": empty.stats},
    )
    path = tmp_path_factory.mktemp("files") / "resnet18.npz"
    jt.write_weights(jt.invert(leaves, empty.spec.rules_for("torchvision")), path)
    return path


def test_load_takes_the_network_first_and_its_weights_second(resnet_file):
    loaded = jt.load("resnet18", resnet_file, width=4, source="torchvision")
    assert loaded.num_classes == 7 and loaded.receipt.rules_name == "torchvision"
    assert loaded.preprocess == build("resnet18").preprocess
    again = jt.load(build("resnet18", width=4, num_classes=7), resnet_file, source="torchvision")
    assert jt.diff(loaded.params, again.params).is_empty


def test_load_changes_what_the_file_has_otherwise_after_loading_it_whole(resnet_file):
    options = {"width": 4, "source": "torchvision"}
    whole = jt.load("resnet18", resnet_file, **options)
    other = jt.load(
        "resnet18", resnet_file, num_classes=3, in_channels=1, input_size=64, key=5, **options
    )
    assert (other.num_classes, other.spec.in_channels, other.spec.input_size) == (3, 1, (64, 64))
    assert other.params["stem"]["conv"]["kernel"].shape == (7, 7, 1, 4)
    assert jt.diff(whole.params["layer1"], other.params["layer1"]).is_empty
    assert [note.split(":")[0] for note in other.receipt.notes] == [
        "adapt_stem",
        "change_input_size",
        "replace_head",
    ]
    assert len(other.receipt.entries) == len(whole.receipt.entries)
    logits = jt.predict(other, np.zeros((1, 80, 90, 1), np.uint8))
    assert logits.shape == (1, 3)


def test_a_file_of_another_network_is_named_in_one_error(resnet_file, tmp_path):
    empty = build("resnet34")
    leaves = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, np.float32),
        {"params": empty.params, "stats": empty.stats},
    )
    path = tmp_path / "net.npz"
    jt.write_weights(jt.invert(leaves, empty.spec.rules_for("torchvision")), path)
    with pytest.raises(MappingError) as caught:
        jt.load("resnet18", path)
    assert "expected weights of resnet18, found those of resnet34" in str(caught.value)
    assert str(caught.value).count("\n") == 0
    with pytest.raises(MappingError, match="of the catalog the file is nearest to resnet18"):
        jt.load("resnet50", resnet_file, source="torchvision")


def test_published_weights_bring_their_preprocessing_and_the_names_of_classes(
    monkeypatch, tmp_path
):
    leaves = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, np.float32),
        {"params": (empty := build("resnet18")).params, "stats": empty.stats},
    )
    path = tmp_path / "net.npz"
    jt.write_weights(jt.invert(leaves, empty.spec.rules_for("timm")), path)
    monkeypatch.setattr(hub, "resolve", lambda reference: path)
    known = next(w for w in empty.spec.weights if w.reference == "hf://timm/resnet18.a1_in1k")
    loaded = jt.load("resnet18", known.reference)
    assert loaded.preprocess == empty.spec.source("timm").preprocess
    assert loaded.preprocess.crop_fraction == 0.95
    assert loaded.labels == jt.imagenet_classes()
    first = jt.load("resnet18")
    assert first.receipt.rules_name == empty.spec.weights[0].source


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cifar_resnet14",), "no published ones are known that can be"),
        (("resnet51", "x.npz"), "expected a path that exists"),
    ],
)
def test_weights_that_nobody_knows_are_an_error(arguments, message):
    with pytest.raises(JaxTransferError, match=message):
        jt.load(*arguments)


def test_options_need_the_name_of_a_network(model, resnet_file):
    for network in ((), (model,)):
        with pytest.raises(ModelError, match=r"with the network's name, found \['width'\]"):
            jt.load(*network, resnet_file, width=4)


def test_a_model_without_weights_is_an_error(model):
    with pytest.raises(ModelError, match="expected weights for it, found none"):
        jt.load(model)
