"""Fine-tune a model on labelled images, save it, and go on after an interruption."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from jaxtransfer.cli.common import add_json, add_source, natural, positive, print_json
from jaxtransfer.cli.datasets import add_data, read_parts
from jaxtransfer.data import Data
from jaxtransfer.data.augment import standard_augment, strong_augment
from jaxtransfer.errors import TrainingError
from jaxtransfer.evaluate.arms import SCRATCH, reinitialise
from jaxtransfer.evaluate.metrics import accuracy
from jaxtransfer.evaluate.predict import predict
from jaxtransfer.formats.output import make_folder
from jaxtransfer.models import Model
from jaxtransfer.partition import OPTIMIZERS, RECIPES, SCHEDULES
from jaxtransfer.train import csv_writer, early_stopping, jsonl_writer, tensorboard_writer
from jaxtransfer.train.distributed import gather, initialize, is_primary
from jaxtransfer.train.events import Callback
from jaxtransfer.train.precision import BFLOAT16, FLOAT16, FLOAT32
from jaxtransfer.train.preemption import Preempted
from jaxtransfer.train.sharding import Sharding
from jaxtransfer.transfer import Result, finetune, fit_head, load

CHECKPOINTS = "checkpoints"
PRECISIONS = {"float32": FLOAT32, "bfloat16": BFLOAT16, "float16": FLOAT16}
AUGMENTATIONS = {"none": None, "standard": standard_augment, "strong": strong_augment}
WRITERS = {
    "csv": lambda out: csv_writer(out / "history.csv"),
    "jsonl": lambda out: jsonl_writer(out / "history.jsonl"),
    "tensorboard": lambda out: tensorboard_writer(out / "tensorboard"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `jaxtransfer finetune`."""
    add_source(parser)
    add_data(parser)
    parser.add_argument(
        "--out", metavar="FOLDER", default="runs/finetune", help="for the model and its checkpoints"
    )
    add_json(parser)
    _add_training(parser.add_argument_group("training"))
    _add_saving(parser.add_argument_group("checkpoints and records"))
    _add_devices(parser.add_argument_group("devices and processes"))


def _add_training(group: argparse._ArgumentGroup) -> None:
    _choice(group, "--arm", (SCRATCH, *RECIPES), "lp_ft", "what trains")
    group.add_argument(
        "--steps", metavar="N", type=positive(int), default=120, help="how many in all"
    )
    group.add_argument(
        "--batch-size", metavar="N", type=positive(int), default=32, help="examples a step"
    )
    group.add_argument(
        "--learning-rate", metavar="X", type=positive(float), default=3e-3, help="the highest one"
    )
    group.add_argument("--weight-decay", metavar="X", type=float, default=1e-4, help="of kernels")
    _choice(group, "--optimizer", tuple(OPTIMIZERS), "adamw", "the optimizer")
    _choice(group, "--schedule", tuple(SCHEDULES), "warmup_cosine", "how the learning rate goes")
    _choice(group, "--augment", tuple(AUGMENTATIONS), "none", "changes to training images")
    _choice(group, "--precision", tuple(PRECISIONS), "float32", "of what is computed")
    _choice(group, "--cache", ("auto", "never"), "auto", "compute what is frozen once")
    group.add_argument(
        "--accumulate",
        metavar="N",
        type=positive(int),
        default=1,
        help="parts that a batch is cut into to save memory",
    )
    group.add_argument(
        "--ema-decay",
        metavar="X",
        type=float,
        help="keep a moving average of the parameters, which then is the model; from 0, below 1",
    )
    group.add_argument(
        "--patience",
        metavar="N",
        type=positive(int),
        help="stop after so many evaluations without a better loss; needs validation images",
    )
    group.add_argument("--seed", metavar="N", type=natural, default=0, help="of all that is random")


def _add_saving(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--save-every", metavar="N", type=positive(int), default=50, help="steps between them"
    )
    group.add_argument(
        "--resume", action="store_true", help="go on from the newest checkpoint in --out"
    )
    group.add_argument(
        "--log",
        metavar="KIND",
        nargs="+",
        choices=tuple(WRITERS),
        default=[],
        help="write each step to files of these kinds in --out: %(choices)s",
    )


def _add_devices(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--devices",
        metavar="N",
        type=positive(int),
        help="how many of one process to use; as many as divide the batch where it is left out",
    )
    group.add_argument(
        "--fsdp", metavar="N", type=positive(int), default=1, help="devices that share parameters"
    )
    group.add_argument(
        "--tensor", metavar="N", type=positive(int), default=1, help="devices that share kernels"
    )
    group.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="of the first process; not needed with SLURM, on Kubernetes and on TPU pods",
    )
    group.add_argument(
        "--processes", metavar="N", type=positive(int), help="how many processes there are"
    )
    group.add_argument(
        "--process-id", metavar="N", type=natural, help="which of them this one is, from 0"
    )


def _choice(
    group: argparse._ArgumentGroup, name: str, choices: Sequence[str], default: str, text: str
) -> None:
    """An option whose values stand in its help, where they do not push all else aside."""
    help_text = f"{text}: %(choices)s"
    group.add_argument(name, metavar="NAME", choices=choices, default=default, help=help_text)


def run(options: argparse.Namespace) -> None:
    """Fine-tune, save the model, print its test accuracy."""
    initialize(options.coordinator, options.processes, options.process_id)
    out = make_folder(options.out)
    train, validation, test = read_parts(options.data, options.per_class, options.seed)
    if options.patience is not None and validation is None:
        raise TrainingError(
            f"--patience: expected validation images in {options.data}, found none; give a folder "
            "with the parts train, val and test, or leave it out"
        )
    model = load(options.source)
    if options.arm == SCRATCH:
        model = reinitialise(model, options.seed)
    start = fit_head(model, train, options.seed)
    before = accuracy(predict(start, test), test.labels)
    result = _train(options, out, start, train, validation)
    trained = replace(
        result.model, params=gather(result.model.params), stats=gather(result.model.stats)
    )
    after = accuracy(predict(trained, test), test.labels)
    if is_primary():
        trained.save(out)
        _print(options, out, before, after, replace(result, model=trained))


def _train(
    options: argparse.Namespace, out: Path, start: Model, train: Data, validation: Data | None
) -> Result:
    try:
        return finetune(
            start,
            train,
            plan="full" if options.arm == SCRATCH else options.arm,
            validation=validation,
            steps=options.steps,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            weight_decay=options.weight_decay,
            optimizer=options.optimizer,
            schedule=options.schedule,
            augment=_augmentation(options.augment, start),
            precision=PRECISIONS[options.precision],
            accumulate=options.accumulate,
            ema_decay=options.ema_decay,
            seed=options.seed,
            sharding=_sharding(options),
            callbacks=_callbacks(options, out),
            checkpoint_folder=out / CHECKPOINTS,
            save_every=options.save_every,
            resume=options.resume,
            cache=options.cache,
        )
    except Preempted as ending:
        if is_primary():
            print("go on with the same command and --resume", file=sys.stderr)
            if options.json:
                print_json({"model": None, "checkpoints": str(ending.folder), "step": ending.step})
        raise


def _augmentation(name: str, model: Model) -> Any:
    if AUGMENTATIONS[name] is None:
        return None
    if model.preprocess.size is None:
        raise TrainingError(
            f"--augment {name}: expected a model whose preprocessing has a size, found none"
        )
    return AUGMENTATIONS[name](model.preprocess.size)


def _sharding(options: argparse.Namespace) -> Sharding | None:
    """The layout asked for, or as many devices as divide the batch; `None` for a single one."""
    if jax.process_count() > 1:
        return Sharding(fsdp=options.fsdp, tensor=options.tensor)
    is_cut = options.fsdp * options.tensor > 1
    most = jax.device_count()
    count = options.devices or (most if is_cut else math.gcd(options.batch_size, most))
    if count > most:
        raise TrainingError(f"--devices: expected at most {most}, as there are, found {count}")
    if count == 1 and not is_cut:
        return None
    devices = tuple(jax.devices()[:count])
    return Sharding(fsdp=options.fsdp, tensor=options.tensor, devices=devices)


def _callbacks(options: argparse.Namespace, out: Path) -> list[Callback]:
    callbacks: list[Callback] = [WRITERS[name](out) for name in options.log]
    if options.patience is not None:
        callbacks.append(early_stopping(patience=options.patience))
    return callbacks


def _print(
    options: argparse.Namespace, out: Path, before: float, after: float, result: Result
) -> None:
    notes = result.model.receipt.notes
    if options.json:
        print_json(
            {
                "model": str(out),
                "arm": options.arm,
                "start": before,
                "end": after,
                "notes": notes,
                "cache": [report.to_dict() for report in result.cache],
            }
        )
        return
    for line in (*notes, *result.cache):
        print(line)
    print(f"Test accuracy {100 * before:.1f} % before, {100 * after:.1f} % after training.")
    print(f"The model is in {out}; try: jaxtransfer predict {out}")
