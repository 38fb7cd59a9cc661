import json

import numpy as np
import pytest
from PIL import Image

from jaxtransfer.errors import OutputError
from jaxtransfer.evaluate.advice import SMALL_SIMILAR, Advice
from jaxtransfer.evaluate.conditions import Check
from jaxtransfer.evaluate.metrics import Interval
from jaxtransfer.report.advice import MAJORITY, RANDOM, STAGE, write_advice


@pytest.fixture(scope="module")
def advice() -> Advice:
    return Advice(
        source="a source",
        target="digits",
        examples=1200,
        classes=10,
        checks=(
            Check("same input", True, "As large.", {"resize_factor": 1.0}),
            Check("far more source data", None, "Nobody knows.", {"source_examples": None}),
            Check("helpful features", False, "They are not.", {"probe": 0.5}),
        ),
        case=SMALL_SIMILAR,
        plan="probe",
        learning_rate=0.01,
        stage=None,
        reasons=("Train the head.", "For two reasons."),
        accuracies={
            "layer1": Interval(0.5, 0.4, 0.6),
            "head": Interval(0.9, 0.8, 1.02),
            "random weights": Interval(0.4, 0.3, 0.5),
            "majority answer": Interval(0.1, 0.1, 0.1),
        },
    )


def test_three_files_are_written(advice, tmp_path):
    paths = write_advice(advice, tmp_path / "new")
    assert [path.name for path in paths] == ["advice.json", "advice.png", "advice.html"]
    assert json.loads(paths[0].read_text()) == advice.to_dict()
    page = paths[2].read_text()
    for word in (
        "Train the head.",
        "For two reasons.",
        "Nobody knows.",
        "unknown",
        "1,200",
        "CS231n",
    ):
        assert word in page
    with Image.open(paths[1]) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    for colour in (STAGE, RANDOM, MAJORITY):
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (pixels == wanted).all(axis=1).sum() > 1000


def test_a_folder_that_cannot_be_made_is_refused(advice, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="choose another folder"):
        write_advice(advice, tmp_path / "file" / "report")
    assert (tmp_path / "file").read_text() == "mine"
