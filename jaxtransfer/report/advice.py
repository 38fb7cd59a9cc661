"""Advice on a transfer as files: `advice.json`, `advice.png` and `advice.html`."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

from jaxtransfer.evaluate.advice import Advice
from jaxtransfer.formats import atomic_write
from jaxtransfer.formats.output import make_folder, write_text
from jaxtransfer.report.curves import INK
from jaxtransfer.report.page import Block, Figure, Heading, Table, Text, png_bytes, write_page

# Okabe & Ito 2008, "Color Universal Design", as in `curves`.
STAGE, RANDOM, MAJORITY = "#0072B2", "#D55E00", "#999999"
MET = {True: "yes", False: "no", None: "unknown"}

CAPTION = (
    "Cross-validated accuracy of linear probes on what enters each stage of the source, and of the "
    "best network with random weights at its best stage; lines are 95 % intervals over the folds."
)


def write_advice(advice: Advice, folder: str | Path) -> list[Path]:
    """Write JSON, picture and page to a folder, each as a whole or not at all.

    Args:
        advice: what `jt.advise` returned.
        folder: is made if it does not exist; files that are there are replaced.

    Returns:
        The paths of `advice.json`, `advice.png` and `advice.html`.

    Raises:
        OutputError: the folder cannot be made or written.
    """
    folder = make_folder(folder)
    paths = [folder / name for name in ("advice.json", "advice.png", "advice.html")]
    picture = png_bytes(advice_figure(advice))
    write_text(json.dumps(advice.to_dict(), indent=2, ensure_ascii=False) + "\n", paths[0])
    atomic_write(paths[1], lambda temporary: temporary.write_bytes(picture))
    write_page(
        paths[2], f"Transfer from {advice.source} to {advice.target}?", _blocks(advice, picture)
    )
    return paths


def advice_figure(advice: Advice) -> Any:
    """Accuracies of probes by stage, with random weights and the majority answer, as a figure."""
    from matplotlib.figure import Figure as Canvas

    names = list(advice.accuracies)
    figure = Canvas(figsize=(7.5, 1.6 + 0.36 * len(names)), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for height, (name, interval) in enumerate(advice.accuracies.items()):
        colour = {"random weights": RANDOM, "majority answer": MAJORITY}.get(name, STAGE)
        mean, low, high = (100 * value for value in interval)
        axes.barh(height, mean, color=colour, height=0.6)
        axes.plot([max(low, 0), min(high, 100)], [height] * 2, color=INK, linewidth=1.5)
        axes.text(101, height, f"{mean:.1f}", va="center", fontsize=9, color=INK)
    axes.set_yticks(range(len(names)), [_label(name, advice) for name in names], color=INK)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel("held-out accuracy, %", color=INK)
    axes.grid(axis="x", color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=0, labelsize=9)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    figure.suptitle(
        textwrap.fill(f"{advice.source} to {advice.target}: {advice.reasons[0]}", 84),
        x=0.01,
        ha="left",
        fontsize=11,
        color=INK,
        weight="bold",
    )
    return figure


def _label(name: str, advice: Advice) -> str:
    others = ("random weights", "majority answer")
    return name if name in others else f"source, before {name}"


def _blocks(advice: Advice, picture: bytes) -> list[Block]:
    rows = [
        (_label(name, advice), *(f"{100 * min(max(value, 0), 1):.1f} %" for value in interval))
        for name, interval in advice.accuracies.items()
    ]
    checks = [(check.name, MET[check.met], check.evidence) for check in advice.checks]
    return [
        Text(advice.reasons[0], is_lead=True),
        *[Text(reason) for reason in advice.reasons[1:]],
        Heading("Conditions"),
        Table(["condition", "met", "evidence"], checks),
        Heading("Features"),
        Figure(picture, CAPTION),
        Table(["probe on", "accuracy", "low", "high"], rows),
        Text(
            f"{advice.examples:,} labelled images of {advice.classes} classes. The cases are those "
            'of "Transfer Learning" in the notes of Stanford\'s CS231n, '
            "https://cs231n.github.io/transfer-learning/."
        ),
    ]
