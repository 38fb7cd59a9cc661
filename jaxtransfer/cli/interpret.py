"""Show what a classifier does on test images: errors, confidence, and where in them it looks."""

from __future__ import annotations

import argparse

from jaxtransfer.cli.common import add_json, natural, positive, print_json
from jaxtransfer.cli.datasets import add_data, read_parts
from jaxtransfer.evaluate.interpret import interpret, with_classes
from jaxtransfer.formats.output import make_folder
from jaxtransfer.report import write_interpretation
from jaxtransfer.report.interpretation import summary
from jaxtransfer.transfer import EMBEDDED_SOURCE, load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `jaxtransfer interpret`."""
    parser.add_argument(
        "model",
        nargs="?",
        default=EMBEDDED_SOURCE,
        help="a folder with a model, or checkpoints/NAME",
    )
    add_data(parser)
    parser.add_argument(
        "--seed",
        metavar="N",
        type=natural,
        default=0,
        help="of the parts that arrays are cut into; those of finetune give what it tested on",
    )
    parser.add_argument(
        "--top",
        metavar="N",
        type=positive(int),
        default=12,
        help="how many frequent errors and how many images to show",
    )
    parser.add_argument(
        "--out", metavar="FOLDER", default="runs/interpret", help="for the page and its pictures"
    )
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Interpret the model on the test part, write the page, print the summary or the JSON."""
    make_folder(options.out)  # better now than after the work
    parts = read_parts(options.data, options.per_class, options.seed)
    model = with_classes(load(options.model), parts.test.classes)
    found = interpret(model, parts.test, top=options.top)
    paths = write_interpretation(
        found,
        options.out,
        model,
        parts.test,
        source_data=parts.train,
        title=f"What {options.model} does on {options.data}",
    )
    if options.json:
        print_json(found.to_dict())
        return
    print(summary(found))
    for pair in found.most_confused:
        print(f"{pair.label} taken for {pair.prediction}: {pair.count} ({100 * pair.share:.1f} %)")
    if found.calibrated is not None and found.temperature is not None:
        before, after = (
            100 * measured.expected_calibration_error
            for measured in (found.calibration, found.calibrated)
        )
        print(
            f"Expected calibration error {before:.2f} %, {after:.2f} % with the temperature "
            f"{found.temperature:.3f}."
        )
    print(f"The page is {paths[0]}")
