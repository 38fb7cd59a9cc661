"""List what can be loaded: checkpoints that come with the package, and networks to initialise."""

from __future__ import annotations

import argparse
from typing import Any

from jaxtransfer import hub
from jaxtransfer.cli.common import add_json, print_json
from jaxtransfer.models import Model, build, list_models
from jaxtransfer.transfer import load
from jaxtransfer.tree import count_parameters
from jaxtransfer.tree.summary import format_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `jaxtransfer models`."""
    parser.add_argument("pattern", nargs="?", default="*", help="a glob over the networks' names")
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Print both lists."""
    references = [hub.EMBEDDED_PREFIX + name for name in hub.embedded_checkpoints()]
    checkpoints = [_describe(reference, load(reference)) for reference in references]
    networks = [_describe(name, build(name)) for name in list_models(options.pattern)]
    if options.json:
        print_json({"checkpoints": checkpoints, "networks": networks})
        return
    print("With weights: jt.load(NAME)\n")
    print(_table(checkpoints))
    print("\nTo initialise: jt.init(NAME, seed=0, num_classes=…)\n")
    print(_table(networks))


def _describe(name: str, model: Model) -> dict[str, Any]:
    return {
        "name": name,
        "architecture": model.spec.name,
        "parameters": count_parameters(model.params),
        "input_size": model.spec.input_size,
        "in_channels": model.spec.in_channels,
        "classes": model.num_classes,
        "paper": model.spec.paper,
    }


def _table(models: list[dict[str, Any]]) -> str:
    rows = [
        [
            model["name"],
            model["architecture"],
            model["parameters"],
            "x".join(map(str, (*(model["input_size"] or ()), model["in_channels"]))),
            model["classes"],
        ]
        for model in models
    ]
    return format_table(["name", "architecture", "parameters", "input", "classes"], rows)
