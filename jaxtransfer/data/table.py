"""Tables of comma-separated values that name image files and their labels."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
    files, kept, skipped = check_files(folder, [names[i] for i in chosen], unreadable)
    return stored_data(files, take_labels(labels, chosen[kept]), classes, skipped)


def _read_columns(table: Path) -> dict[str, list[str]]:
    """The cells of each column; empty rows are left out."""
    try:
        # Spreadsheets put a mark of byte order before the first name.
        with table.open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file, strict=True) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: expected a table in UTF-8, found: {error}") from error
    names = rows[0] if rows else []
    wrong = [i for i, row in enumerate(rows, start=1) if len(row) != len(names)]
    if len(rows) < 2 or len(set(names)) < len(names) or wrong:
        raise DataError(
            f"{table}: expected names of columns, each once, and rows with as many cells, found "
            f"{len(rows)} rows with the names {names}; other lengths have the rows {wrong[:10]}"
        )
    return {name: [row[i] for row in rows[1:]] for i, name in enumerate(names)}


def _column(columns: Mapping[str, list[str]], name: str, table: Path) -> list[str]:
    if name not in columns:
        raise DataError(f"{table}: expected a column {name!r}, found {', '.join(columns)}")
    return columns[name]


def _read_labels(
    columns: Mapping[str, list[str]],
    label: str | Sequence[str],
    kind: str,
    classes: Any,
    separator: str,
    table: Path,
) -> tuple[np.ndarray, Any]:
    """The labels that one or several columns hold, and the names of their classes."""
    several = [label] if isinstance(label, str) else list(label)
    cells = [_column(columns, name, table) for name in several]
    if kind == "classes" and len(cells) == 1:
        return read_targets(cells[0], classes or _sorted_names(cells[0]), kind)
    if kind == "multi_label" and isinstance(label, str):
        lists = [[part for part in cell.split(separator) if part] for cell in cells[0]]
        return multi_hot(lists, classes or _sorted_names([one for row in lists for one in row]))
    if kind == "classes":
        raise DataError(f"label: expected one column for classes, found {several}")
    rows = np.array([[_number(cell, table) for cell in row] for row in zip(*cells, strict=True)])
    if kind == "multi_label":
        return read_targets(rows, classes or several, kind)
    return read_targets(rows[:, 0] if isinstance(label, str) else rows, classes, kind)


def _number(cell: str, table: Path) -> float:
    try:
        return float(cell)
    except ValueError as error:
        raise DataError(f"{table}: expected numbers as labels, found {cell!r}") from error


def _sorted_names(names: Sequence[str]) -> tuple[str, ...]:
    """The names that occur, sorted; as numbers where all of them are whole numbers."""
    are_numbers = all(name.isascii() and name.isdecimal() for name in names)
    return tuple(sorted(set(names), key=(lambda name: (int(name), name)) if are_numbers else None))
