import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxtransfer as jt
from jaxtransfer import hub
from jaxtransfer.data import as_array_data
from jaxtransfer.errors import (
    CheckpointError,
    DataError,
    JaxTransferError,
    MappingError,
    ModelError,
    ReferenceNotFoundError,
    TrainingError,
)
from jaxtransfer.models import build
from jaxtransfer.models.stages import StagedNetwork
from jaxtransfer.transfer import fit_head


@pytest.fixture(scope="module")
def model():
    return jt.init("cifar_resnet8", in_channels=1, width=4, input_size=(8, 8), num_classes=3)


@pytest.fixture(scope="module")
def digits():
    data = jt.load_digits()
    few = data.take(np.flatnonzero(data.labels < 3)[:60])
    return replace(few, classes=("0", "1", "2"))


class Dense(StagedNetwork):
    """Three dense stages, compiled in a moment: for what is the same with every network."""

    @property
    def stages(self) -> tuple[str, ...]:
        return ("stem", "body", "head")

    def _run(self, stage: str, x: jax.Array, train: bool) -> jax.Array:
        x = x.reshape(len(x), -1)
        x = nn.Dense(3 if stage == "head" else 64, name=stage)(x)
        return x if stage == "head" else nn.relu(x)


@pytest.fixture(scope="module")
def dense():
    init = jax.jit(functools.partial(Dense().init, train=False))
    variables = init(jax.random.key(0), jnp.ones((1, 8, 8, 1)))
    return jt.Model.from_linen(Dense(), variables, stages=Dense().stages)


def test_integer_labels_keep_a_head_that_fits(model, digits):
    data = jt.ArrayData(digits.images, digits.labels)
    assert fit_head(model, data) is model


def test_integer_labels_keep_a_larger_head_without_names(model, digits):
    data = jt.ArrayData(digits.images, np.minimum(digits.labels, 1))
    assert fit_head(model, data) is model


def test_integer_labels_replace_a_larger_head_with_names(model, digits):
    data = jt.ArrayData(digits.images, np.minimum(digits.labels, 1))
    fitted = fit_head(model.with_labels(["a", "b", "c"]), data)
    assert fitted.num_classes == 2
    assert fitted.labels is None
    assert "all rows are new" in fitted.receipt.notes[-1]


def test_integer_labels_replace_a_smaller_head(model, digits):
    data = jt.ArrayData(digits.images, digits.labels + 2)
    assert fit_head(model, data).num_classes == 5


def test_a_network_without_a_head_gets_one(digits):
    headless = build("cifar_resnet8", in_channels=1, width=4, input_size=(8, 8), num_classes=0)
    assert fit_head(headless, jt.ArrayData(digits.images, digits.labels)).num_classes == 3
    assert fit_head(headless, digits).labels == ("0", "1", "2")


def test_heads_of_several_tasks_are_not_thrown_away(model, digits):
    several = jt.replace_head(model, tasks={"a": 2, "b": 3})
    with pytest.raises(ModelError, match="found heads for a, b and labels of one task alone"):
        jt.finetune(several, digits, steps=1)


def test_numbers_are_learnt(model, digits):
    values = jt.ArrayData(digits.images, digits.labels.astype(np.float32))
    result = jt.finetune(model, values, "probe", steps=2, loss=jt.squared_error())
    assert result.model.num_classes == 1
    assert all(record["gradient_norm"] > 0 for record in result.history)


def test_an_old_head_is_kept_while_a_new_one_learns(model, digits):
    both = jt.keep_old_head(model, 3)
    old = jt.learning_without_forgetting(both, model)
    loss = jt.multi_task({"new": jt.cross_entropy()})
    examples = (digits.images, {"new": digits.labels})
    result = jt.finetune(
        both, examples, "probe", steps=2, loss=loss, regularisers=(old,), validation=examples
    )
    assert result.history[-1]["regulariser/LearningWithoutForgetting"] > 0
    assert 0 <= result.history[-1]["validation/new/accuracy"] <= 1


def test_named_classes_name_a_head_of_their_size(model, digits):
    data = replace(digits, classes=("x", "y", "z"))
    fitted = fit_head(model, data)
    assert fitted.labels == ("x", "y", "z")
    assert fitted.params is model.params


def test_named_classes_replace_a_head_of_other_names_and_reuse_rows(model, digits):
    data = replace(digits, classes=("c", "y", "a"))
    fitted = fit_head(model.with_labels(["a", "b", "c"]), data)
    kernel, old = fitted.params["head"]["kernel"], model.params["head"]["kernel"]
    np.testing.assert_array_equal(kernel[:, 0], old[:, 2])
    np.testing.assert_array_equal(kernel[:, 2], old[:, 0])
    assert "2 of 3 rows reused" in fitted.receipt.notes[-1]


def test_finetune_learns_and_leaves_the_model_as_it_was(model, digits):
    before = jt.predict(model, digits.images)
    result = jt.finetune(model, digits, plan="full", epochs=15, learning_rate=1e-2)
    accuracy = (jt.predict(result.model, digits.images).argmax(-1) == digits.labels).mean()
    assert accuracy > 0.9
    np.testing.assert_array_equal(jt.predict(model, digits.images), before)
    assert len(result.history) == 29  # 15 epochs of 60 examples in batches of 32, rounded up
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert "finetune: full; 29 steps of 32 of 60 examples" in result.model.receipt.notes[-1]


def test_what_is_frozen_is_computed_once(model, digits):
    how = {"plan": "probe", "epochs": 3, "validation": digits, "progress": False}
    found, expected = (jt.finetune(model, digits, cache=c, **how) for c in ("auto", "never"))
    assert [report.stage for report in found.cache] == ["head"] and expected.cache == ()
    for one, other in zip(found.history, expected.history, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
    assert found.model.receipt.notes == expected.model.receipt.notes


def test_names_as_labels(dense, digits):
    names = np.array(["zero", "one", "two"])[digits.labels]
    result = jt.finetune(dense, (digits.images, names), steps=2)
    assert result.model.labels == ("one", "two", "zero")


def test_a_sequence_of_plans_is_carried_out_in_order(dense, digits):
    result = jt.finetune(dense, digits, plan="lp_ft", steps=6)
    assert [record["plan"] for record in result.history] == ["lp_ft: head"] * 2 + ["lp_ft: all"] * 4
    assert [plan.name for plan in result.plans] == ["lp_ft: head", "lp_ft: all"]


def test_an_interrupted_run_resumes_to_the_same_bits(dense, digits, tmp_path):
    class Interruption(Exception):
        pass

    def interrupt(number, state):
        if number == 7:
            raise Interruption

    run = {"plan": "lp_ft", "steps": 10, "batch_size": 8, "save_every": 2}
    whole = jt.finetune(dense, digits, **run)
    with pytest.raises(Interruption):
        jt.finetune(dense, digits, **run, checkpoint_folder=tmp_path, on_step=interrupt)
    with pytest.raises(CheckpointError, match="resume it"):
        jt.finetune(dense, digits, **run, checkpoint_folder=tmp_path)
    resumed = jt.finetune(dense, digits, **run, checkpoint_folder=tmp_path, resume=True)
    assert jt.diff(resumed.model, whole.model).is_empty
    assert resumed.history == whole.history


def test_a_users_own_loss(dense, digits):
    seen = []

    def loss(outputs, batch):
        seen.append(outputs.shape)
        return outputs[:, 0] ** 2

    result = jt.finetune(dense, digits, steps=3, loss=loss)
    assert seen[0] == (32, 3)
    assert result.history[0]["loss"] > 0


def test_finetune_takes_numbers_of_numpy_and_jax(model, digits):
    run = {
        "steps": np.int64(2),
        "batch_size": np.int32(8),
        "learning_rate": jnp.float32(1e-3),
        "accumulate": np.int64(2),
        "seed": np.int64(1),
    }
    result = jt.finetune(model, digits, "probe", **run, remat="all")
    assert len(result.history) == 2
    assert "adamw at 0.001, seed 1" in result.model.receipt.notes[-1]


@pytest.mark.parametrize(
    "arguments",
    [
        {"epochs": 0},
        {"steps": 0},
        {"steps": -1},
        {"steps": 2.5},
        {"steps": 1, "plan": "lp_ft"},
        {"steps": 1, "batch_size": 8.0},
        {"steps": 5, "learning_rate": 0},
    ],
)
def test_impossible_settings_are_refused(model, digits, arguments):
    with pytest.raises(TrainingError, match="expected"):
        jt.finetune(model, digits, **arguments)


def test_data_that_is_no_pair_is_refused(model, digits):
    with pytest.raises(DataError, match="pair"):
        jt.finetune(model, digits.images)


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


def test_several_labels_an_example(dense, digits):
    rows, _ = jt.multi_hot([[label, 2] if label < 2 else [] for label in digits.labels], 3)
    run: dict[str, Any] = {"epochs": 20, "learning_rate": 1e-2, "progress": False}
    validation = (digits.images[:20], rows[:20])
    result = jt.finetune(
        dense, (digits.images, rows), targets="multi_label", validation=validation, **run
    )
    assert result.model.num_classes == 3
    right = (jt.predict(result.model, digits.images[:20]) > 0) == (rows[:20] > 0)
    assert right.mean() > 0.9
    last = result.history[-1]
    assert last["validation/accuracy"] == pytest.approx(right.mean())
    assert 0.9 < last["validation/f1"] <= 1
    data = as_array_data((digits.images, rows), targets="multi_label")
    again = jt.finetune(dense, data, loss=jt.binary_cross_entropy(), **run)
    assert jt.diff(again.model, result.model).is_empty


def test_values(dense, digits):
    values = digits.images.mean((1, 2, 3)) * 10
    run: dict[str, Any] = {"epochs": 20, "learning_rate": 1e-2, "progress": False}
    data = as_array_data((digits.images, values), targets="values")
    result = jt.finetune(dense, data, validation=data, **run)
    assert result.model.num_classes == 1
    errors = jt.predict(result.model, digits.images)[:, 0] - values
    last = result.history[-1]
    assert last["validation/loss"] == pytest.approx((errors**2).mean(), rel=1e-4)
    assert last["validation/mean_absolute_error"] == pytest.approx(np.abs(errors).mean(), rel=1e-4)
    assert last["validation/r_squared"] == pytest.approx(
        1 - (errors**2).mean() / values.var(), rel=1e-4
    )
    pair = (digits.images, values)
    for loss in (None, jt.squared_error()):
        again = jt.finetune(dense, pair, targets="values", loss=loss, **run)
        assert jt.diff(again.model, result.model).is_empty


def test_several_tasks(dense, digits):
    several = jt.replace_head(dense, tasks={"kind": ["0", "1", "2"], "ink": 1})
    labels = {"kind": digits.labels, "ink": digits.images.mean((1, 2, 3)) * 10}
    targets = {"kind": "classes", "ink": "values"}
    run: dict[str, Any] = {
        "epochs": 20,
        "learning_rate": 1e-2,
        "progress": False,
        "targets": targets,
    }
    validation = (digits.images[:20], {task: values[:20] for task, values in labels.items()})
    result = jt.finetune(several, (digits.images, labels), validation=validation, **run)
    outputs = jt.predict(result.model, digits.images[:20])
    accuracy = (outputs["kind"].argmax(-1) == digits.labels[:20]).mean()
    error = np.abs(outputs["ink"][:, 0] - labels["ink"][:20]).mean()
    last = result.history[-1]
    assert last["validation/kind/accuracy"] == pytest.approx(accuracy) and accuracy > 0.8
    assert last["validation/ink/mean_absolute_error"] == pytest.approx(error, rel=1e-4)
    assert "validation/ink/r_squared" in last and "validation/accuracy" not in last

    loss = jt.multi_task({"kind": jt.cross_entropy(), "ink": jt.squared_error()})
    again = jt.finetune(several, (digits.images, labels), loss=loss, **run)
    assert jt.diff(again.model, result.model).is_empty


def test_what_labels_are_decides_their_scores(model, digits):
    rows = np.stack([digits.labels == 0, digits.labels == 1], 1).astype(np.float32)
    data = as_array_data((digits.images, rows), targets="values")
    run: dict[str, Any] = {"plan": "probe", "steps": 1, "validation": data, "progress": False}
    scores = {
        name.removeprefix("validation/")
        for name in jt.finetune(model, data, targets="values", **run).history[-1]
        if name.startswith("validation/")
    }
    assert scores == {"loss", "mean_absolute_error", "r_squared"}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"targets": "numbers"}, DataError, "targets: expected one of classes, multi_label"),
        ({"targets": {"a": "classes"}}, DataError, "expected a dict with the tasks"),
        ({"targets": "values", "label_smoothing": 0.1}, TrainingError, "labels are no classes"),
    ],
)
def test_targets_that_do_not_fit_are_refused(model, digits, arguments, error, message):
    with pytest.raises(error, match=message):
        jt.finetune(model, (digits.images, digits.labels), steps=1, **arguments)


def test_targets_of_data_with_other_tasks_are_refused(model, digits):
    data = jt.ArrayData(digits.images, digits.labels)
    with pytest.raises(TrainingError, match="targets: expected one of classes"):
        jt.finetune(model, data, targets={"a": "classes"}, steps=1)
