"""The curve of a search for a learning rate as a picture."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from jaxtransfer.formats import atomic_write
from jaxtransfer.report.curves import INK
from jaxtransfer.train.find_lr import LearningRates

# Okabe & Ito 2008, "Color Universal Design", as in `curves`. Shapes tell the four apart, too, and
# sizes where two have the same place.
MARKS = {
    "valley": ("#0072B2", "o", 14),
    "steep": ("#D55E00", "^", 11),
    "minimum": ("#009E73", "s", 8),
    "slide": ("#CC79A7", "D", 5),
}


def plot_learning_rates(found: LearningRates, path: str | Path) -> None:
    """Draw the losses over the learning rates with the four suggestions, as a PNG.

    Args:
        found: what `jt.find_lr` returned.
        path: of the file; one that is there already is replaced.

    Raises:
        OutputError: the file cannot be written there.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    rates, losses, smoothed = map(np.asarray, (found.rates, found.losses, found.smoothed))
    if found.form == "sweep":
        axes.plot(rates, losses, color="#BBBBBB", linewidth=1, label="loss")
        axes.plot(rates, smoothed, color=INK, linewidth=2, label="smoothed")
    else:
        axes.plot(rates, losses, color=INK, linewidth=2, marker=".", label="loss")
    for name, rate in asdict(found.suggestions).items():
        colour, shape, size = MARKS[name]
        height = np.interp(np.log(rate), np.log(rates), smoothed)
        axes.axvline(rate, color=colour, linewidth=1, linestyle=":", zorder=1)
        axes.plot(
            rate,
            height,
            shape,
            color=colour,
            markersize=size,
            markeredgecolor="white",
            label=f"{name}  {rate:.1e}",
            zorder=3,
        )
    _dress(axes, found)
    atomic_write(path, lambda temporary: figure.savefig(temporary, format="png"))


def _dress(axes: Any, found: LearningRates) -> None:
    axes.set_xscale("log")
    shown = np.asarray([*found.losses, *found.smoothed])
    shown = shown[np.isfinite(shown)]
    # What diverges must not flatten the part that is read.
    low, high = shown.min(), min(shown.max(), 2 * found.smoothed[0] - shown.min())
    margin = 0.08 * max(high - low, 1e-6)
    axes.set_ylim(low - margin, high + margin)
    kind = "one run" if found.form == "sweep" else "a run for each rate"
    axes.set_title(
        f"Loss over learning rates: plan {found.plan}, {kind}", loc="left", fontsize=11, color=INK
    )
    axes.set_xlabel("learning rate", color=INK)
    axes.set_ylabel("training loss", color=INK)
    axes.grid(axis="y", color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), labelcolor=INK)
