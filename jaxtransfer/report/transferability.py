"""How far up a network features transfer, as a picture like figure 2 of Yosinski et al. 2014."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from jaxtransfer.evaluate.layerwise import BASE, EFFECTS, Transferability
from jaxtransfer.evaluate.metrics import mean_interval
from jaxtransfer.formats import atomic_write
from jaxtransfer.report.curves import INK

# For each treatment colour, marker, line and legend. Colours from Okabe & Ito 2008, "Color
# Universal Design"; what is frozen has filled marks and a whole line, what trains open ones.
STYLES: dict[str, tuple[str, str, str, str]] = {
    "BnB": ("#0072B2", "o", "-", "BnB: own stages, frozen"),
    "BnB+": ("#56B4E9", "o", "--", "BnB+: own stages, fine-tuned"),
    "AnB": ("#D55E00", "D", "-", "AnB: transferred, frozen"),
    "AnB+": ("#E69F00", "D", "--", "AnB+: transferred, fine-tuned"),
}
# How far from its depth each treatment's points stand, so that they do not hide each other.
SHIFTS = dict(zip(STYLES, (-0.21, -0.07, 0.07, 0.21), strict=True))
# The same for the arrows of the effects, which stand between two treatments' means.
EFFECT_SHIFTS = (-0.1, 0.12, -0.34, 0.34)
LONGEST_LABEL = 48
"""Characters of all stage names together that stand side by side."""


def plot_transferability(found: Transferability, path: str | Path) -> None:
    """Draw accuracies over the number of copied stages, as a PNG.

    Above, a point for each network; below, the means with their 95 % intervals, and what the
    differences between them mean.

    Args:
        found: what `jt.transferability_by_layer` returned.
        path: of the file; one that is there already is replaced.

    Raises:
        OutputError: the file cannot be written there.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width = max(8.5, 3.4 + 0.85 * len(found.depths))
    figure = Figure(figsize=(width, 8.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, sharey=True)
    _draw_points(above, found)
    _draw_means(below, found)
    _draw_effects(below, found)
    for axes in (above, below):
        _dress(axes)
    _label_depths(below, found)
    seeds = f"{len(found.seeds)} seed{'s' if len(found.seeds) > 1 else ''}"
    above.set_title(f"Each network ({found.network}, {seeds})", **_title())
    spread = "mean and 95 % interval" if len(found.seeds) > 1 else "one seed: no interval"
    below.set_title(f"What is lost and gained ({spread})", **_title())
    handles, labels = above.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, labelcolor=INK)
    _write_readings(figure, found)
    atomic_write(path, lambda temporary: figure.savefig(temporary, format="png"))


def _draw_points(axes: Any, found: Transferability) -> None:
    axes.plot(
        _around(0, len(found.base)),
        100 * np.asarray(found.base),
        "o",
        color=INK,
        markersize=6,
        label=f"{BASE}: nothing copied",
    )
    for name, (colour, marker, line, label) in STYLES.items():
        rows = zip(found.depths, found.accuracies[name], strict=True)
        x, y = zip(*((depth + SHIFTS[name], v) for depth, row in rows for v in row), strict=True)
        axes.plot(
            x,
            100 * np.asarray(y),
            marker,
            color=colour,
            markersize=6,
            markeredgewidth=1.4,
            markerfacecolor=colour if line == "-" else "white",
            alpha=0.85,
            label=label,
        )


def _around(centre: float, count: int) -> np.ndarray:
    """Places beside each other around a centre, for points that may be equally high."""
    return centre + np.linspace(-0.12, 0.12, count) if count > 1 else np.array([centre])


def _draw_means(axes: Any, found: Transferability) -> None:
    base = mean_interval(found.base)
    axes.axhline(100 * base.mean, color=INK, linewidth=1, linestyle=":")
    axes.plot(0, 100 * base.mean, "o", color=INK, markersize=6, zorder=4)
    for name, (colour, marker, line, _) in STYLES.items():
        # All lines begin where nothing is copied.
        intervals = (base, *found.intervals(name))
        x = (0, *found.depths)
        mean, low, high = (100 * np.array(column) for column in zip(*intervals, strict=True))
        axes.plot(
            x,
            mean,
            color=colour,
            linestyle=line,
            linewidth=2,
            marker=marker,
            markersize=5,
            markevery=slice(1, None),
            markerfacecolor=colour if line == "-" else "white",
        )
        if not math.isnan(low[-1]):
            axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
    # Wide intervals of few seeds must not flatten the means, and no accuracy lies beyond these.
    shown = 100 * np.array([*found.base, *(v for r in found.accuracies.values() for v in _flat(r))])
    margin = max(0.12 * (shown.max() - shown.min()), 0.5)
    axes.set_ylim(max(shown.min() - margin, -1.0), min(shown.max() + margin, 101.0))


def _draw_effects(axes: Any, found: Transferability) -> None:
    """An arrow for each effect that is seen, where it is largest, with its reading's number."""
    for number, (name, effect) in enumerate(EFFECTS.items()):
        if not found.is_seen(name):
            continue
        depth, _ = found.largest(name)
        row = found.depths.index(depth)
        begin, end = (100 * found.intervals(one)[row].mean for one in (effect.to, effect.of))
        x = depth + EFFECT_SHIFTS[number]
        style = {"arrowstyle": "-|>", "color": INK, "shrinkA": 0, "shrinkB": 0, "linewidth": 1.1}
        axes.annotate("", (x, end), (x, begin), arrowprops=style, zorder=5)
        axes.annotate(
            str(number + 1),
            (x, (begin + end) / 2),
            ha="center",
            va="center",
            fontsize=8,
            color="white",
            weight="bold",
            bbox={"boxstyle": "circle,pad=0.25", "facecolor": INK, "edgecolor": "white"},
            zorder=6,
        )


def _flat(rows: Any) -> list[float]:
    return [value for row in rows for value in row]


def _label_depths(axes: Any, found: Transferability) -> None:
    names = ["base", *(found.stages[depth - 1] for depth in found.depths)]
    axes.set_xticks((0, *found.depths))
    if sum(map(len, names)) <= LONGEST_LABEL:
        axes.set_xticklabels(
            [f"{n}\n{name}" for n, name in zip((0, *found.depths), names, strict=True)]
        )
    else:
        axes.set_xticklabels(
            [f"{n}  {name}" for n, name in zip((0, *found.depths), names, strict=True)],
            rotation=35,
            ha="right",
            rotation_mode="anchor",
        )
    axes.set_xlim(-0.45, max(found.depths) + 0.45)
    axes.set_xlabel("number n of stages copied, and the last one of them", color=INK)


def _write_readings(figure: Any, found: Transferability) -> None:
    """The largest effects below the plots, in the order of the paper's labels."""
    numbered = enumerate(found.readings(), start=1)
    text = "\n".join(f"{number}  {reading}" for number, reading in numbered)
    figure.supxlabel(text, x=0.02, ha="left", fontsize=9, color=INK, linespacing=1.5)


def _title() -> dict[str, Any]:
    return {"loc": "left", "fontsize": 11, "color": INK}


def _dress(axes: Any) -> None:
    axes.set_ylabel("test accuracy on B, %", color=INK)
    axes.grid(axis="y", color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
