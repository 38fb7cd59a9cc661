"""Protocol-buffer messages, walked field by field where they lie in a file.

The protobuf library would copy all values, and takes up to eighty times the size of a hostile file.
Here nothing is copied or kept: numbers that stand together are views of a memory map, and errors
know their byte.

Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxtransfer.formats.base import Damage, check_size

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""How the value of a field is written: the kinds of the wire format."""

_WIDTHS = {FIXED64: 8, FIXED32: 4}
LONGEST_VARINT = 10
_RUN_STEP = 4096
PART_BYTES = 512  # What Python keeps for one array, roughly.
DEEPEST = 100  # As deep as the protobuf library goes.


class Field(NamedTuple):
    """One field of a message, or a run of equal fields of fixed width.

    Attributes:
        number: the field's number.
        kind: how its value is written, such as `BYTES`.
        begin: the byte where the field begins.
        start: the byte where its (first) value begins.
        stop: the byte after its (last) value.
        value: the value of a `VARINT`, without a sign; else 0.
    """

    number: int
    kind: int
    begin: int
    start: int
    stop: int
    value: int

    @property
    def signed(self) -> int:
        """The value of a `VARINT` that may be negative."""
        return self.value - 2**64 if self.value >= 2**63 else self.value


class Message:
    """A protocol-buffer message in a file, walked field by field; nothing is copied or kept.

    Args:
        content: the file's bytes, from `map_file`.
        start: where the message begins.
        stop: where it ends; the end of the file if not given.
        depth: how many messages it lies in.

    >>> [field.value for field in Message(np.array([8, 3, 16, 172, 2], np.uint8))]
    [3, 300]
    """

    def __init__(
        self, content: np.ndarray, start: int = 0, stop: int | None = None, depth: int = 0
    ):
        if depth > DEEPEST:
            raise Damage(f"messages that lie in each other more than {DEEPEST} deep", start)
        self.content = content
        self.start = start
        self.stop = content.size if stop is None else stop
        self.depth = depth
        self._bytes = content.data

    def __iter__(self) -> Iterator[Field]:
        at = self.start
        while at < self.stop:
            begin = at
            key, at = self._varint(at)
            number, kind, value = key >> 3, key & 7, 0
            if kind == VARINT:
                value, stop = self._varint(at)
            elif kind == BYTES:
                length, at = self._varint(at)
                stop = at + length
            elif kind in _WIDTHS:
                stop = at + _WIDTHS[kind]
            else:
                raise Damage(f"a field of the unknown kind {kind}", begin)
            if number == 0:
                raise Damage("a field with the number 0", begin)
            if stop > self.stop:
                raise Damage(f"a field of {stop - at} bytes, where {self.stop - at} are left", at)
            if kind in _WIDTHS:
                stop = self._end_of_run(begin, at, stop)
            yield Field(number, kind, begin, at, stop, value)
            at = stop

    def _varint(self, at: int) -> tuple[int, int]:
        """The number that stands at a byte, seven bits in each byte, and where it ends."""
        if at < self.stop and (value := self._bytes[at]) < 0x80:
            return value, at + 1  # As nearly all are.
        value = 0
        for index, byte in enumerate(self._bytes[at : min(at + LONGEST_VARINT, self.stop)]):
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                return value % 2**64, at + index + 1
        raise Damage("a number that does not end", at)

    def _end_of_run(self, begin: int, start: int, stop: int) -> int:
        """Where the fields end that follow a field with the same key and width."""
        step = stop - begin
        key = self.content[begin:start]
        while True:
            count = min((self.stop - stop) // step, _RUN_STEP)
            rows = self.content[stop : stop + count * step].reshape(count, step)
            is_other = (rows[:, : key.size] != key).any(axis=1)
            same = int(is_other.argmax()) if is_other.any() else count
            stop += same * step
            if same < _RUN_STEP:
                return stop

    def inner(self, field: Field) -> Message:
        """The message that is the value of a field."""
        self._must_be(field, BYTES)
        return Message(self.content, field.start, field.stop, self.depth + 1)

    def text(self, field: Field) -> str:
        """The text that is the value of a field."""
        self._must_be(field, BYTES)
        try:
            return str(self._bytes[field.start : field.stop], "utf-8")
        except UnicodeDecodeError as error:
            raise Damage(f"text that is not UTF-8: {error}", field.start) from error

    def looks_like_text(self, field: Field) -> bool:
        """Whether a field may be a name: it begins without control characters, unlike messages."""
        begin = self._bytes[field.start : min(field.start + 64, field.stop)]
        return field.kind == BYTES and min(begin, default=ord(" ")) >= ord(" ")

    def integer(self, field: Field) -> int:
        """The whole number, with its sign, that is the value of a field."""
        self._must_be(field, VARINT)
        return field.signed

    def _must_be(self, field: Field, kind: int) -> None:
        if field.kind != kind:
            raise Damage(
                f"field {field.number} of kind {field.kind}, where kind {kind} was expected",
                field.begin,
            )

    def integers(self, number: int, most: int) -> list[int]:
        """All values of a repeated field of whole numbers, one by one or packed.

        Raises:
            Damage: there are more than `most`.
        """
        found: list[int] = []
        for entry in self:
            if entry.number != number:
                continue
            if entry.kind == BYTES:
                at = entry.start
                packed = self.inner(entry)
                while at < entry.stop and len(found) <= most:
                    value, at = packed._varint(at)
                    found.append(value - 2**64 if value >= 2**63 else value)
            else:
                found.append(self.integer(entry))
            if len(found) > most:
                raise Damage(f"more than {most} numbers in field {number}", entry.begin)
        return found

    def numbers(self, number: int, dtype: np.dtype[Any]) -> np.ndarray:
        """All values of a repeated field of fixed width, packed or one by one.

        Values that stand together are given as a view; others are copied together.
        """
        parts: list[np.ndarray] = []
        for entry in self:
            if entry.number != number:
                continue
            if _WIDTHS.get(entry.kind) == dtype.itemsize:
                step = entry.start - entry.begin + dtype.itemsize
                rows = self.content[entry.begin : entry.stop].reshape(-1, step)
                values = np.ascontiguousarray(rows[:, -dtype.itemsize :]).reshape(-1)
            else:
                self._must_be(entry, BYTES)
                values = self.content[entry.start : entry.stop]
                if values.size % dtype.itemsize:
                    raise Damage(f"{values.size} bytes for numbers of {dtype}", entry.start)
            parts.append(values.view(dtype))
            check_size(len(parts) * PART_BYTES, self.content.size, "scattered values", self.start)
        if len(parts) == 1:
            return parts[0]
        return np.concatenate([np.empty(0, dtype), *parts])
