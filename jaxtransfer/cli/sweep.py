"""Try many learning rates, weight decays, label smoothings and seeds at once; keep the best."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from jaxtransfer.cli.common import add_json, add_source, natural, positive, print_json
from jaxtransfer.cli.datasets import add_data, read_parts
from jaxtransfer.data import Data, stratified_split
from jaxtransfer.evaluate.metrics import accuracy
from jaxtransfer.evaluate.predict import predict
from jaxtransfer.formats.output import make_folder
from jaxtransfer.partition import OPTIMIZERS, RECIPES
from jaxtransfer.report import write_sweep
from jaxtransfer.train import Sweep
from jaxtransfer.transfer import load, sweep

MODEL = "model"
VALIDATION_SHARE = 0.2
SHOWN = 10
"""How many configurations are printed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `jaxtransfer sweep`."""
    add_source(parser)
    add_data(parser)
    parser.add_argument(
        "--out", metavar="FOLDER", default="runs/sweep", help="for the report and the best model"
    )
    add_json(parser)
    grid = parser.add_argument_group("what is tried")
    lists = (
        ("--lr", positive(float), [1e-3, 3e-3, 1e-2, 3e-2], "learning rates"),
        ("--weight-decay", float, [0.0, 1e-2], "weight decays"),
        ("--label-smoothing", float, [0.0], "label smoothings"),
        ("--seed", natural, [0, 1, 2], "seeds of the new head and the order of the examples"),
    )
    for name, kind, default, text in lists:
        grid.add_argument(name, metavar="X", type=kind, nargs="+", default=default, help=text)
    runs = parser.add_argument_group("each run")
    runs.add_argument(
        "--plan",
        metavar="NAME",
        choices=tuple(RECIPES),
        default="probe",
        help="what trains: %(choices)s",
    )
    for name, default, text in (
        ("--steps", 200, "how many"),
        ("--batch-size", 32, "examples a step"),
    ):
        runs.add_argument(name, metavar="N", type=positive(int), default=default, help=text)
    runs.add_argument(
        "--optimizer",
        metavar="NAME",
        choices=tuple(OPTIMIZERS),
        default="adamw",
        help="the optimizer: %(choices)s",
    )
    runs.add_argument(
        "--halving",
        metavar="N",
        type=int,
        help="successive halving: at each rung the best 1/N of the configurations go on",
    )


def run(options: argparse.Namespace) -> None:
    """Sweep, write the report and the best model, print the table or the JSON."""
    out = make_folder(options.out)  # better now than after the work
    begun = time.perf_counter()
    train, validation, test = read_parts(options.data, options.per_class, 0)
    if validation is None:
        train, validation = _held_out(train)
    found = sweep(
        load(options.source),
        train,
        {
            "learning_rate": options.lr,
            "weight_decay": options.weight_decay,
            "label_smoothing": options.label_smoothing,
            "seed": options.seed,
        },
        validation=validation,
        plan=options.plan,
        steps=options.steps,
        batch_size=options.batch_size,
        optimizer=options.optimizer,
        halving=options.halving,
    )
    score = accuracy(predict(found.model, test), test.labels)
    paths = [*write_sweep(found, out), found.model.save(out / MODEL)]
    if options.json:
        print_json({**found.to_dict(), "test_accuracy": score, "model": str(out / MODEL)})
        return
    _print(found, len(validation), score, paths, time.perf_counter() - begun)


def _held_out(train: Data) -> tuple[Data, Data]:
    """A fifth of each class and at least one example of it, to compare by, for want of a part."""
    rarest = np.unique(train.labels, return_counts=True)[1].min()
    share = max(VALIDATION_SHARE, 1 / max(rarest, 2))
    kept, held_out = stratified_split(train.labels, (1 - share, share), seed=0)
    return train.take(kept), train.take(held_out)


def _print(found: Sweep, compared: int, score: float, paths: list[Path], seconds: float) -> None:
    print(found.table(SHOWN))
    if len(found.configurations) > SHOWN:
        print(f"and {len(found.configurations) - SHOWN} more")
    print(f"{found}, on {compared} examples")
    print(f"Test accuracy of that model: {100 * score:.1f} %")
    print(f"Written in {seconds:.0f} s: {', '.join(map(str, paths))}")
