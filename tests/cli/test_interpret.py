"""`jaxtransfer interpret` as a person and a program meet it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import jaxtransfer as jt
from jaxtransfer.cli.main import main
from jaxtransfer.models import build

FILES = {"report.html", "report.json", "confusion.png", "reliability.png", "most_confused.png"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network that knows the digits among other characters."""
    folder = tmp_path_factory.mktemp("model")
    sizes = {"patch": 4, "width": 8, "depth": 1, "heads": 2, "input_size": (8, 8)}
    model = build("vit_b16", **sizes, num_classes=12)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape).astype(np.float32), model.params)
    model = replace(model, params=params)
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
    few_each = ["--per-class", "2", "--seed", "3", "--top", "3"]
    arguments = ["interpret", str(saved), "--data", str(few), *few_each, "--out", str(out)]
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

    # Of 200 digits 20 are for training, and half of the others for validation.
    assert told["count"] == np.sum(told["confusion"]) == 90


@pytest.mark.slow
def test_it_runs_as_it_stands(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["interpret", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["accuracy"] > 0.6  # untrained on them; a blind guess has 0.1
    out = tmp_path / "runs/interpret"
    assert json.loads((out / "report.json").read_text()) == told
    assert (out / "report.html").is_file()


def test_a_model_of_other_classes_is_told(saved, tmp_path, capsys):
    for number in range(5):
        for name in ("ant", "bee"):
            folder = tmp_path / "photos" / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8), 40 * number, np.uint8)).save(folder / f"{number}.png")
    arguments = ["interpret", str(saved), "--data", str(tmp_path / "photos")]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert "found no ant, bee among its classes; fine-tune it" in capsys.readouterr().err
