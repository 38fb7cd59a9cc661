from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxtransfer.formats import base
from jaxtransfer.formats.base import Damage
from jaxtransfer.formats.tables import Memory, crc32c, entries, is_table, masked
from tests.formats.table_files import MAGIC, content_of, end_of, stored, table_of, varint

PAIRS = st.dictionaries(
    st.binary(max_size=4) | st.binary(max_size=2).map(lambda end: b"a long prefix/" + end),
    st.binary(max_size=40),
    max_size=12,
).map(lambda pairs: dict(sorted(pairs.items())))


def array(content: bytes) -> np.ndarray:
    return np.frombuffer(content, np.uint8)


def read(content: bytes) -> dict[bytes, bytes]:
    found = entries(array(content), Memory(len(content)))
    return {key: value.tobytes() for key, value, _ in found}


def eight_shifts(register: int) -> int:
    for _ in range(8):
        register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register


SHIFTED = [eight_shifts(byte) for byte in range(256)]


def byte_by_byte(content: bytes) -> int:
    register = 0xFFFFFFFF
    for byte in content:
        register = register >> 8 ^ SHIFTED[(register ^ byte) & 0xFF]
    return register ^ 0xFFFFFFFF


def test_checksums_are_those_of_the_standard():
    # RFC 3720, appendix B.4.
    assert crc32c(array(bytes(32))) == 0x8A9136AA
    assert crc32c(array(b"\xff" * 32)) == 0x62A8AB43
    assert crc32c(array(bytes(range(32)))) == 0x46DD794E
    assert crc32c(array(bytes(range(31, -1, -1)))) == 0x113FDB5C
    assert crc32c(array(b"")) == 0


@given(st.integers(0, 4000), st.integers(0, 2**32 - 1))
def test_checksums_of_any_length_are_those_of_the_definition(size, seed):
    content = np.random.default_rng(seed).bytes(size)
    assert crc32c(array(content)) == byte_by_byte(content)


def test_a_content_of_several_chunks_has_the_checksum_of_the_definition():
    content = np.random.default_rng(0).bytes(2**20 + 5)
    assert crc32c(array(content)) == byte_by_byte(content)


def test_stored_checksums_are_masked():
    assert masked(0) == 0xA282EAD8
    assert masked(0xFFFFFFFF) == 0xA282EAD7
    assert masked(0x00008000) == 0xA282EAD9


@given(st.lists(PAIRS, max_size=3))
def test_every_key_comes_with_its_value_in_order(blocks):
    merged = {
        b"%d" % number + key: value
        for number, block in enumerate(blocks)
        for key, value in block.items()
    }
    split = [
        {b"%d" % n + key: value for key, value in block.items()} for n, block in enumerate(blocks)
    ]
    found = read(table_of(*split))
    assert found == merged and list(found) == list(merged)


def test_values_are_views_of_the_file_and_their_places_are_known():
    content = array(table_of({b"a": b"12", b"ab": b"345"}, {b"b": b"6"}))
    for _, value, at in entries(content, Memory(content.size)):
        assert np.shares_memory(value, content)
        assert content[at : at + value.size].tobytes() == value.tobytes()


@given(st.lists(st.binary(max_size=9) | st.binary(min_size=1, max_size=3).map(lambda b: b * 99)))
def test_snappy_blocks_are_unpacked(pieces):
    compress = pytest.importorskip("pyarrow").compress
    value = b"".join(pieces)
    block = compress(content_of({b"key": value}), codec="snappy", asbytes=True)
    assert read(table_of(block, kind=1)) == {b"key": value}


def test_all_elements_of_snappy_are_known():
    # The value: a literal of 70 bytes (whose length takes a byte), then copies from 3 bytes before
    # (of 7 bytes, thus repeating), from 77 before by two bytes, from 80 before by four.
    literal = bytes(range(100, 170))
    value = literal + b"\xa7\xa8\xa9" * 2 + b"\xa7" + literal[:3] + literal[:4]
    head = varint(0) + varint(1) + varint(len(value)) + b"k"
    tail = bytes(4) + (1).to_bytes(4, "little")
    packed = varint(len(head + value + tail))
    packed += bytes([(len(head) - 1) << 2]) + head
    packed += bytes([60 << 2, 69]) + literal
    packed += bytes([3 << 2 | 1, 3])
    packed += bytes([2 << 2 | 2]) + struct.pack("<H", 77)
    packed += bytes([3 << 2 | 3]) + struct.pack("<I", 80)
    packed += bytes([61 << 2]) + struct.pack("<H", 7) + tail
    assert read(table_of(packed, kind=1)) == {b"k": value}


def test_a_far_copy_of_snappys_shortest_kind():
    value = bytes(range(200)) * 2
    content = content_of({b"k": value})
    start = content.index(value)
    packed = varint(len(content)) + bytes([60 << 2, start + 199]) + content[: start + 200]
    for _ in range(20):  # Ten bytes at a time, from 200 before: more than eight bits.
        packed += bytes([(200 >> 8) << 5 | (10 - 4) << 2 | 1, 200 & 0xFF])
    packed += bytes([60 << 2, 7]) + content[-8:]
    assert read(table_of(packed, kind=1)) == {b"k": value}
    far = bytes(700)
    content = b"\x00\x01" + varint(710) + b"k" + bytes(range(100)) + far[:600] + bytes(range(10))
    packed = varint(len(content) + 8) + bytes([61 << 2]) + struct.pack("<H", len(content) - 11)
    packed += content[:-10] + bytes([(700 >> 8) << 5 | (10 - 4) << 2 | 1, 700 & 0xFF])
    packed += bytes([7 << 2]) + bytes(4) + (1).to_bytes(4, "little")
    assert read(table_of(packed, kind=1)) == {
        b"k": bytes(range(100)) + far[:600] + bytes(range(10))
    }


GOOD = table_of({b"": b"head", b"a": b"1"}, {b"b": b"2"})
BLOCK = content_of({b"a": b"1"})


def handles(*places: tuple[int, int]) -> bytes:
    """A table of one block with an index that has these handles."""
    table = stored(BLOCK)
    return table + end_of(
        table, {b"%d" % n: varint(at) + varint(size) for n, (at, size) in enumerate(places)}
    )


def packed(content: bytes) -> bytes:
    return table_of(content, kind=1)


DAMAGED = {
    "nothing": (b"", 0, "an end"),
    "short": (MAGIC, 0, "an end"),
    "no end": (GOOD[:-1], len(GOOD) - 9, "an end"),
    "a block without its checksum": (b"\x01" + GOOD[1:], 0, "checksum"),
    "an index without its checksum": (GOOD[:-53] + b"\x09" + GOOD[-52:], None, "checksum"),
    "an unknown compression": (table_of(BLOCK, kind=2), len(BLOCK), "compression 2"),
    "a block beyond the end": (handles((0, 2**40)), None, f"{2**40} bytes from byte 0, beyond"),
    "a block twice": (handles(*[(0, len(BLOCK))] * 2), None, "from byte 0, where the one before"),
    "a block without room for restarts": (table_of(b"123"), 0, "a block of 3 bytes with"),
    "too many restarts": (table_of(b"\xff" * 8), 0, "8 bytes with 4294967295 restarts"),
    "a key twice": (table_of({b"a": b""}, {b"a": b""}), None, "the key b'a' after the key b'a'"),
    "keys in no order": (table_of({b"b": b"", b"a": b""}), None, "the key b'a' after"),
    "more shared than there is": (table_of(b"\x01\x00\x00" + BLOCK[-8:]), 0, "entry of 1 \\+ 0"),
    "a value beyond its block": (
        table_of(b"\x00\x00\x09" + BLOCK[-8:]),
        0,
        "entry of 0 \\+ 0 \\+ 9",
    ),
    "an endless number": (table_of(b"\xff" * 12 + BLOCK[-8:]), 0, "number that does not end"),
    "a number above 64 bits": (table_of(b"\xff" * 9 + b"\x7f" + BLOCK[-8:]), 0, "within 64 bits"),
    "unpacked to too little": (packed(b"\x09\x00a"), 0, "does not give its 9"),
    "unpacked to too much": (packed(b"\x01\x04aa"), 0, "does not give its 1"),
    "a literal beyond the end": (packed(b"\x09\x20a"), 0, "does not give its 9"),
    "an element too many": (packed(b"\x01\x00a\x00"), 0, "does not give its 1"),
    "a copy cut off": (packed(b"\x05\x00a\x0e\x01"), 0, "does not give its 5"),
    "a copy from before the start": (packed(b"\x05\x00a\x01\x02"), 0, "a copy from 2 bytes"),
    "a copy of itself": (packed(b"\x05\x00a\x01\x00"), 0, "a copy from 0 bytes"),
    "unpacked beyond all memory": (
        packed(varint(2**40) + b"\x00a"),
        0,
        r"of \d{13} bytes in a file",
    ),
}


@pytest.mark.parametrize(("content", "at", "found"), DAMAGED.values(), ids=DAMAGED)
def test_damage_is_described_with_its_place(content, at, found):
    with pytest.raises(Damage, match=found) as caught:
        read(content)
    assert 0 <= caught.value.offset < max(len(content), 1)
    if at is not None:
        assert caught.value.offset == at


def test_keys_that_share_a_long_beginning_cannot_fill_the_memory():
    first = varint(0) + varint(10**5) + varint(0) + b"k" * 10**5
    others = [varint(10**5) + varint(1) + varint(0) + bytes([n]) for n in range(250)]
    others += [varint(10**5) + varint(2) + varint(0) + bytes([255, n]) for n in range(250)]
    block = b"".join([first, *others]) + BLOCK[-8:]
    with pytest.raises(Damage, match="keys in full of"):
        read(table_of(block))


def test_blocks_that_unpack_to_much_are_counted_together(monkeypatch):
    monkeypatch.setattr(base, "_ALLOWED_BYTES", 2**20)

    def zeros(key: bytes, size: int) -> bytes:
        head = varint(0) + varint(1) + varint(size) + key
        packed = varint(len(head) + size + 8) + bytes([len(head) << 2]) + head + b"\x00"
        # Copies of 64 bytes from the byte before; what is left is literal.
        packed += b"\xfe\x01\x00" * ((size - 1) // 64) + bytes([7 << 2]) + BLOCK[-8:]
        return packed

    size = 2**12 * 64 + 1
    allowed = table_of(zeros(b"a", size), kind=1)
    assert read(allowed) == {b"a": bytes(size)}
    with pytest.raises(Damage, match=r"compressed blocks of \d+ bytes in a file"):
        read(table_of(*[zeros(key, size) for key in (b"a", b"b", b"c", b"d", b"e", b"f")], kind=1))


def test_a_table_is_known_by_its_end(tmp_path):
    path = tmp_path / "a"
    for content, expected in [(GOOD, True), (GOOD[:-1], False), (MAGIC, False), (b"", False)]:
        path.write_bytes(content)
        assert is_table(path) is expected
    assert not is_table(tmp_path) and not is_table(tmp_path / "absent")


def test_no_flipped_bit_changes_what_is_read():
    blocks = len(GOOD) - 48
    for position in range(len(GOOD)):
        for bit in range(8):
            content = bytearray(GOOD)
            content[position] ^= 1 << bit
            try:
                assert read(bytes(content)) == read(GOOD)
                assert position >= blocks  # The footer has room that nothing uses.
            except Damage:
                pass
