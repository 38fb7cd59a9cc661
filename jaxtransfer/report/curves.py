"""Learning curves of a comparison as a picture."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxtransfer.evaluate.arms import NAIVE
from jaxtransfer.evaluate.curves import ASYMPTOTE_FROM
from jaxtransfer.evaluate.metrics import mean_interval
from jaxtransfer.evaluate.results import ArmResult, Comparison
from jaxtransfer.formats import atomic_write

# Told apart with all common kinds of colour vision: Okabe & Ito 2008, "Color Universal Design".
COLOURS = {
    "naive": "#888888",
    "scratch": "#D55E00",
    "probe": "#56B4E9",
    "full": "#009E73",
    "lp_ft": "#0072B2",
}
OTHER_COLOURS = ("#CC79A7", "#E69F00", "#0072B2", "#009E73", "#56B4E9", "#000000", "#D55E00")
# Where colours come again, shapes tell the curves apart.
MARKERS = ("o", "s", "^", "D")
INK = "#333333"


def plot_curves(comparison: Comparison, path: str | Path) -> None:
    """Draw each arm's mean test accuracy over the steps, with its 95 % interval, as a PNG.

    Raises:
        OutputError: the file cannot be written there.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    styles = arm_styles(comparison)
    ends = {}
    for name, arm in comparison.arms.items():
        colour, marker = styles[name]
        ends[name] = _draw(axes, comparison.evaluated_at, arm, colour, marker)
    _label_ends(axes, comparison.steps, ends, styles)
    _dress(axes, comparison)
    figure.suptitle(
        textwrap.fill(comparison.verdict, 92),
        x=0.01,
        ha="left",
        fontsize=11,
        color=INK,
        weight="bold",
    )
    atomic_write(path, lambda temporary: figure.savefig(temporary, format="png"))


def arm_styles(comparison: Comparison) -> dict[str, tuple[str, str]]:
    """Colour and marker of each arm: well-known names have their own, others what is left."""
    taken = {COLOURS[name] for name in comparison.arms if name in COLOURS}
    free = [colour for colour in OTHER_COLOURS if colour not in taken] or list(OTHER_COLOURS)
    styles, position = {}, 0
    for name, arm in comparison.arms.items():
        if arm.kind == NAIVE or name in COLOURS:
            styles[name] = (COLOURS[NAIVE if arm.kind == NAIVE else name], MARKERS[0])
            continue
        again, place = divmod(position, len(free))
        styles[name] = (free[place], MARKERS[(again + 1) % len(MARKERS)])
        position += 1
    return styles


def _draw(axes: Any, at: Sequence[int], arm: ArmResult, colour: str, marker: str) -> float:
    """Draw one arm; the height at which it ends."""
    intervals = [mean_interval(values) for values in zip(*arm.curves, strict=True)]
    mean, low, high = 100 * np.array(intervals).T
    if arm.kind == NAIVE:
        axes.plot(at, mean, color=colour, linestyle="--", linewidth=1.2)
        return float(mean[-1])
    axes.plot(at, mean, color=colour, linewidth=2, marker=marker, markersize=4)
    if np.isfinite(low).all():
        bounds = np.clip(low, 0, 100), np.clip(high, 0, 100)
        axes.fill_between(at, *bounds, color=colour, alpha=0.15, linewidth=0)
    return float(mean[-1])


def _label_ends(
    axes: Any, x: int, ends: dict[str, float], styles: dict[str, tuple[str, str]]
) -> None:
    """Name each curve at its end, in its colour."""
    names = sorted(ends, key=lambda name: ends[name])
    for name, height in zip(names, _spread([ends[name] for name in names]), strict=True):
        axes.annotate(
            f"{textwrap.shorten(name, 24, placeholder='…')} {ends[name]:.1f}",
            (x, height),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            color=styles[name][0],
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
    budget, steps = comparison.budget, comparison.steps
    images = (
        f"{budget.per_class} labelled images a class"
        if budget.per_class is not None
        else "all labelled images"
    )
    spread = "mean and 95 % interval of " if len(comparison.seeds) > 1 else ""
    seeds = f"{len(comparison.seeds)} seed{'s' if len(comparison.seeds) > 1 else ''}"
    title = f"{comparison.source} to {comparison.target}, {images}; {spread}{seeds}"
    axes.set_title(textwrap.fill(title, 115), loc="left", fontsize=9, color=INK)
    axes.set_xlabel(f"training steps of {budget.batch_size} images", color=INK)
    axes.set_ylabel("test accuracy, %", color=INK)
    axes.set_ylim(0, 102)
    axes.set_xlim(-0.01 * steps, steps)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(axis="y", color="#E5E5E5", linewidth=0.8)
    axes.axvspan(ASYMPTOTE_FROM * steps, steps, color="#000000", alpha=0.04, linewidth=0, zorder=0)
    axes.text(
        (1 + ASYMPTOTE_FROM) / 2 * steps,
        2,
        "asymptote",
        ha="center",
        fontsize=8,
        color="#777777",
    )
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
