"""Files of the safetensors format: a JSON header, then the bytes of all tensors.

Source: https://github.com/huggingface/safetensors (section "Format" of its README).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxtransfer.errors import FormatError, OutputError
from jaxtransfer.formats.base import (
    Inspection,
    PathLike,
    Reader,
    TensorInfo,
    atomic_write,
    checked_arrays,
    reading,
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
"""The dtypes of arrays by their names in a header; those that share bytes (F4, F6) are absent."""

_LENGTH_BYTES = 8
_METADATA_KEY = "__metadata__"


def matches(head: bytes, path: Path) -> bool:
    """Whether a file begins with a header length (which has a zero byte) and an opening brace."""
    return head[_LENGTH_BYTES : _LENGTH_BYTES + 1] == b"{" and 0 in head[:_LENGTH_BYTES]


def read(path: PathLike) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file, in the order of the file.

    bfloat16 and the float8 kinds come with their ml_dtypes dtype. Each array owns its memory.

    Raises:
        ReferenceNotFoundError: there is no such file.
        FormatError: the header or the length of the file is wrong, or a dtype has no array form.
    """
    inspection = inspect(path)
    with reading(path, NAME), open(path, "rb") as file:
        # The library has checked that tensors follow each other without gaps up to the end, so the
        # values are read in one pass; its own NumPy reader does not know float8.
        header_bytes = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        file.seek(_LENGTH_BYTES + header_bytes)
        flat = {}
        for tensor in inspection.tensors:
            values = np.fromfile(file, np.uint8, tensor.bytes)
            flat[tensor.name] = values.view(np.dtype(tensor.dtype)).reshape(tensor.shape)
    return flat


def inspect(path: PathLike) -> Inspection:
    """Names, shapes, dtypes and metadata of a safetensors file, from its header.

    Raises:
        ReferenceNotFoundError: there is no such file.
        FormatError: the header or the length of the file is wrong, or a dtype has no array form.
    """
    with reading(path, NAME), safe_open(path, framework="numpy") as file:
        headers = [(name, file.get_slice(name)) for name in file.offset_keys()]
        shapes = {name: tuple(header.get_shape()) for name, header in headers}
        kinds = {name: header.get_dtype() for name, header in headers}
        metadata = dict(file.metadata() or {})
    unknown = [f" ! {name}: {kind}" for name, kind in kinds.items() if kind not in DTYPES]
    if unknown:
        expected = ", ".join(DTYPES)
        raise FormatError("\n".join([f"{path}: expected tensors of {expected}; found:", *unknown]))
    tensors = [
        TensorInfo(
            name=name,
            shape=shape,
            dtype=DTYPES[kinds[name]].name,
            bytes=math.prod(shape) * DTYPES[kinds[name]].itemsize,
        )
        for name, shape in shapes.items()
    ]
    # The library gives tensors without values, which share an offset, in an order that varies.
    starts = itertools.accumulate((tensor.bytes for tensor in tensors), initial=0)
    placed = sorted(
        zip(starts, tensors, strict=False), key=lambda pair: (pair[0], pair[1].bytes, pair[1].name)
    )
    return Inspection(Path(path), NAME, tuple(tensor for _, tensor in placed), metadata)


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
    if problems:
        raise OutputError(
            "\n".join(
                [
                    f"{path}: expected what safetensors can hold, found:",
                    *problems,
                    f"dtypes it can hold: {', '.join(dtype.name for dtype in DTYPES.values())}",
                ]
            )
        )

    def save(temporary: Path) -> None:
        try:
            save_file(arrays, temporary, dict(metadata) if metadata else None)
        except (SafetensorError, UnicodeEncodeError) as error:
            raise OutputError(
                f"{path}: expected to write a file here, found: {error}; "
                f"make room in {Path(path).parent}, or write elsewhere"
            ) from error

    atomic_write(path, save)


READER = Reader(NAME, matches, read, inspect, write, suffix=".safetensors")
