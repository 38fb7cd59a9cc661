"""Learning curves of a comparison as a picture."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxtransfer.evaluate.comparison import NAIVE, Comparison
from jaxtransfer.formats import atomic_write

# Told apart with all common kinds of colour vision: Okabe & Ito 2008, "Color Universal Design".
COLOURS = {
    "naive": "#999999",
    "scratch": "#D55E00",
    "probe": "#56B4E9",
    "full": "#009E73",
    "lp_ft": "#0072B2",
}
OTHER_COLOUR = "#CC79A7"
INK = "#333333"


def plot_curves(comparison: Comparison, path: str | Path) -> None:
    """Draw each arm's mean test accuracy over the steps, with the range over the seeds, as a PNG.

    Raises:
        OutputError: the file cannot be written there.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    ends = {}
    for name, arm in comparison.arms.items():
        curves = 100 * np.asarray(arm.curves)
        mean, colour = curves.mean(axis=0), COLOURS.get(name, OTHER_COLOUR)
        style: dict[str, Any] = (
            {"linestyle": "--", "linewidth": 1.2}
            if name == NAIVE
            else {
                "linewidth": 2,
                "marker": "o",
                "markersize": 3.5,
            }
        )
        axes.plot(comparison.evaluated_at, mean, color=colour, **style)
        axes.fill_between(
            comparison.evaluated_at,
            curves.min(axis=0),
            curves.max(axis=0),
            color=colour,
            alpha=0.15,
            linewidth=0,
        )
        ends[name] = float(mean[-1])
    _label_ends(axes, comparison.evaluated_at[-1], ends)
    _dress(axes, comparison)
    figure.suptitle(
        textwrap.fill(comparison.verdict, 84),
        x=0.01,
        ha="left",
        fontsize=11,
        color=INK,
        weight="bold",
    )
    atomic_write(path, lambda temporary: figure.savefig(temporary, format="png"))


def _label_ends(axes: Any, x: int, ends: dict[str, float]) -> None:
    """Name each curve at its end, in its colour."""
    names = sorted(ends, key=lambda name: ends[name])
    for name, height in zip(names, _spread([ends[name] for name in names]), strict=True):
        axes.annotate(
            f"{name} {ends[name]:.1f}",
            (x, height),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            color=COLOURS.get(name, OTHER_COLOUR),
            fontsize=10,
            annotation_clip=False,
        )


def _spread(heights: Sequence[float], gap: float = 4.5, top: float = 99) -> list[float]:
    """Rising heights, moved so that neighbours are `gap` apart and none is above `top`.

    >>> _spread([10, 95, 96, 97])
    [10, 90.0, 94.5, 99]
    """
    moved: list[float] = []
    for height in heights:
        moved.append(max(height, moved[-1] + gap) if moved else height)
    for position in reversed(range(len(moved))):
        moved[position] = min(moved[position], top)
        top = moved[position] - gap
    return moved


def _dress(axes: Any, comparison: Comparison) -> None:
    budget = comparison.budget
    axes.set_title(
        f"{comparison.source} to {comparison.target}, {budget.per_class} labelled images a class; "
        f"mean and range of {len(comparison.seeds)} seeds",
        loc="left",
        fontsize=9,
        color=INK,
    )
    axes.set_xlabel("training steps", color=INK)
    axes.set_ylabel("test accuracy, %", color=INK)
    axes.set_ylim(0, 102)
    axes.set_xlim(-0.01 * budget.steps, budget.steps)
    axes.grid(axis="y", color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
