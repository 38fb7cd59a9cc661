"""`jaxtransfer`: reads the command line and hands over to a subcommand."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import metadata

from jaxtransfer.cli import (
    advise,
    compare,
    convert,
    finetune,
    inspect,
    interpret,
    models,
    predict,
    pretrain,
    probe,
    rank,
    sweep,
)
from jaxtransfer.cli.common import HelpFormatter
from jaxtransfer.compiling import compilation_cache
from jaxtransfer.errors import JaxTransferError

COMMANDS = {
    "advise": advise,
    "rank": rank,
    "compare": compare,
    "probe": probe,
    "sweep": sweep,
    "finetune": finetune,
    "predict": predict,
    "interpret": interpret,
    "pretrain": pretrain,
    "inspect": inspect,
    "convert": convert,
    "models": models,
}

# What these do is over before a program would be read from a folder.
WITHOUT_CACHE = ("inspect", "convert", "models")


def build_parser() -> argparse.ArgumentParser:
    """The parser with all subcommands; each one's description is its module's first line."""
    parser = argparse.ArgumentParser(
        prog="jaxtransfer",
        description="Transfer learning for JAX. Every subcommand runs as it stands, on the "
        "embedded source model and handwritten digits.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        description = (module.__doc__ or "").strip().splitlines()[0]
        command = commands.add_parser(
            name,
            help=description,
            description=description,
            formatter_class=HelpFormatter,
        )
        module.add_arguments(command)
        if name not in WITHOUT_CACHE:
            command.add_argument(
                "--compilation-cache",
                metavar="FOLDER",
                help="keep what is compiled in this folder, for later runs to start sooner",
            )
        command.set_defaults(run=module.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; the exit status is 0, or 2 where something is wrong with what was asked."""
    options = build_parser().parse_args(arguments)
    try:
        if getattr(options, "compilation_cache", None):
            compilation_cache(options.compilation_cache)
        options.run(options)
    except JaxTransferError as error:
        print(f"jaxtransfer {options.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"jaxtransfer {options.command}: interrupted", file=sys.stderr)
        return 130
    return 0


def _version() -> str:
    try:
        return metadata.version("jaxtransfer")
    except metadata.PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
