"""List what can be loaded: checkpoints that come with the package, and networks to initialise."""

from __future__ import annotations

import argparse
from typing import Any

from jaxtransfer import hub
from jaxtransfer.cli.common import add_json, print_json
from jaxtransfer.models import ModelSpec, families, list_models, spec_of
from jaxtransfer.models.catalog import aliases
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
    checkpoints = [_of_checkpoint(reference) for reference in references]
    networks = [_of_network(name) for name in list_models(options.pattern)]
    if options.json:
        print_json({"checkpoints": checkpoints, "networks": networks})
        return
    print("Checkpoints that come with the package: jt.load(NAME)\n")
    print(_table(checkpoints))
    print(
        "\nNetworks: jt.load(NAME, WEIGHTS), with published weights jt.load(NAME), with random ones"
        " jt.init(NAME)\n"
    )
    print(_table(networks))


def _of_checkpoint(reference: str) -> dict[str, Any]:
    model = load(reference)
    return _described(reference, model.spec, count_parameters(model.params), model.num_classes)


def _of_network(name: str) -> dict[str, Any]:
    spec = spec_of(name)
    parameters = families()[name].parameters[name]
    return {
        **_described(name, spec, parameters, dict(spec.options)["num_classes"]),
        "sources": [source.name for source in spec.sources],
        "aliases": [alias for alias, (variant, _) in aliases().items() if variant == name],
        "weights": [
            {
                "reference": weights.reference,
                "source": weights.source,
                "licence": weights.licence,
                "top1": weights.top1,
                "data": weights.data,
            }
            for weights in spec.weights
        ],
    }


def _described(
    name: str, spec: ModelSpec, parameters: int, num_classes: int | None
) -> dict[str, Any]:
    return {
        "name": name,
        "architecture": spec.name,
        "parameters": parameters,
        "input_size": spec.input_size,
        "in_channels": spec.in_channels,
        "classes": num_classes,
        "paper": spec.paper,
    }


def _table(models: list[dict[str, Any]]) -> str:
    """One row a network: what it is, and whose weights it can read."""
    rows = [
        [
            model["name"],
            f"{model['parameters']:,}",
            "x".join(map(str, (*(model["input_size"] or ()), model["in_channels"]))),
            model["classes"],
            ", ".join(model["sources"]) if "sources" in model else model["architecture"],
            _best(model.get("weights", [])),
        ]
        for model in models
    ]
    last = ["sources of weights", "published top-1"] if "sources" in models[0] else ["network", ""]
    return format_table(["name", "parameters", "input", "classes", *last], rows)


def _best(weights: list[dict[str, Any]]) -> str:
    """The highest published accuracy."""
    known = [one["top1"] for one in weights if one["top1"] is not None]
    return f"{max(known):.1f} %" if known else ""
