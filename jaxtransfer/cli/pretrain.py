"""Build a source model from drawn characters, and refuse to write one that is not worth it."""

from __future__ import annotations

import argparse
from dataclasses import fields

from jaxtransfer.cli.common import add_json, positive, print_json, progress_bar
from jaxtransfer.evaluate.pretrain import Recipe, pretrain
from jaxtransfer.formats.output import make_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `jaxtransfer pretrain`: one for each field of `Recipe`."""
    recipe = Recipe()
    for field in fields(Recipe):
        value = getattr(recipe, field.name)
        kind = (
            positive(type(value))
            if field.name in ("width", "steps", "batch_size", "learning_rate")
            else type(value)
        )
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=value, help=" ")
    parser.add_argument("--out", default="runs/pretrain", help="folder for the model and its card")
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Train, refuse or save, and print the held-out accuracy."""
    make_folder(options.out)
    recipe = Recipe(**{field.name: getattr(options, field.name) for field in fields(Recipe)})
    with progress_bar() as advance:
        source = pretrain(
            recipe,
            lambda number, loss: advance(f"pretraining, loss {loss:.2f}", number, recipe.steps),
        )
    folder = source.save(options.out)
    if options.json:
        print_json(
            {"model": str(folder), "held_out": source.held_out._asdict(), "naive": source.naive}
        )
        return
    percent = [f"{100 * value:.1f} %" for value in (*source.held_out, source.naive)]
    print("Accuracy on held-out fonts {} (99 % interval {} to {}), naive {}.".format(*percent))
    print(f"The model is in {folder}; try: jaxtransfer compare --source {folder}")
