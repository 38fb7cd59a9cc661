"""A reliability diagram: how often answers of each confidence are right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jaxtransfer.evaluate.calibration import Calibration
from jaxtransfer.formats import atomic_write
from jaxtransfer.report.curves import INK

# Okabe & Ito 2008, "Color Universal Design", as in `curves`.
ACCURACY, BAR, GAP = "#0072B2", "#8FC1E3", "#D55E00"


def plot_reliability(
    calibration: Calibration, path: str | Path, title: str = "Reliability"
) -> None:
    """Draw accuracy over confidence in bins, and how many examples each bin has, as a PNG.

    Args:
        calibration: what `jaxtransfer.evaluate.calibration.calibration` returned.
        path: of the file; one that is there already is replaced.
        title: of the picture.

    Raises:
        OutputError: the file cannot be written there.

    Source: Guo et al. 2017, arXiv 1706.04599, figure 1.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4, 6.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    edges = 100 * calibration.edges
    bars: Any = {"x": edges[:-1], "width": np.diff(edges), "align": "edge", "linewidth": 0.8}
    accuracy, confidence = 100 * calibration.bin_accuracy, 100 * calibration.bin_confidence
    upper.bar(height=accuracy, color=BAR, edgecolor="white", label="accuracy", **bars)
    upper.bar(
        height=confidence - accuracy,
        bottom=accuracy,
        color="none",
        edgecolor=GAP,
        hatch="///",
        label="gap to the mean confidence",
        **bars,
    )
    upper.plot([0, 100], [0, 100], color=INK, linestyle="--", linewidth=1, label="as sure as right")
    shares = 100 * calibration.counts / calibration.counts.sum()
    lower.bar(height=shares, color="#999999", edgecolor="white", **bars)
    means = {
        "mean confidence": (calibration.confidence, GAP),
        "accuracy": (calibration.accuracy, ACCURACY),
    }
    for name, (value, colour) in means.items():
        lower.axvline(100 * value, color=colour, linewidth=1.8, label=f"{name} {100 * value:.1f} %")
    _dress(upper, lower, calibration)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8, labelcolor=INK)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, color=INK, weight="bold")
    atomic_write(path, lambda temporary: figure.savefig(temporary, format="png"))


def _dress(upper: Any, lower: Any, calibration: Calibration) -> None:
    upper.set_title(
        f"expected calibration error {100 * calibration.expected_calibration_error:.2f} %, "
        f"largest {100 * calibration.maximum_calibration_error:.1f} %",
        loc="left",
        fontsize=9,
        color=INK,
    )
    upper.set_ylabel("accuracy, %", color=INK)
    upper.set_ylim(0, 100)
    upper.set_xlim(0, 100)
    lower.set_xlabel("confidence, %", color=INK)
    lower.set_ylabel("examples, %", color=INK)
    for axes in (upper, lower):
        axes.set_axisbelow(True)
        axes.grid(axis="y", color="#E5E5E5", linewidth=0.8)
        axes.tick_params(colors=INK, length=3)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
