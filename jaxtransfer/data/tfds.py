"""Data sets of TensorFlow Datasets, read without TensorFlow."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from jaxtransfer.data.records import (
    RecordImages,
    check_tasks,
    getter,
    label_keys,
    read_record_labels,
)
from jaxtransfer.data.stored import StoredData, stored_data
from jaxtransfer.data.targets import Targets
from jaxtransfer.errors import DataError

RANDOM_ACCESS = "array_record"


def tfds_data(
    name: str | Path,
    split: str = "train",
    *,
    data_dir: str | Path | None = None,
    image: str = "image",
    label: Any = "label",
    classes: Any = None,
    targets: Targets = "classes",
) -> StoredData:
    """Labelled images of a data set of TensorFlow Datasets, by name or by folder.

    Nothing is downloaded, and TensorFlow is not needed: the data set must lie in files of
    ArrayRecord. All labels are read at once, about ten thousand a second; images are decoded when
    they are read.

    Args:
        name: such as "mnist" or "mnist:3.0.1", or the folder of a version, which holds
            `dataset_info.json`.
        split: names of splits, and slices of them: "train", "train[:80%]", "train+test".
        data_dir: where data sets are; `None` for `TFDS_DATA_DIR`, or `~/tensorflow_datasets`.
        image: the feature with the image.
        label: the feature with the labels; for tasks a dict of them.
        classes: the names of the classes, for tasks a dict; `None` for those of the data set.
        targets: what the labels are, as `as_array_data` says.

    Raises:
        DataError: there is no such data set, split or feature, or it is not prepared in files of
            ArrayRecord; the message says how to prepare it.
    """
    check_tasks(label, targets)
    builder = _builder(name, data_dir)
    features = builder.info.features
    missing = {image, *label_keys(label)} - set(features)
    if missing:
        raise DataError(
            f"{name}: expected features {sorted(map(str, missing))}, found {sorted(features)}"
        )
    records = _records(builder, split, image)
    keys = label_keys(label)
    rows = [[record[key] for key in keys] for record in records]
    columns = {key: [row[i] for row in rows] for i, key in enumerate(keys)}
    known = {key: _class_names(features[key]) for key in keys}
    labels, names = read_record_labels(columns, known, label, classes, targets)
    store = RecordImages(records, getter(image), f"{builder.info.full_name} {split}")
    return stored_data(store, labels, names)


def _builder(name: str | Path, data_dir: str | Path | None) -> Any:
    """What knows the data set, if it is prepared here and can be read in any order."""
    import tensorflow_datasets as tfds

    folder = Path(name)
    try:
        if (folder / "dataset_info.json").is_file():
            builder = tfds.builder_from_directory(folder)
        elif folder.is_dir() or os.sep in str(name) and not folder.exists():
            raise DataError(
                f"{name}: expected the folder of a version of a data set, which holds "
                "dataset_info.json, such as .../mnist/3.0.1"
            )
        else:
            builder = tfds.builder(str(name), data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ImportError, ValueError, OSError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{name}: expected a data set of TensorFlow Datasets, found: {first}"
        ) from error
    prepare = (
        "prepare it once, where there are a network and TensorFlow, by\n    tfds.builder("
        f"{builder.info.name!r}, file_format={RANDOM_ACCESS!r}, data_dir=DIR)"
        ".download_and_prepare()\n  and give that data_dir"
    )
    if not builder.is_prepared():
        raise DataError(f"{name}: expected it in {builder.data_path}, found none; {prepare}")
    found = builder.info.file_format
    if found is None or found.value != RANDOM_ACCESS:
        raise DataError(
            f"{name}: expected files of {RANDOM_ACCESS}, which can be read in any order, in "
            f"{builder.data_path}, found {None if found is None else found.value}; {prepare}"
        )
    return builder


def _records(builder: Any, split: str, image: str) -> Any:
    """The records of a split, with images as the bytes of their files where they are files."""
    import tensorflow_datasets as tfds

    is_file = isinstance(builder.info.features[image], tfds.features.Image)
    decoders: Any = {image: tfds.decode.SkipDecoding()} if is_file else None
    try:
        return builder.as_data_source(split=split, decoders=decoders)
    except ValueError as error:
        raise DataError(
            f"{builder.info.full_name}: expected slices of {sorted(builder.info.splits)}, found "
            f"{split!r}: {error}"
        ) from error


def _class_names(feature: Any) -> tuple[str, ...] | None:
    """The names of the classes of a feature of one label or of a sequence of labels."""
    names = getattr(getattr(feature, "feature", feature), "names", None)
    return None if names is None else tuple(names)
