from __future__ import annotations

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.data import ArrayData
from jaxtransfer.errors import DataError
from jaxtransfer.evaluate.interpret import interpret, interpret_logits
from jaxtransfer.report.interpretation import (
    calibration_blocks,
    class_table,
    summary,
    write_interpretation,
)
from jaxtransfer.report.page import Table, Text

CLASSES = ("up", "down")
NUMBERS = {"confusion.png", "most_confused.png", "reliability.png"}
IMAGES = {"top_losses.png", "nearest.png"}


def apply(params: Any, inputs: Any, start: Any = None, stop: Any = None) -> Any:
    """The mean brightness of two maps, one above the other in the image."""
    maps = inputs if start == "head" else inputs @ params["stem"]["kernel"]
    return maps if stop == "head" else maps.mean(axis=(1, 2)) @ params["head"]["kernel"]


def whole(params: Any, inputs: jax.Array) -> jax.Array:
    return apply(params, inputs)


def model_of(function: Any) -> jt.Model:
    params = {"stem": {"kernel": jnp.eye(2, 3)}, "head": {"kernel": 9 * jnp.eye(3, 2)}}
    shape = (4, 4, 2)
    return jt.Model.from_function(
        function, params, stages=("stem", "head"), input_shape=shape, labels=CLASSES
    )


@pytest.fixture(scope="module")
def data() -> ArrayData:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 20).astype(np.int32)
    images = rng.random((20, 4, 4, 2)) + 0.1 * np.eye(2)[labels][:, None, None]
    return ArrayData(images.astype(np.float32), labels, CLASSES)


def test_the_folder_has_the_page_its_pictures_and_json(data, tmp_path):
    # Grad-CAM is there where the network can begin at a stage.
    model = model_of(apply)
    found = interpret(model, data, top=3)
    paths = write_interpretation(found, tmp_path, model, data, source_data=data, title="A & B")
    names = {path.name for path in paths}
    assert names == NUMBERS | IMAGES | {"grad_cam.png", "report.html", "report.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
    page = paths[0].read_text()
    assert page.count("data:image/png;base64,") == 6 and "<h1>A &amp; B</h1>" in page
    assert summary(found).split(";")[0] in page
    assert json.loads((tmp_path / "report.json").read_text()) == found.to_dict()


def test_a_network_that_cannot_be_cut_has_no_grad_cam(data, tmp_path):
    model = model_of(whole)
    paths = write_interpretation(interpret(model, data), tmp_path, model, data)
    assert {path.name for path in paths} == NUMBERS | {"top_losses.png"} | {
        "report.html",
        "report.json",
    }


def test_numbers_alone_need_neither_model_nor_images(tmp_path):
    found = interpret_logits(np.eye(3), [0, 1, 2], ["a", "b", "c"])
    paths = write_interpretation(found, tmp_path / "new")
    assert {path.name for path in paths} == {
        "report.html",
        "report.json",
        "confusion.png",
        "reliability.png",
    }
    assert "There is no error." in summary(found)
    table, text = calibration_blocks(found)
    assert isinstance(table, Table) and len(table.rows) == 1
    assert isinstance(text, Text) and text.text.startswith("No temperature is best")


def test_tables_are_in_percent():
    found = interpret_logits([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [0, 1, 1], CLASSES)
    assert class_table(found).rows == [
        ["up", "50.0", "100.0", "66.7", "1"],
        ["down", "100.0", "50.0", "66.7", "2"],
        ["macro mean", "75.0", "75.0", "66.7", "3"],
        ["weighted mean", "83.3", "66.7", "66.7", "3"],
    ]
    assert summary(found) == (
        "66.7 % of 3 examples of 2 classes are right; macro F1 66.7 %. The most frequent error: "
        "down is taken for up, 1 times. On average the classifier is 73.1 % sure, 6.4 points more "
        "than it is right."
    )


def test_other_images_than_those_interpreted_are_told(data, tmp_path):
    model = model_of(apply)
    found = interpret(model, data)
    with pytest.raises(DataError, match="the 20 images that were interpreted, found 5"):
        write_interpretation(found, tmp_path, model, data.take(np.arange(5)))
