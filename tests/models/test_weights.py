from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxtransfer as jt
from jaxtransfer.errors import MappingError, ModelError, ReferenceNotFoundError
from jaxtransfer.formats import fingerprint_of, inspect_weights
from jaxtransfer.models import build, load_weights, recognise

OPTIONS = {"width": 2, "num_classes": 4, "input_size": (8, 8), "in_channels": 1}


@pytest.fixture(scope="module")
def model() -> jt.Model:
    """A small network of the catalog with random leaves."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.random(leaf.shape), leaf.dtype),
        build("cifar_resnet8", **OPTIONS),
    )


@pytest.fixture(scope="module")
def state_dict(model: jt.Model) -> dict[str, np.ndarray]:
    """The same network as PyTorch would save it."""
    flat = jt.invert(
        {"params": model.params, "stats": model.stats},
        model.spec.rules_for("pytorch_resnet_cifar10"),
    )
    return {**flat, "bn1.num_batches_tracked": np.asarray(7)}


def same(a: jt.Model, b: jt.Model) -> bool:
    return jt.diff({"p": a.params, "s": a.stats}, {"p": b.params, "s": b.stats}).is_empty


@pytest.mark.parametrize("prefix", ["", "module.", "module.model."])
def test_a_file_with_the_names_of_its_source_fills_the_network(tmp_path, model, state_dict, prefix):
    path = tmp_path / "net.safetensors"
    jt.write_weights({prefix + name: array for name, array in state_dict.items()}, path)
    empty = build("cifar_resnet8", **OPTIONS)
    loaded = load_weights(empty, path)
    assert same(loaded, model)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(loaded))
    receipt = loaded.receipt
    assert receipt.ignored == (f"{prefix}bn1.num_batches_tracked",)
    assert (receipt.file, receipt.format) == ("net.safetensors", "safetensors")
    assert receipt.rules_name == "pytorch_resnet_cifar10"
    assert receipt.sha256 == fingerprint_of(path)
    assert receipt.notes == ((f"prefix of names: {prefix}",) if prefix else ())
    assert (loaded.spec, loaded.preprocess) == (empty.spec, empty.preprocess)


def test_a_file_with_the_leaves_names_needs_no_rules(tmp_path, model):
    jt.write_weights({"params": model.params, "stats": model.stats}, tmp_path / "a.npz")
    loaded = load_weights(build("cifar_resnet8", **OPTIONS), tmp_path / "a.npz")
    assert same(loaded, model)
    assert loaded.receipt.rules_name == "leaf names"


def test_a_users_own_network_takes_a_file_too(tmp_path):
    params = {"body": {"kernel": jnp.ones((3, 2))}, "head": {"kernel": jnp.ones((2, 2))}}
    own = jt.Model.from_function(lambda params, x: x, params)
    jt.write_weights({"params": jax.tree.map(lambda x: 2 * x, params)}, tmp_path / "a.npz")
    loaded = load_weights(own, tmp_path / "a.npz")
    assert float(loaded.params["body"]["kernel"].sum()) == 12


def test_a_part_of_a_checkpoint_is_taken_by_name(tmp_path, model, state_dict):
    flat = {f"ema/{name}": array for name, array in state_dict.items()}
    flat |= {f"model/{name}": 0 * array for name, array in state_dict.items()}
    jt.write_weights(flat, tmp_path / "a.safetensors")
    loaded = load_weights(build("cifar_resnet8", **OPTIONS), tmp_path / "a.safetensors", part="ema")
    assert same(loaded, model)
    assert "part of the file: ema" in loaded.receipt.notes
    with pytest.raises(ReferenceNotFoundError, match="its parts are ema, model"):
        load_weights(model, tmp_path / "a.safetensors", part="average")


def test_what_does_not_fit_is_told_and_nothing_is_loaded(tmp_path, state_dict):
    jt.write_weights(state_dict, tmp_path / "a.npz")
    other = build("cifar_resnet8", **{**OPTIONS, "num_classes": 5})
    with pytest.raises(MappingError, match=r"a\.npz.*found 2 problems"):
        load_weights(other, tmp_path / "a.npz")
    with pytest.raises(MappingError, match="num_batches_tracked: no rule matches"):
        load_weights(build("cifar_resnet8", **OPTIONS), tmp_path / "a.npz", ignore=())
    with pytest.raises(ModelError, match="found 'keras'"):
        load_weights(other, tmp_path / "a.npz", source="keras")


def test_leaves_go_where_they_should(tmp_path, state_dict):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    jt.write_weights(state_dict, tmp_path / "a.safetensors")
    replicated = NamedSharding(mesh, PartitionSpec())
    loaded = load_weights(
        build("cifar_resnet8", **OPTIONS), tmp_path / "a.safetensors", sharding=replicated
    )
    assert {leaf.sharding for leaf in jax.tree.leaves(loaded.params)} == {replicated}


def test_an_index_is_hashed_with_its_shards(tmp_path):
    (tmp_path / "index.json").write_text('{"weight_map": {"a": "1.npz", "b": "2.npz"}}')
    jt.write_weights({"a": np.ones(2)}, tmp_path / "1.npz")
    jt.write_weights({"b": np.ones(2)}, tmp_path / "2.npz")
    before = fingerprint_of(tmp_path / "index.json")
    (tmp_path / "beside.txt").write_text("not read")
    assert fingerprint_of(tmp_path / "index.json") == before
    jt.write_weights({"b": np.zeros(2)}, tmp_path / "2.npz")
    assert fingerprint_of(tmp_path / "index.json") != before


# Which network a file belongs to.


@pytest.fixture(scope="module")
def resnet20() -> dict[str, np.ndarray]:
    """The tensors of a CIFAR ResNet-20 with three classes, all zero."""
    model = build("cifar_resnet20", num_classes=3)
    like = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype),
        {"params": model.params, "stats": model.stats},
    )
    return jt.invert(like, model.spec.rules_for("pytorch_resnet_cifar10"))


def test_a_network_is_recognised_by_names_and_shapes(tmp_path, resnet20):
    flat = {f"module.{name}": array for name, array in resnet20.items()}
    flat["module.bn1.num_batches_tracked"] = np.asarray(1)
    jt.write_weights(flat, tmp_path / "a.npz")
    best, *others = recognise(inspect_weights(tmp_path / "a.npz"))
    assert str(best) == (
        "cifar_resnet20, num_classes=3 (rules pytorch_resnet_cifar10, prefix 'module.'; every "
        "tensor fits)"
    )
    assert best.is_exact and not any(guess.is_exact for guess in others)
    loaded = jt.load(tmp_path / "a.npz")
    assert loaded.spec.name == "cifar_resnet20" and loaded.num_classes == 3
    assert same(loaded, jt.load("cifar_resnet20", tmp_path / "a.npz"))


def test_a_network_that_almost_fits_is_named_but_not_loaded(tmp_path, resnet20):
    del resnet20["layer3.2.conv2.weight"]
    jt.write_weights(resnet20, tmp_path / "a.npz")
    best = recognise(inspect_weights(tmp_path / "a.npz"))[0]
    assert best.architecture == "cifar_resnet20" and not best.is_exact
    assert best.fitting == best.leaves - 1 == best.tensors
    assert best.likeness == best.fitting / best.leaves
    with pytest.raises(ModelError, match=r"found cifar_resnet20, num_classes=3 .*load\(NAME, FILE"):
        jt.load(tmp_path / "a.npz")


def test_other_names_are_no_network_of_the_catalog(tmp_path):
    jt.write_weights({"wte.weight": np.ones((5, 3)), "x": np.ones(2)}, tmp_path / "a.npz")
    assert recognise(inspect_weights(tmp_path / "a.npz")) == []
    with pytest.raises(ModelError, match="no network with such names"):
        jt.load(tmp_path / "a.npz")
    jt.write_weights({}, tmp_path / "b.npz")
    assert recognise(inspect_weights(tmp_path / "b.npz")) == []
