"""`jaxtransfer rank` and `jaxtransfer advise`, as they stand and on files."""

import json

import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.cli.main import main
from jaxtransfer.cli.rank import _names_of


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Handwritten digits of three classes in a file."""
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    digits = jt.load_digits()
    few = digits.take(np.flatnonzero(digits.labels < 3)[:90])
    np.savez(path, images=few.images, labels=few.labels)
    return str(path)


def test_rank_prints_the_table_and_writes_the_report(tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["rank", "--scores", "logme", "leep", "--resamples", "2", "--per-class", "3"]
    assert main([*arguments, "--out", str(out)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for word in ("LogME", "random weights", "No LEEP for 3 sources", "comes out first"):
        assert word in printed
    report = json.loads((out / "ranking.json").read_text())
    assert report["candidates"] == [
        "checkpoints/glyphs",
        *(f"checkpoints/glyphs up to {stage}" for stage in ("stem", "layer1", "layer2")),
        "random weights",
    ]
    assert report["best"] == "checkpoints/glyphs"
    assert {path.name for path in out.iterdir()} == {
        "ranking.json",
        "ranks.png",
        "agreement.png",
        "ranking.html",
    }


def test_rank_json_is_the_report_and_nothing_else(data, tmp_path, capsys):
    arguments = ["rank", "checkpoints/glyphs", "--data", data, "--scores", "knn", "--json"]
    assert main([*arguments, "--resamples", "0", "--out", str(tmp_path)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "ranking.json").read_text())
    assert printed["candidates"] == ["checkpoints/glyphs", "random weights"]
    assert (printed["target"], printed["examples"]) == (data, 60)


def test_advise_prints_sentences_and_writes_the_report(tmp_path, capsys):
    assert main(["advise", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("checkpoints/glyphs to handwritten digits: Train a linear classifier")
    assert "far more source data: yes. 256,000 images" in printed
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"advice.json", "advice.png", "advice.html"}


def test_advise_json_is_the_report_and_nothing_else(data, tmp_path, capsys):
    arguments = ["advise", "--data", data, "--source-examples", "20", "--json"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "advice.json").read_text())
    assert printed["target"] == data and printed["classes"] == 3
    assert printed["checks"][1]["met"] is False  # 20 against 15


@pytest.mark.parametrize("command", ["rank", "advise"])
def test_bad_input_gives_a_message_and_status_2(command, tmp_path, capsys):
    source = ["nowhere"] if command == "rank" else ["--source", "nowhere"]
    assert main([command, *source, "--out", str(tmp_path)]) == 2
    assert "nowhere: expected a path that exists" in capsys.readouterr().err


def test_files_go_by_their_names_where_these_differ(tmp_path):
    files = [tmp_path / folder / f"{folder}.h5" for folder in ("one", "two")]
    for file in files:
        file.parent.mkdir()
        file.touch()
    given = [*map(str, files), "checkpoints/glyphs"]
    assert _names_of(given) == ["one.h5", "two.h5", "checkpoints/glyphs"]
    again = tmp_path / "one.h5"
    again.touch()
    assert _names_of([str(files[0]), str(again)]) == [str(files[0]), str(again)]
