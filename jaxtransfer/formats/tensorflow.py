"""TensorFlow's checkpoints and the variables of its SavedModels.

This module finds the files of a checkpoint; the two versions of the format are read by
`tensorflow_bundles` and `tensorflow_slices`, the tables that both have by `tables`.

Names are as the file has them, such as `layer_with_weights-0/kernel/.ATTRIBUTES/VARIABLE_VALUE`.
Where the checkpoint has an object graph, the metadata `full_names` is a JSON object from these to
the names of the variables themselves.

Every tensor of numbers is read, counters and optimizer slots too. What else a checkpoint keeps is
named in the metadata: text of one piece with its content, all other by what it is.

Sources: https://www.tensorflow.org/guide/checkpoint, https://www.tensorflow.org/guide/saved_model,
`checkpoint_state.proto` in `tensorflow/python/training`, `saved_model.proto` in
`tensorflow/core/protobuf`, `graph.proto` and `node_def.proto` in `tensorflow/core/framework`.
"""

from __future__ import annotations

import glob
import re
from pathlib import Path

import numpy as np

from jaxtransfer.errors import FormatError
from jaxtransfer.formats.base import (
    Damage,
    Inspection,
    PathLike,
    Reader,
    file_beside,
    map_file,
    reading,
)
from jaxtransfer.formats.tables import Memory, entries, is_table
from jaxtransfer.formats.tensorflow_bundles import INDEX, inspect_bundle, read_bundle
from jaxtransfer.formats.tensorflow_messages import NAME
from jaxtransfer.formats.tensorflow_slices import inspect_slices, read_slices

_VARIABLES = Path("variables", "variables.index")
_BUNDLE_TAG = 0x08
"""How the message of the empty key begins in the second version; in the first, it is 0x0A."""

_STATE = b"model_checkpoint_path:"
_STATE_PATH = re.compile(rb'^model_checkpoint_path:\s*"([^"\n]*)"', re.MULTILINE)
_STATE_BYTES = 2**16
_SAVED_MODEL = re.compile(rb"\x08\x01\x12[\x80-\xff]*[\x00-\x7f]\x0a")
_GRAPH = re.compile(
    rb"\x0a[\x80-\xff]*[\x00-\x7f]"  # A node:
    rb"\x0a[\x80-\xff]?[\x01-\x7f][\w.][\w.\-/>]*"  # its name,
    rb"\x12[\x01-\x7f][A-Z]\w*"  # and the name of an operation.
)
_HEAD_BYTES = 1024
_DATA_FILE = re.compile(r"(.*)\.data-\d{5}-of-\d{5}", re.DOTALL)
_SHARD = re.compile(r"(.*)-\d{5}-of-(\d{5})", re.DOTALL)


def matches(head: bytes, path: Path) -> bool:
    """Whether a path leads to a checkpoint, or to a graph without one, which `read` explains.

    The path may also be a folder with a checkpoint, or the prefix that its files share.
    """
    try:
        return _table_of(path) is not None
    except FormatError:
        return True  # Reading it tells what is wrong.
    except Exception:
        return False


def read(path: PathLike) -> dict[str, np.ndarray]:
    """All tensors of numbers of a checkpoint, in its order, compared with their checksums.

    They are read-only views of memory-mapped files where the values stand in one piece and as in
    memory. This is the rule in the second version, unless a variable was saved in several slices;
    in the first version, so are all but compressed blocks, whole numbers and float16.

    Args:
        path: the file `.index`, a data file beside it, the prefix that their names share,
            `saved_model.pb`, a file of the first version, the file `checkpoint` (which names the
            latest), or a folder: of a SavedModel, with `checkpoint`, or with one `.index` alone.

    Raises:
        ReferenceNotFoundError: there is no such file, or one that belongs to it is missing.
        FormatError: a file is damaged, or a tensor is quantized.
        MissingLibraryError: protobuf is not installed.
    """
    table = _existing_table(Path(path))
    if not _is_bundle(table):
        return read_slices(_shards_of(table))
    return read_bundle(table)


def inspect(path: PathLike) -> Inspection:
    """Names, shapes and dtypes of a checkpoint, and in the metadata what else it keeps.

    Args:
        path: as for `read`.

    Raises:
        ReferenceNotFoundError: there is no such file, or one that belongs to it is missing.
        FormatError: a file is damaged, or a tensor is quantized.
        MissingLibraryError: protobuf is not installed.
    """
    path = Path(path)
    table = _existing_table(path)
    if not _is_bundle(table):
        return inspect_slices(path, _shards_of(table))
    return inspect_bundle(path, table)


def files(path: PathLike) -> list[Path]:
    """The files that hold a checkpoint: its table and its data files, or all tables.

    Args:
        path: as for `read`.

    Raises:
        ReferenceNotFoundError: there is no such file.
        FormatError: a file is damaged.
    """
    table = _existing_table(Path(path))
    if not _is_bundle(table):
        return _shards_of(table)
    pattern = f"{glob.escape(table.name.removesuffix(INDEX))}.data-?????-of-?????"
    return [table, *sorted(table.parent.glob(pattern))]


def _existing_table(path: Path) -> Path:
    with reading(path, NAME):
        table = _table_of(path)
        if table is None:
            raise Damage("an end that no checkpoint has", max(path.stat().st_size - 1, 0))
    return table


def _table_of(path: Path) -> Path | None:
    """The table of the checkpoint that a path stands for, if it stands for one.

    Raises:
        FormatError: it stands for something of TensorFlow in which there is none.
    """
    if path.is_dir():
        return _table_in(path)
    if not path.is_file():
        return _table_of_prefix(path)
    if is_table(path):
        return path
    if (found := _DATA_FILE.fullmatch(path.name)) and is_table(path.with_name(found[1] + INDEX)):
        return path.with_name(found[1] + INDEX)
    with open(path, "rb") as file:
        head = file.read(_HEAD_BYTES)
    if _SAVED_MODEL.match(head):
        return _table_in(path.parent)
    if head.startswith(_STATE):
        return _table_of_state(path)
    if _GRAPH.match(head):
        raise FormatError(
            f"{path}: expected a checkpoint or a SavedModel, found at byte 0: a TensorFlow graph, "
            "which has no variables (frozen, its weights are constants of the program); use the "
            "checkpoint that it was made from"
        )
    return None


def is_prefix(path: Path) -> bool:
    """Whether a path is what the names of a checkpoint's files begin with, and no file itself.

    >>> is_prefix(Path("nowhere/model.ckpt-1000"))
    False
    """
    try:
        return _table_of_prefix(path) is not None
    except OSError:  # A name that is too long, or a folder that may not be looked into.
        return False


def _table_of_prefix(prefix: Path) -> Path | None:
    shards = prefix.parent.glob(f"{glob.escape(prefix.name)}-?????-of-?????")
    for candidate in (Path(f"{prefix}{INDEX}"), prefix, *sorted(shards)):
        if is_table(candidate):
            return candidate
    return None


def _table_in(folder: Path) -> Path | None:
    if is_table(folder / _VARIABLES):
        return folder / _VARIABLES
    if (state := folder / "checkpoint").is_file() and (table := _table_of_state(state)):
        return table
    if (folder / "saved_model.pb").is_file():
        raise FormatError(
            f"{folder}: expected a SavedModel with variables, found no table {_VARIABLES}; fetch "
            "it, or use the checkpoint that the model was made from"
        )
    tables = sorted(index for index in folder.glob(f"*{INDEX}") if is_table(index))
    if len(tables) > 1:
        names = ", ".join(table.name for table in tables[:5])
        raise FormatError(
            f"{folder}: expected one checkpoint, or a file `checkpoint` that names the latest, "
            f"found {len(tables)} checkpoints: {names}{', …' if len(tables) > 5 else ''}; name one"
        )
    return tables[0] if tables else None


def _table_of_state(state: Path) -> Path | None:
    """The table of the latest checkpoint, whose prefix a file `checkpoint` of TensorFlow names."""
    with open(state, "rb") as file:
        found = _STATE_PATH.search(file.read(_STATE_BYTES))
    if found is None:
        return None
    with reading(state, "checkpoint", found.start(1)):
        name = Path(found[1].decode())
        # In a folder that was moved, the file still names the old place.
        table = _table_of_prefix(file_beside(state, name.name if name.is_absolute() else str(name)))
    if table is None:
        raise FormatError(
            f"{state}: expected the name of a checkpoint in this folder, found {str(name)!r}, of "
            "which there are no files; fetch them, or name another checkpoint"
        )
    return table


def _is_bundle(table: Path) -> bool:
    """Whether a table is of the second version."""
    with reading(table, NAME):
        content = map_file(table)
        key, value, at = next(entries(content, Memory(content.size)), (None, content[:0], 0))
        if key != b"" or not value.size:
            raise Damage("a table that does not begin as checkpoints do", at)
        return bool(value[0] == _BUNDLE_TAG)


def _shards_of(table: Path) -> list[Path]:
    """All files of a checkpoint of the first version."""
    found = _SHARD.fullmatch(table.name)
    if found is None:
        return [table]
    stem, count = found[1], int(found[2])
    with reading(table, NAME):
        names = [f"{stem}-{number:05}-of-{count:05}" for number in range(count)]
        # A file of another number than it should have stands for itself.
        return [file_beside(table, name) for name in names] if table.name in names else [table]


READER = Reader(NAME, matches, read, inspect, files=files)
