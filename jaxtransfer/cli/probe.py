"""How good are a source's features for a target? Fit classifiers to them, and show the scores."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

from jaxtransfer.cli.common import add_json, add_source, positive, print_json
from jaxtransfer.cli.datasets import EMBEDDED_DATA, add_data, read_parts
from jaxtransfer.evaluate.classifiers import CLASSIFIERS
from jaxtransfer.evaluate.probing import ProbeReport, probe_source
from jaxtransfer.formats.output import make_folder
from jaxtransfer.report.probes import (
    CAPTION,
    best_sentence,
    few_shot_table,
    stage_rows,
    table_rows,
    write_probe_report,
)
from jaxtransfer.transfer import DIGITS, load

DIGITS_PER_CLASS = 50
"""Twice as many as the longest few-shot curve takes, so that its draws differ."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `jaxtransfer probe`."""
    add_source(parser)
    add_data(parser)
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=tuple(CLASSIFIERS),
        default=list(CLASSIFIERS),
        help="which classifiers to fit",
    )
    parser.add_argument(
        "--stages", action="store_true", help="fit the first of them to what enters each stage, too"
    )
    parser.add_argument(
        "--draws", type=positive(int), default=5, help="draws of each point of the few-shot curves"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the parts and of the draws")
    parser.add_argument("--out", default="runs/probe", help="folder for the report")
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Fit, write the report, print the tables or the JSON."""
    make_folder(options.out)  # better now than after the work
    begun = time.perf_counter()
    is_embedded = options.data == EMBEDDED_DATA
    default = DIGITS_PER_CLASS if is_embedded else None
    per_class = default if options.per_class is None else options.per_class
    parts = read_parts(options.data, per_class, options.seed)
    report = probe_source(
        load(options.source),
        parts.train,
        parts.test,
        names=(options.source, DIGITS if is_embedded else options.data),
        methods=options.methods,
        stages=options.stages,
        draws=options.draws,
        seed=options.seed,
    )
    paths = write_probe_report(report, options.out)
    if options.json:
        print_json(report.to_dict())
        return
    _print(report)
    seconds = time.perf_counter() - begun
    print(f"Written in {seconds:.0f} s: {', '.join(map(str, paths))}")


def _print(report: ProbeReport) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    _print_table(
        console, f"{report.source} to {report.target}", ("method", "accuracy"), table_rows(report)
    )
    console.print(CAPTION, style="dim")
    _print_table(console, "From few examples", *few_shot_table(report))
    if report.stages is not None:
        header = ("what enters", "features", "accuracy")
        _print_table(console, "Which stage transfers best", header, stage_rows(report.stages))
    console.print(best_sentence(report), style="bold")


def _print_table(
    console: Any, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for position, column in enumerate(header):
        table.add_column(column, justify="right" if position else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)
