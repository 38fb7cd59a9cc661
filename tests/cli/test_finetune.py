"""`jaxtransfer finetune` with data of all kinds and with each of its options."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import jaxtransfer as jt
from jaxtransfer.cli.main import main
from jaxtransfer.train.saved import load_checkpoint
from jaxtransfer.transfer import fit_head

CLASSES = ("dark", "light")
# Of the networks of the catalog one that compiles quickly.
SMALL: dict[str, Any] = {"patch": 8, "width": 8, "depth": 1, "heads": 1, "input_size": (8, 8)}


def for_images_of_any_size(model: jt.Model, folder: Path) -> Path:
    """The folder, with the network in it."""
    replace(model, preprocess=replace(model.preprocess, size=(8, 8))).save(folder)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network for grey images of any size, without names of classes."""
    model = jt.init("vit_ti16", **SMALL, in_channels=1, num_classes=5)
    return for_images_of_any_size(model, tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def convolutional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with convolutions and running averages."""
    model = jt.init("cifar_resnet8", in_channels=1, width=4, input_size=(8, 8), num_classes=5)
    return for_images_of_any_size(model, tmp_path_factory.mktemp("convolutional"))


def draw(folder: Path, count: int, seed: int) -> list[tuple[str, int]]:
    """Noisy images `class/number.jpg` of two classes and many sizes; their paths and classes."""
    rng = np.random.default_rng(seed)
    rows = []
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            image = rng.integers(0, 80, (12 + number, 10)) + 150 * label
            path = folder / name / f"{number}.jpg"
            Image.fromarray(image.astype(np.uint8)).save(path)
            rows.append((f"{name}/{number}.jpg", label))
    return rows


def arguments(source: Path, data: Path | str, out: Path, *more: str) -> list[str]:
    sizes = ("--steps", "6", "--batch-size", "4", "--arm", "full", "--devices", "1")
    where = ("--source", str(source), "--data", str(data), "--out", str(out))
    return ["finetune", *where, *sizes, *more]


def trained(command: Sequence[str], capsys: pytest.CaptureFixture[str]) -> dict:
    """What the command prints as JSON; there is nothing else on standard output."""
    status = main([*command, "--json"])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return json.loads(captured.out)


def test_what_is_frozen_is_computed_once(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(tmp_path / "data" / "train", 4, seed=0)
    draw(tmp_path / "data" / "test", 2, seed=1)
    command = arguments(source, tmp_path / "data", tmp_path / "out", "--arm", "probe")
    (report,) = trained(command, capsys)["cache"]
    assert report["stage"] == "head" and report["bytes"] > 0 and report["seconds"] > 0
    command = arguments(source, tmp_path / "data", tmp_path / "again", "--arm", "probe")
    assert main(command) == 0
    assert "probe: what enters head computed once in" in capsys.readouterr().out
    never = arguments(source, tmp_path / "data", tmp_path / "never", "--arm", "probe")
    assert trained([*never, "--cache", "never"], capsys)["cache"] == []


def rows_of(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_with_splits_trains_and_a_moving_average_is_the_model(source, tmp_path, capsys):
    for seed, part in enumerate(("train", "val", "test")):
        draw(tmp_path / "data" / part, 4, seed)
    out = tmp_path / "out"
    more = ("--ema-decay", "0.5", "--augment", "standard", "--log", "csv", "jsonl")
    result = trained(arguments(source, tmp_path / "data", out, *more), capsys)
    assert result["model"] == str(out) and 0 <= result["end"] <= 1
    assert "6 steps of 4 of 8 examples" in result["notes"][-1]

    saved = jt.load(out)
    assert saved.labels == CLASSES
    start = fit_head(jt.load(source), jt.image_folder(tmp_path / "data", split="train"))
    averaged, last = (
        load_checkpoint(out / "checkpoints", start, average=average) for average in (True, False)
    )
    assert jt.diff(saved.params, averaged.params).is_empty
    assert not jt.diff(saved.params, last.params).is_empty

    table = rows_of(out / "history.csv")
    lines = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert [int(row["step"]) for row in table] == [line["step"] for line in lines] == [*range(1, 7)]
    assert [float(row["loss"]) for row in table] == [line["loss"] for line in lines]
    assert [line["step"] for line in lines if "validation/accuracy" in line] == [2, 4, 6]


def test_a_folder_of_classes_is_cut_and_few_images_of_it_are_taken(source, tmp_path, capsys):
    draw(tmp_path / "data", 10, 0)
    assert main(arguments(source, tmp_path / "data", tmp_path / "out", "--per-class", "3")) == 0
    text = capsys.readouterr().out
    assert "6 steps of 4 of 6 examples" in text
    shown = [100 * right / 4 for right in range(5)]  # a fifth of 10 images of each class
    assert any(f"before, {percent:.1f} % after" in text for percent in shown)
    assert text.endswith(f"try: jaxtransfer predict {tmp_path / 'out'}\n")


def test_a_table_trains_with_other_optimizer_schedule_and_precision(
    convolutional, tmp_path, capsys
):
    rows = draw(tmp_path / "images", 5, 0)
    lines = ["image,label", *(f"images/{path},{CLASSES[label]}" for path, label in rows)]
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    how = ("--optimizer", "lion", "--schedule", "constant", "--precision", "bfloat16")
    command = arguments(
        convolutional,
        tmp_path / "table.csv",
        tmp_path / "out",
        *how,
        "--accumulate",
        "2",
        "--log",
        "csv",
    )
    result = trained([*command, "--learning-rate", "0.001"], capsys)
    assert "lion at 0.001" in result["notes"][-1]
    assert "6 steps of 4 of 8 examples" in result["notes"][-1]
    assert len(rows_of(tmp_path / "out" / "history.csv")) == 6
    saved = jt.load(tmp_path / "out")
    assert saved.labels == CLASSES
    assert saved.params["head"]["kernel"].dtype == np.float32


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few images in a file of arrays, with names of classes."""
    rng = np.random.default_rng(0)
    labels = np.arange(24) % 2
    images = rng.random((24, 8, 8, 1)) * 0.4 + 0.5 * labels[:, None, None, None]
    path = tmp_path_factory.mktemp("arrays") / "images.npz"
    np.savez(path, images=images.astype(np.float32), labels=labels, classes=np.array(CLASSES))
    return path


def test_without_gain_a_sharded_run_stops_when_patience_ends(source, arrays, tmp_path, capsys):
    devices = ("--fsdp", "2", "--tensor", "2", "--devices", "4")
    stop = ("--patience", "1", "--learning-rate", "1e-30", "--weight-decay", "0")
    command = arguments(source, arrays, tmp_path, *devices, *stop, "--log", "csv")
    result = trained([*command, "--batch-size", "8"], capsys)
    assert result["end"] == pytest.approx(result["start"])
    assert jt.load(tmp_path).labels == CLASSES
    table = rows_of(tmp_path / "history.csv")
    assert [bool(row["validation/loss"]) for row in table] == [False, True, False, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ema-decay", "1"], "ema_decay from 0, below 1, or None, found 1.0"),
        (["--weight-decay", "-1"], "weight_decay of at least 0, found -1.0"),
        (["--learning-rate", "inf"], "learning_rate above 0, found inf"),
        (["--accumulate", "3"], "accumulate"),
        (["--devices", "9"], "--devices: expected at most 8, as there are, found 9"),
        (["--fsdp", "3", "--devices", "8"], "fsdp 3 x tensor 1 = 3 for 8 devices"),
        (
            ["--fsdp", "2", "--devices", "8", "--batch-size", "3"],
            "batch: 3 rows for 8 groups of devices",
        ),
        (["--processes", "2"], "expected coordinator, process_id too"),
        (["--coordinator", "here", "--processes", "2", "--process-id", "2"], "as host:port"),
        (["--per-class", "0"], "per_class from 1"),
        (["--per-class", "12"], "lower per_class"),
    ],
)
def test_a_bad_value_gives_its_message_alone(options, message, source, arrays, tmp_path, capsys):
    assert main(arguments(source, arrays, tmp_path / "out", *options)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("jaxtransfer finetune: ") and message in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("option", ["--seed", "--process-id"])
def test_a_number_below_0_is_refused_by_the_parser(option, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["finetune", option, "-1"])
    assert stop.value.code == 2
    assert f"argument {option}: expected a number from 0, found -1" in capsys.readouterr().err


def test_data_that_is_not_there_or_does_not_fit_gives_a_message(source, tmp_path, capsys):
    draw(tmp_path / "data", 5, 0)
    (tmp_path / "empty").mkdir()
    (tmp_path / "no.csv").write_text("file,kind\na.jpg,b\n")
    plain = tmp_path / "plain"
    model = jt.load(source)
    replace(model, preprocess=replace(model.preprocess, size=None)).save(plain)
    for data, more, message in (
        (tmp_path / "empty", (), "empty"),
        (tmp_path / "no.csv", (), "a column 'image'"),
        (tmp_path / "missing.csv", (), "missing.csv"),
        ("tfds:no_such_set", (), "no_such_set"),
        (tmp_path / "data", ("--patience", "2"), "validation"),
        (tmp_path / "data", ("--source", str(plain)), "size"),
        (tmp_path / "data", ("--source", str(plain), "--augment", "strong"), "size"),
    ):
        assert main(arguments(source, data, tmp_path / "out", *more)) == 2, data
        captured = capsys.readouterr()
        assert message in captured.err and captured.out == "", captured.err
        assert "Traceback" not in captured.err
