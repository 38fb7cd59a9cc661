"""TensorFlow's second checkpoint format: an index, which is a table, beside files of plain values.

The empty key of the table `NAME.index` says how many data files there are; every other key is the
name of a tensor, and its value says where the tensor stands in `NAME.data-00000-of-00001`, …. A
variable that was saved in slices has no place of its own, but a list of slices, each with a key.

Sources: `tensor_bundle.proto` and `trackable_object_graph.proto` in `tensorflow/core/protobuf`,
`tensor_bundle.cc` and `naming.cc` in `tensorflow/core/util/tensor_bundle` (the text of a tensor is
described at `WriteStringTensor`), `saved_tensor_slice_util.cc` in `tensorflow/core/util` and
`ordered_code.cc` in `tensorflow/core/lib/strings` (the keys of slices).
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxtransfer.errors import FormatError
from jaxtransfer.formats.base import (
    Damage,
    Inspection,
    TensorInfo,
    array_at,
    file_beside,
    map_file,
    reading,
)
from jaxtransfer.formats.tables import Memory, crc32c, entries, masked, varint
from jaxtransfer.formats.tensorflow_messages import (
    DTYPES,
    NAME,
    NO_NUMBERS,
    STRING,
    TENSOR_BYTES,
    Extents,
    Region,
    assembled,
    check_dtypes,
    extents_of,
    fields,
    name_of,
    parsed,
    parts,
    region_of,
    shape_of,
    size_of,
)

INDEX = ".index"
"""How the name of a table of this version ends."""

_SLICE_KEY = b"\0"
_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_NODES, _ATTRIBUTES, _FULL_NAME, _CHECKPOINT_KEY = 1, 2, 2, 3
_MAX_TEXT_BYTES = 2**20


def read_bundle(index: Path) -> dict[str, np.ndarray]:
    """All tensors of a checkpoint of the second version, in the order of its index.

    Raises:
        ReferenceNotFoundError: a data file is missing.
        FormatError: a file is damaged, or a dtype has no array form.
    """
    return _Bundle(index).arrays()


def inspect_bundle(path: Path, index: Path) -> Inspection:
    """Names, shapes and dtypes of a checkpoint of the second version.

    Raises:
        ReferenceNotFoundError: a data file is missing.
        FormatError: a file is damaged, or a dtype has no array form.
    """
    bundle = _Bundle(index)
    return Inspection(path, NAME, bundle.infos(), bundle.metadata())


@dataclass(frozen=True)
class _Entry:
    """What the index says, at the byte `at`, about a tensor or a slice of one."""

    name: str
    kind: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int
    slices: tuple[Extents, ...]
    at: int


@dataclass(frozen=True)
class _Place:
    """A data file and its bytes."""

    path: Path
    content: np.ndarray


class _Bundle:
    """An index, checked as a whole, and its data files."""

    def __init__(self, index: Path):
        self._index = index
        self._tensors: dict[str, _Entry] = {}
        self._slices: dict[bytes, _Entry] = {}
        with reading(index, NAME):
            content = map_file(index)
            self._memory = Memory(content.size)
            rows = entries(content, self._memory)
            _, header, at = next(rows)
            self._data = _data_files(index, parsed("BundleHeader", header, self._memory, at), at)
            self._memory.file_bytes += sum(place.content.size for place in self._data)
            for key, value, at in rows:
                self._add(key, value, at)
            kinds = {name: (entry.kind, entry.at) for name, entry in self._tensors.items()}
            check_dtypes(kinds, DTYPES, index)
            self._pieces = {
                name: self._pieces_of(entry)
                for name, entry in self._tensors.items()
                if entry.slices
            }
            self._check_places()

    def arrays(self) -> dict[str, np.ndarray]:
        with reading(self._index, NAME):
            return {
                name: self._array(entry)
                for name, entry in self._tensors.items()
                if entry.kind in DTYPES
            }

    def infos(self) -> tuple[TensorInfo, ...]:
        return tuple(
            TensorInfo(name, entry.shape, DTYPES[entry.kind].name, size_of(entry.shape, entry.kind))
            for name, entry in self._tensors.items()
            if entry.kind in DTYPES
        )

    def metadata(self) -> dict[str, str]:
        """What is not numbers, and what the variables are called of which the index has keys."""
        others = {}
        for name, entry in self._tensors.items():
            if entry.kind in DTYPES:
                continue
            others[name] = f"{NO_NUMBERS[entry.kind]} of shape {list(entry.shape)}"
            if entry.kind != STRING or entry.shape or entry.slices:
                continue
            with reading(self._data[entry.shard].path, NAME, entry.offset):
                text = self._text(entry)
                if name == _OBJECT_GRAPH:
                    others[name] = f"the object graph, {len(text)} bytes"
                    names = _full_names(text, self._tensors, entry.offset)
                    others["full_names"] = json.dumps(names, ensure_ascii=False)
                elif len(text) <= _MAX_TEXT_BYTES:
                    others[name] = bytes(text).decode(errors="replace")
        return others

    def _add(self, key: bytes, value: np.ndarray, at: int) -> None:
        is_slice = key.startswith(_SLICE_KEY)
        name = key.decode("latin-1") if is_slice else name_of(key, at)
        message = parsed("BundleEntry", value, self._memory, at)
        self._memory.take(TENSOR_BYTES * (1 + len(message.slices)), "tensors", at)
        entry = _Entry(
            name=name,
            kind=message.dtype,
            shape=shape_of(message.shape, name, at),
            shard=message.shard_id,
            offset=message.offset,
            size=message.size,
            checksum=message.crc32c,
            slices=tuple(extents_of(extents, name, at) for extents in message.slices),
            at=at,
        )
        if is_slice:
            self._slices[key] = entry
        else:
            self._tensors[name] = entry

    def _pieces_of(self, entry: _Entry) -> list[tuple[Region, _Entry]]:
        """Where in a tensor its slices stand."""
        pieces = []
        for extents in entry.slices:
            region, shape = region_of(extents, entry.shape, entry.name, entry.at)
            piece = self._slices.pop(_slice_key(entry.name, extents), None)
            if piece is None or (piece.kind, piece.shape) != (entry.kind, shape):
                raise Damage(f"{entry.name!r} without its slice {extents}", entry.at)
            pieces.append((region, piece))
        return pieces

    def _check_places(self) -> None:
        """Refuse slices of no tensor, and values that are not where they can be."""
        if self._slices:
            _, entry = self._slices.popitem()
            raise Damage(f"the slice {entry.name!r} of no tensor", entry.at)
        stored = [entry for entry in self._tensors.values() if not entry.slices]
        stored += [piece for pieces in self._pieces.values() for _, piece in pieces]
        end = (0, 0)
        for entry in sorted(stored, key=lambda entry: (entry.shard, entry.offset, entry.size)):
            if entry.kind in DTYPES and entry.size != size_of(entry.shape, entry.kind):
                raise Damage(
                    f"{entry.name!r} of {entry.size} bytes for the shape {entry.shape} of "
                    f"{DTYPES[entry.kind]}",
                    entry.at,
                )
            is_within = (
                0 <= entry.shard < len(self._data)
                and 0 <= entry.offset
                and (0 <= entry.size <= self._data[entry.shard].content.size - entry.offset)
            )
            # Overlaps would let a small file have the same values checked very often.
            if not is_within or (entry.size and (entry.shard, entry.offset) < end):
                raise Damage(
                    f"{entry.name!r} in {entry.size} bytes from byte {entry.offset} of the data "
                    f"file {entry.shard}, which are not there or belong to another tensor",
                    entry.at,
                )
            end = max(end, (entry.shard, entry.offset + entry.size))

    def _array(self, entry: _Entry) -> np.ndarray:
        if not entry.slices:
            return self._values(entry)
        pieces = [(region, self._values(piece)) for region, piece in self._pieces[entry.name]]
        return assembled(entry.name, entry.shape, pieces, self._memory, entry.at)

    def _values(self, entry: _Entry) -> np.ndarray:
        place = self._data[entry.shard]
        with reading(place.path, NAME, entry.offset):
            dtype = DTYPES[entry.kind]
            values = array_at(place.content, entry.offset, dtype, entry.shape, repr(entry.name))
            stored = place.content[entry.offset : entry.offset + entry.size]
            if masked(crc32c(stored)) != entry.checksum:
                raise Damage(f"{entry.name!r} that does not have its checksum", entry.offset)
            return values

    def _text(self, entry: _Entry) -> memoryview:
        """The text of a tensor that is one piece of it: its length, a checksum of this, itself."""
        content = self._data[entry.shard].content[entry.offset : entry.offset + entry.size]
        size, start = varint(content.data, 0, entry.offset)
        # The checksum takes the length as four bytes, or as eight if it must.
        length = np.frombuffer(size.to_bytes(4 if size < 2**32 else 8, "little"), np.uint8)
        checked = np.concatenate([length, content[start:]])
        if len(content) - start - 4 != size or masked(crc32c(checked)) != entry.checksum:
            raise Damage(f"{entry.name!r} that does not have its checksum", entry.offset)
        return content[start + 4 :].data


def _data_files(index: Path, header: Any, at: int) -> list[_Place]:
    """The data files of a bundle, which are called as its index is."""
    if header.endianness:
        raise FormatError(
            f"{index}: expected values in little-endian order, found at byte {at}: big-endian; "
            "restore and save the checkpoint on a little-endian machine"
        )
    if not index.name.endswith(INDEX):
        raise FormatError(
            f"{index}: expected a name that ends in {INDEX}, from which the names of its data "
            "files follow; rename it to what it was"
        )
    prefix, count = index.name.removesuffix(INDEX), header.num_shards
    places = []
    for number in range(count):
        path = file_beside(index, f"{prefix}.data-{number:05}-of-{count:05}")
        with reading(path, NAME):
            places.append(_Place(path, map_file(path)))
    return places


def _slice_key(name: str, extents: Extents) -> bytes:
    """The key of a slice: zero, the name, the number of dimensions, and the extents."""
    numbers = [number for start, length in extents for number in _key_extent(start, length)]
    dimensions = len(extents).to_bytes(-(-len(extents).bit_length() // 8), "big")
    return b"".join(
        [
            _SLICE_KEY,
            name.encode(),
            b"\0\1",
            bytes([len(dimensions)]),
            dimensions,
            *map(_key_number, numbers),
        ]
    )


def _key_extent(start: int, length: int | None) -> tuple[int, int]:
    return (0, -1) if length is None else (start, length)


def _key_number(number: int) -> bytes:
    """A number such that the order of bytes is that of numbers.

    It is the number in two's complement, its first bits flipped: as many as it has bytes.

    >>> _key_number(-1).hex(), _key_number(64).hex()
    ('7f', 'c040')
    """
    size = next(size for size in range(1, 11) if -(1 << 7 * size - 1) <= number < 1 << 7 * size - 1)
    flipped = ((1 << size) - 1) << 7 * size
    return (number % (1 << 8 * size) ^ flipped).to_bytes(size, "big")


def _full_names(graph: memoryview, keys: Collection[str], at: int) -> dict[str, str]:
    """From keys of the index to the names that their variables have in an object graph."""
    names = {}
    for node in parts(graph, _NODES, at):
        for attribute in parts(node, _ATTRIBUTES, at):
            text = {
                number: bytes(value).decode()
                for number, value in fields(attribute, at)
                if isinstance(value, memoryview)
            }
            if text.get(_FULL_NAME) and text.get(_CHECKPOINT_KEY) in keys:
                names[text[_CHECKPOINT_KEY]] = text[_FULL_NAME]
    return names
