"""`jaxtransfer probe` as a person and a program meet it."""

import json
from typing import Any

import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.cli.main import main

# Of the networks of the catalog one that compiles quickly.
SMALL: dict[str, Any] = {"patch": 8, "width": 8, "depth": 1, "heads": 1, "input_size": (8, 8)}


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """A small source and few digits."""
    folder = tmp_path_factory.mktemp("probe")
    model = jt.init("vit_ti16", **SMALL, in_channels=1, num_classes=3)
    model.save(folder / "model")
    digits = jt.load_digits()
    few = digits.take(np.flatnonzero(digits.labels < 3))
    np.savez(folder / "digits.npz", images=few.images, labels=few.labels)
    data = ["--source", str(folder / "model"), "--data", str(folder / "digits.npz")]
    return ["probe", *data, "--methods", "ridge", "mean", "--draws", "2"]


def test_the_tables_are_printed_and_the_files_written(arguments, tmp_path, capsys):
    assert main([*arguments, "--stages", "--per-class", "6", "--out", str(tmp_path)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for word in ("ridge regression", "nearest class mean", "per class", "block0", "report.html"):
        assert word in out
    names = {"report.json", "few_shot.png", "stages.png", "report.html"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_json_is_the_report_and_nothing_else(arguments, tmp_path, capsys):
    assert main([*arguments, "--json", "--out", str(tmp_path)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "report.json").read_text())
    assert list(printed["accuracies"]) == ["ridge", "mean"] and printed["stages"] is None
    assert printed["train_count"] == 15


def test_too_many_examples_a_class_are_refused(arguments, tmp_path, capsys):
    assert main([*arguments, "--per-class", "100000", "--out", str(tmp_path)]) == 2
    assert "found 100000" in capsys.readouterr().err
