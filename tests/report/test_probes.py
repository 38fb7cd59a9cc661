from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxtransfer.errors import OutputError
from jaxtransfer.evaluate.few_shot import FewShotCurve
from jaxtransfer.evaluate.metrics import Interval
from jaxtransfer.evaluate.probing import ProbeReport
from jaxtransfer.evaluate.stages import StageProbes, StageScore
from jaxtransfer.report.probes import (
    MARKS,
    best_sentence,
    few_shot_table,
    plot_few_shot,
    plot_stages,
    write_probe_report,
)

ACCURACIES = {"ridge": Interval(0.9, 0.85, 0.95), "mean": Interval(0.8, 0.7, 0.9)}
CURVES = tuple(
    FewShotCurve(name, (1, 5), ((0.5, 0.6), (0.7 + i / 10,)), 40) for i, name in enumerate(MARKS)
)
STAGES = StageProbes(
    "ridge",
    (
        StageScore("layer1", 8, Interval(0.6, 0.5, 0.7)),
        StageScore("head", 16, Interval(0.92, 0.8, 0.97)),
    ),
)
REPORT = ProbeReport("a source", "a target", 60, 40, ACCURACIES, CURVES, STAGES)


def colours_of(path: Path) -> dict[tuple[int, ...], int]:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    colours, counts = np.unique(pixels, axis=0, return_counts=True)
    return {tuple(c.tolist()): int(n) for c, n in zip(colours, counts, strict=True)}


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def test_every_file_is_written(tmp_path):
    paths = write_probe_report(REPORT, tmp_path / "new")
    names = ["report.json", "few_shot.png", "stages.png", "report.html"]
    assert [path.name for path in paths] == names
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(names)
    assert json.loads(paths[0].read_text()) == json.loads(json.dumps(REPORT.to_dict()))
    page = paths[-1].read_text()
    assert "90.0 % (85.0 to 95.0)" in page and page.count("data:image/png") == 2


def test_without_stages_there_is_one_picture(tmp_path):
    report = ProbeReport("a source", "a target", 60, 40, ACCURACIES, CURVES)
    paths = write_probe_report(report, tmp_path)
    assert [path.name for path in paths] == ["report.json", "few_shot.png", "report.html"]
    assert "stage" not in best_sentence(report)


def test_the_best_are_named():
    assert best_sentence(REPORT) == (
        "Ridge regression reaches 90.0 % (85.0 to 95.0) on 40 test examples of a target, fitted to "
        "the features of 60 others. Of all stages, what enters head serves ridge regression best: "
        "92.0 % (80.0 to 97.0)."
    )


def test_the_table_has_half_the_interval_where_there_is_one():
    header, rows = few_shot_table(REPORT)
    assert header == ("per class", *MARKS)
    assert rows[0][:2] == ("1", "55.0 ± 63.5") and rows[1] == ("5", "70.0", "80.0", "90.0", "100.0")


def test_each_curve_is_drawn_in_its_colour(tmp_path):
    plot_few_shot(CURVES, tmp_path / "curves.png")
    there = colours_of(tmp_path / "curves.png")
    for colour, _ in MARKS.values():
        assert there.get(rgb(colour), 0) > 200


def test_the_best_stage_stands_out(tmp_path):
    plot_stages(STAGES, tmp_path / "stages.png")
    there = colours_of(tmp_path / "stages.png")
    best, other = there.get(rgb("#0072B2"), 0), there.get(rgb("#8FB8D4"), 0)
    assert best / other == pytest.approx(0.92 / 0.6, rel=0.1)


def test_what_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        write_probe_report(REPORT, tmp_path / "file" / "report")
