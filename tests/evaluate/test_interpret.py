from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.data import ArrayData
from jaxtransfer.errors import DataError, ModelError
from jaxtransfer.evaluate.calibration import calibration
from jaxtransfer.evaluate.confusion import class_scores, confusion_matrix, most_confused
from jaxtransfer.evaluate.interpret import interpret, interpret_logits, with_classes
from jaxtransfer.evaluate.temperature import temperature_scaling
from jaxtransfer.evaluate.top_losses import top_losses

CLASSES = ("ant", "bee", "cow")


def scale(params: Any, inputs: jax.Array) -> jax.Array:
    return inputs.reshape(len(inputs), -1) @ params["head"]["kernel"]


@pytest.fixture(scope="module")
def model() -> jt.Model:
    """A network whose logits are the three pixels of an image, four times as bright."""
    params = {"head": {"kernel": 4 * jnp.eye(3)}}
    return jt.Model.from_function(scale, params, input_shape=(1, 3, 1), labels=CLASSES)


@pytest.fixture(scope="module")
def data() -> ArrayData:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 30).astype(np.int32)
    images = rng.normal(size=(30, 1, 3, 1)) + 0.7 * np.eye(3)[labels].reshape(30, 1, 3, 1)
    return ArrayData(images.astype(np.float32), labels, CLASSES)


def test_everything_is_of_one_forward_pass(model, data):
    found = interpret(model, data, top=4, bins=5)
    logits = 4 * data.images.reshape(30, 3)
    np.testing.assert_allclose(found.logits, logits, rtol=1e-5)
    np.testing.assert_array_equal(found.labels, data.labels)
    matrix = confusion_matrix(logits, data.labels)
    np.testing.assert_array_equal(found.confusion, matrix)
    assert found.scores.macro == pytest.approx(class_scores(matrix).macro)
    assert found.most_confused == most_confused(matrix, CLASSES, 4)
    worst = top_losses(found.logits, data.labels, 4)
    np.testing.assert_array_equal(found.top_losses.indices, worst.indices)
    assert found.temperature == pytest.approx(temperature_scaling(logits, data.labels), rel=1e-5)
    after = calibration(logits / found.temperature, data.labels, bins=5)
    assert found.calibrated is not None
    assert found.calibrated.expected_calibration_error == pytest.approx(
        after.expected_calibration_error, abs=1e-5
    )
    assert found.calibrated.negative_log_likelihood < found.calibration.negative_log_likelihood
    assert found.classes == CLASSES


def test_it_is_json(model, data):
    told = interpret(model, data, top=2).to_dict()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["count"] == 30 and np.sum(told["confusion"]) == 30
    assert [entry["class"] for entry in told["classes"]] == list(CLASSES)
    first = told["top_losses"][0]
    assert first["label"] == CLASSES[data.labels[first["index"]]] != first["prediction"]
    assert len(told["top_losses"]) == len(told["most_confused"]) == 2


def test_without_an_error_there_is_no_temperature(model):
    images = np.eye(3, dtype=np.float32).reshape(3, 1, 3, 1)
    found = interpret(model, (images, np.arange(3)))
    assert (found.temperature, found.calibrated, found.most_confused) == (None, None, ())
    assert found.scores.accuracy == 1
    assert found.to_dict()["calibrated"] is None


def test_an_output_for_the_background_is_no_label(model, data):
    offset = replace(model, preprocess=replace(model.preprocess, label_offset=1))
    shifted = ArrayData(data.images, np.maximum(data.labels - 1, 0), CLASSES[1:])
    found = interpret(offset, shifted)
    np.testing.assert_array_equal(found.labels, np.maximum(data.labels, 1))
    assert found.classes == CLASSES and found.scores.support[0] == 0


def test_logits_from_elsewhere_have_classes_with_numbers_for_names():
    found = interpret_logits([[1.0, 0.0], [1.0, 0.0]], [0, 1])
    assert found.classes == ("0", "1")
    assert found.most_confused[0].label == "1"


def test_known_classes_are_chosen_by_their_rows(model, data):
    chosen = with_classes(model, ["cow", "ant"])
    assert chosen.labels == ("cow", "ant")
    np.testing.assert_allclose(
        jt.predict(chosen, data), jt.predict(model, data)[:, [2, 0]], atol=1e-6
    )
    assert with_classes(model, CLASSES) is model
    assert with_classes(model, None) is model


def test_classes_that_are_not_known_are_told(model, data):
    with pytest.raises(ModelError, match="no dog among its classes; fine-tune it"):
        with_classes(model, ["ant", "dog"])
    headed = jt.replace_head(staged(), classes=CLASSES, hidden=[jt.Dense(2)])
    with pytest.raises(ModelError, match="a head without rows"):
        with_classes(headed, ["ant"])
    other = ArrayData(data.images, data.labels, ("cow", "bee", "ant"))
    with pytest.raises(DataError, match=r"model's classes ant, bee, cow, found cow, bee, ant"):
        interpret(model, other)


def staged() -> jt.Model:
    def apply(params: Any, inputs: Any, start: Any = None, stop: Any = None) -> jax.Array:
        x = inputs if start == "head" else inputs.reshape(len(inputs), -1) @ params["body"]
        return x if stop == "head" else x @ params["head"]["kernel"]

    params = {"body": jnp.eye(3), "head": {"kernel": jnp.eye(3)}}
    return jt.Model.from_function(apply, params, input_shape=(1, 3, 1))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (slice(0, 0), [], "expected images of shape"),
        (slice(0, 2), [0, 3], r"labels from 0 and below 3.*found \[3\]"),
        (slice(0, 2), [0.5, 1.0], "integers from 0"),
    ],
)
def test_data_that_do_not_fit_are_told(model, data, images, labels, message):
    with pytest.raises(DataError, match=message):
        interpret(model, (data.images[images], np.array(labels)))


def test_labels_of_other_kinds_are_told(model, data):
    several = ArrayData(data.images, np.eye(3, dtype=np.float32)[data.labels], CLASSES)
    with pytest.raises(DataError, match="one class an example"):
        interpret(model, several)


def test_logits_that_are_not_finite_are_told(model, data):
    broken = replace(model, params={"head": {"kernel": jnp.full((3, 3), jnp.nan)}})
    with pytest.raises(DataError, match="NaN or infinity in 30 of 30 rows"):
        interpret(broken, data)
