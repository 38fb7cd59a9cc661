from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from jaxtransfer.errors import OutputError
from jaxtransfer.evaluate.calibration import calibration
from jaxtransfer.report.calibration import BAR, GAP, plot_reliability


def area(path, colour):
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    return np.all(pixels == [int(colour[i : i + 2], 16) for i in (1, 3, 5)], axis=-1).sum()


@pytest.mark.parametrize("equal_mass", [False, True])
def test_bars_are_as_high_as_the_accuracy(equal_mass, tmp_path):
    shares = np.tile([[0.95, 0.05]], (10, 1))
    areas = {}
    for right in (4, 8):
        labels = np.repeat([0, 1], [right, 10 - right])
        found = calibration(shares, labels, bins=1, probabilities=True, equal_mass=equal_mass)
        plot_reliability(found, tmp_path / "r.png")
        areas[right] = area(tmp_path / "r.png", BAR), area(tmp_path / "r.png", GAP)
    assert areas[8][0] == pytest.approx(2 * areas[4][0], rel=0.05)
    assert areas[4][1] > areas[8][1] > 0


def test_a_picture_that_cannot_be_written_is_told(tmp_path):
    found = calibration(np.eye(2), [0, 1])
    with pytest.raises(OutputError):
        plot_reliability(found, tmp_path / "none" / "r.png")
