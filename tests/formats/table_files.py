"""Builds what TensorFlow's checkpoints consist of, byte by byte: tables and messages."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np

from jaxtransfer.formats.tables import crc32c, masked

MAGIC = bytes.fromhex("57fb808b247547db")


def varint(number: int) -> bytes:
    groups = b""
    number %= 2**64
    while number >= 0x80:
        groups += bytes([number & 0x7F | 0x80])
        number >>= 7
    return groups + bytes([number])


def field(number: int, value: int | bytes) -> bytes:
    """A field of a message: a number, or bytes, which may be a message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def checksum(content: bytes) -> bytes:
    return masked(crc32c(np.frombuffer(content, np.uint8))).to_bytes(4, "little")


def stored(content: bytes, kind: int = 0) -> bytes:
    """A block as it stands in a file: its kind of compression and its checksum behind it."""
    return content + bytes([kind]) + checksum(content + bytes([kind]))


def content_of(pairs: Mapping[bytes, bytes]) -> bytes:
    """What is in a block: each key as far as it differs from the one before."""
    content, last = b"", b""
    for key, value in pairs.items():
        shared = len(os.path.commonprefix([key, last]))
        content += varint(shared) + varint(len(key) - shared) + varint(len(value))
        content += key[shared:] + value
        last = key
    return content + bytes(4) + (1).to_bytes(4, "little")


def table_of(*blocks: Mapping[bytes, bytes] | bytes, kind: int = 0) -> bytes:
    """A table of blocks, given by their pairs or, as they are to be stored, by their bytes."""
    table, handles = b"", {}
    for number, block in enumerate(blocks):
        content = block if isinstance(block, bytes) else content_of(block)
        handles[b"%03d" % number] = varint(len(table)) + varint(len(content))
        table += stored(content, kind)
    return table + end_of(table, handles)


def end_of(table: bytes, handles: Mapping[bytes, bytes]) -> bytes:
    """The index block of the blocks at the handles, and the footer, to be put after a table."""
    index = content_of(handles)
    handle = varint(0) + varint(0) + varint(len(table)) + varint(len(index))
    return stored(index) + handle.ljust(40, b"\0") + MAGIC


def shape_of(shape: Sequence[int]) -> bytes:
    return b"".join(field(2, field(1, size)) for size in shape)


def slice_of(extents: Sequence[tuple[int, int] | None]) -> bytes:
    parts = [b"" if e is None else field(1, e[0]) + field(2, e[1]) for e in extents]
    return b"".join(field(1, part) for part in parts)
