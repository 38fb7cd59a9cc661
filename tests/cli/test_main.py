"""The command line as a person and a program meet it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import jaxtransfer as jt
from jaxtransfer.cli.main import COMMANDS, main

ROOT = Path(__file__).parents[2]
# Of the networks of the catalog one that compiles quickly.
SMALL: dict[str, Any] = {"patch": 8, "width": 8, "depth": 1, "heads": 1, "input_size": (8, 8)}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A small source model and a target that is quick to train on."""
    folder = tmp_path_factory.mktemp("source")
    model = jt.init("vit_ti16", **SMALL, in_channels=1, num_classes=3)
    model.with_labels(["0", "1", "x"]).save(folder / "model")
    digits = jt.load_digits()
    few = digits.take(np.flatnonzero(digits.labels < 3))
    np.savez(folder / "digits.npz", images=few.images, labels=few.labels)
    return folder


def common(source: Path) -> list[str]:
    return ["--source", str(source / "model"), "--data", str(source / "digits.npz")]


def compare_arguments(source: Path, out: Path) -> list[str]:
    sizes = ["--steps", "4", "--seeds", "2", "--per-class", "2", "--batch-size", "4"]
    return ["compare", *common(source), *sizes, "--learning-rates", "0.01", "--out", str(out)]


def sweep_arguments(source: Path, out: Path, *more: str) -> list[str]:
    sizes = ["--steps", "4", "--per-class", "3", "--batch-size", "4", "--seed", "0"]
    return ["sweep", *common(source), *sizes, "--lr", "0.01", "0.1", "--out", str(out), *more]


def finetune_arguments(source: Path, out: Path, *more: str) -> list[str]:
    sizes = ["--steps", "8", "--batch-size", "4", "--save-every", "2", "--devices", "1"]
    return ["finetune", *common(source), *sizes, "--out", str(out), *more]


def test_compare_prints_the_table_and_the_verdict(source, tmp_path, capsys):
    assert main(compare_arguments(source, tmp_path / "out")) == 0
    out = capsys.readouterr().out
    for word in ("naive", "scratch", "probe", "full", "lp_ft", "start", "slope", "asymptote"):
        assert word in out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["verdict"].split()[0] in " ".join(out.split())
    assert (tmp_path / "out" / "curves.png").stat().st_size > 10_000
    assert (tmp_path / "out" / "report.md").read_text().startswith("# Does transfer help?")
    assert (tmp_path / "out" / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert "cost of one run" in out and "GFLOP" in out


def test_sweep_prints_the_table_and_writes_the_report_and_the_best_model(source, tmp_path, capsys):
    assert main(sweep_arguments(source, tmp_path / "out", "--halving", "2")) == 0
    out = capsys.readouterr().out
    assert "learning rate  weight decay  accuracy" in out and "4 configurations: best" in out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"sweep.json", "sweep.png", "sweep.html", "model"}
    assert [r["steps"] for r in json.loads((tmp_path / "out" / "sweep.json").read_text())["rungs"]]
    assert jt.load(tmp_path / "out" / "model").labels == ("0", "1", "2")


def test_sweep_json_is_the_report_and_nothing_else(source, tmp_path, capsys):
    assert main(sweep_arguments(source, tmp_path, "--json", "--weight-decay", "0.1")) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [one["learning_rate"] for one in printed["configurations"]] == [0.01, 0.1]
    assert 0 <= printed["test_accuracy"] <= 1 and printed["best"]["weight_decay"] == 0.1


def test_sweep_tells_what_is_wrong_with_its_lists(source, tmp_path, capsys):
    arguments = sweep_arguments(source, tmp_path, "--label-smoothing", "1.5", "--lr", "0.1", "0.1")
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "expected each value once" in error and "found 1.5" in error


def test_compare_json_is_the_report_and_nothing_else(source, tmp_path, capsys):
    assert main([*compare_arguments(source, tmp_path), "--json", "--arms", "naive", "probe"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "report.json").read_text())
    assert list(printed["arms"]) == ["naive", "probe"]


@pytest.fixture(scope="module")
def folder_of_images(source):
    """Digits as image files, in the parts train and val."""
    arrays = np.load(source / "digits.npz")
    for part, first, last in (("train", 0, 24), ("val", 24, 36)):
        for number in range(first, last):
            label = int(arrays["labels"][number])
            path = source / "images" / part / str(label) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = np.uint8(255 * arrays["images"][number, ..., 0])
            Image.fromarray(image).resize((11, 11)).save(path)
    return source / "images"


def test_compare_takes_a_folder_of_images(source, folder_of_images, tmp_path, capsys):
    arguments = ["compare", "--source", str(source / "model"), "--data", str(folder_of_images)]
    arguments += ["--epochs", "0.5", "--batch-size", "4", "--seeds", "2", "--out", str(tmp_path)]
    arguments += ["--learning-rates", "0.01", "--arms", "naive", "last(2)", "--image-size", "8"]
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["examples"] == {"train": 24, "validation": 0, "test": 12}
    assert report["evaluated_at"][-1] == 3 and report["budget"]["per_class"] is None
    assert report["arms"]["last(2)"]["plan"] == "last(2)"
    assert report["target"] == str(folder_of_images)


def test_finetune_saves_a_model_that_predict_uses(source, tmp_path, capsys):
    assert main(finetune_arguments(source, tmp_path / "out", "--arm", "probe", "--json")) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["model"] == str(tmp_path / "out")
    assert "2 of 3 rows reused" in result["notes"][0]
    model = jt.load(tmp_path / "out")
    assert model.labels == ("0", "1", "2")
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "receipt.json", "checkpoints"} <= files

    image = np.uint8(255 * jt.load_digits().images[0, ..., 0])
    Image.fromarray(image).save(tmp_path / "zero.png")
    assert main(["predict", str(tmp_path / "out"), str(tmp_path / "zero.png"), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)[0]
    logits = jt.predict(model, image[None, ..., None])[0]
    assert max(answer["classes"], key=answer["classes"].get) == model.labels[logits.argmax()]
    assert sum(answer["classes"].values()) == pytest.approx(1, abs=1e-5)


def test_finetune_from_scratch_shares_nothing_with_the_source(source, tmp_path, capsys):
    assert main(finetune_arguments(source, tmp_path, "--arm", "scratch", "--seed", "1")) == 0
    assert "Test accuracy" in capsys.readouterr().out
    kernel = jt.load(tmp_path).params["embed"]["patch"]["kernel"]
    old = jt.load(source / "model").params["embed"]["patch"]["kernel"]
    assert np.abs(kernel - old).max() > 0.1


@pytest.mark.parametrize(
    "sent", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_an_ended_finetune_resumes_to_the_same_bits(sent, source, tmp_path):
    command = [sys.executable, "-m", "jaxtransfer.cli.main"]
    long_run = finetune_arguments(source, tmp_path / "ended", "--arm", "lp_ft")
    long_run[long_run.index("--steps") + 1] = "120"
    long_run[long_run.index("--save-every") + 1] = "10"
    process = subprocess.Popen(
        [*command, *long_run, "--json"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    checkpoints = tmp_path / "ended" / "checkpoints"
    deadline = time.monotonic() + 120
    while not any(path.name.isdigit() for path in checkpoints.glob("*")):
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(sent)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == (0 if sent == signal.SIGTERM else -signal.SIGKILL)
    if sent == signal.SIGTERM:
        told = json.loads(out)
        assert told == {"model": None, "checkpoints": str(checkpoints), "step": told["step"]}
        assert 10 <= told["step"] < 120 and (checkpoints / str(told["step"])).is_dir()
        assert f"saved after step {told['step']}" in errors.decode()
        assert errors.decode().endswith("go on with the same command and --resume\n")
    assert not (tmp_path / "ended" / "config.json").exists()
    assert main([*long_run, "--resume"]) == 0

    assert main([*long_run, "--out", str(tmp_path / "whole")]) == 0
    resumed, whole = jt.load(tmp_path / "ended"), jt.load(tmp_path / "whole")
    assert jt.diff((resumed.params, resumed.stats), (whole.params, whole.stats)).is_empty


def test_a_second_run_into_the_same_folder_is_refused(source, tmp_path, capsys):
    arguments = finetune_arguments(source, tmp_path, "--arm", "probe")
    assert main(arguments) == 0
    saved = (tmp_path / "config.json").read_bytes()
    assert main(arguments) == 2
    assert "resume it, or choose another folder" in capsys.readouterr().err
    assert (tmp_path / "config.json").read_bytes() == saved


def test_pretrain_writes_nothing_that_is_not_worth_it(tmp_path, capsys):
    arguments = ["pretrain", "--width", "4", "--steps", "1", "--batch-size", "4"]
    assert main([*arguments, "--learning-rate", "1e-6", "--out", str(tmp_path / "out")]) == 2
    assert "naive classifier" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_models_lists_checkpoints_and_networks(capsys):
    assert main(["models", "cifar_resnet8", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [model["name"] for model in listed["checkpoints"]] == ["checkpoints/glyphs"]
    assert [model["name"] for model in listed["networks"]] == ["cifar_resnet8"]
    assert main(["models", "cifar_resnet8"]) == 0
    assert "checkpoints/glyphs" in capsys.readouterr().out


def test_predict_runs_as_it_stands(capsys):
    assert main(["predict"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("handwritten 0")


def test_predict_says_that_it_prints_one_head(source, tmp_path, capsys):
    jt.replace_head(jt.load(source / "model"), tasks={"a": 2, "b": 3}).save(tmp_path)
    assert main(["predict", str(tmp_path)]) == 2
    assert "found heads for the tasks a, b" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "--source", "nowhere"], "nowhere: expected a path that exists"),
        (["compare", "--out", "README.md/x"], "expected a folder that can be written"),
        (["finetune", "--data", "README.md"], "README.md"),
        (["finetune", "--per-class", "100000"], "found 100000"),
        (["predict", "checkpoints/glyphs", "pyproject.toml"], "expected an image file"),
        (["predict", "docs"], "docs: expected weights in its main folder, found none"),
    ],
)
def test_bad_input_gives_a_message_and_status_2(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    if "--out" not in arguments and arguments[0] != "predict":
        arguments = [*arguments, "--out", str(tmp_path)]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith(f"jaxtransfer {arguments[0]}: ")
    assert "Traceback" not in captured.err and captured.out == ""


@pytest.mark.parametrize("arguments", [[], ["compare", "--seeds", "0"], ["compare", "--arms", "x"]])
def test_what_the_parser_refuses_has_status_2_too(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: jaxtransfer" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_describes_every_option(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "usage: jaxtransfer" in text
    assert "--json" in text


def test_the_module_runs_as_a_program():
    run = subprocess.run(
        [sys.executable, "-m", "jaxtransfer.cli.main", "--version"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ,
    )
    assert run.returncode == 0
    assert run.stdout.startswith("jaxtransfer ")


def test_what_a_command_compiles_is_kept_where_it_is_told(source, tmp_path):
    folder = tmp_path / "cache"
    arguments = finetune_arguments(source, tmp_path / "out", "--compilation-cache", str(folder))
    run = subprocess.run(
        [sys.executable, "-m", "jaxtransfer.cli.main", *arguments], cwd=ROOT, check=False
    )
    assert run.returncode == 0
    assert any("step" in file.name for file in folder.iterdir())
