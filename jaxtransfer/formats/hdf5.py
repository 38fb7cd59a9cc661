"""The parts of HDF5 that files of weights are made of, read by a strict parser of our own.

HDF5's C library may crash, hang or allocate without bound on a damaged file, and a crash cannot be
caught. This parser keeps to what Keras and h5py write: groups (symbol tables and compact links),
attributes, and datasets whose values lie in one piece (which become views of the file) or in
chunks, plain or with gzip and byte shuffling. Everything else is refused by name.

Source: https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html (the HDF5 File Format
Specification, version 3.0, whose section numbers are given below).
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from jaxtransfer.formats.base import Damage, array_at, check_size
from jaxtransfer.formats.hdf5_arrays import (
    GZIP,
    MOST_DIMENSIONS,
    SHUFFLE,
    Cursor,
    Dataset,
    Kind,
    Unsupported,
    filters_of,
    inflated,
    kind_of,
    shape_of,
)

SIGNATURE = b"\x89HDF\r\n\x1a\n"
"""The first bytes of a file without a user block, which Keras never writes."""

Value: TypeAlias = str | list[str] | np.ndarray
"""What an attribute holds: one text, several texts, or numbers."""

_NOWHERE = 2**64 - 1
_ADDRESS_BYTES = 8
_MOST_MESSAGES = 2**16
_LONGEST_NAME = 2**12

# What Python objects take at most, in bytes.
_PER_LINK = 1024
_PER_ATTRIBUTE = 512
_PER_TEXT = 128
_PER_CHARACTER = 4

# Section IV.A.2: the types of header messages.
_DATASPACE, _LINK_INFO, _DATATYPE, _LINK, _EXTERNAL, _LAYOUT = 0x1, 0x2, 0x3, 0x6, 0x7, 0x8
_FILTERS, _ATTRIBUTE, _CONTINUATION, _SYMBOL_TABLE, _ATTRIBUTE_INFO = 0xB, 0xC, 0x10, 0x11, 0x15
_SHARED = 2


@dataclass
class _Header:
    """The messages of an object, by type."""

    address: int
    messages: dict[int, list[Cursor]] = field(default_factory=dict)

    def one(self, kind: int, what: str) -> Cursor:
        found = self.messages.get(kind, [])
        if len(found) != 1:
            raise Damage(f"{len(found)} messages with the {what} of an object", self.address)
        return Cursor(found[0].view, found[0].at, found[0].end)


class File:
    """The groups and datasets of an HDF5 file.

    No more bytes are looked at than the file has, twice over, so that neither a loop of addresses
    nor structures that overlap each other take long. Values are read by `values` alone.

    Args:
        content: the bytes of the HDF5 file.
        file_bytes: the size of the file on disk, if it is another, which bounds what is allocated.
        allocated: how many bytes `content` takes in memory, if it is no map of the file on disk.

    Attributes:
        file_bytes: the size of the file on disk.
        groups: the groups by path, the root as "", each before what is in it.
        datasets: the datasets by path. Groups of the old kind are sorted by name in the file; here
            numbers in names are sorted by value.

    Raises:
        Damage: the bytes are no HDF5, damaged, or use what is not read here.
    """

    def __init__(self, content: np.ndarray, file_bytes: int = 0, allocated: int = 0):
        self._content = content
        self._view = memoryview(content.data)
        self.file_bytes = file_bytes or content.size
        self._asked = allocated
        self._looked_at = 0
        self._largest_chunk = 0
        self._attributes: dict[str, dict[str, Value]] = {}
        self._heaps: dict[int, dict[int, tuple[int, int]]] = {}
        self.groups: dict[str, int] = {}
        self.datasets: dict[str, Dataset] = {}
        self._walk(self._root())
        self._check_places()

    def _part(self, offset: int, size: int, what: str) -> Cursor:
        """A part of the file, of which there may only be so many."""
        if offset + size > len(self._view):
            raise Damage(
                f"{what} of {size} bytes from byte {offset}, where the file has {len(self._view)}",
                min(offset, len(self._view)),
            )
        self._looked_at += size
        # A whole file is looked at once, and the headers of groups again for their attributes.
        if self._looked_at > 2 * len(self._view) + 2**16:
            raise Damage(f"{what} within another structure: they overlap or form a loop", offset)
        return Cursor(self._view, offset, offset + size)

    def _allow(self, size: int, what: str, offset: int) -> None:
        """Bound the memory that is taken, before it is."""
        self._asked += size
        # A chunk is unpacked, then unshuffled, before it is put in its place.
        check_size(self._asked + 2 * self._largest_chunk, self.file_bytes, what, offset)

    # Superblock and groups

    def _root(self) -> int:
        """The address of the root group (section II.A)."""
        start = Cursor(self._view, 0, min(len(self._view), 2048))
        start.expect(SIGNATURE, "an HDF5 file")
        version = start.version((0, 1, 2, 3), "the superblock")
        if version < 2:
            start.skip(4)
        sizes = start.bytes(2)
        if sizes != bytes([_ADDRESS_BYTES, _ADDRESS_BYTES]):
            raise Damage(f"addresses and lengths of {sizes[0]} and {sizes[1]} bytes, not 8", 13)
        start.skip({0: 9, 1: 13}.get(version, 1))
        base, _, end = (start.integer(8) for _ in range(3))
        if base != 0 or end > len(self._view):
            raise Damage(
                f"a file from byte {base} to byte {end} that has {len(self._view)} bytes", start.at
            )
        if version < 2:
            start.skip(16)  # The driver's address, and the offset of the root's empty name.
        return start.integer(8)

    def _walk(self, root: int) -> None:
        known: dict[int, Dataset] = {}
        reached: set[int] = set()
        waiting = [("", root)]
        while waiting:
            path, address = waiting.pop()
            if address in known:
                self._add(path, known[address])
                continue
            if address in reached:
                raise Damage(f"the group {path!r}, which is linked from two places", address)
            reached.add(address)
            header = self._header(address)
            if _LAYOUT in header.messages:
                known[address] = self._dataset(path, header)
                self._add(path, known[address])
                continue
            self.groups[path] = address
            inside = []
            for name, at in self._links(header):
                inside.append((f"{path}/{name}" if path else name, at))
                self._allow(len(path), "names", at)
            repeated = len(inside) - len(dict(inside))
            if repeated:
                raise Damage(f"{repeated} repeated names in the group {path!r}", address)
            waiting += reversed(inside)

    def _add(self, path: str, dataset: Dataset) -> None:
        self._largest_chunk = max(self._largest_chunk, dataset.chunk_bytes if dataset.chunk else 0)
        self._allow(dataset.allocates, f"the dataset {path!r}", dataset.header)
        self.datasets[path] = dataset

    def _header(self, address: int) -> _Header:
        """The messages of an object (section IV.A.1)."""
        header = _Header(address)
        if self._part(address, 4, "an object").bytes(4) == b"OHDR":
            messages = self._messages_2(address)
        else:
            messages = self._messages_1(address)
        for count, (kind, flags, content) in enumerate(messages):
            if count == _MOST_MESSAGES:
                raise Damage(f"an object with more than {_MOST_MESSAGES} messages", address)
            if flags & _SHARED and kind in (_DATASPACE, _DATATYPE, _FILTERS, _ATTRIBUTE):
                raise Unsupported("a datatype or another message that objects share", content.at)
            header.messages.setdefault(kind, []).append(content)
        return header

    def _messages_1(self, address: int) -> Iterator[tuple[int, int, Cursor]]:
        start = self._part(address, 16, "the header of an object")
        start.version((1,), "the header of an object")
        start.skip(1)
        remaining = start.integer(2)
        start.skip(4)
        waiting = [self._part(address + 16, start.integer(4), "the messages of an object")]
        while waiting:
            block = waiting.pop()
            while block.end - block.at >= 8:
                remaining -= 1
                kind, size, flags = block.integer(2), block.integer(2), block.integer(1)
                block.skip(3)
                content = block.part(size)
                if kind == _CONTINUATION:
                    waiting.append(self._continuation(content))
                elif kind:
                    yield kind, flags, content
        if remaining:
            raise Damage("another number of messages than the header of an object says", address)

    def _messages_2(self, address: int) -> Iterator[tuple[int, int, Cursor]]:
        start = self._part(address, min(34, len(self._view) - address), "the header of an object")
        start.expect(b"OHDR", "an object")
        start.version((2,), "the header of an object")
        flags = start.integer(1)
        start.skip((16 if flags & 32 else 0) + (4 if flags & 16 else 0))
        size = start.integer(1 << (flags & 3))
        waiting = [self._part(start.at, size, "the messages of an object")]
        order_bytes = 2 if flags & 4 else 0
        while waiting:
            block = waiting.pop()
            while block.end - block.at >= 4 + order_bytes:
                kind, size, shared = block.integer(1), block.integer(2), block.integer(1)
                block.skip(order_bytes)
                content = block.part(size)
                if kind == _CONTINUATION:
                    more = self._continuation(content)
                    more.expect(b"OCHK", "more of an object")
                    more.end -= 4  # The checksum.
                    waiting.append(more)
                elif kind:
                    yield kind, shared, content

    def _continuation(self, content: Cursor) -> Cursor:
        return self._part(content.integer(8), content.integer(8), "more messages of an object")

    def _links(self, header: _Header) -> list[tuple[str, int]]:
        """The names in a group and the addresses of their objects."""
        if _SYMBOL_TABLE in header.messages:
            table = header.one(_SYMBOL_TABLE, "symbol table")
            return sorted(self._symbols(table), key=lambda link: by_number(link[0]))
        if _LINK_INFO not in header.messages:
            raise Damage("an object that is neither a group nor a dataset", header.address)
        info = header.one(_LINK_INFO, "links")
        info.version((0,), "the links of a group")
        info.skip(8 if info.integer(1) & 1 else 0)
        if info.integer(8) != _NOWHERE:
            raise Unsupported("a group with its links in a heap", header.address)
        return [self._link(message) for message in header.messages.get(_LINK, [])]

    def _link(self, message: Cursor) -> tuple[str, int]:
        """One link (section IV.A.2.g)."""
        message.version((1,), "a link")
        flags = message.integer(1)
        kind = message.integer(1) if flags & 8 else 0
        message.skip((8 if flags & 4 else 0) + (1 if flags & 16 else 0))
        at = message.at
        name = _name(message.bytes(message.integer(1 << (flags & 3))), at)
        if kind:
            raise Unsupported(f"the {'soft' if kind == 1 else 'external'} link {name!r}", at)
        self._allow(_PER_LINK + len(name), "names", at)
        return name, message.integer(8)

    def _symbols(self, table: Cursor) -> Iterator[tuple[str, int]]:
        """The entries of a symbol table (sections III.A to III.D)."""
        tree, heap_address = table.integer(8), table.integer(8)
        heap = self._part(heap_address, 32, "the names of a group")
        heap.expect(b"HEAP", "the names of a group")
        heap.version((0,), "the names of a group")
        heap.skip(3)
        size = heap.integer(8)
        heap.skip(8)
        names = self._part(heap.integer(8), size, "the names of a group")
        for node in self._leaves(tree, key_bytes=8, kind=0):
            entries = self._part(node.integer(8), 8, "a node of a group")
            entries.expect(b"SNOD", "a node of a group")
            entries.version((1,), "a node of a group")
            entries.skip(1)
            count = entries.integer(2)
            entries = self._part(entries.at, 40 * count, "a node of a group")
            for _ in range(count):
                at = entries.at
                offset, address, cached = (entries.integer(n) for n in (8, 8, 4))
                entries.skip(20)
                name = self._heap_name(names, offset)
                if cached == 2:
                    raise Unsupported(f"the soft link {name!r}", at)
                self._allow(_PER_LINK + len(name), "names", at)
                yield name, address

    def _heap_name(self, names: Cursor, offset: int) -> str:
        start = names.at + offset
        length = bytes(self._view[start : min(names.end, start + _LONGEST_NAME)]).find(0)
        if length < 0:
            raise Damage(f"a name that does not end within {_LONGEST_NAME} bytes", names.at)
        return _name(self._part(start, length, "a name").bytes(length), start)

    def _leaves(self, address: int, key_bytes: int, kind: int) -> Iterator[Cursor]:
        """The entries of a tree's lowest nodes: a key, then a child's address (section III.A.1).

        For groups (kind 0) the cursor stands after the key, for chunks (kind 1) before it.
        """
        waiting = [(address, -1)]
        while waiting:
            address, expected = waiting.pop()
            node = self._part(address, 24, "a node of a tree")
            node.expect(b"TREE", "a node of a tree")
            found, level, count = node.integer(1), node.integer(1), node.integer(2)
            if found != kind or (level != expected and expected >= 0):
                raise Damage(f"a node of kind {found} and level {level} of a tree", address)
            entry = key_bytes + _ADDRESS_BYTES
            entries = self._part(address + 24, count * entry + key_bytes, "a node of a tree")
            children = []
            for _ in range(count):
                if level == 0:
                    child = entries.part(entry)
                    child.skip(0 if kind else key_bytes)
                    yield child
                else:
                    entries.skip(key_bytes)
                    children.append((entries.integer(8), level - 1))
            waiting += reversed(children)

    # Attributes

    def attributes(self, path: str) -> dict[str, Value]:
        """The attributes of a group: text, lists of text, and numbers.

        Raises:
            Damage: an attribute is damaged or of a kind that is not read here.
        """
        if path in self._attributes:
            return self._attributes[path]
        header = self._header(self.groups[path])
        for info in header.messages.get(_ATTRIBUTE_INFO, []):
            info.version((0,), "the attributes of an object")
            info.skip(2 if info.integer(1) & 1 else 0)
            if info.integer(8) != _NOWHERE:
                raise Unsupported(f"the attributes of {path!r} in a heap", header.address)
        messages = header.messages.get(_ATTRIBUTE, [])
        self._allow(_PER_ATTRIBUTE * len(messages), "attributes", header.address)
        self._attributes[path] = dict(self._attribute(message) for message in messages)
        return self._attributes[path]

    def _attribute(self, message: Cursor) -> tuple[str, Value]:
        """One attribute (section IV.A.2.m)."""
        version = message.version((1, 2, 3), "an attribute")
        if message.integer(1) and version > 1:
            raise Unsupported("an attribute whose datatype is shared", message.at)
        sizes = [message.integer(2) for _ in range(3)]
        message.skip(1 if version == 3 else 0)
        padded = [-(-size // 8) * 8 for size in sizes] if version == 1 else sizes
        name = decoded(message.bytes(padded[0])[: sizes[0]].rstrip(b"\0"), message.at)
        kind = kind_of(message.part(padded[1]))
        shape = shape_of(message.part(padded[2]), f"the attribute {name!r}")
        if kind.problem:
            return name, f"{kind.problem}, which are not read here"
        content = self._content[: message.end]
        values = array_at(content, message.at, kind.dtype, shape, f"the attribute {name!r}")
        return name, self._value(values, kind)

    def _value(self, values: np.ndarray, kind: Kind) -> Value:
        if not kind.is_text:
            return values.astype(values.dtype.newbyteorder("="))
        self._allow(_PER_TEXT * values.size, "texts", 0)
        if kind.dtype.kind == "S":
            self._allow(_PER_CHARACTER * values.nbytes, "texts", 0)
            texts = [decoded(text, 0) for text in values.ravel().tolist()]
        else:
            texts = [self._heap_text(element.tobytes()) for element in values.ravel()]
        return texts if values.ndim else texts[0]

    def _heap_text(self, place: bytes) -> str:
        """A text in the global heap (section III.E) by its length, the heap's address and index."""
        length = int.from_bytes(place[:4], "little")
        address = int.from_bytes(place[4:12], "little")
        index = int.from_bytes(place[12:], "little")
        if length == 0:
            return ""
        if address not in self._heaps:
            self._heaps[address] = self._heap(address)
        start, size = self._heaps[address].get(index, (address, 0))
        if length > size:
            raise Damage(f"a text of {length} bytes where the heap has {size}", start)
        self._allow(_PER_CHARACTER * length, "texts", start)
        return decoded(bytes(self._view[start : start + length]).rstrip(b"\0"), start)

    def _heap(self, address: int) -> dict[int, tuple[int, int]]:
        """Where the objects of a global heap are: from the index to the offset and size."""
        start = self._part(address, 16, "a heap")
        start.expect(b"GCOL", "a heap")
        start.version((1,), "a heap")
        start.skip(3)
        size = start.integer(8)
        objects = self._part(start.at, max(size - 16, 0), "a heap")
        found = {}
        while objects.end - objects.at >= 16:
            index = objects.integer(2)
            objects.skip(6)
            length = objects.integer(8)
            if index == 0:
                break  # The rest is free.
            found[index] = (objects.at, length)
            objects.skip(min(-(-length // 8) * 8, objects.end - objects.at))
            self._allow(_PER_TEXT, "texts", objects.at)
        return found

    # Datatypes and datasets

    def _dataset(self, name: str, header: _Header) -> Dataset:
        what = f"the dataset {name!r}"
        if _EXTERNAL in header.messages:
            raise Unsupported(f"{what} with its values in other files", header.address)
        kind = kind_of(header.one(_DATATYPE, "datatype"))
        if kind.problem:
            raise Unsupported(f"{what} of {kind.problem}", header.address)
        shape = shape_of(header.one(_DATASPACE, "shape"), what)
        size = math.prod(shape) * kind.dtype.itemsize
        layout = header.one(_LAYOUT, "layout")
        address, stored, chunk = _storage(layout, what)
        if address == _NOWHERE and size:
            raise Unsupported(f"{what}, whose values were never written", header.address)
        if not chunk:
            if stored != size or (size and address + size > len(self._view)):
                raise Damage(
                    f"{what} with {size} bytes, of which {stored} are stored from byte {address} "
                    f"of {len(self._view)}",
                    layout.at,
                )
            return Dataset(name, shape, kind, address, size, header=header.address)
        filters: tuple[int, ...] = ()
        if _FILTERS in header.messages:
            filters = filters_of(header.one(_FILTERS, "filters"), what)
        if len(chunk) != len(shape) + 1 or chunk[-1] != kind.dtype.itemsize or 0 in chunk:
            raise Damage(f"{what} of the shape {shape} in chunks of {chunk}", layout.at)
        dataset = Dataset(name, shape, kind, address, size, chunk[:-1], filters, header.address)
        if math.prod(dataset.grid) * _ADDRESS_BYTES > len(self._view):
            raise Damage(f"{what} in {dataset.grid} chunks, more than the file has", layout.at)
        return dataset

    def _check_places(self) -> None:
        """Refuse datasets that overlap each other."""
        places = {
            (dataset.address, dataset.address + dataset.size, dataset.header): dataset.name
            for dataset in self.datasets.values()
            if dataset.size and not dataset.chunk
        }
        for first, second in itertools.pairwise(sorted(places)):
            if second[0] < first[1]:
                raise Damage(
                    f"the datasets {places[first]!r} and {places[second]!r} in one place", second[0]
                )

    def values(self, dataset: Dataset) -> np.ndarray:
        """The values of a dataset in native byte order: a view of the file where it can be.

        Raises:
            Damage: a chunk is missing or damaged.
        """
        kind = dataset.kind
        if dataset.size == 0:
            return np.empty(dataset.shape, kind.dtype.newbyteorder("="))
        if dataset.chunk:
            return self._from_chunks(dataset)
        found = array_at(self._content, dataset.address, kind.dtype, dataset.shape, dataset.name)
        return found.astype(kind.dtype.newbyteorder("="), copy=False)

    def text(self, dataset: Dataset) -> Value:
        """The text of a dataset of texts.

        Raises:
            Damage: the text is damaged.
        """
        return self._value(self.values(dataset), dataset.kind)

    def _from_chunks(self, dataset: Dataset) -> np.ndarray:
        """Put chunks together (section III.A.1: a key has size, mask of filters and offsets)."""
        native = dataset.kind.dtype.newbyteorder("=")
        found = np.empty(dataset.shape, native)
        missing = np.ones(dataset.grid, np.bool_)
        rank = len(dataset.shape)
        packed_bytes = 0
        for entry in self._leaves(dataset.address, key_bytes=16 + 8 * rank, kind=1):
            at = entry.at
            size, mask = entry.integer(4), entry.integer(4)
            offsets = [entry.integer(8) for _ in range(rank + 1)][:-1]
            places = [divmod(*pair) for pair in zip(offsets, dataset.chunk, strict=True)]
            corner = tuple(quotient for quotient, _ in places)
            inside = all(where < n for where, n in zip(corner, dataset.grid, strict=True))
            if any(remainder for _, remainder in places) or not inside or not missing[corner]:
                raise Damage(f"a chunk of {dataset.name!r} at {tuple(offsets)}", at)
            missing[corner] = False
            address = entry.integer(8)
            packed_bytes += size
            if max(address + size, packed_bytes) > len(self._view):
                raise Damage(f"a chunk of {dataset.name!r} with {size} bytes at {address}", at)
            chunk = self._chunk(dataset, address, size, mask)
            target = found[
                tuple(slice(o, o + n) for o, n in zip(offsets, dataset.chunk, strict=True))
            ]
            target[...] = chunk[tuple(slice(n) for n in target.shape)]
        if missing.any():
            raise Damage(
                f"the dataset {dataset.name!r} without {int(missing.sum())} of {missing.size} "
                "chunks, which were never written",
                dataset.header,
            )
        return found

    def _chunk(self, dataset: Dataset, address: int, size: int, mask: int) -> np.ndarray:
        content = self._content[address : address + size]
        used = {number for place, number in enumerate(dataset.filters) if not mask >> place & 1}
        if GZIP in used:
            content = inflated(content, dataset.chunk_bytes, address)
        if content.size != dataset.chunk_bytes:
            raise Damage(
                f"a chunk of {dataset.name!r} with {content.size} bytes for {dataset.chunk_bytes}",
                address,
            )
        if SHUFFLE in used:  # First the first bytes of all elements, then the second ones, …
            content = np.ascontiguousarray(content.reshape(dataset.kind.dtype.itemsize, -1).T)
        return content.reshape(-1).view(dataset.kind.dtype).reshape(dataset.chunk)


def by_number(name: str) -> list[str | int]:
    """A key that sorts names with the numbers in them by value.

    >>> sorted(["vars/10", "vars/2"], key=by_number)
    ['vars/2', 'vars/10']
    """
    parts = re.split("([0-9]+)", name)
    return [int(part) if number % 2 else part for number, part in enumerate(parts)]


def decoded(found: bytes, offset: int) -> str:
    """Bytes as text.

    Raises:
        Damage: they are no UTF-8.
    """
    try:
        return found.decode()
    except UnicodeDecodeError as error:
        raise Damage(f"the text {found[:40]!r}, which is no UTF-8", offset) from error


def _name(found: bytes, offset: int) -> str:
    name = decoded(found, offset)
    if not name or "/" in name or "\0" in name or name in (".", ".."):
        raise Damage(f"the name {name!r}", offset)
    return name


def _storage(layout: Cursor, what: str) -> tuple[int, int, tuple[int, ...]]:
    """Where values or the tree of chunks are, the stored bytes, and a chunk (section IV.A.2.i)."""
    version = layout.version((3, 4), f"the layout of {what}")
    place = layout.integer(1)
    if place == 0:
        stored = layout.integer(2)
        return layout.skip(stored), stored, ()
    if place == 1:
        return layout.integer(8), layout.integer(8), ()
    if place == 2 and version == 3:
        dimensions = layout.integer(1)
        address = layout.integer(8)
        # The last dimension is the size of an element.
        sizes = min(dimensions, MOST_DIMENSIONS + 1)
        return address, 0, tuple(layout.integer(4) for _ in range(sizes))
    kinds = {2: "chunks as HDF5 1.10 indexes them", 3: "parts of other datasets"}
    raise Unsupported(f"{what} in {kinds.get(place, f'the unknown layout {place}')}", layout.at)
