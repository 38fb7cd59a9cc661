"""Records with an image and labels, by number: what TFDS, Hugging Face and Grain have in common."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from jaxtransfer.data.targets import Targets, multi_hot, read_targets
from jaxtransfer.errors import DataError

Key: TypeAlias = "str | int | Callable[[Any], Any]"
"""What finds a part of a record: its key, or a function of the record."""

PROBES = 8
"""How many images a fingerprint looks at, from the first to the last."""


def getter(key: Key) -> Callable[[Any], Any]:
    """A function from a record to the part that `key` finds."""
    return key if callable(key) else operator.itemgetter(key)


@dataclass(frozen=True)
class RecordImages:
    """The images of records.

    Attributes:
        records: records by number.
        image: from a record to its image: bytes of a file, a Pillow image or an array.
        title: what messages call the records.
    """

    records: Any
    image: Callable[[Any], Any]
    title: str

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Any:
        record = self.records[index]
        try:
            image = self.image(record)
        except (KeyError, IndexError, TypeError) as error:
            found = sorted(record) if isinstance(record, dict) else type(record).__name__
            raise DataError(
                f"{self.name(index)}: expected an image, found {found}: no {error}"
            ) from error
        return _as_stored(image, self.name(index))

    def name(self, index: int) -> str:
        """The number of a record, after the title."""
        return f"{self.title}, record {index}"

    def fingerprint(self) -> str:
        """A hash of the number of records and of a few images from the first to the last."""
        digest = hashlib.sha256(f"{len(self)}".encode())
        for index in np.unique(np.linspace(0, len(self) - 1, PROBES).astype(int)):
            stored = self[int(index)]
            digest.update(stored if isinstance(stored, bytes) else np.asarray(stored).tobytes())
        return digest.hexdigest()


def _as_stored(image: Any, where: str) -> Any:
    """The bytes, Pillow image or array that a record holds, in whatever wrapping."""
    if isinstance(image, Mapping) and {"bytes", "path"} <= set(image):  # as Hugging Face has them
        if image["bytes"] is None:
            with open(image["path"], "rb") as file:
                return file.read()
        image = image["bytes"]
    if isinstance(image, bytes) or hasattr(image, "getexif"):
        return image
    array = np.asarray(image)
    if array.ndim < 2:
        raise DataError(
            f"{where}: expected an image as bytes of a file, a Pillow image or an array, found "
            f"{type(image).__name__}"
        )
    return array


def read_record_labels(
    columns: Mapping[Any, Sequence[Any]],
    known: Mapping[Any, Sequence[str] | None],
    label: Any,
    classes: Any,
    targets: Targets,
) -> tuple[Any, Any]:
    """Checked labels and the names of their classes.

    Args:
        columns: all labels, by key.
        known: the names of the classes that the store has, by key.
        label: the key of the labels; for tasks a dict of keys.
        classes: names of classes that take precedence, for tasks a dict.
        targets: what the labels are, as `as_array_data` says.

    Raises:
        DataError: the labels are not what `targets` says.
    """
    if not isinstance(targets, Mapping):
        return _read_one(columns[label], known[label], classes, targets)
    check_tasks(label, targets)
    given = classes or {}
    each = {
        task: _read_one(columns[label[task]], known[label[task]], given.get(task), kind)
        for task, kind in targets.items()
    }
    return {task: one for task, (one, _) in each.items()}, {
        t: names for t, (_, names) in each.items()
    }


def check_tasks(label: Any, targets: Targets) -> None:
    """Raise a `DataError` unless `label` names labels for exactly the tasks of `targets`."""
    if not isinstance(targets, Mapping):
        return
    if not isinstance(label, Mapping) or set(label) != set(targets):
        raise DataError(f"label: expected labels for the tasks {sorted(targets)}, found {label!r}")


def label_keys(label: Any) -> list[Any]:
    """The keys of all labels, of one task or several."""
    return list(label.values()) if isinstance(label, Mapping) else [label]


def _read_one(column: Sequence[Any], known: Any, classes: Any, kind: str) -> tuple[Any, Any]:
    names = known if classes is None and kind != "values" else classes
    if kind == "multi_label" and known is not None:  # lists of labels, not rows of 0 and 1
        return multi_hot(column, names)
    values = list(column)
    if values and isinstance(values[0], bytes):
        values = [value.decode() for value in values]
    return read_targets(values, names, kind)
