"""Confusion matrices and the most frequent errors as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxtransfer.errors import DataError
from jaxtransfer.evaluate.answers import check_names
from jaxtransfer.evaluate.confusion import Confused, check_counts
from jaxtransfer.formats import atomic_write
from jaxtransfer.report.curves import INK

MOST_NAMES, MOST_NUMBERS = 40, 16
"""Up to how many classes names stand beside the matrix, and counts in its cells."""
MOST_POINTS = 300
"""Of more classes, several share a point: single ones could not be seen."""
LONGEST_NAME = 22
BAR_COLOUR = "#0072B2"


def plot_confusion(matrix: Any, path: str | Path, *, classes: Sequence[str] | None = None) -> None:
    """Draw a confusion matrix as a PNG: how the examples of each class are spread over the answers.

    Colours are shares of a row, by a scale that lets rare errors be seen. Of up to 40 classes the
    names are shown, of up to 16 the counts.

    Args:
        matrix: counts, as `confusion_matrix` gives them.
        path: of the file; one that is there already is replaced.
        classes: the names of the classes; by default their numbers.

    Raises:
        DataError: the matrix has other than counts, or other than as many names as classes.
        OutputError: the file cannot be written there.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    counts = check_counts("plot_confusion", matrix)
    number = len(counts)
    names = [_short(name) for name in check_names("plot_confusion", classes, number)]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = float(np.clip(0.22 * number if number <= MOST_NAMES else 7, 3.2, 9))
    margin = 0.08 * max(map(len, names)) if number <= MOST_NAMES else 0.2
    size = (side + margin + 1.6, side + margin + 0.8)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    block = -(-number // MOST_POINTS)
    drawn = axes.imshow(
        _highest_of_blocks(shares, block),
        cmap="Blues",
        norm=PowerNorm(0.5, 0, 1),
        interpolation="nearest",
        aspect="equal",
    )
    if number <= MOST_NUMBERS:
        _write_counts(axes, counts, shares)
    _name_axes(axes, names, block)
    accuracy = 100 * np.trace(counts) / counts.sum()
    axes.set_title(
        f"{counts.sum():,} examples, {accuracy:.1f} % right", loc="left", fontsize=10, color=INK
    )
    bar = figure.colorbar(drawn, ax=axes, fraction=0.04, pad=0.02, ticks=[0, 0.01, 0.1, 0.5, 1])
    bar.ax.set_yticklabels(["0", "1 %", "10 %", "50 %", "100 %"], fontsize=8, color=INK)
    bar.set_label("share of the label's examples", fontsize=9, color=INK)
    bar.outline.set_visible(False)
    # The layout does not know that cells are squares, and would cut off the label of the axis.
    tight: dict[str, Any] = {"format": "png", "bbox_inches": "tight", "pad_inches": 0.08}
    atomic_write(path, lambda temporary: figure.savefig(temporary, **tight))


def _write_counts(axes: Any, counts: np.ndarray, shares: np.ndarray) -> None:
    for row, column in np.argwhere(counts > 0):
        count = f"{counts[row, column]:,}"
        axes.text(
            column,
            row,
            count,
            ha="center",
            va="center",
            fontsize=min(8.0, 22 / len(count)) if len(counts) > 4 else 11,
            color="white" if shares[row, column] > 0.3 else INK,
        )


def _highest_of_blocks(shares: np.ndarray, block: int) -> np.ndarray:
    """The highest value of each block of rows and columns, so that no error is lost.

    >>> _highest_of_blocks(np.arange(9).reshape(3, 3), 2).tolist()
    [[4, 5], [7, 8]]
    """
    rest = -len(shares) % block
    padded = np.pad(shares, ((0, rest), (0, rest)))
    side = len(padded) // block
    return padded.reshape(side, block, side, block).max(axis=(1, 3))


def _name_axes(axes: Any, names: Sequence[str], block: int) -> None:
    axes.set_xlabel("prediction", color=INK)
    axes.set_ylabel("label", color=INK)
    for side in axes.spines.values():
        side.set_color("#CCCCCC")
    axes.tick_params(length=0, colors=INK)
    if len(names) > MOST_NAMES:
        axes.set_xticks([])
        axes.set_yticks([])
        points = "" if block == 1 else f"; each point: the highest of {block} × {block}"
        axes.set_xlabel(f"prediction ({len(names):,} classes in order{points})", color=INK)
        return
    places, size = range(len(names)), 9 if len(names) <= MOST_NUMBERS else 7
    upright = max(map(len, names)) > 3
    axes.set_xticks(places, names, fontsize=size, rotation=90 if upright else 0)
    axes.set_yticks(places, names, fontsize=size)


def plot_most_confused(
    pairs: Sequence[Confused], path: str | Path, title: str = "The most frequent errors"
) -> None:
    """Draw the most frequent errors as bars, as a PNG.

    Args:
        pairs: what `most_confused` returned, at least one.
        path: of the file; one that is there already is replaced.
        title: of the picture.

    Raises:
        DataError: there is no pair.
        OutputError: the file cannot be written there.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    if not pairs:
        raise DataError("plot_most_confused: expected at least one error, found none")
    names = [f"{_short(pair.label)} taken for {_short(pair.prediction)}" for pair in pairs]
    size = (5 + 0.08 * max(map(len, names)), 1.1 + 0.3 * len(pairs))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places, counts = np.arange(len(pairs)), [pair.count for pair in pairs]
    axes.barh(places, counts, color=BAR_COLOUR, height=0.7)
    for place, pair in zip(places, pairs, strict=True):
        axes.annotate(
            f"{pair.count:,}  ({100 * pair.share:.1f} %)",
            (pair.count, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=INK,
        )
    axes.set_yticks(places, names, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, max(counts) * 1.25)  # room for what is written behind the longest bar
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlabel("examples (and their share of the label's)", color=INK)
    axes.set_title(title, loc="left", fontsize=10, color=INK, weight="bold")
    axes.tick_params(colors=INK, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    atomic_write(path, lambda temporary: figure.savefig(temporary, format="png"))


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
