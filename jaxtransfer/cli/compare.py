"""Does transfer help? Train arms with and without it under one budget, and show the evidence."""

from __future__ import annotations

import argparse
import time

from jaxtransfer.cli.common import (
    add_json,
    add_source,
    positive,
    print_json,
)
from jaxtransfer.cli.datasets import EMBEDDED_DATA, PER_CLASS, add_data, read_arrays
from jaxtransfer.evaluate.comparison import NAIVE, SCRATCH, TRANSFER_ARMS, Budget, Comparison
from jaxtransfer.formats.output import make_folder
from jaxtransfer.report import write_comparison
from jaxtransfer.report.comparison import CAPTION, HEADER, starts_sentence, table_rows
from jaxtransfer.train import step_bar
from jaxtransfer.transfer import DIGITS, compare

ARMS = (NAIVE, SCRATCH, *TRANSFER_ARMS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `jaxtransfer compare`."""
    budget = Budget()
    add_source(parser)
    add_data(parser)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="which to run")
    parser.add_argument("--seeds", type=positive(int), default=3, help="number of seeds")
    parser.add_argument(
        "--steps", type=positive(int), default=budget.steps, help="steps of each run"
    )
    parser.add_argument(
        "--batch-size", type=positive(int), default=budget.batch_size, help="examples a step"
    )
    parser.add_argument(
        "--learning-rates",
        type=positive(float),
        nargs="+",
        default=list(budget.learning_rates),
        help="what the search tries for each arm",
    )
    parser.add_argument("--out", default="runs/compare", help="folder for the report")
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Compare, write the report, print the table or the JSON."""
    make_folder(options.out)  # better now than after the work
    begun = time.perf_counter()
    budget = Budget(
        per_class=PER_CLASS if options.per_class is None else options.per_class,
        steps=options.steps,
        batch_size=options.batch_size,
        learning_rates=tuple(options.learning_rates),
    )
    with step_bar() as advance:
        comparison = compare(
            options.source,
            read_arrays(options.data),
            target=DIGITS if options.data == EMBEDDED_DATA else options.data,
            arms=options.arms,
            budget=budget,
            seeds=options.seeds,
            on_progress=advance,
        )
    paths = write_comparison(comparison, options.out)
    if options.json:
        print_json(comparison.to_dict())
        return
    _print_table(comparison)
    seconds = time.perf_counter() - begun
    print(f"Written in {seconds:.0f} s: {', '.join(map(str, paths))}")


def _print_table(comparison: Comparison) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{comparison.source} to {comparison.target}", title_justify="left")
    for column in HEADER:
        table.add_column(column, justify="left" if column == "arm" else "right", no_wrap=True)
    best = max(comparison.arms, key=lambda name: comparison.arms[name].asymptote.mean)
    for row in table_rows(comparison):
        table.add_row(*row, style="bold" if row[0] == best else None)
    console = Console(highlight=False)
    console.print(table)
    console.print(CAPTION, style="dim")
    console.print(starts_sentence(comparison))
    console.print(comparison.verdict, style="bold")
