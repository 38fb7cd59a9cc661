"""Probes as pictures and pages: few-shot curves, and the scores of a network's stages."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxtransfer.evaluate.few_shot import FewShotCurve
from jaxtransfer.evaluate.metrics import Interval
from jaxtransfer.evaluate.probing import ProbeReport
from jaxtransfer.evaluate.stages import StageProbes
from jaxtransfer.formats import atomic_write
from jaxtransfer.formats.output import make_folder, write_text
from jaxtransfer.report.curves import INK
from jaxtransfer.report.page import Block, Figure, Heading, Table, Text, write_page

# Okabe & Ito 2008, "Color Universal Design", as in `curves`; shapes tell the four apart, too.
MARKS = {
    "logistic": ("#0072B2", "o"),
    "ridge": ("#D55E00", "s"),
    "neighbours": ("#009E73", "^"),
    "mean": ("#CC79A7", "D"),
}
TITLES = {
    "logistic": "logistic regression",
    "ridge": "ridge regression",
    "neighbours": "nearest neighbours",
    "mean": "nearest class mean",
}
CAPTION = "Accuracy on the test examples; in brackets its exact 95 % interval."
FEW_SHOT_CAPTION = (
    "Test accuracy over the number of labelled examples a class: mean over the draws and its 95 % "
    "interval."
)
STAGES_CAPTION = "Test accuracy of a classifier on what enters each stage, with its 95 % interval."


def write_probe_report(report: ProbeReport, folder: str | Path) -> list[Path]:
    """Write `report.json`, pictures and `report.html`, each as a whole or not at all.

    Args:
        report: what `probe_source` returned.
        folder: is made if it does not exist; reports that are there are replaced.

    Returns:
        The paths of the files.

    Raises:
        OutputError: the folder cannot be made or written.
    """
    folder = make_folder(folder)
    data, page = folder / "report.json", folder / "report.html"
    write_text(json.dumps(report.to_dict(), indent=2, ensure_ascii=False) + "\n", data)
    pictures = [folder / "few_shot.png"]
    plot_few_shot(report.curves, pictures[0])
    blocks: list[Block] = [
        Text(best_sentence(report), is_lead=True),
        Text(CAPTION),
        Table(("method", "accuracy"), table_rows(report)),
        Heading("From few examples"),
        Figure(pictures[0].read_bytes(), FEW_SHOT_CAPTION),
        Table(*few_shot_table(report)),
    ]
    if report.stages is not None:
        pictures.append(folder / "stages.png")
        plot_stages(report.stages, pictures[1])
        blocks += [
            Heading("Which stage transfers best"),
            Figure(pictures[1].read_bytes(), STAGES_CAPTION),
            Table(("what enters", "features", "accuracy"), stage_rows(report.stages)),
        ]
    write_page(page, f"The features of {report.source} on {report.target}", blocks)
    return [data, *pictures, page]


# ---------------------------------------------------------------------------------------------
# Tables and sentences


def table_rows(report: ProbeReport) -> list[tuple[str, str]]:
    """A row a method: its name, and its accuracy with the interval."""
    return [(TITLES[name], with_bounds(found)) for name, found in report.accuracies.items()]


def few_shot_table(report: ProbeReport) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows: the mean accuracy of each method, and half its interval."""
    header = ("per class", *(curve.method for curve in report.curves))
    columns = [[_with_spread(one) for one in curve.intervals] for curve in report.curves]
    counts = map(str, report.curves[0].per_class)
    return header, list(zip(counts, *columns, strict=True))


def stage_rows(probes: StageProbes) -> list[tuple[str, ...]]:
    """A row a stage: its name, how many features enter it, and the accuracy with its interval."""
    return [(s.stage, str(s.channels), with_bounds(s.accuracy)) for s in probes.scores]


def best_sentence(report: ProbeReport) -> str:
    """Which method is best, on how many examples, and where in the network."""
    best = max(report.accuracies, key=lambda name: report.accuracies[name].mean)
    sentence = (
        f"{TITLES[best].capitalize()} reaches {with_bounds(report.accuracies[best])} on "
        f"{report.test_count} test examples of {report.target}, fitted to the features of "
        f"{report.train_count} others."
    )
    if report.stages is None:
        return sentence
    stage = report.stages.best
    return (
        f"{sentence} Of all stages, what enters {stage.stage} serves "
        f"{TITLES[report.stages.method]} best: {with_bounds(stage.accuracy)}."
    )


def with_bounds(interval: Interval) -> str:
    """A share in percent, with its bounds.

    >>> with_bounds(Interval(0.5, 0.25, 0.75))
    '50.0 % (25.0 to 75.0)'
    """
    mean, low, high = (f"{100 * value:.1f}" for value in interval)
    return f"{mean} % ({low} to {high})"


def _with_spread(interval: Interval) -> str:
    half = 50 * (interval.high - interval.low)
    mean = f"{100 * interval.mean:.1f}"
    return mean if math.isnan(half) else f"{mean} ± {half:.1f}"


# ---------------------------------------------------------------------------------------------
# Pictures


def plot_few_shot(curves: Sequence[FewShotCurve], path: str | Path) -> None:
    """Draw accuracy over the number of examples a class, with intervals, as a PNG.

    Args:
        curves: what `jt.few_shot_curve` returned, one or several.
        path: of the file; one that is there already is replaced.

    Raises:
        OutputError: the file cannot be written there.
    """
    figure, axes = _figure(4.5)
    counts = sorted({count for curve in curves for count in curve.per_class})
    for position, curve in enumerate(curves):
        colour, shape = MARKS[curve.method]
        means = 100 * np.asarray([one.mean for one in curve.intervals])
        bounds = 100 * np.asarray([(one.low, one.high) for one in curve.intervals])
        # A little beside each other, so that no bar hides another.
        x = np.asarray(curve.per_class) * 1.025 ** (position - (len(curves) - 1) / 2)
        axes.errorbar(
            x,
            means,
            yerr=np.nan_to_num([means - bounds[:, 0], bounds[:, 1] - means]),
            color=colour,
            marker=shape,
            markersize=6,
            linewidth=2,
            elinewidth=1.2,
            capsize=3,
            label=TITLES[curve.method],
        )
    axes.set_xscale("log")
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.set_ylim(top=min(101, axes.get_ylim()[1]))
    axes.set_xlabel("labelled examples a class", color=INK)
    axes.set_ylabel("test accuracy, %", color=INK)
    draws = max(map(len, curves[0].accuracies))
    interval = f"mean of {draws} draws and its 95 % interval" if draws > 1 else "one draw"
    _dress(axes, f"From few examples: {interval}, {curves[0].test_count} test examples")
    axes.grid(axis="y", color="#E5E5E5", linewidth=0.8)
    axes.legend(frameon=False, loc="lower right", labelcolor=INK)
    atomic_write(path, lambda temporary: figure.savefig(temporary, format="png"))


def plot_stages(probes: StageProbes, path: str | Path) -> None:
    """Draw the accuracy on what enters each stage, with intervals, as a PNG; the best stands out.

    Args:
        probes: what `jt.probe_stages` returned.
        path: of the file; one that is there already is replaced.

    Raises:
        OutputError: the file cannot be written there.
    """
    names = [score.stage for score in probes.scores]
    figure, axes = _figure(1.4 + 0.38 * len(names))
    for position, score in enumerate(probes.scores):
        mean, low, high = (100 * value for value in score.accuracy)
        is_best = score.stage == probes.best.stage
        colour = "#0072B2" if is_best else "#8FB8D4"
        axes.barh(position, mean, height=0.62, color=colour)
        axes.errorbar(
            mean, position, xerr=[[mean - low], [high - mean]], color=INK, capsize=3, linewidth=1.2
        )
        axes.annotate(
            f"{mean:.1f}",
            (high, position),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            color=INK,
            weight="bold" if is_best else "normal",
            annotation_clip=False,
        )
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 105)  # room for the number of a full bar
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("test accuracy, %", color=INK)
    axes.set_ylabel("what enters", color=INK)
    _dress(axes, f"Which stage transfers best: {TITLES[probes.method]} on what enters each")
    axes.grid(axis="x", color="#E5E5E5", linewidth=0.8)
    atomic_write(path, lambda temporary: figure.savefig(temporary, format="png"))


def _figure(height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(8, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _dress(axes: Any, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
