"""What several subcommands share: data and JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxtransfer.data import ArrayData, as_array_data, load_digits
from jaxtransfer.errors import DataError
from jaxtransfer.formats import read_weights
from jaxtransfer.transfer import EMBEDDED_SOURCE

EMBEDDED_DATA = "digits"


def add_source(parser: argparse.ArgumentParser) -> None:
    """`--source`: the model that training starts from."""
    parser.add_argument(
        "--source",
        default=EMBEDDED_SOURCE,
        metavar="MODEL",
        help="the model to transfer from: a folder, or checkpoints/NAME",
    )


def add_data(parser: argparse.ArgumentParser) -> None:
    """`--data` and `--per-class`: the labelled images to train on."""
    parser.add_argument(
        "--data",
        default=EMBEDDED_DATA,
        metavar="DATA",
        help="the target: 'digits', or an .npz file with the arrays images and labels",
    )
    parser.add_argument(
        "--per-class",
        type=int,
        default=5,
        metavar="N",
        help="labelled training images of each class",
    )


def add_file_options(parser: argparse.ArgumentParser) -> None:
    """`--part` and `--architecture`: what to take of a file of weights, and how to read it."""
    parser.add_argument(
        "--part", default="", metavar="GROUP", help="take only this group of the file, such as ema"
    )
    parser.add_argument(
        "--architecture",
        metavar="FILE",
        help="the .cfg of Darknet or .prototxt of Caffe (default: the one beside the weights)",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """`--json`: print what a program would read, and nothing else."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def read_data(name: str) -> ArrayData:
    """The labelled images that `--data` names; classes without names are called by their numbers.

    Raises:
        DataError: the file has no `images` or no `labels`.
    """
    if name == EMBEDDED_DATA:
        return load_digits()
    arrays = read_weights(Path(name))
    missing = {"images", "labels"} - set(arrays)
    if missing:
        raise DataError(
            f"{name}: expected the arrays images and labels, and classes if they have names, found "
            f"{sorted(arrays)}"
        )
    data = as_array_data((arrays["images"], arrays["labels"]))
    if data.classes is not None:
        return data
    if "classes" in arrays:
        return as_array_data(data, [str(value) for value in arrays["classes"]])
    return as_array_data(data, [str(number) for number in range(int(data.labels.max()) + 1)])


def print_json(value: Any) -> None:
    """Print a value as indented JSON on standard output."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def positive(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """An argument type: a number above 0."""

    def parse(text: str) -> Any:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"expected a number above 0, found {text}")
        return value

    parse.__name__ = f"positive {kind.__name__}"
    return parse
