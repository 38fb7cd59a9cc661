"""Build a source model from drawn characters, and refuse to write one that is not worth it."""

from __future__ import annotations

import argparse

from jaxtransfer.cli.common import add_json, positive, print_json
from jaxtransfer.evaluate.pretrain import Recipe, pretrain
from jaxtransfer.formats.output import make_folder
from jaxtransfer.train import step_bar

# For each field of `Recipe`, how it is read and what it is.
OPTIONS = {
    "architecture": (str, "a network of the catalog for small images"),
    "width": (positive(int), "channels of its first stage"),
    "steps": (positive(int), "training steps"),
    "batch_size": (positive(int), "drawn images a step"),
    "learning_rate": (positive(float), "the highest one"),
    "weight_decay": (float, "of kernels"),
    "label_smoothing": (float, "share of the target spread over all classes"),
    "seed": (int, "of the weights and of all that is drawn"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `jaxtransfer pretrain`: one for each field of `Recipe`."""
    recipe = Recipe()
    for name, (kind, text) in OPTIONS.items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=kind, default=getattr(recipe, name), help=text)
    parser.add_argument("--out", default="runs/pretrain", help="folder for the model and its card")
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Train, refuse or save, and print the held-out accuracy."""
    make_folder(options.out)
    recipe = Recipe(**{name: getattr(options, name) for name in OPTIONS})
    with step_bar() as advance:
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
