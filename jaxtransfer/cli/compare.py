"""Does transfer help? Train arms with and without it under one budget, and show the evidence."""

from __future__ import annotations

import argparse
import time

from jaxtransfer.cli.common import add_json, add_source, natural, positive, print_json
from jaxtransfer.cli.datasets import (
    EMBEDDED_DATA,
    PER_CLASS,
    add_data,
    is_files,
    read_arrays,
    read_parts,
)
from jaxtransfer.data import Data, StoredData
from jaxtransfer.evaluate.arms import DEFAULT_ARMS, NAIVE, SCRATCH
from jaxtransfer.evaluate.budget import Budget
from jaxtransfer.evaluate.results import Comparison
from jaxtransfer.formats.output import make_folder
from jaxtransfer.models import Preprocess
from jaxtransfer.partition import RECIPES
from jaxtransfer.partition.recipes import WITH_STAGE
from jaxtransfer.report import write_comparison
from jaxtransfer.report.comparison import (
    CAPTION,
    COST_HEADER,
    HEADER,
    cost_rows,
    edge_sentence,
    starts_sentence,
    table_rows,
)
from jaxtransfer.train import step_bar
from jaxtransfer.transfer import DIGITS, compare, load

# Images of files are decoded once where they take no more bytes than this: each measurement of each
# run reads all test images.
MOST_IN_MEMORY = 2**31


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `jaxtransfer compare`."""
    budget = Budget()
    add_source(parser)
    parser.add_argument(
        "--image-size",
        metavar="N",
        type=positive(int),
        help="side of the images that the network gets (default: that of the source)",
    )
    add_data(parser)
    parser.add_argument(
        "--arms",
        metavar="ARM",
        nargs="+",
        type=_arm,
        default=list(DEFAULT_ARMS),
        help=f"which to run: {NAIVE}, {SCRATCH}, and recipes, with arguments or without: "
        f"{', '.join(RECIPES)}, 'last(2)', 'freeze_until(STAGE)'",
    )
    parser.add_argument(
        "--seeds", metavar="N", type=positive(int), default=3, help="number of seeds"
    )
    parser.add_argument(
        "--steps", metavar="N", type=positive(int), default=budget.steps, help="steps of each run"
    )
    parser.add_argument(
        "--epochs", metavar="X", type=positive(float), help="passes over the data, not --steps"
    )
    parser.add_argument(
        "--batch-size",
        metavar="N",
        type=positive(int),
        default=budget.batch_size,
        help="examples a step",
    )
    parser.add_argument(
        "--learning-rates",
        metavar="X",
        type=positive(float),
        nargs="+",
        default=list(budget.learning_rates),
        help="what the search tries for each arm",
    )
    parser.add_argument(
        "--extensions",
        metavar="N",
        type=natural,
        default=budget.extensions,
        help="rates that an arm may try beyond these where its best one is the first or the last",
    )
    parser.add_argument("--out", metavar="FOLDER", default="runs/compare", help="for the report")
    add_json(parser)


def _arm(text: str) -> str:
    """An argument type: an arm's name."""
    known = (NAIVE, SCRATCH, *RECIPES, *WITH_STAGE)
    if text.partition("(")[0] not in known:
        raise argparse.ArgumentTypeError(f"expected an arm among {', '.join(known)}, found {text}")
    return text


def run(options: argparse.Namespace) -> None:
    """Compare, write the report, print the table or the JSON."""
    make_folder(options.out)  # better now than after the work
    begun = time.perf_counter()
    model = load(options.source, input_size=options.image_size)
    data, validation, test = _read(options.data, model.preprocess)
    few = options.per_class or (None if is_files(options.data) else PER_CLASS)
    budget = Budget(
        per_class=few,
        steps=options.steps,
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rates=tuple(options.learning_rates),
        extensions=options.extensions,
    )
    with step_bar() as advance:
        comparison = compare(
            model,
            data,
            validation=validation,
            test=test,
            name=options.source,
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


def _read(name: str, preprocess: Preprocess) -> tuple[Data, Data | None, Data | None]:
    """All examples, or those to train on; the validation and test examples where they are apart."""
    if not is_files(name):
        return read_arrays(name), None, None
    train, validation, test = read_parts(name, None, 0)
    ready = None if validation is None else _in_memory(validation, preprocess)
    return _in_memory(train, preprocess), ready, _in_memory(test, preprocess)


def _in_memory(data: Data, preprocess: Preprocess) -> Data:
    """The same images decoded for a network, where they do not take too much memory."""
    if not isinstance(data, StoredData):
        return data
    one = data.ready(preprocess).image(0).nbytes
    return data.load(preprocess) if one * len(data) <= MOST_IN_MEMORY else data


def _print_table(comparison: Comparison) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    best = max(comparison.arms, key=lambda name: comparison.arms[name].asymptote.mean)
    title = f"{comparison.source} to {comparison.target}"
    costs = [(row[0], *row[1:4], row[-1]) for row in cost_rows(comparison)]
    for what, header, rows in (
        (title, HEADER, table_rows(comparison)),
        ("cost of one run", (*COST_HEADER[:4], COST_HEADER[-1]), costs),
    ):
        table = Table(title=what, title_justify="left")
        for column in header:
            table.add_column(column, justify="left" if column == "arm" else "right", no_wrap=True)
        for row in rows:
            table.add_row(*row, style="bold" if row[0] == best else None)
        console.print(table)
    console.print(CAPTION, style="dim")
    for sentence in (starts_sentence(comparison), edge_sentence(comparison)):
        if sentence:
            console.print(sentence)
    console.print(comparison.verdict, style="bold")
