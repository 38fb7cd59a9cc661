"""The members of a zip archive, as places in a memory map.

Python's own module gives streams. Here a stored member is a view of the file's bytes, and an entry
of the directory takes little memory, however many of them a hostile file has.

Source: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT (the .ZIP file format).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from jaxtransfer.formats.base import Damage

_LOCAL = struct.Struct("<4s22xHH")
_ENTRY = struct.Struct("<4s4xHH4xIIIHHH8xI")
_END = struct.Struct("<4s6xHII2x")
_END_64_LOCATOR = struct.Struct("<4s4xQ4x")
_END_64 = struct.Struct("<4s28xQQQ")
_LONGEST_COMMENT = 2**16 - 1
_IN_EXTRA = 2**32 - 1  # Stands for a number that did not fit and follows in the extra field.
_COUNT_IN_END_64 = 2**16 - 1
_STORED = 0
_DEFLATED = 8
_CHUNK = 2**16
_MOST_AT_ONCE = 2**20


@dataclass(frozen=True, slots=True)
class Member:
    """One file in an archive.

    Attributes:
        name: its path in the archive.
        header: the byte where its local header begins.
        method: 0 if its bytes are stored as they are, 8 if they are deflated.
        checksum: the CRC-32 of its bytes; PyTorch may write anything here.
        packed_bytes: the bytes that it takes in the archive.
        bytes: its bytes when unpacked.
    """

    name: str
    header: int
    method: int
    checksum: int
    packed_bytes: int
    bytes: int

    @property
    def is_stored(self) -> bool:
        """Whether its bytes stand in the archive as they are."""
        return self.method == _STORED


def zip_members(content: np.ndarray) -> Iterator[Member]:
    """The members of a zip archive one by one, from the directory at its end.

    Args:
        content: the bytes of the archive, from `map_file`.

    Raises:
        Damage: the directory is absent, damaged, or has members of an unknown kind.
    """
    count, position = _directory(content)
    for _ in range(count):
        member, position = _entry(content, position)
        yield member


def member_start(content: np.ndarray, member: Member) -> int:
    """The byte where the packed bytes of a member begin.

    Raises:
        Damage: there is no member where the directory says.
    """
    signature, name_bytes, extra_bytes = _unpack(_LOCAL, content, member.header)
    if signature != b"PK\x03\x04":
        raise Damage(f"no local header of the member {member.name!r}", member.header)
    return member.header + _LOCAL.size + name_bytes + extra_bytes


def member_bytes(content: np.ndarray, member: Member) -> np.ndarray:
    """The bytes of a member: a view if they are stored, a copy if they must be inflated.

    The checksum of stored bytes is not looked at, for that would read them all.

    Raises:
        Damage: the member is not all there, or is not what the directory says.
    """
    start = member_start(content, member)
    packed = content[start : start + member.packed_bytes]
    if packed.size < member.packed_bytes:
        raise Damage(
            f"{packed.size} of the {member.packed_bytes} bytes of the member {member.name!r}", start
        )
    return packed if member.is_stored else _inflated(packed, member, start)


def _inflated(packed: np.ndarray, member: Member, start: int) -> np.ndarray:
    values = np.empty(member.bytes, np.uint8)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    filled = position = 0
    while not inflater.eof:
        # The input goes in by small chunks, for what waits of a chunk is copied at every turn.
        waiting = inflater.unconsumed_tail or packed[position : position + _CHUNK].data
        position += 0 if inflater.unconsumed_tail else _CHUNK
        # One byte more than expected is asked for, so that too many are found; never all of them.
        piece = inflater.decompress(waiting, min(member.bytes - filled + 1, _MOST_AT_ONCE))
        if filled + len(piece) > member.bytes:
            raise Damage(f"more than {member.bytes} bytes in {member.name!r}", start)
        if not piece and position > packed.size:
            break
        values[filled : filled + len(piece)] = np.frombuffer(piece, np.uint8)
        filled += len(piece)
    if filled < member.bytes or not inflater.eof or zlib.crc32(values.data) != member.checksum:
        raise Damage(f"other bytes in {member.name!r} than were packed (length or CRC-32)", start)
    return values


def _directory(content: np.ndarray) -> tuple[int, int]:
    """How many entries the directory has, and where it begins."""
    tail = max(content.size - _END.size - _LONGEST_COMMENT, 0)
    found = content[tail:].tobytes().rfind(b"PK\x05\x06")
    if found < 0:
        raise Damage("no directory at the end of a zip archive", content.size)
    end = tail + found
    _, count, size, start = _unpack(_END, content, end)
    if count == _COUNT_IN_END_64 or _IN_EXTRA in (size, start):
        signature, large_end = _unpack(_END_64_LOCATOR, content, end - _END_64_LOCATOR.size)
        if signature == b"PK\x06\x07":
            signature, count, size, start = _unpack(_END_64, content, large_end)
            if signature != b"PK\x06\x06":
                raise Damage("no directory of a large (zip64) archive", large_end)
    if start + size > end or count * _ENTRY.size > size:
        raise Damage(f"a directory of {count} members in {size} bytes from byte {start}", end)
    return count, start


def _entry(content: np.ndarray, position: int) -> tuple[Member, int]:
    """The directory's entry at a position, and the position of the next one."""
    fields = _unpack(_ENTRY, content, position)
    signature, flags, method, checksum, packed_bytes, size = fields[:6]
    name_bytes, extra_bytes, comment_bytes, header = fields[6:]
    if signature != b"PK\x01\x02":
        raise Damage("no entry of a zip directory", position)
    extra_start = position + _ENTRY.size + name_bytes
    name = content[position + _ENTRY.size : extra_start].tobytes().decode(errors="backslashreplace")
    extra = content[extra_start : extra_start + extra_bytes].tobytes()
    size, packed_bytes, header = _large_numbers(extra, [size, packed_bytes, header])
    if flags & 1 or method not in (_STORED, _DEFLATED):
        kind = "an encrypted member" if flags & 1 else f"a member packed by method {method}"
        raise Damage(f"{kind}, {name!r}; only stored and deflated ones are read", position)
    if method == _STORED and size != packed_bytes:
        raise Damage(f"{size} bytes stored in {packed_bytes}, of the member {name!r}", position)
    member = Member(name, header, method, checksum, packed_bytes, size)
    return member, extra_start + extra_bytes + comment_bytes


def _large_numbers(extra: bytes, numbers: list[int]) -> list[int]:
    """The numbers, where those that did not fit into 32 bits come from the extra field."""
    position = 0
    while position + 4 <= len(extra) and _IN_EXTRA in numbers:
        kind, size = struct.unpack_from("<HH", extra, position)
        if kind == 1:
            large = iter(struct.unpack_from(f"<{size // 8}Q", extra, position + 4))
            return [next(large) if number == _IN_EXTRA else number for number in numbers]
        position += 4 + size
    return numbers


def _unpack(layout: struct.Struct, content: np.ndarray, position: int) -> tuple:
    if not 0 <= position <= content.size - layout.size:
        raise Damage("a part of a zip directory outside the file", max(position, 0))
    return layout.unpack(content[position : position + layout.size].tobytes())
