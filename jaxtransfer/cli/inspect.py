"""Show what a file of weights holds: tensors, totals, hash, and which network it may belong to."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from jaxtransfer import hub
from jaxtransfer.cli.common import add_file_options, add_json, print_json
from jaxtransfer.formats import Inspection, fingerprint_of, inspect_weights
from jaxtransfer.models import Guess, recognise
from jaxtransfer.models.model import CONFIG_FILE, RECEIPT_FILE, WEIGHTS_FILE
from jaxtransfer.models.saved import read_config
from jaxtransfer.tree.summary import format_bytes, format_table

EMBEDDED_FILE = "checkpoints/glyphs"
_LONGEST_TEXT = 120
_MOST_GUESSES = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `jaxtransfer inspect`."""
    parser.add_argument(
        "file",
        nargs="?",
        default=EMBEDDED_FILE,
        help="a file or folder, checkpoints/NAME, hf://ORGANISATION/NAME or https://…#sha256=…",
    )
    add_file_options(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Print one row a tensor, then what all of them come to."""
    inspection, sha256 = _inspect(options)
    guesses = recognise(inspection)[:_MOST_GUESSES]
    architectures = [*_saved_as(inspection), *map(str, guesses)]
    if options.json:
        print_json(_as_json(inspection, sha256, guesses, architectures))
        return
    rows = [[t.name, _shape(t.shape), t.dtype, t.bytes] for t in inspection.tensors]
    if rows:
        print(format_table(["tensor", "shape", "dtype", "bytes"], rows), end="\n\n")
    for name, text in _summary(options.file, inspection, sha256, architectures):
        print(f"{name:<13} {text}")


def _inspect(options: argparse.Namespace) -> tuple[Inspection, str]:
    """What the file holds, and its hash; of a remote file that is not here yet, only the former."""
    if not options.part:
        remote = hub.inspect_remote(options.file)
        if remote is not None:
            return remote, ""
    path = hub.weights_in(hub.resolve(options.file))
    found = inspect_weights(path, part=options.part, architecture=options.architecture)
    return found, fingerprint_of(path)


def _summary(
    reference: str, inspection: Inspection, sha256: str, architectures: list[str]
) -> Iterable[tuple[str, str]]:
    yield "file", reference
    yield "format", inspection.format
    yield "sha256", sha256 or "not known: only headers were read, before a download"
    for key, value in inspection.metadata.items():
        text = " ".join(str(value).split())
        short = text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}…"
        yield "metadata", f"{key}: {short}"
    yield "tensors", f"{len(inspection.tensors):,}, {inspection.parameters:,} parameters"
    for dtype, entry in _by_dtype(inspection).items():
        yield "", f"{entry['tensors']:,} of {dtype}, {entry['parameters']:,} parameters"
    yield "memory", _memory(inspection)
    yield (
        "architecture",
        architectures[0] if architectures else "none of the catalog has such names",
    )
    for other in architectures[1:]:
        yield "", other


def _saved_as(inspection: Inspection) -> list[str]:
    """The network that `Model.save` noted beside the weights, if it did."""
    folder = inspection.path.parent
    if inspection.path.name != WEIGHTS_FILE or not (folder / RECEIPT_FILE).is_file():
        return []
    return [f"{read_config(folder)['architecture']} (as {CONFIG_FILE} beside it says)"]


def _memory(inspection: Inspection) -> str:
    largest = max((tensor.bytes for tensor in inspection.tensors), default=0)
    return (
        f"{format_bytes(inspection.bytes)} on the device, once loaded; the largest tensor takes "
        f"{format_bytes(largest)}"
    )


def _by_dtype(inspection: Inspection) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for tensor in inspection.tensors:
        entry = found.setdefault(tensor.dtype, {"tensors": 0, "parameters": 0, "bytes": 0})
        entry["tensors"] += 1
        entry["parameters"] += tensor.parameters
        entry["bytes"] += tensor.bytes
    return found


def _as_json(
    inspection: Inspection, sha256: str, guesses: list[Guess], architectures: list[str]
) -> dict[str, Any]:
    return {
        "path": str(inspection.path),
        "format": inspection.format,
        "sha256": sha256 or None,
        "metadata": dict(inspection.metadata),
        "tensors": [asdict(tensor) for tensor in inspection.tensors],
        "parameters": inspection.parameters,
        "bytes": inspection.bytes,
        "dtypes": _by_dtype(inspection),
        "architectures": architectures,
        "guesses": [asdict(guess) for guess in guesses],
    }


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "()"
