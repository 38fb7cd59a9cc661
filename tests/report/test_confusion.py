from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxtransfer.errors import DataError
from jaxtransfer.evaluate.confusion import most_confused
from jaxtransfer.report.confusion import BAR_COLOUR, plot_confusion, plot_most_confused


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def is_dark_blue(pixels: np.ndarray) -> Any:
    return (pixels[..., 2] > 80) & (pixels[..., 0] < 40)


@pytest.mark.parametrize("count", [1, 2, 10, 41, 700])
def test_the_diagonal_of_a_perfect_classifier_is_dark_and_all_else_is_not(count, tmp_path):
    matrix = 7 * np.eye(count, dtype=int)
    plot_confusion(matrix, tmp_path / "matrix.png")
    pixels = pixels_of(tmp_path / "matrix.png")
    assert max(pixels.shape) < 2000
    dark = is_dark_blue(pixels[:, : int(0.8 * pixels.shape[1])])  # without the colour bar
    rows, columns = np.nonzero(dark)
    assert np.corrcoef(rows, columns)[0, 1] > 0.7 or count == 1
    area = np.ptp(rows) * np.ptp(columns)
    shown = count if count <= 300 else -(-count // 3)
    assert dark.sum() == pytest.approx(area / shown, rel=0.15)


def test_one_error_of_many_classes_is_seen(tmp_path):
    matrix = 7 * np.eye(1000, dtype=int)
    plot_confusion(matrix, tmp_path / "right.png")
    matrix[900, 100] = 7
    plot_confusion(matrix, tmp_path / "wrong.png")
    changed = np.any(pixels_of(tmp_path / "right.png") != pixels_of(tmp_path / "wrong.png"), -1)
    left, lower = changed[:, : changed.shape[1] // 3], changed[2 * len(changed) // 3 :]
    assert left[len(left) // 2 :].sum() >= 9 and lower.any()


def test_names_stand_beside_few_classes_and_not_beside_many(tmp_path):
    sizes = {}
    for count in (40, 41):
        names = [f"a name that is too long to be shown whole {i}" for i in range(count)]
        plot_confusion(np.ones((count, count), int), tmp_path / "m.png", classes=names)
        sizes[count] = pixels_of(tmp_path / "m.png").shape
    # Names take room at the left and below, and the cells of 40 classes are as large as ever.
    assert sizes[40][0] > 1.15 * sizes[41][0] * 8.8 / 9


def test_bars_are_as_long_as_errors_are_many(tmp_path):
    pairs = most_confused([[5, 8, 0], [0, 5, 4], [0, 0, 5]], ["ant", "bee", "cow"])
    plot_most_confused(pairs, tmp_path / "bars.png")
    colour = [int(BAR_COLOUR[i : i + 2], 16) for i in (1, 3, 5)]
    lengths = np.all(pixels_of(tmp_path / "bars.png") == colour, axis=-1).sum(axis=1)
    first, second = sorted(set(lengths[lengths > 0]), reverse=True)[:2]
    assert first == pytest.approx(2 * second, rel=0.02)


def test_without_an_error_there_are_no_bars(tmp_path):
    with pytest.raises(DataError, match="at least one error, found none"):
        plot_most_confused((), tmp_path / "bars.png")


def test_shares_are_no_counts(tmp_path):
    with pytest.raises(DataError, match="plot_confusion: expected a square matrix of counts"):
        plot_confusion(np.eye(2), tmp_path / "m.png")
    with pytest.raises(DataError, match="expected 2 names of classes, found 1"):
        plot_confusion(np.eye(2, dtype=int), tmp_path / "m.png", classes=["a"])
