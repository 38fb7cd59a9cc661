"""Tables of comma-separated values that name image files and their labels."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxtransfer.data.folder import check_files
from jaxtransfer.data.splits import slice_indices
from jaxtransfer.data.stored import StoredData, stored_data
from jaxtransfer.data.targets import Targets, multi_hot, read_targets, take_labels
from jaxtransfer.errors import DataError


def image_table(
    path: str | Path,
    *,
    image: str = "image",
    label: str | Sequence[str] | Mapping[str, str | Sequence[str]] = "label",
    root: str | Path | None = None,
    suffix: str = "",
    split: str = "train",
    classes: Any = None,
    targets: Targets = "classes",
    separator: str = " ",
    unreadable: str = "refuse",
) -> StoredData:
    """Labelled images that a table of comma-separated values lists, in the order of its rows.

    Args:
        path: the table, in UTF-8, with the names of its columns in the first row.
        image: the column with the path of each image.
        label: the column of the labels, or several: columns of numbers from 0 to 1 for
            "multi_label", of numbers for "values"; for tasks a dict of these.
        root: the folder that the paths start from; `None` for that of the table.
        suffix: what the paths lack at their end, such as ".jpg".
        split: "train" for all rows, or slices such as "train[:80%]"; they take rows as they stand,
            so that a table sorted by class wants `stratified_split` instead.
        classes: the names of the classes, for tasks a dict of them; `None` for those that occur,
            sorted, as numbers where all of them are whole numbers.
        targets: what the labels are, as `as_array_data` says.
        separator: what stands between the labels of an image where "multi_label" has one column.
        unreadable: what to do with files that are no images, as `image_folder` says.

    Raises:
        DataError: there is no such table, column or file, a row has too few cells, an image is
            named twice, or labels are not what `targets` says.
    """
    table = Path(path)
    columns = _read_columns(table)
    names = [name + suffix for name in _column(columns, image, table)]
    twice = sorted({name for name in names if names.count(name) > 1}) if _repeats(names) else []
    if twice:
        raise DataError(f"{table}: expected each image once, found again: {', '.join(twice[:5])}")

    def read(label: Any, kind: Any, classes: Any) -> tuple[Any, Any]:
        return _read_labels(columns, label, kind, classes, separator, table)

    if isinstance(targets, Mapping):
        if not isinstance(label, Mapping) or set(label) != set(targets):
            raise DataError(f"label: expected columns for {sorted(targets)}, found {label!r}")
        given = classes or {}
        each = {task: read(label[task], kind, given.get(task)) for task, kind in targets.items()}
        labels = {task: one for task, (one, _) in each.items()}
        classes = {task: found for task, (_, found) in each.items()}
    else:
        labels, classes = read(label, targets, classes)
    terms = slice_indices({"train": len(names)}, split)
    chosen = np.concatenate([positions for _, positions in terms])
    folder = table.parent if root is None else Path(root)
    files, skipped = check_files(folder, [names[i] for i in chosen], unreadable)
    row = {name: i for i, name in enumerate(names)}
    kept = np.array([row[name] for name in files.names])
    return stored_data(files, take_labels(labels, kept), classes, skipped)
