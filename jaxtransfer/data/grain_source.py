"""Labelled images from any source of Grain."""

from __future__ import annotations

import sys
from typing import Any

from jaxtransfer.data.records import (
    Key,
    RecordImages,
    check_tasks,
    getter,
    label_keys,
    read_record_labels,
)
from jaxtransfer.data.stored import StoredData, stored_data
from jaxtransfer.data.targets import Targets
from jaxtransfer.errors import DataError


def grain_data(
    source: Any,
    *,
    image: Key = "image",
    label: Any = "label",
    labels: Any = None,
    classes: Any = None,
    targets: Targets = "classes",
) -> StoredData:
    """Labelled images of a `grain.MapDataset`, or of anything with a length and numbered records.

    Args:
        source: records by number, such as dicts or pairs; neither repeated nor filtered. Random
            changes belong to `augment`, which knows the step.
        image: what finds the image of a record, as bytes of a file, a Pillow image or an array: a
            key, or a function of the record.
        label: what finds the label of a record, a key or a function; for tasks a dict of these.
        labels: all labels, where they are known; `None` reads every record once.
        classes: the names of the classes, for tasks a dict of them.
        targets: what the labels are, as `as_array_data` says.

    Raises:
        DataError: the source has no length, or no record at some number, or a record has no such
            image or label.
    """
    if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        raise DataError(
            f"source: expected records by number, found {type(source).__name__}; give the "
            "MapDataset before to_iter_dataset"
        )
    # The length of a data set that is repeated without end.
    if not 0 < len(source) < sys.maxsize:
        raise DataError(
            f"source: expected a number of records from 1, found {len(source)}; leave out repeat()"
        )
    check_tasks(label, targets)
    keys = label_keys(label)
    if labels is None:
        rows = [_labels_of(source, index, keys) for index in range(len(source))]
        columns: dict[Any, Any] = {key: [row[i] for row in rows] for i, key in enumerate(keys)}
    elif isinstance(label, dict):
        columns = {key: labels[task] for task, key in label.items()}
    else:
        columns = {label: labels}
    known = dict.fromkeys(keys)
    checked, names = read_record_labels(columns, known, label, classes, targets)
    return stored_data(RecordImages(source, getter(image), "source"), checked, names)


def _labels_of(source: Any, index: int, keys: list[Any]) -> list[Any]:
    record = source[index]
    if record is None:
        raise DataError(f"source: expected a record at {index}, found none; leave out filter()")
    try:
        return [getter(key)(record) for key in keys]
    except (KeyError, IndexError, TypeError) as error:
        found = sorted(record) if isinstance(record, dict) else type(record).__name__
        raise DataError(
            f"source: expected records with {keys}, found {found} at {index}"
        ) from error
