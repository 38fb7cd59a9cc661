"""What HDF5's structures say about the elements, the shape and the storage of an array.

Source: https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html (the HDF5 File Format
Specification, version 3.0, whose section numbers are given below).
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from jaxtransfer.formats.base import Damage

MOST_DIMENSIONS = 32
GZIP, SHUFFLE = 1, 2

# Section IV.A.2.d: the classes of datatypes.
_INTEGER, _FLOAT, _TEXT, _OPAQUE, _ENUMERATION, _VARIABLE = 0, 1, 3, 5, 8, 9
_CLASSES = {
    2: "times",
    4: "bit fields",
    6: "compounds",
    7: "references",
    9: "lists of varying length",
    10: "arrays",
    11: "complex numbers",
}

_FILTER_NAMES = {
    GZIP: "gzip",
    SHUFFLE: "shuffle",
    3: "Fletcher32",
    4: "szip",
    5: "nbit",
    6: "scale-offset",
    32000: "LZF",
}

# Section IV.A.2.d: where sign, exponent and mantissa stand: the position of the sign, the position
# and size of the exponent, the position and size of the mantissa, and the exponent's bias.
_FLOATS: dict[tuple[int, ...], np.dtype[Any]] = {
    (15, 10, 5, 0, 10, 15): np.dtype(np.float16),
    (15, 7, 8, 0, 7, 127): np.dtype(ml_dtypes.bfloat16),
    (31, 23, 8, 0, 23, 127): np.dtype(np.float32),
    (63, 52, 11, 0, 52, 1023): np.dtype(np.float64),
}
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class Unsupported(Damage):
    """A part of HDF5 that is not read here."""


@dataclass
class Cursor:
    """A place in a bounded part of the file, which moves on with everything that is read.

    Attributes:
        view: the whole file.
        at: the byte that is read next.
        end: the first byte that is no longer of the part.
    """

    view: memoryview
    at: int
    end: int

    def skip(self, size: int) -> int:
        """Move on by some bytes, and return where they began."""
        at = self.at
        if size > self.end - at:
            raise Damage(f"a structure of {self.end - at} bytes where {size} are needed", at)
        self.at += size
        return at

    def bytes(self, size: int) -> bytes:
        """The next bytes as a copy."""
        at = self.skip(size)
        return bytes(self.view[at : at + size])

    def integer(self, size: int) -> int:
        """The next bytes as an unsigned integer; HDF5 writes the smallest byte first."""
        return int.from_bytes(self.bytes(size), "little")

    def part(self, size: int) -> Cursor:
        """The next bytes as a part of their own."""
        at = self.skip(size)
        return Cursor(self.view, at, at + size)

    def expect(self, signature: bytes, what: str) -> None:
        """Pass over the bytes with which a structure begins."""
        at = self.at
        found = self.bytes(len(signature))
        if found != signature:
            raise Damage(f"{found!r} where {what} begins with {signature!r}", at)

    def version(self, allowed: tuple[int, ...], what: str) -> int:
        """The version of a structure, if it is one that can be read."""
        at = self.at
        found = self.integer(1)
        if found not in allowed:
            raise Damage(f"version {found} of {what}, of which {allowed} can be read", at)
        return found


@dataclass(frozen=True)
class Kind:
    """What one element is.

    Attributes:
        dtype: its dtype as the file has it, also where it is text of a fixed size (`S`) or the
            place of a text in the heap (`V16`).
        is_text: whether it is text.
        problem: why it is neither text nor a number that can be read; empty if it is.
    """

    dtype: np.dtype[Any]
    is_text: bool = False
    problem: str = ""


@dataclass(frozen=True)
class Dataset:
    """An array in the file.

    Attributes:
        name: its path in the file.
        shape: its shape.
        kind: what its elements are.
        address: the byte where its values, or the tree of its chunks, begin.
        size: how many bytes the values take.
        chunk: the shape of a chunk; empty if the values lie in one piece.
        filters: what chunks went through, in the order of writing.
        header: the byte where its description begins.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind
    address: int
    size: int
    chunk: tuple[int, ...] = ()
    filters: tuple[int, ...] = ()
    header: int = 0

    @property
    def chunk_bytes(self) -> int:
        """How many bytes a chunk takes once it is unpacked."""
        return math.prod(self.chunk) * self.kind.dtype.itemsize

    @property
    def allocates(self) -> int:
        """How many bytes reading it takes, besides the file's own and two chunks."""
        if self.chunk:
            # What chunks have beyond the dataset's edges is counted, for it is unpacked too.
            return math.prod(self.grid) * self.chunk_bytes
        return 0 if self.kind.dtype.isnative else self.size

    @property
    def grid(self) -> tuple[int, ...]:
        """How many chunks there are along each axis."""
        return tuple(-(-size // step) for size, step in zip(self.shape, self.chunk, strict=True))


def kind_of(message: Cursor) -> Kind:
    """What elements are (section IV.A.2.d)."""
    at = message.at
    first = message.integer(1)
    version, number = first >> 4, first & 15
    bits, size = message.integer(3), message.integer(4)
    if not 1 <= version <= 5 or size == 0:
        raise Damage(f"version {version} of a datatype of {size} bytes", at)
    order = ">" if bits & 1 else "<"
    if number == _INTEGER and size in (1, 2, 4, 8):
        offset, precision = message.integer(2), message.integer(2)
        if (offset, precision) == (0, 8 * size):
            return Kind(np.dtype(f"{order}{'i' if bits & 8 else 'u'}{size}"))
    if number == _FLOAT and size in (2, 4, 8):
        message.skip(4)
        parts = tuple(message.integer(n) for n in (1, 1, 1, 1, 4))
        dtype = _FLOATS.get((bits >> 8 & 0xFF, *parts))
        if dtype is not None and dtype.itemsize == size and not bits & 64:
            return Kind(dtype.newbyteorder(order))
    if number == _TEXT:
        return Kind(np.dtype(("S", size)), is_text=True)
    if number == _VARIABLE and bits & 15 == 1 and size == 16:
        return Kind(np.dtype("V16"), is_text=True)
    if number == _OPAQUE and size == 2:
        return Kind(_BFLOAT16)  # What NumPy knows as two bytes of no type, as in `.npz`.
    if number == _ENUMERATION:
        base = kind_of(message)
        is_boolean = size == 1 and b"FALSE\0" in bytes(message.view[message.at : message.end])
        return Kind(np.dtype(np.bool_)) if is_boolean and bits & 0xFFFF == 2 else base
    what = _CLASSES.get(number, "numbers or bytes of an unusual form")
    return Kind(np.dtype(np.void), problem=f"{what} ({size} bytes each, datatype class {number})")


def shape_of(message: Cursor, what: str) -> tuple[int, ...]:
    """A shape (section IV.A.2.b)."""
    version = message.version((1, 2), f"the shape of {what}")
    dimensions, _, kind = message.integer(1), message.integer(1), message.integer(1)
    message.skip(4 if version == 1 else 0)
    if version == 2 and kind == 2:
        raise Unsupported(f"{what}, which has no value", message.at)
    if dimensions > MOST_DIMENSIONS:
        raise Damage(f"{what} with {dimensions} dimensions", message.at)
    return tuple(message.integer(8) for _ in range(dimensions))


def filters_of(message: Cursor, what: str) -> tuple[int, ...]:
    """What chunks went through, in the order of writing (section IV.A.2.l)."""
    at = message.at
    version = message.version((1, 2), f"the filters of {what}")
    count = message.integer(1)
    message.skip(6 if version == 1 else 0)
    found = []
    for _ in range(count):
        number = message.integer(2)
        # The second version leaves out the length of the name of a filter that is HDF5's own.
        name_bytes = message.integer(2) if version == 1 or number >= 256 else 0
        message.skip(2)
        values = message.integer(2)
        message.skip(name_bytes + 4 * (values + values % 2 if version == 1 else values))
        found.append(number)
    if tuple(found) not in ((), (GZIP,), (SHUFFLE,), (SHUFFLE, GZIP)):
        names = ", ".join(_FILTER_NAMES.get(number, f"number {number}") for number in found)
        raise Unsupported(f"{what} with the filters {names}, instead of shuffle or gzip", at)
    return tuple(found)


def inflated(
    packed: np.ndarray, size: int, offset: int, window: int = zlib.MAX_WBITS
) -> np.ndarray:
    """Unpack deflated bytes of which the unpacked size is known; no more than that is allocated.

    Args:
        packed: the bytes.
        size: how many they become.
        offset: where they are in the file, for the message.
        window: what surrounds them, as `zlib.decompressobj` takes it.

    Raises:
        Damage: they become another number of bytes, or cannot be unpacked.
    """
    unpacked = np.empty(size, np.uint8)
    engine = zlib.decompressobj(window)
    done, rest = 0, packed.data
    while not engine.eof:
        # One byte more than there should be shows that there are too many.
        try:
            piece = engine.decompress(rest, min(2**20, size + 1 - done))
        except zlib.error as error:
            raise Damage(f"deflated bytes with an {error}", offset) from error
        rest = engine.unconsumed_tail
        if done + len(piece) > size or not (piece or rest or engine.eof):
            raise Damage(f"deflated bytes that do not become the {size} they should", offset)
        unpacked[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
        done += len(piece)
    if done != size:
        raise Damage(f"deflated bytes that become {done} where {size} should be", offset)
    return unpacked
