"""TensorFlow's first checkpoint format: one table, or several, with the slices of all tensors.

The empty key has names, shapes and dtypes. Every other key has one slice, a message in which the
dtype decides what field the values are in. TensorFlow wrote this until 2016, and still does so for
`tf.compat.v1.train.Saver(write_version=1)`.

Sources: `saved_tensor_slice.proto`, `tensor_slice_writer.h` and `tensor_slice_reader.cc` in
`tensorflow/core/util`, `tensor.proto` in `tensorflow/core/framework`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxtransfer.formats.base import Damage, Inspection, TensorInfo, map_file, reading
from jaxtransfer.formats.tables import Memory, entries
from jaxtransfer.formats.tensorflow_messages import (
    DTYPES,
    NAME,
    NO_NUMBERS,
    TENSOR_BYTES,
    Region,
    assembled,
    check_dtypes,
    extents_of,
    name_of,
    parsed,
    parts,
    region_of,
    shape_of,
    size_of,
)

_META, _DATA = 1, 2
_SLICE_NAME, _SLICE, _SLICE_VALUES = 1, 2, 3
_PLAIN_FIELDS = {1: 5, 2: 6, 8: 9, 18: 12}
"""The field that has the values as they are in memory, from the dtype's number."""
_VARINT_FIELDS = {3: 7, 4: 7, 5: 7, 6: 7, 9: 10, 10: 11, 17: 7, 19: 13}
"""The field that has the values in groups of seven bits, from the dtype's number."""
_CHUNK_BYTES = 2**16
_MAX_VARINT_BYTES = 10


@dataclass
class _Tensor:
    """What a checkpoint says about a tensor, and the slices of it that were found so far."""

    name: str
    kind: int
    shape: tuple[int, ...]
    at: int
    pieces: list[tuple[Region, np.ndarray]] = field(default_factory=list)


def read_slices(files: Sequence[Path]) -> dict[str, np.ndarray]:
    """All tensors of a checkpoint of the first version, from all of its files.

    Raises:
        ReferenceNotFoundError: a file is missing.
        FormatError: a file is damaged, or a dtype has no array form.
    """
    memory = _memory(files)
    tensors: dict[str, _Tensor] = {}
    for file in files:
        with reading(file, NAME):
            rows = entries(map_file(file), memory)
            _add_tensors(rows, tensors, memory)
            _check_dtypes(tensors, file)
            for _, value, at in rows:
                _add_slice(value, tensors, memory, at)
    with reading(files[0], NAME):
        return {
            name: assembled(name, tensor.shape, tensor.pieces, memory, tensor.at)
            for name, tensor in tensors.items()
            if tensor.kind in DTYPES
        }


def inspect_slices(path: Path, files: Sequence[Path]) -> Inspection:
    """Names, shapes and dtypes of a checkpoint of the first version.

    Raises:
        ReferenceNotFoundError: a file is missing.
        FormatError: a file is damaged, or a dtype has no array form.
    """
    memory = _memory(files)
    tensors: dict[str, _Tensor] = {}
    for file in files:
        with reading(file, NAME):
            _add_tensors(entries(map_file(file), memory), tensors, memory)
            _check_dtypes(tensors, file)
    infos = tuple(
        TensorInfo(name, tensor.shape, DTYPES[tensor.kind].name, size_of(tensor.shape, tensor.kind))
        for name, tensor in tensors.items()
        if tensor.kind in DTYPES
    )
    others = {
        name: f"{NO_NUMBERS[tensor.kind]} of shape {list(tensor.shape)}"
        for name, tensor in tensors.items()
        if tensor.kind in NO_NUMBERS
    }
    return Inspection(path, NAME, infos, others)


def _memory(files: Sequence[Path]) -> Memory:
    sizes = []
    for file in files:
        with reading(file, NAME):
            sizes.append(file.stat().st_size)
    return Memory(sum(sizes))


def _add_tensors(
    rows: Iterator[tuple[bytes, np.ndarray, int]], tensors: dict[str, _Tensor], memory: Memory
) -> None:
    """Take what the empty key says, which is the first."""
    _, value, at = next(rows)
    meta = parsed("SavedTensorSliceMeta", _only(value.data, _META, at), memory, at)
    here = set()
    for saved in meta.tensor:
        memory.take(TENSOR_BYTES, "tensors", at)
        name = name_of(saved.name, at)
        tensor = _Tensor(name, saved.type, shape_of(saved.shape, name, at), at)
        # Other files may have other slices of the same tensor.
        known = tensors.setdefault(name, tensor)
        if name in here or (known.kind, known.shape) != (tensor.kind, tensor.shape):
            raise Damage(f"{name!r} twice", at)
        here.add(name)


def _check_dtypes(tensors: Mapping[str, _Tensor], file: Path) -> None:
    kinds = {name: (tensor.kind, tensor.at) for name, tensor in tensors.items()}
    check_dtypes(kinds, [*_PLAIN_FIELDS, *_VARINT_FIELDS], file)


def _add_slice(value: np.ndarray, tensors: dict[str, _Tensor], memory: Memory, at: int) -> None:
    """Take what another key says."""
    saved = _only(value.data, _DATA, at)
    name = name_of(bytes(_only(saved, _SLICE_NAME, at)), at)
    if name not in tensors:
        raise Damage(f"a slice of {name!r}, which is not in the list of tensors", at)
    tensor = tensors[name]
    if tensor.kind in NO_NUMBERS:
        return
    memory.take(TENSOR_BYTES, "tensors", at)
    extents = extents_of(parsed("Slice", _only(saved, _SLICE, at), memory, at), name, at)
    region, shape = region_of(extents, tensor.shape, name, at)
    values = _values(_only(saved, _SLICE_VALUES, at), tensor, shape, memory, at)
    tensor.pieces.append((region, values))


def _only(message: memoryview, number: int, at: int) -> memoryview:
    found = list(itertools.islice(parts(message, number, at), 2))
    if len(found) != 1:
        raise Damage(f"a message without just one field {number}", at)
    return found[0]


def _values(
    message: memoryview, tensor: _Tensor, shape: tuple[int, ...], memory: Memory, at: int
) -> np.ndarray:
    """The values of a slice, without a copy if they stand in the file as they do in memory."""
    dtype, kind = DTYPES[tensor.kind], tensor.kind
    is_plain = kind in _PLAIN_FIELDS
    number = _PLAIN_FIELDS[kind] if is_plain else _VARINT_FIELDS[kind]
    # Nothing is written where there is nothing.
    stored = _only(message, number, at) if math.prod(shape) else memoryview(b"")
    content = np.frombuffer(stored, np.uint8)
    if not is_plain:
        memory.take(size_of(shape, kind), "numbers in groups of seven bits", at)
        return _decoded(content, dtype, math.prod(shape), at).reshape(shape)
    if content.size != size_of(shape, kind):
        raise Damage(f"{tensor.name!r} with {content.size} bytes for the shape {shape}", at)
    return content.view(dtype).reshape(shape)


def _decoded(content: np.ndarray, dtype: np.dtype[Any], count: int, at: int) -> np.ndarray:
    """Numbers in groups of seven bits, the lowest first; the last group's highest bit is clear."""
    values = np.empty(count, dtype)
    filled = position = 0
    while position < content.size:
        chunk = content[position : position + _CHUNK_BYTES]
        ends = np.flatnonzero(chunk < 0x80)
        starts = np.concatenate([[0], ends[:-1] + 1])
        longest = int((ends - starts).max(initial=0)) + 1
        if not ends.size or filled + ends.size > count or longest > _MAX_VARINT_BYTES:
            break
        numbers = np.zeros(ends.size, np.uint64)
        for group in range(longest):
            bits = chunk[np.minimum(starts + group, ends)].astype(np.uint64) & 0x7F
            numbers |= np.where(starts + group <= ends, bits << 7 * group, 0)
        values[filled : filled + ends.size] = _as_dtype(numbers, dtype)
        filled += ends.size
        position += int(ends[-1]) + 1
    if filled != count or position != content.size:
        raise Damage(f"another number of values than the {count} of the slice", at)
    return values


def _as_dtype(numbers: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    if dtype == np.float16:
        return numbers.astype(np.uint16).view(dtype)
    return numbers.view(np.int64).astype(dtype)
