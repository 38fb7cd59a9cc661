import functools
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.data import as_array_data
from jaxtransfer.errors import (
    CheckpointError,
    DataError,
    ModelError,
    TrainingError,
)
from jaxtransfer.models import build
from jaxtransfer.models.stages import StagedNetwork
from jaxtransfer.transfer import fit_head


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
