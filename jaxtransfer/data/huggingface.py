"""Data sets of the library `datasets` of Hugging Face, which need not be installed."""

from __future__ import annotations

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


def huggingface_data(
    dataset: Any,
    *,
    image: str = "image",
    label: Any = "label",
    classes: Any = None,
    targets: Targets = "classes",
) -> StoredData:
    """Labelled images of a `datasets.Dataset`.

    Args:
        dataset: one split, with a length; slices are chosen where it is loaded.
        image: the column with the images.
        label: the column with the labels; for tasks a dict of them.
        classes: the names of the classes, for tasks a dict; `None` for those of the columns.
        targets: what the labels are, as `as_array_data` says.

    Raises:
        DataError: it is no such data set, or has no such columns.

    Example:
        `huggingface_data(datasets.load_dataset("beans", split="train"), label="labels")`
    """
    check_tasks(label, targets)
    keys = label_keys(label)
    features = getattr(dataset, "features", None)
    if features is None or not hasattr(dataset, "__len__"):
        splits = f" with the splits {', '.join(dataset)}" if isinstance(dataset, dict) else ""
        raise DataError(
            "dataset: expected one split of a data set that is not streamed, found "
            f"{type(dataset).__name__}{splits}; choose one by dataset['train'], or load it with "
            "split='train' and without streaming=True"
        )
    missing = {image, *keys} - set(features)
    if missing:
        raise DataError(
            f"dataset: expected columns {sorted(map(str, missing))}, found {sorted(features)}"
        )
    columns = {key: list(dataset[key]) for key in keys}
    known = {key: _class_names(features[key]) for key in keys}
    labels, names = read_record_labels(columns, known, label, classes, targets)
    images = dataset.select_columns([image])
    if hasattr(features[image], "decode"):  # the bytes of files, to be decoded at reduced size
        images = images.cast_column(image, type(features[image])(decode=False))
    return stored_data(RecordImages(images, getter(image), "dataset"), labels, names)


def _class_names(feature: Any) -> tuple[str, ...] | None:
    """The names of the classes of a column of labels, or of lists of labels."""
    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", feature)
    names = getattr(inner, "names", None)
    return None if names is None else tuple(names)
