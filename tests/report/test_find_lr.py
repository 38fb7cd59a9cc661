from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxtransfer.errors import OutputError
from jaxtransfer.report.find_lr import MARKS, plot_learning_rates
from jaxtransfer.train.find_lr import LearningRates
from jaxtransfer.train.lr_curve import suggest


def curve(form: str, end: float = 2.0) -> LearningRates:
    rates = np.geomspace(1e-6, 1, 40)
    losses = np.append(2.3 - 2 * np.exp(-np.square(np.log10(rates[:-1]) + 2)), end)
    lists = (tuple(rates.tolist()), tuple(losses.tolist()), tuple(losses.tolist()))
    return LearningRates(*lists, suggest(rates, losses), "probe", form)


@pytest.mark.parametrize(
    ("form", "end"), [("sweep", 2.0), ("sweep", float("nan")), ("independent", 1e30)]
)
def test_the_curve_is_a_picture_with_all_four_marks(form: str, end: float, tmp_path: Path) -> None:
    plot_learning_rates(curve(form, end), tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    colours, counts = np.unique(pixels, axis=0, return_counts=True)
    there = {tuple(colour.tolist()): int(n) for colour, n in zip(colours, counts, strict=True)}
    for colour, _, _ in MARKS.values():
        wanted = tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))
        assert there.get(wanted, 0) > 20


def test_a_picture_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        plot_learning_rates(curve("sweep"), tmp_path / "file" / "curve.png")
