"""The examples run, and show what they say."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_finetune_your_own_is_short_and_transfer_helps(capsys):
    path = ROOT / "examples" / "finetune_your_own.py"
    assert len(path.read_text().splitlines()) <= 80
    results = runpy.run_path(str(path))["main"]()
    assert results["lp_ft"] > results["scratch"] + 0.1
    assert results["probe"] > 0.4
    assert "lp_ft" in capsys.readouterr().out


def test_train_on_a_folder_is_short_and_tells_two_shapes_apart(tmp_path, capsys):
    path = ROOT / "examples" / "train_on_a_folder.py"
    assert len(path.read_text().splitlines()) <= 80
    names = runpy.run_path(str(path))
    names["draw"](tmp_path / "images")
    table = names["main"](tmp_path / "images", tmp_path / "run")
    assert table.sum() == 20
    assert table.trace() >= 17
    assert "cross was taken for: cross" in capsys.readouterr().out
    assert (tmp_path / "run/model/model.safetensors").is_file()
    assert (tmp_path / "run/history.csv").read_text().startswith("step,plan,")


@pytest.mark.slow
def test_does_transfer_help_is_short_and_scores_and_training_agree(capsys):
    path = ROOT / "examples" / "does_transfer_help.py"
    assert len(path.read_text().splitlines()) <= 80
    comparison = runpy.run_path(str(path))["main"]()
    ends = {name: arm.asymptote.mean for name, arm in comparison.arms.items()}
    assert ends["whole"] > max(ends["scratch"], ends["early"]) + 0.05
    assert ends["naive"] < 0.2
    out = capsys.readouterr().out
    assert "'whole' for the best source" in out
    assert comparison.verdict in out
