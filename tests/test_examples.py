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
