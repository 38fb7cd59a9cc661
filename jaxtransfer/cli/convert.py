"""Write weights of any format anew, as they are or as the verified leaves of a network."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from jaxtransfer import hub
from jaxtransfer.cli.common import add_file_options, add_json, print_json
from jaxtransfer.formats import read_weights, write_weights, writers
from jaxtransfer.formats.output import write_text
from jaxtransfer.transfer import load
from jaxtransfer.tree import count_bytes, count_parameters
from jaxtransfer.tree.summary import format_bytes

EXAMPLE_OUTPUT = "weights.safetensors"
RECEIPT_SUFFIX = ".receipt.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `jaxtransfer convert`."""
    parser.add_argument(
        "file",
        nargs="?",
        default="checkpoints/glyphs",
        help="a file or folder, checkpoints/NAME, hf://ORGANISATION/NAME or https://…#sha256=…",
    )
    parser.add_argument(
        "output",
        nargs="?",
        default=EXAMPLE_OUTPUT,
        help="where to: a file whose ending names the format, such as .safetensors or .npz; with "
        "--model also a folder, which `jaxtransfer.load` reads",
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="the network whose leaves the tensors fill; 'auto' for the one of the catalog that "
        "they fit (default: names and arrays stay as they are)",
    )
    parser.add_argument(
        "--source",
        metavar="RULES",
        help="which rules of the network translate the names, such as torchvision (default: those "
        "that match the most)",
    )
    parser.add_argument(
        "--style",
        choices=("jax", "torch"),
        default="jax",
        help="how names are joined: by '/', or by '.' as in a state dict of PyTorch",
    )
    add_file_options(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Read, verify, write, and say what was done."""
    written = _convert_model(options) if options.model else _convert_names(options)
    if options.json:
        print_json(written)
        return
    print(f"{options.file} -> {written['output']}: {written['summary']}")


def _convert_names(options: argparse.Namespace) -> dict[str, Any]:
    path = hub.weights_in(hub.resolve(options.file))
    flat = read_weights(path, part=options.part, architecture=options.architecture)
    write_weights(flat, options.output, style=options.style)
    size = format_bytes(count_bytes(flat))
    return {
        "output": options.output,
        "tensors": len(flat),
        "parameters": count_parameters(flat),
        "summary": f"{len(flat):,} tensors, {count_parameters(flat):,} parameters, {size}",
    }


def _convert_model(options: argparse.Namespace) -> dict[str, Any]:
    named = options.model != "auto"
    model = load(
        options.model if named else options.file,
        options.file if named else None,
        source=options.source,
        part=options.part,
        architecture=options.architecture,
    )
    output = Path(options.output)
    if output.suffix.lower() in writers():
        leaves = {"params": model.params, "stats": model.stats}
        write_weights(leaves, output, style=options.style)
        write_text(model.receipt.to_json() + "\n", output.with_name(output.name + RECEIPT_SUFFIX))
    else:
        model.save(output)
    return {
        "output": str(output),
        "architecture": model.spec.name,
        "parameters": count_parameters(model.params),
        "summary": f"{model.spec.name}, {model.receipt.summary()}",
    }
