"""The examples run, and show what they say."""

import runpy
from pathlib import Path

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
