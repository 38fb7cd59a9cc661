"""What several subcommands share: the source model, files of weights, and JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from jaxtransfer.transfer import EMBEDDED_SOURCE


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Help with the default of each option that has one worth telling."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or action.default == []:
            return action.help
        return super()._get_help_string(action)


def add_source(parser: argparse.ArgumentParser) -> None:
    """`--source`: the model that training starts from."""
    parser.add_argument(
        "--source",
        default=EMBEDDED_SOURCE,
        metavar="MODEL",
        help="the model to transfer from: a folder, or checkpoints/NAME",
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


def natural(text: str) -> int:
    """An argument type: a whole number from 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected a number from 0, found {text}")
    return value
