from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.errors import (
    FormatError,
    MappingError,
    ModelError,
    OutputError,
    ReferenceNotFoundError,
)
from jaxtransfer.formats import base
from jaxtransfer.models import build, load_model
from jaxtransfer.models import model as model_module
from jaxtransfer.surgery import BatchNorm, Dense, Dropout, LayerNorm, replace_head

OPTIONS = {"width": 2, "num_classes": 4, "input_size": (8, 8), "in_channels": 1}


def filled(seed: int) -> jt.Model:
    """A small network of the catalog with random leaves."""
    model = build("cifar_resnet8", **OPTIONS)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.random(leaf.shape), leaf.dtype), model)


@pytest.fixture(scope="module")
def first() -> jt.Model:
    return filled(1).with_labels(["a", "ä", "c", "d"])


@pytest.fixture(scope="module")
def second() -> jt.Model:
    return replace_head(filled(2), classes=["x", "y"], hidden=[Dense(3), LayerNorm()])


def same(a: jt.Model, b: jt.Model) -> bool:
    return (
        jt.diff({"p": a.params, "s": a.stats}, {"p": b.params, "s": b.stats}).is_empty
        and (a.spec, a.labels, a.preprocess, a.apply) == (b.spec, b.labels, b.preprocess, b.apply)
        and a.receipt.notes == b.receipt.notes
    )


def dense_head(model: jt.Model) -> jt.Model:
    return replace_head(model, 3, key=5)


def long_head(model: jt.Model) -> jt.Model:
    hidden = [BatchNorm(), Dropout(0.25), Dense(5), jt.Activation("gelu"), LayerNorm()]
    return replace_head(model, classes=["x", "y"], hidden=hidden)


def tasks(model: jt.Model) -> jt.Model:
    tasks: dict[str, Any] = {"species": ["x", "y"], "colour": 3}
    return replace_head(model, tasks=tasks, hidden=[BatchNorm(), Dense(2)])


def several(model: jt.Model) -> jt.Model:
    """One surgery after the other, a head over maps at last."""
    model = jt.truncate(jt.change_input_size(jt.adapt_stem(model, 3), (12, 10)), "layer2")
    return replace_head(model, classes=["x", "y"])


def positions(model: jt.Model) -> jt.Model:
    return replace_head(jt.truncate(model, "layer1"), 2, pool=False)


SURGERIES = [
    lambda model: model,
    dense_head,
    long_head,
    tasks,
    several,
    positions,
    lambda model: jt.adapt_stem(model, 3, "least_squares", colours=np.ones((3, 1))),
    lambda model: jt.truncate(model, "stem"),
]


@pytest.mark.parametrize("surgery", SURGERIES)
def test_a_model_comes_back_as_it_was(first, surgery, tmp_path):
    model = surgery(first)
    folder = model.save(tmp_path / "a" / "b")
    assert folder == tmp_path / "a" / "b"
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "receipt.json",
    ]
    loaded = load_model(folder)
    assert same(loaded, model)
    assert len(loaded.receipt.entries) == len(jax.tree.leaves(model))
    assert loaded.receipt.sha256 == json.loads((folder / "config.json").read_text())["sha256"]
    images = np.random.default_rng(0).random((2, 8, 8, 1), np.float32)
    both = jt.predict(loaded, images), jt.predict(model, images)
    jax.tree.map(np.testing.assert_array_equal, *both)
    assert same(jt.load(folder), model)


def test_a_config_of_an_earlier_version_is_read(first, tmp_path):
    path = first.save(tmp_path) / "config.json"
    config = json.loads(path.read_text())
    for key in ("in_channels", "input_size", "truncated_after", "task_heads"):
        del config[key]
    path.write_text(json.dumps(config))
    assert same(load_model(tmp_path), first)


def test_surgery_on_a_network_of_ones_own_is_done_again(tmp_path):
    module = build("cifar_resnet8", **OPTIONS).apply.module
    variables = {"params": filled(1).params, "batch_stats": filled(1).stats}
    own = jt.Model.from_linen(module, variables, input_shape=(8, 8, 1), stages=module.stages)
    own = dataclasses.replace(own, spec=dataclasses.replace(own.spec, stem="stem/conv"))
    model = several(own)
    model.save(tmp_path)
    assert same(load_model(tmp_path, own), model)
    assert same(load_model(tmp_path, model), model)


def network(params, stats, inputs, *, train=False):
    del train
    return inputs.mean((1, 2)) @ params["head"]["kernel"] + stats["shift"], stats


def test_a_network_of_ones_own_needs_the_network_again(tmp_path):
    params = {"head": {"kernel": jnp.arange(6.0).reshape(2, 3)}}
    model = jt.Model.from_function(network, params, {"shift": jnp.ones(())}, labels=["a", "b", "c"])
    model.save(tmp_path)
    with pytest.raises(ModelError, match=r"found 'network', a network of a user's own.*model="):
        load_model(tmp_path)
    zeros = jax.tree.map(jnp.zeros_like, params)
    template = jt.Model.from_function(network, zeros, {"shift": jnp.zeros(())})
    assert same(load_model(tmp_path, template), model)
    other = jt.Model.from_function(
        network, {"head": {"kernel": jnp.zeros((2, 4))}}, {"shift": jnp.zeros(())}
    )
    with pytest.raises(MappingError, match=r"~ params/head/kernel"):
        load_model(tmp_path, other)


# Damage


@pytest.fixture
def folder(first, tmp_path) -> Path:
    return first.save(tmp_path / "model")


def test_a_flipped_bit_is_found(folder):
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    with pytest.raises(FormatError, match=r"expected sha256 .* found .*damaged"):
        load_model(folder)


def test_truncated_weights_are_found(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(FormatError, match="expected sha256"):
        load_model(folder)


def test_missing_files_are_told(folder):
    (folder / "receipt.json").rename(folder / "kept")
    with pytest.raises(FormatError, match=r"receipt\.json: expected a text file"):
        load_model(folder)
    (folder / "kept").rename(folder / "receipt.json")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FormatError, match="found no such file"):
        load_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ReferenceNotFoundError, match=r"found no config\.json"):
        load_model(folder)


def test_the_weights_of_another_model_are_told(folder, second, tmp_path):
    other = second.save(tmp_path / "other")
    shutil.copy(other / "model.safetensors", folder / "model.safetensors")
    with pytest.raises(FormatError, match="belongs to another model"):
        load_model(folder)


DENSE = {"layer": "Dense", "features": 1}
ANT = {"task": "ant", "layers": [DENSE], "classes": None}
BEE = {"task": "bee", "layers": [{"layer": "Dropout", "rate": 0.5}, DENSE], "classes": None}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"architecture": "mine"}, ModelError, "expected a network of the catalog, found 'mine'"),
        ({"architecture": 3}, FormatError, "found architecture absent or of another kind"),
        ({"options": {"depth": 3}}, ModelError, "expected options among"),
        ({"options": {**OPTIONS, "width": 3}}, MappingError, "~ params/stem/conv/kernel"),
        ({"labels": "abc"}, FormatError, "found labels"),
        ({"head_layers": [{"layer": "Conv"}]}, ModelError, "found 'Conv'"),
        ({"head_layers": [{"layer": "Dense", "size": 1}]}, ModelError, "the fields of Dense"),
        ({"head_layers": [{"layer": "LayerNorm"}]}, FormatError, "last layer"),
        ({"head_layers": [3]}, ModelError, "found 3"),
        ({"preprocess": {"blur": 1}}, ModelError, "fields of Preprocess"),
        ({"labels": ["a"]}, ModelError, "expected 4 labels, found 1"),
        ({"truncated_after": 3}, FormatError, "found truncated_after absent or of another kind"),
        ({"truncated_after": "layer9"}, ModelError, "expected a stage before the head"),
        ({"input_size": [8, 0]}, ModelError, "of at least 1"),
        ({"in_channels": "3"}, FormatError, "found in_channels"),
        ({"in_channels": 3}, MappingError, "~ params/stem/conv/kernel"),
        ({"task_heads": {}}, FormatError, "found task_heads"),
        ({"task_heads": [3]}, ModelError, "task, layers and classes of each, found 3"),
        ({"task_heads": [ANT, {**BEE, "task": "a/b"}]}, ModelError, "a name without '/'"),
        ({"task_heads": [ANT, BEE]}, FormatError, "the same layers before it for all tasks"),
    ],
)
def test_a_config_that_fits_nothing_is_an_error(folder, changes, error, message):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(error, match=message):
        load_model(folder)


@pytest.mark.parametrize("text", ["", "[]", "3", "null", '{"sha256": ""}', "\udcff"])
def test_a_config_that_is_none_is_an_error(folder, text):
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(FormatError, match=r"config\.json: expected"):
        load_model(folder)


def test_a_model_without_weights_cannot_be_saved(tmp_path):
    with pytest.raises(OutputError, match="ShapeDtypeStruct"):
        build("cifar_resnet8", **OPTIONS).save(tmp_path)


def test_a_folder_that_cannot_be_made_is_an_error(first, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="expected a folder that can be written"):
        first.save(tmp_path / "file" / "model")


# A save that is cut short


class Crash(BaseException):
    """Stands for a process that ends here and now."""


def write_operations(monkeypatch, fail_at: int, error: BaseException) -> list[str]:
    """Let the n-th change of a file's name fail; return the names so far, in order."""
    renamed: list[str] = []
    original = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if len(renamed) == fail_at:
            raise error
        renamed.append(Path(target).name)
        return original(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    return renamed


ORDER = [
    "model.new.safetensors",
    "receipt.new.json",
    "config.json",
    "receipt.json",
    "model.safetensors",
]


@pytest.mark.parametrize("done", range(6))
def test_after_a_crash_the_earlier_or_the_new_model_loads(
    first, second, tmp_path, monkeypatch, done
):
    first.save(tmp_path)
    with monkeypatch.context() as patched:
        renamed = write_operations(patched, done, Crash())
        if done < len(ORDER):
            with pytest.raises(Crash):
                second.save(tmp_path)
        else:
            second.save(tmp_path)
        assert renamed == ORDER[:done]
    assert same(load_model(tmp_path), second if "config.json" in renamed else first)
    second.save(tmp_path)
    assert same(load_model(tmp_path), second)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("done", range(5))
def test_a_save_that_fails_leaves_a_model_that_loads(first, second, tmp_path, monkeypatch, done):
    first.save(tmp_path)
    with monkeypatch.context() as patched:
        renamed = write_operations(patched, done, OSError(28, "No space left on device"))
        with pytest.raises(OutputError, match="No space left on device"):
            second.save(tmp_path)
    assert same(load_model(tmp_path), second if "config.json" in renamed else first)
    if "config.json" not in renamed:
        assert len(list(tmp_path.iterdir())) == 3  # nothing is left behind


def test_what_an_earlier_crash_left_is_never_taken_for_the_model(
    first, second, tmp_path, monkeypatch
):
    first.save(tmp_path)
    with monkeypatch.context() as patched:
        write_operations(patched, 2, Crash())
        with pytest.raises(Crash):
            second.save(tmp_path)
    assert (tmp_path / "model.new.safetensors").exists()
    assert same(load_model(tmp_path), first)
    third = filled(3)
    third.save(tmp_path)
    assert same(load_model(tmp_path), third)


def test_a_failing_write_of_the_weights_leaves_the_earlier_model(
    first, second, tmp_path, monkeypatch
):
    first.save(tmp_path)

    def half_written(flat, path, metadata=None):
        def write(temporary: Path) -> None:
            temporary.write_bytes(b"half")
            raise OSError(28, "No space left on device")

        base.atomic_write(path, write)

    with monkeypatch.context() as patched:
        patched.setattr(model_module, "write_weights", half_written)
        with pytest.raises(OutputError, match="No space left"):
            second.save(tmp_path)
    assert same(load_model(tmp_path), first)
    assert len(list(tmp_path.iterdir())) == 3
