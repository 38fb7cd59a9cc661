"""Sorted tables of keys and values: the files in which TensorFlow keeps its checkpoints.

A table is a row of blocks, each followed by the kind of its compression (one byte) and a checksum.
The footer says where the index block is, and that one says where all others are. In a block each
key states only how it differs from the one before.

Sources: https://github.com/google/leveldb/blob/main/doc/table_format.md and `block_builder.cc`
there, `tensorflow/core/lib/io/format.h` (its tables are as LevelDB's), RFC 3720, appendix B.4
(CRC-32C), https://github.com/google/snappy/blob/main/format_description.txt.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxtransfer.formats.base import Damage, check_size

_MAGIC = 0xDB4775248B80FB57.to_bytes(8, "little")
_FOOTER_BYTES = 48
_TRAILER_BYTES = 5
_PLAIN, _SNAPPY = 0, 1
_MAX_VARINT_BYTES = 10


def is_table(path: Path) -> bool:
    """Whether there is a file that ends as a table does."""
    if not path.is_file() or path.stat().st_size < _FOOTER_BYTES:
        return False
    with open(path, "rb") as file:
        file.seek(-len(_MAGIC), 2)
        return file.read() == _MAGIC


class Memory:
    """What reading has asked for so far beyond views of files, kept within `check_size`'s bound.

    Args:
        file_bytes: the size of the file; the sizes of others are added when they are known.
    """

    def __init__(self, file_bytes: int):
        self.file_bytes = file_bytes
        self._taken = 0

    def take(self, size: int, what: str, at: int = 0) -> None:
        """Ask for some more bytes.

        Raises:
            Damage: this is too much for files of this size.
        """
        self._taken += size
        check_size(self._taken, self.file_bytes, what, at)


def entries(content: np.ndarray, memory: Memory) -> Iterator[tuple[bytes, np.ndarray, int]]:
    """All keys of a table with their values, in the order of the keys, which is the file's.

    Every block is compared with its checksum before it is looked into. A value is a view of the
    file's bytes, or of its unpacked block where that was compressed.

    Args:
        content: the file's bytes, from `map_file`.
        memory: is asked for unpacked blocks and for keys in full.

    Yields:
        The key, the value, and the byte of the file where the value (or the compressed block that
        has it) begins.

    Raises:
        Damage: the file is no whole table.
    """
    footer = content.size - _FOOTER_BYTES
    if footer < 0 or content[-len(_MAGIC) :].tobytes() != _MAGIC:
        raise Damage("an end that no table has", max(content.size - len(_MAGIC), 0))
    handles = content[footer : -len(_MAGIC)].data
    # The first handle is that of a block about the table, which TensorFlow leaves empty.
    *_, after = _handle(handles, 0, footer)
    start, size, _ = _handle(handles, after, footer)
    end, last = 0, None
    for _, index, where in _pairs(_block(content, start, size, memory, footer), memory):
        offset, size, _ = _handle(index.data, 0, where)
        if offset < end:
            # Refused too because a small file could have one large block checked very often.
            raise Damage(f"a block from byte {offset}, where the one before is not over", where)
        end = offset + size
        for key, value, at in _pairs(_block(content, offset, size, memory, where), memory):
            if last is not None and key <= last:
                raise Damage(f"the key {key!r} after the key {last!r}", at)
            last = key
            yield key, value, at


@dataclass(frozen=True)
class _Block:
    """A block's content, unpacked; `start` is where it (packed, if it was) stands in the file."""

    content: np.ndarray
    start: int
    is_plain: bool

    def place(self, position: int) -> int:
        return self.start + position if self.is_plain else self.start


def _handle(view: memoryview, position: int, at: int) -> tuple[int, int, int]:
    """Where a block begins, its size, and the position after these two."""
    offset, position = varint(view, position, at)
    size, position = varint(view, position, at)
    return offset, size, position


def _block(content: np.ndarray, offset: int, size: int, memory: Memory, at: int) -> _Block:
    end = offset + size
    if end + _TRAILER_BYTES > content.size:
        raise Damage(f"a block of {size} bytes from byte {offset}, beyond the file's end", at)
    stored = int.from_bytes(content[end + 1 : end + _TRAILER_BYTES].tobytes(), "little")
    if masked(crc32c(content[offset : end + 1])) != stored:
        raise Damage("a block that does not have its checksum", offset)
    kind = content[end]
    if kind == _PLAIN:
        return _Block(content[offset:end], offset, is_plain=True)
    if kind == _SNAPPY:
        return _Block(_unpacked(content[offset:end], memory, offset), offset, is_plain=False)
    raise Damage(f"a block of the compression {kind}, where 0 (none) and 1 (Snappy) are known", end)


def _pairs(block: _Block, memory: Memory) -> Iterator[tuple[bytes, np.ndarray, int]]:
    """The keys and values of a block, and where each value is."""
    view = block.content.data
    # The end of a block lists, for bisection, where keys are written in full.
    restarts = int.from_bytes(view[-4:], "little")
    end = len(view) - 4 * (restarts + 1)
    if end < 0:
        raise Damage(f"a block of {len(view)} bytes with {restarts} restarts", block.start)
    position, key = 0, b""
    while position < end:
        at = block.place(position)
        shared, position = varint(view, position, at)
        added, position = varint(view, position, at)
        size, position = varint(view, position, at)
        value = position + added
        if shared > len(key) or value + size > end:
            raise Damage(f"an entry of {shared} + {added} + {size} bytes, beyond its block", at)
        memory.take(shared + added, "keys in full", at)
        key = key[:shared] + bytes(view[position:value])
        position = value + size
        yield key, block.content[value:position], block.place(value)


def varint(view: memoryview, position: int, at: int) -> tuple[int, int]:
    """A whole number in groups of seven bits, the lowest first, and the position after it.

    Args:
        view: the bytes.
        position: where in `view` the number begins.
        at: where in the file the part is that has it, for the message.

    Raises:
        Damage: the number does not end, or takes more than 64 bits.

    >>> varint(memoryview(bytes([0xAC, 2])), 0, 0)
    (300, 2)
    """
    number = 0
    for count, byte in enumerate(view[position : position + _MAX_VARINT_BYTES]):
        number |= (byte & 0x7F) << (7 * count)
        if byte < 0x80 and number < 2**64:
            return number, position + count + 1
    raise Damage("a number that does not end within 64 bits", at)


def _unpacked(packed: np.ndarray, memory: Memory, at: int) -> np.ndarray:
    """What Snappy has compressed: literal bytes, and copies of what was unpacked before."""
    source = packed.data
    size, position = varint(source, 0, at)
    memory.take(size, "compressed blocks", at)
    unpacked = np.empty(size, np.uint8)
    target = unpacked.data
    filled = 0
    while position < len(source):
        tag = source[position]
        position += 1
        kind, number = tag & 3, tag >> 2
        # Bytes after the tag: of a literal's length if it does not fit, of a copy's distance.
        extra = max(number - 59, 0) if kind == 0 else (1, 2, 4)[kind - 1]
        further = int.from_bytes(source[position : position + extra], "little")
        position += extra
        if kind == 0:
            length = (further if extra else number) + 1
            piece = source[position : position + length]
            position += length
        else:
            length, distance = number + 1, further
            if kind == 1:
                length, distance = (number & 7) + 4, (number >> 3 << 8) + further
            if not 0 < distance <= filled:
                raise Damage(f"a compressed block with a copy from {distance} bytes before", at)
            piece = target[filled - distance : filled][:length]
            if distance < length:
                # What is copied contains the copy's own beginning: it repeats.
                piece = (bytes(piece) * (length // distance + 1))[:length]
        if position > len(source) or filled + length > size:
            break
        target[filled : filled + length] = piece
        filled += length
    if position != len(source) or filled != size:
        raise Damage(f"a compressed block that does not give its {size} bytes", at)
    return unpacked


# CRC-32C is what is left of a message, taken as a polynomial over the numbers 0 and 1, after
# division by a fixed one. The sum of these powers is a multiple of the divisor (the sparsest below
# x^210), so whatever is added at the first place may be added at the five others instead: the
# message's front is moved backwards until little is left. The square of such a sum has all powers
# doubled, so the same holds for places that are 2, 4, 8, … times as far apart: long messages move
# by long steps, at the speed of memory.
_POWERS = (209, 144, 54, 39, 14, 0)
_UNITS = (512, 64, 8, 1)
"""How many bytes apart two neighbouring powers are, in the passes one after the other."""
_DIVISOR = 0x82F63B78  # In the order of the bits in a file, without the highest power.
_CHUNK_BYTES = 2**20
_START = bytes.fromhex("54641f64")
"""Put before the message, these bytes do what the definition asks for: all bits set at first."""


def crc32c(content: np.ndarray) -> int:
    """The CRC-32C (Castagnoli) checksum of an array of bytes; larger than memory is fine.

    >>> hex(crc32c(np.frombuffer(b"123456789", np.uint8)))
    '0xe3069283'
    """
    rest = np.frombuffer(_START, np.uint8)
    for start in range(0, content.size, _CHUNK_BYTES):
        chunk = content[start : start + _CHUNK_BYTES]
        rest = _moved_backwards(np.concatenate([rest, chunk]), _UNITS[0])
    for unit in _UNITS[1:]:
        rest = _moved_backwards(rest, unit)
    remainder = 0
    for byte in rest.tolist():
        remainder = remainder >> 8 ^ _REMAINDERS[(remainder ^ byte) & 0xFF]
    return remainder ^ 0xFFFFFFFF


def _moved_backwards(message: np.ndarray, unit: int) -> np.ndarray:
    """The end of a message to which its front was added, so that both have the same remainder."""
    first, second, *_ = _POWERS
    start = 0
    while (size := min((first - second) * unit, message.size - first * unit - start)) > 0:
        front = message[start : start + size]
        for power in _POWERS[1:]:
            place = start + (first - power) * unit
            message[place : place + size] ^= front
        start += size
    return message[start:]


def _remainder(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (_DIVISOR if byte & 1 else 0)
    return byte


_REMAINDERS = [_remainder(byte) for byte in range(256)]


def masked(checksum: int) -> int:
    """A checksum as it is stored: rotated and shifted, for checksums of checksums are weak."""
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF
