"""Should one transfer, and how? Check the conditions on labelled images, and say what to train."""

from __future__ import annotations

import argparse
import time

from jaxtransfer.cli.common import add_json, add_source, natural, positive, print_json
from jaxtransfer.cli.datasets import EMBEDDED_DATA, add_data, read_parts
from jaxtransfer.formats.output import make_folder
from jaxtransfer.report.advice import write_advice
from jaxtransfer.transfer import DIGITS, advise


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `jaxtransfer advise`."""
    add_source(parser)
    add_data(parser)
    parser.add_argument(
        "--source-examples",
        type=natural,
        metavar="N",
        help="images that the source was trained on, where its receipt does not tell",
    )
    parser.add_argument("--folds", type=positive(int), default=5, help="of the cross-validation")
    parser.add_argument(
        "--max-examples", type=positive(int), default=1000, help="images that probes are fitted to"
    )
    parser.add_argument("--seed", type=natural, default=0, help="of all that is random")
    parser.add_argument("--out", default="runs/advise", help="folder for the report")
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Advise, write the report, print the sentences or the JSON."""
    make_folder(options.out)  # better now than after the work
    begun = time.perf_counter()
    advice = advise(
        options.source,
        read_parts(options.data, options.per_class, options.seed).train,
        target=DIGITS if options.data == EMBEDDED_DATA else options.data,
        source_examples=options.source_examples,
        folds=options.folds,
        max_examples=options.max_examples,
        seed=options.seed,
    )
    paths = write_advice(advice, options.out)
    if options.json:
        print_json(advice.to_dict())
        return
    print(advice)
    seconds = time.perf_counter() - begun
    print(f"Written in {seconds:.0f} s: {', '.join(map(str, paths))}")
