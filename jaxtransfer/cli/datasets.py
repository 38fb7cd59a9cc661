"""What `--data` names: the embedded digits, arrays in a file, a folder, a table, or a dataset."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxtransfer.data import (
    ArrayData,
    Data,
    as_array_data,
    few_shot,
    few_shot_split,
    image_folder,
    image_table,
    load_digits,
    stratified_split,
    tfds_data,
)
from jaxtransfer.data.digits import VALIDATION_COUNT
from jaxtransfer.errors import DataError
from jaxtransfer.formats import read_weights

EMBEDDED_DATA = "digits"
TFDS = "tfds:"
PER_CLASS = 5
"""Labelled training images of each class where the embedded data, or arrays, are split."""

# What the parts of a dataset are called, in the order in which a part is looked for.
TRAIN, VALIDATION, TEST = ("train",), ("val", "validation", "valid"), ("test",)


class Parts(NamedTuple):
    """What is trained on, what is watched on the way if there is something, and what is tested."""

    train: Data
    validation: Data | None
    test: Data


def add_data(parser: argparse.ArgumentParser, few_per_class: int = PER_CLASS) -> None:
    """`--data` and `--per-class`: the labelled images to train on."""
    parser.add_argument(
        "--data",
        default=EMBEDDED_DATA,
        metavar="DATA",
        help="the target: 'digits'; an .npz file with the arrays images and labels; a folder "
        "split/class/name.jpg or class/name.jpg; a .csv file with the columns image and label; or "
        "tfds:NAME for a prepared TFDS dataset",
    )
    parser.add_argument(
        "--per-class",
        type=int,
        metavar="N",
        help=f"training images of each class (default: {few_per_class} of arrays, all of files)",
    )


def read_parts(
    name: str, per_class: int | None, seed: int, few_per_class: int = PER_CLASS
) -> Parts:
    """The parts of the data that `--data` names.

    Where the data has no parts of its own, a fifth of the examples of each class is for testing;
    of the embedded data and of arrays only a few examples a class are for training. Where only a
    few are, and there is no validation part, it has at most 300 of the others.

    Raises:
        DataError: there is no such data, or it has too few examples.
    """
    if not is_files(name):
        return _few(read_arrays(name), few_per_class if per_class is None else per_class, seed)
    parts = _files(name)
    if per_class is None:
        return parts
    labels = np.asarray(parts.train.labels)
    chosen = few_shot(labels, per_class, seed)
    others = np.setdiff1d(np.arange(len(labels)), chosen)
    if parts.validation is None and len(others):
        some = np.random.default_rng((seed, 1)).permutation(others)[:VALIDATION_COUNT]
        parts = parts._replace(validation=parts.train.take(some))
    return parts._replace(train=parts.train.take(chosen))


def is_files(name: str) -> bool:
    """Whether `--data` names images in files: a folder, a table or a prepared dataset."""
    path = Path(name)
    is_stored = path.is_dir() or path.suffix == ".csv" or name.startswith(TFDS)
    return name != EMBEDDED_DATA and is_stored


def read_arrays(name: str) -> ArrayData:
    """The labelled images in memory; classes without names are called by their numbers.

    Raises:
        DataError: the file has no `images` or no `labels`.
    """
    if name == EMBEDDED_DATA:
        return load_digits()
    arrays = read_weights(Path(name))
    missing = {"images", "labels"} - set(arrays)
    if missing:
        raise DataError(
            f"{name}: expected the arrays images and labels, and classes if they have names, found "
            f"{sorted(arrays)}"
        )
    data = as_array_data((arrays["images"], arrays["labels"]))
    if data.classes is not None:
        return data
    if "classes" in arrays:
        return as_array_data(data, [str(value) for value in arrays["classes"]])
    return as_array_data(data, [str(number) for number in range(int(data.labels.max()) + 1)])


def _few(data: ArrayData, per_class: int, seed: int) -> Parts:
    """A few examples to train on; of the others at most half are for validation."""
    others = len(data) - per_class * len(np.unique(data.labels))
    count = min(VALIDATION_COUNT, max(others, 0) // 2)
    train, validation, test = few_shot_split(data, per_class, seed, count)
    return Parts(train, validation if count else None, test)


def _files(name: str) -> Parts:
    path = Path(name)
    if name.startswith(TFDS):
        name = name.removeprefix(TFDS)
        return Parts(tfds_data(name, split="train"), None, tfds_data(name, split="test"))
    if path.suffix == ".csv":
        return _cut(image_table(path))
    present = {child.name for child in path.iterdir() if child.is_dir()}
    found = [
        next((part for part in names if part in present), None)
        for names in (TRAIN, VALIDATION, TEST)
    ]
    train, validation, test = (
        None if part is None else image_folder(path, split=part) for part in found
    )
    if train is None:
        return _cut(image_folder(path))
    if test is not None:
        return Parts(train, validation, test)
    if validation is not None:
        return Parts(train, None, validation)
    return _cut(train)


def _cut(data: Data) -> Parts:
    train, test = stratified_split(np.asarray(data.labels), (0.8, 0.2), seed=0)
    return Parts(data.take(train), None, data.take(test))
