"""Fine-tune a model on labelled images, save it, and go on after an interruption."""

from __future__ import annotations

import argparse
from pathlib import Path

from jaxtransfer.cli.common import (
    add_data,
    add_json,
    add_source,
    positive,
    print_json,
    read_data,
)
from jaxtransfer.data import few_shot_split
from jaxtransfer.evaluate.comparison import SCRATCH, reinitialise
from jaxtransfer.evaluate.metrics import accuracy
from jaxtransfer.evaluate.predict import predict
from jaxtransfer.formats.output import make_folder
from jaxtransfer.partition import RECIPES
from jaxtransfer.train import step_bar
from jaxtransfer.transfer import finetune, fit_head, load

CHECKPOINTS = "checkpoints"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `jaxtransfer finetune`."""
    add_source(parser)
    add_data(parser)
    parser.add_argument(
        "--arm",
        choices=(SCRATCH, *RECIPES),
        default="lp_ft",
        help="what trains; scratch starts anew",
    )
    parser.add_argument("--steps", type=positive(int), default=120, help="training steps")
    parser.add_argument("--batch-size", type=positive(int), default=32, help="examples a step")
    parser.add_argument(
        "--learning-rate", type=positive(float), default=3e-3, help="the highest one"
    )
    parser.add_argument("--weight-decay", type=float, default=1e-4, help="of kernels")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random")
    parser.add_argument(
        "--save-every", type=positive(int), default=50, help="steps between checkpoints"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on from the newest checkpoint in --out"
    )
    parser.add_argument(
        "--out", default="runs/finetune", help="folder for the model and its checkpoints"
    )
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Fine-tune, save the model, print its test accuracy."""
    out = make_folder(options.out)
    split = few_shot_split(read_data(options.data), options.per_class, options.seed)
    model = load(options.source)
    if options.arm == SCRATCH:
        model = reinitialise(model, options.seed)
    start = fit_head(model, split.train, options.seed)
    before = accuracy(predict(start, split.test.images), split.test.labels)
    with step_bar() as advance:
        result = finetune(
            start,
            split.train,
            plan="full" if options.arm == SCRATCH else options.arm,
            steps=options.steps,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            weight_decay=options.weight_decay,
            seed=options.seed,
            on_step=lambda number, state: advance(options.arm, number, options.steps),
            checkpoint_folder=out / CHECKPOINTS,
            save_every=options.save_every,
            resume=options.resume,
        )
    result.model.save(out)
    after = accuracy(predict(result.model, split.test.images), split.test.labels)
    _print(options, out, before, after, result.model.receipt.notes)


def _print(
    options: argparse.Namespace, out: Path, before: float, after: float, notes: tuple[str, ...]
) -> None:
    if options.json:
        print_json(
            {"model": str(out), "arm": options.arm, "start": before, "end": after, "notes": notes}
        )
        return
    for note in notes:
        print(note)
    print(f"Test accuracy {100 * before:.1f} % before, {100 * after:.1f} % after training.")
    print(f"The model is in {out}; try: jaxtransfer predict {out}")
