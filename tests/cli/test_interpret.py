"""`jaxtransfer interpret` as a person and a program meet it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jaxtransfer as jt
from jaxtransfer.cli.main import main

FILES = {"report.html", "report.json", "confusion.png", "reliability.png", "most_confused.png"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network that knows the digits among other characters."""
    folder = tmp_path_factory.mktemp("model")
    model = jt.init("cifar_resnet8", in_channels=1, width=4, input_size=(8, 8), num_classes=12)
    model.with_labels(["x", *map(str, range(10)), "y"]).save(folder)
    return folder


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of the digits, as a file of arrays."""
    digits = jt.load_digits().take(np.arange(200))
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    np.savez(path, images=digits.images, labels=digits.labels)
    return path


def test_it_writes_the_page_and_prints_the_most_frequent_errors(saved, few, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["interpret", str(saved), "--data", str(few), "--top", "3", "--out", str(out)]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    told = json.loads((out / "report.json").read_text())
    assert lines[0].startswith(f"{100 * told['accuracy']:.1f} % of {told['count']} examples of 10")
    worst = told["most_confused"][0]
    assert lines[1].startswith(
        f"{worst['label']} taken for {worst['prediction']}: {worst['count']}"
    )
    assert lines[-1] == f"The page is {out / 'report.html'}"
    images = {"top_losses.png", "grad_cam.png", "nearest.png"}
    assert {path.name for path in out.iterdir()} == FILES | images

    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == told


def test_numbers_are_those_of_the_model_on_what_was_not_trained_on(saved, few, tmp_path, capsys):
    few_each = ["--per-class", "2", "--seed", "3"]
    arguments = ["interpret", str(saved), "--data", str(few), *few_each, "--out", str(tmp_path)]
    assert main([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    digits = jt.load_digits().take(np.arange(200))
    trained_on = jt.few_shot(digits.labels, 2, 3)
    assert told["count"] == (200 - len(trained_on)) / 2  # the other half is for validation
    assert np.sum(told["confusion"]) == told["count"]


@pytest.mark.slow
def test_it_runs_as_it_stands(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["interpret", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["accuracy"] > 0.6  # untrained on them; a blind guess has 0.1
    assert (tmp_path / "runs/interpret/report.html").is_file()


def test_a_model_of_other_classes_is_told(saved, tmp_path, capsys):
    for number in range(5):
        for name in ("ant", "bee"):
            folder = tmp_path / "photos" / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8), 40 * number, np.uint8)).save(folder / f"{number}.png")
    arguments = ["interpret", str(saved), "--data", str(tmp_path / "photos")]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert "found no ant, bee among its classes; fine-tune it" in capsys.readouterr().err
