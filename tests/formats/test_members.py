from __future__ import annotations

import io
import struct
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtransfer.formats.base import Damage, map_file
from jaxtransfer.formats.members import member_bytes, member_start, zip_members

PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def archive(
    files: dict[str, bytes], packing: int = zipfile.ZIP_STORED, comment: bytes = b""
) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", packing) as opened:
        opened.comment = comment
        for name, content in files.items():
            opened.writestr(name, content)
    return stream.getvalue()


def large(content: bytes, members: int) -> bytes:
    """The same archive, with a directory as archives of more than 4 GiB have it."""
    end = content.rfind(b"PK\x05\x06")
    count, _, size, start = struct.unpack_from("<HHII", content, end + 8)
    assert count == members
    record = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, start)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, end, 1)
    last = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 65535, 65535, 2**32 - 1, 2**32 - 1, 0)
    return content[:end] + record + locator + last


def with_large_sizes(content: bytes) -> bytes:
    """An archive of one stored member, whose sizes and place are in the extra field (zip64)."""
    entry = content.rfind(b"PK\x01\x02")
    end = content.rfind(b"PK\x05\x06")
    size, name_bytes = struct.unpack_from("<IH", content, entry + 24)
    extra = struct.pack("<HHH", 0xCAFE, 2, 7) + struct.pack("<HHQQQ", 1, 24, size, size, 0)
    fixed = bytearray(content[entry : entry + 46])
    struct.pack_into("<II", fixed, 20, 2**32 - 1, 2**32 - 1)
    struct.pack_into("<H", fixed, 30, len(extra))
    struct.pack_into("<I", fixed, 42, 2**32 - 1)
    name = content[entry + 46 : entry + 46 + name_bytes]
    last = bytearray(content[end:])
    struct.pack_into("<I", last, 12, len(fixed) + len(name) + len(extra))
    return content[:entry] + bytes(fixed) + name + extra + bytes(last)


def unpacked(content: bytes) -> dict[str, bytes]:
    array = np.frombuffer(content, np.uint8)
    return {member.name: member_bytes(array, member).tobytes() for member in zip_members(array)}


FILES = st.dictionaries(
    st.text("abcü/.", min_size=1, max_size=6), st.binary(max_size=300), max_size=4
)


@given(FILES, st.sampled_from(PACKINGS), st.binary(max_size=20))
def test_members_are_as_python_unpacks_them(files, packing, comment):
    assert unpacked(archive(files, packing, comment)) == files
    assert unpacked(large(archive(files, packing), len(files))) == files


def test_a_member_whose_sizes_are_in_the_extra_field():
    content = archive({"a/w": b"12345"})
    assert unpacked(with_large_sizes(content)) == {"a/w": b"12345"}


@pytest.mark.parametrize("size", [0, 1, 2**16, 2**20, 2**20 + 1, 3 * 2**20])
@pytest.mark.parametrize("repeats", [True, False])
def test_inflating_by_pieces_gives_all_bytes(size, repeats):
    values = np.zeros(size, np.uint8) if repeats else np.random.default_rng(0).bytes(size)
    content = archive({"w": bytes(values)}, zipfile.ZIP_DEFLATED)
    assert unpacked(content) == {"w": bytes(values)}


def test_stored_bytes_are_not_copied(tmp_path):
    (tmp_path / "a").write_bytes(archive({"w": b"12345"}))
    content = map_file(tmp_path / "a")
    (member,) = zip_members(content)
    assert np.shares_memory(member_bytes(content, member), content)
    assert content[member_start(content, member)] == ord("1")


def changed(content: bytes, place: bytes, offset: int, value: bytes) -> bytes:
    start = content.rfind(place) + offset
    return content[:start] + value + content[start + len(value) :]


STORED, DEFLATED = (archive({"w": b"12345" * 9}, packing) for packing in PACKINGS)
LARGE = large(STORED, 1)
ENTRY, END, LOCAL = b"PK\x01\x02", b"PK\x05\x06", b"PK\x03\x04"
STRANGE = {
    "nothing": (b"", "no directory at the end"),
    "no directory": (STORED[:-30], "no directory at the end"),
    "another signature": (changed(STORED, ENTRY, 0, b"x"), "no entry of a zip directory"),
    "another local signature": (changed(STORED, LOCAL, 0, b"x"), "no local header"),
    "an encrypted member": (changed(STORED, ENTRY, 8, b"\x01"), "an encrypted member, 'w'"),
    "another method": (changed(STORED, ENTRY, 10, b"\x0c"), "method 12, 'w'"),
    "two sizes": (changed(STORED, ENTRY, 20, b"\x01"), "45 bytes stored in 1"),
    "too many entries": (changed(STORED, END, 10, b"\xff"), "a directory of 255 members"),
    "a directory too far": (changed(STORED, END, 16, b"\xff\xff"), "a directory of 1 members"),
    "a member too far": (changed(STORED, ENTRY, 42, b"\xff\xff"), "outside the file"),
    "a size beyond the end": (changed(STORED, ENTRY, 20, b"\xff\x01\0\0\xff\x01"), "of the 511"),
    "no large directory": (changed(STORED, END, 10, b"\xff\xff"), "a directory of 65535 members"),
    "another large directory": (changed(LARGE, b"PK\x06\x06", 0, b"x"), "of a large"),
    "a large directory too far": (changed(LARGE, b"PK\x06\x07", 8, b"\xff\xff"), "outside"),
    "a size in no extra field": (changed(STORED, ENTRY, 20, b"\xff" * 8), "of the 4294967295"),
    "more when inflated": (changed(DEFLATED, ENTRY, 24, b"\x05"), "more than 5 bytes in 'w'"),
    "less when inflated": (changed(DEFLATED, ENTRY, 24, b"\x99"), "other bytes in 'w'"),
    "another checksum": (changed(DEFLATED, ENTRY, 16, b"\x00"), "other bytes in 'w'"),
    "cut short when packed": (changed(DEFLATED, ENTRY, 20, b"\x03"), "other bytes in 'w'"),
}


@pytest.mark.parametrize("case", STRANGE)
def test_what_is_no_archive_is_damage(case):
    content, named = STRANGE[case]
    with pytest.raises(Damage, match=named):
        unpacked(content)


@settings(max_examples=300)
@given(st.data(), st.sampled_from([STORED, DEFLATED, LARGE, with_large_sizes(STORED)]))
def test_a_mutated_archive_is_read_or_an_error(data, content):
    content = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        path.write_bytes(content)
        array = map_file(path)
        try:
            for member in zip_members(array):
                if member.is_stored or member.bytes < 2**20:  # The caller's part.
                    member_bytes(array, member)
        except Exception as error:
            assert not isinstance(error, MemoryError)
