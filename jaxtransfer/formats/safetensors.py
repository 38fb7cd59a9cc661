"""Files of the safetensors format: a JSON header, then the bytes of all tensors.

Source: https://github.com/huggingface/safetensors (section "Format" of its README).
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxtransfer.errors import OutputError
from jaxtransfer.formats.base import (
    Damage,
    Inspection,
    PathLike,
    Reader,
    TensorInfo,
    array_at,
    atomic_write,
    check_size,
    checked_arrays,
    map_file,
    reading,
    refuse_any,
)

NAME = "safetensors"

DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "C64": np.dtype(np.complex64),
}
"""The dtypes of arrays by their names in a header."""

_PACKED = "F4"
"""The dtype of which two values share a byte; they stay packed, as PyTorch has them."""

_READABLE: Mapping[str, np.dtype[Any]] = {**DTYPES, _PACKED: np.dtype(np.uint8)}

_LENGTH_BYTES = 8
_PARSED_RATIO = 20
"""How many times its bytes a header of short names and empty tensors takes when it is parsed."""

_METADATA_KEY = "__metadata__"


def matches(head: bytes, path: Path) -> bool:
    """Whether a file begins with a header length (which has a zero byte) and an opening brace."""
    return head[_LENGTH_BYTES : _LENGTH_BYTES + 1] == b"{" and 0 in head[:_LENGTH_BYTES]


def read(path: PathLike) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file, in the order of the file.

    bfloat16 and the float8 kinds come with their ml_dtypes dtype, float4 as bytes with two values
    each, so that the last axis is half as long. Arrays are read-only views of a memory map: a slice
    of one reads no more than that slice from the disk.

    Raises:
        ReferenceNotFoundError: there is no such file.
        FormatError: the header or the length of the file is wrong, or a dtype has no array form.
    """
    inspection = inspect(path)
    with reading(path, NAME):
        content = map_file(path)
        # The library has checked that tensors follow each other without gaps up to the end; its own
        # NumPy reader copies, and does not know float8.
        offset = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES].tobytes(), "little")
        flat = {}
        for tensor in inspection.tensors:
            dtype = np.dtype(tensor.dtype)
            flat[tensor.name] = array_at(content, offset, dtype, tensor.shape, tensor.name)
            offset += tensor.bytes
    return flat


def inspect(path: PathLike) -> Inspection:
    """Names, shapes, dtypes and metadata of a safetensors file, from its header.

    Raises:
        ReferenceNotFoundError: there is no such file.
        FormatError: the header or the length of the file is wrong, or a dtype has no array form.
    """
    _check_header(path)
    with reading(path, NAME), safe_open(path, framework="numpy") as file:
        headers = [(name, file.get_slice(name)) for name in file.offset_keys()]
        shapes = {name: tuple(header.get_shape()) for name, header in headers}
        kinds = {name: header.get_dtype() for name, header in headers}
        metadata = dict(file.metadata() or {})
        unknown = [f"{name} of {kind}" for name, kind in kinds.items() if kind not in _READABLE]
        if unknown:
            raise Damage(
                f"{', '.join(unknown)}, where {', '.join(_READABLE)} can be read", _LENGTH_BYTES
            )
        packed = [name for name, kind in kinds.items() if kind == _PACKED]
        for name in packed:
            shapes[name] = _packed_shape(name, shapes[name])
        if packed:
            metadata["packed float4_e2m1fn, two values a byte"] = ", ".join(sorted(packed))
    tensors = [
        TensorInfo(
            name=name,
            shape=shape,
            dtype=_READABLE[kinds[name]].name,
            bytes=math.prod(shape) * _READABLE[kinds[name]].itemsize,
        )
        for name, shape in shapes.items()
    ]
    # The library gives tensors without values, which share an offset, in an order that varies.
    starts = itertools.accumulate((tensor.bytes for tensor in tensors), initial=0)
    placed = sorted(
        zip(starts, tensors, strict=False), key=lambda pair: (pair[0], pair[1].bytes, pair[1].name)
    )
    return Inspection(Path(path), NAME, tuple(tensor for _, tensor in placed), metadata)


def _check_header(path: PathLike) -> None:
    with reading(path, NAME), open(path, "rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        size = os.fstat(file.fileno()).st_size
        if length > size - _LENGTH_BYTES:
            raise Damage(f"a header of {length} bytes in a file of {size}")
        check_size(length * _PARSED_RATIO, size, f"a header of {length} bytes, once parsed,")


def _packed_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if not shape or shape[-1] % 2:
        raise Damage(
            f"{name} of {_PACKED} with the shape {shape}, whose last axis is not even",
            _LENGTH_BYTES,
        )
    return (*shape[:-1], shape[-1] // 2)


def write(
    flat: Mapping[str, Any], path: PathLike, metadata: Mapping[str, str] | None = None
) -> None:
    """Write named arrays to a safetensors file, as a whole or not at all.

    The mapping and its arrays stay as they are; arrays may be of NumPy or JAX and of any memory
    layout.

    Args:
        flat: an array for each name.
        path: where to; its folder must exist.
        metadata: text to keep beside the tensors.

    Raises:
        OutputError: a name, a dtype or a piece of metadata has no place in the format, or the file
            cannot be written there.
    """
    # The library writes arrays as if they were contiguous, whatever their strides.
    arrays = checked_arrays(flat, path)
    problems = [
        f" ! {name}: {array.dtype}"
        for name, array in arrays.items()
        if array.dtype not in DTYPES.values()
    ]
    if _METADATA_KEY in arrays:
        problems.append(f" ! {_METADATA_KEY}: this name is taken by the format")
    problems += [
        f" ! metadata {key!r}: expected text, found {value!r}"
        for key, value in (metadata or {}).items()
        if not (isinstance(key, str) and isinstance(value, str))
    ]
    dtypes = ", ".join(dtype.name for dtype in DTYPES.values())
    refuse_any(path, "safetensors can hold", problems, f"dtypes it can hold: {dtypes}")

    def save(temporary: Path) -> None:
        try:
            save_file(arrays, temporary, dict(metadata) if metadata else None)
            _order_metadata(temporary)
        except (SafetensorError, UnicodeEncodeError) as error:
            raise OutputError(
                f"{path}: expected to write a file here, found: {error}; "
                f"make room in {Path(path).parent}, or write elsewhere"
            ) from error

    atomic_write(path, save)


def _order_metadata(path: Path) -> None:
    """Put the metadata in alphabetic order: the library's varies, and with it the file's hash."""
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        header = json.loads(file.read(length))
        if _METADATA_KEY in header:
            header[_METADATA_KEY] = dict(sorted(header[_METADATA_KEY].items()))
        ordered = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        file.seek(_LENGTH_BYTES)
        file.write(ordered.ljust(length))


READER = Reader(NAME, matches, read, inspect, write, suffix=".safetensors")
