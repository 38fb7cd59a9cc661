"""What both versions of TensorFlow's checkpoints share: messages, dtypes, and slices of tensors.

Sources: `tensor_bundle.proto` in `tensorflow/core/protobuf`, `saved_tensor_slice.proto` in
`tensorflow/core/util`, `tensor_shape.proto`, `tensor_slice.proto` and `types.proto` in
`tensorflow/core/framework`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np

from jaxtransfer.errors import FormatError
from jaxtransfer.formats.base import Damage, check_size
from jaxtransfer.formats.messages import Fields, message_classes
from jaxtransfer.formats.tables import Memory, varint

NAME = "tensorflow"

TENSOR_BYTES = 1000
"""About what an entry of a checkpoint takes beside its values while it is read."""

DTYPES: Mapping[int, np.dtype[Any]] = {
    1: np.dtype(np.float32),
    2: np.dtype(np.float64),
    3: np.dtype(np.int32),
    4: np.dtype(np.uint8),
    5: np.dtype(np.int16),
    6: np.dtype(np.int8),
    8: np.dtype(np.complex64),
    9: np.dtype(np.int64),
    10: np.dtype(np.bool_),
    14: np.dtype(ml_dtypes.bfloat16),
    17: np.dtype(np.uint16),
    18: np.dtype(np.complex128),
    19: np.dtype(np.float16),
    22: np.dtype(np.uint32),
    23: np.dtype(np.uint64),
    24: np.dtype(ml_dtypes.float8_e5m2),
    25: np.dtype(ml_dtypes.float8_e4m3fn),
    26: np.dtype(ml_dtypes.float8_e4m3fnuz),
    27: np.dtype(ml_dtypes.float8_e4m3b11fnuz),
    28: np.dtype(ml_dtypes.float8_e5m2fnuz),
    29: np.dtype(ml_dtypes.int4),
    30: np.dtype(ml_dtypes.uint4),
}
"""The dtypes of arrays by their numbers in `DataType`."""

STRING = 7
NO_NUMBERS: Mapping[int, str] = {STRING: "text", 20: "a resource", 21: "a variant"}
"""What stands in checkpoints beside weights, by its number in `DataType`."""

_OTHER_DTYPES = {
    **{kind: dtype.name for kind, dtype in DTYPES.items()},
    **{11: "qint8", 12: "quint8", 13: "qint32", 15: "qint16", 16: "quint16"},
}

_FIELDS: Mapping[str, Fields] = {
    "Dim": {"size": (1, "int64")},
    "Shape": {"dim": (2, "repeated Dim"), "unknown_rank": (3, "bool")},
    "Extent": {"start": (1, "int64"), "length": (2, "int64")},
    "Slice": {"extent": (1, "repeated Extent")},
    "BundleHeader": {"num_shards": (1, "int32"), "endianness": (2, "int32")},
    "BundleEntry": {
        "dtype": (1, "int32"),
        "shape": (2, "Shape"),
        "shard_id": (3, "int32"),
        "offset": (4, "int64"),
        "size": (5, "int64"),
        "crc32c": (6, "fixed32"),
        "slices": (7, "repeated Slice"),
    },
    "SavedSliceMeta": {"name": (1, "bytes"), "shape": (2, "Shape"), "type": (3, "int32")},
    "SavedTensorSliceMeta": {"tensor": (1, "repeated SavedSliceMeta")},
}

_MAX_DIMENSIONS = 64

_MESSAGE_RATIO = 32
"""At most so many bytes the protobuf library takes for each byte of a message."""


@functools.cache
def _classes() -> dict[str, Any]:
    return message_classes("jaxtransfer.tensorflow", _FIELDS)


def parsed(message: str, content: np.ndarray | memoryview, memory: Memory, at: int) -> Any:
    """A message of one of the kinds above.

    Raises:
        Damage: it is none, or would take too much memory.
    """
    kind = _classes()[message]
    check_size(_MESSAGE_RATIO * len(content), memory.file_bytes, "a message", at)
    try:
        return kind.FromString(bytes(content))
    except MemoryError:
        raise
    except Exception as error:
        raise Damage(f"no message of the kind {message}", at) from error


def fields(message: memoryview, at: int) -> Iterator[tuple[int, int | memoryview]]:
    r"""The numbers and values of a message's fields, without a copy of any value.

    Args:
        message: its bytes.
        at: where in the file the part is that has them, for the message.

    Raises:
        Damage: this is no message.

    >>> [(number, bytes(value)) for number, value in fields(memoryview(b"\x0a\x02hi"), 0)]
    [(1, b'hi')]
    """
    position = 0
    while position < len(message):
        tag, position = varint(message, position, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, position = varint(message, position, at)
            yield number, value
            continue
        if kind == 2:
            size, position = varint(message, position, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise Damage(f"a field of the unknown kind {kind}", at)
        value = message[position : position + size]
        if len(value) != size:
            raise Damage(f"a field of {size} bytes, beyond its message", at)
        position += size
        yield number, value


def parts(message: memoryview, number: int, at: int) -> Iterator[memoryview]:
    """The values of all fields of one number that hold bytes: messages, text, packed numbers."""
    for found, value in fields(message, at):
        if found == number and isinstance(value, memoryview):
            yield value


def name_of(key: bytes, at: int) -> str:
    """A tensor's name, which must be text.

    Raises:
        Damage: it is not.
    """
    try:
        return key.decode()
    except UnicodeDecodeError as error:
        raise Damage(f"the name {key!r}, which is no text", at) from error


def shape_of(message: Any, name: str, at: int) -> tuple[int, ...]:
    """The shape that a message states.

    Raises:
        Damage: it is not known, is negative, or has more dimensions than NumPy's arrays can have.
    """
    if len(message.dim) > _MAX_DIMENSIONS:
        raise Damage(f"{name!r} with {len(message.dim)} dimensions", at)
    shape = tuple(dim.size for dim in message.dim)
    if message.unknown_rank or min(shape, default=0) < 0:
        raise Damage(f"{name!r} with the shape {'unknown' if not shape else shape}", at)
    return shape


def check_dtypes(
    kinds: Mapping[str, tuple[int, int]], readable: Collection[int], path: Path
) -> None:
    """Refuse tensors that are more than text but have no array form, such as quantized ones.

    Args:
        kinds: the number of each tensor's dtype, and the byte of the file that says so.
        readable: the numbers of the dtypes that can be read.
        path: the file, for the message.

    Raises:
        FormatError: there are such tensors.
    """
    unreadable = [
        f" ! {name}: at byte {at}: {_OTHER_DTYPES.get(kind, f'number {kind}')}"
        for name, (kind, at) in kinds.items()
        if kind not in readable and kind not in NO_NUMBERS
    ]
    if unreadable:
        expected = ", ".join(DTYPES[kind].name for kind in readable)
        raise FormatError(
            "\n".join(
                [
                    f"{path}: expected tensors of {expected}; found:",
                    *unreadable,
                    "save them with one of these first",
                ]
            )
        )


def size_of(shape: Sequence[int], kind: int) -> int:
    """How many bytes an array of numbers takes."""
    return math.prod(shape) * DTYPES[kind].itemsize


Region: TypeAlias = tuple[slice, ...]
"""Where in a tensor a slice of it stands, as an index."""

Extents: TypeAlias = tuple[tuple[int, int | None], ...]
"""Start and length of a slice in each dimension; the length is `None` where it takes all."""


def extents_of(message: Any, name: str, at: int) -> Extents:
    """The extents that a `Slice` of a tensor states.

    Raises:
        Damage: there are more of them than NumPy's arrays can have dimensions.
    """
    if len(message.extent) > _MAX_DIMENSIONS:
        raise Damage(f"{name!r} with a slice of {len(message.extent)} dimensions", at)
    return tuple(
        (extent.start, extent.length if extent.HasField("length") else None)
        for extent in message.extent
    )


def region_of(
    extents: Extents, shape: tuple[int, ...], name: str, at: int
) -> tuple[Region, tuple[int, ...]]:
    """Where in a tensor a slice of it stands, as an index, and the slice's shape.

    Raises:
        Damage: the slice is not within the tensor.

    >>> region_of(((2, 3), (0, None)), (7, 4), "w", 0)
    ((slice(2, 5, None), slice(0, 4, None)), (3, 4))
    """
    whole = tuple(
        (0, full) if length is None else (start, length)
        for (start, length), full in zip(extents, shape, strict=False)
    )
    if len(extents) != len(shape) or any(
        start < 0 or length < 0 or start + length > full
        for (start, length), full in zip(whole, shape, strict=True)
    ):
        raise Damage(f"{name!r} of the shape {shape} with the slice {extents}", at)
    return (
        tuple(slice(start, start + length) for start, length in whole),
        tuple(length for _, length in whole),
    )


def assembled(
    name: str,
    shape: tuple[int, ...],
    pieces: Sequence[tuple[Region, np.ndarray]],
    memory: Memory,
    at: int,
) -> np.ndarray:
    """A tensor from its slices; a slice that is all of it is returned as it is.

    Raises:
        Damage: the slices overlap, or leave something out.
    """
    if len(pieces) == 1 and pieces[0][1].shape == shape:
        return pieces[0][1]
    size = math.prod(shape)
    if not pieces:
        raise Damage(f"{name!r} without any slice", at)
    dtype = pieces[0][1].dtype
    memory.take(size * (dtype.itemsize + 1), "tensors in slices", at)
    whole, seen = np.empty(shape, dtype), np.zeros(shape, np.bool_)
    for region, values in pieces:
        if seen[region].any():
            raise Damage(f"{name!r} with slices that overlap", at)
        whole[region], seen[region] = values, True
    if not seen.all():
        raise Damage(f"{name!r} with slices that leave something out", at)
    return whole
