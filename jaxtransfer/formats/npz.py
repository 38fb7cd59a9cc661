"""NumPy's `.npz`: a zip archive in which every member is one array in the `.npy` format.

Names may contain `/`, as in the weights of big_vision. NumPy has no bfloat16: it writes such an
array as two bytes of no type (`|V2`), which come back as bfloat16 here.

Source: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import math
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import ml_dtypes
import numpy as np

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

NAME = "npz"

_MEMBER = b"PK\x03\x04"
_EMPTY_ARCHIVE = b"PK\x05\x06"
_SUFFIX = ".npy"
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_EARLIEST_DATE = (1980, 1, 1, 0, 0, 0)


def matches(head: bytes, path: Path) -> bool:
    """Whether a file is a zip archive of `.npy` members, or a damaged one that begins with such."""
    if head.startswith(_EMPTY_ARCHIVE):
        return True
    name_length = int.from_bytes(head[26:28], "little")
    if not (head.startswith(_MEMBER) and head[30 : 30 + name_length].endswith(_SUFFIX.encode())):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return all(name.endswith(_SUFFIX) for name in archive.namelist())
    except Exception:
        return True  # Reading it tells what is wrong.


def read(path: PathLike) -> dict[str, np.ndarray]:
    """All arrays of an `.npz` file by name, in native byte order; nothing is ever unpickled.

    Raises:
        ReferenceNotFoundError: there is no such file.
        FormatError: the archive is damaged, holds Python objects, or something that is no array.
    """
    with reading(path, NAME), zipfile.ZipFile(path) as archive:
        flat = {}
        for name, info in _members(archive, path).items():
            with _tensor(name), archive.open(info) as member:
                shape, is_fortran, dtype = _read_header(member, info)
                values = np.empty(math.prod(shape) * dtype.itemsize, np.uint8)
                found = cast(zipfile.ZipExtFile, member).readinto(values.data)
                # One byte more would be too many; asking for it makes zipfile compare its checksum.
                if found != values.size or member.read(1):
                    raise ValueError(f"another number of bytes than the expected {values.size}")
                array = values.view(dtype).reshape(shape, order="F" if is_fortran else "C")
                flat[name] = array.astype(dtype.newbyteorder("="), copy=False)
    return flat


def inspect(path: PathLike) -> Inspection:
    """Names, shapes and dtypes of an `.npz` file, from its headers.

    Raises:
        ReferenceNotFoundError: there is no such file.
        FormatError: the archive is damaged, holds Python objects, or something that is no array.
    """
    with reading(path, NAME), zipfile.ZipFile(path) as archive:
        tensors = []
        for name, info in _members(archive, path).items():
            with _tensor(name), archive.open(info) as member:
                shape, _, dtype = _read_header(member, info)
                tensors.append(
                    TensorInfo(name, shape, dtype.name, math.prod(shape) * dtype.itemsize)
                )
    return Inspection(Path(path), NAME, tuple(tensors))


def _members(archive: zipfile.ZipFile, path: PathLike) -> dict[str, zipfile.ZipInfo]:
    names = Counter(archive.namelist())
    others = [name for name in names if not name.endswith(_SUFFIX)]
    repeated = [name for name, count in names.items() if count > 1]
    if others or repeated:
        raise FormatError(
            f"{path}: expected a zip archive in which each member is one {_SUFFIX} file, found "
            f"other members: {others[:5] or 'none'}; repeated members: {repeated[:5] or 'none'}"
        )
    return {info.filename.removesuffix(_SUFFIX): info for info in archive.infolist()}


@contextmanager
def _tensor(name: str) -> Iterator[None]:
    """Put the tensor's name before the message of whatever goes wrong."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(f"in {name!r}: {error or type(error).__name__}") from error


def _read_header(
    member: IO[bytes], info: zipfile.ZipInfo
) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran order, and dtype; afterwards the member stands at the values."""
    version = np.lib.format.read_magic(member)
    if version not in _HEADER_READERS:
        raise ValueError(f"version {version} of the .npy format, which only named fields need")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # About files that Python 2 wrote, which are fine.
        shape, is_fortran, dtype = _HEADER_READERS[version](member)
    if dtype.hasobject:
        raise ValueError("Python objects, which only unpickling (never done here) could read")
    if dtype.kind == "V":
        dtype = _from_void(dtype)
    size = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or size != info.file_size - member.tell():
        # Checked before anything is allocated: a damaged shape may ask for any size.
        raise ValueError(
            f"{info.file_size - member.tell()} bytes of values for shape {shape} of {dtype}"
        )
    return shape, is_fortran, dtype


def _from_void(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype.names is None and dtype.subdtype is None and dtype.itemsize == _BFLOAT16.itemsize:
        return _BFLOAT16
    raise ValueError(f"dtype {dtype}, where numbers were expected")


def write(
    flat: Mapping[str, Any], path: PathLike, metadata: Mapping[str, str] | None = None
) -> None:
    """Write named arrays to an `.npz` file, as a whole or not at all.

    Equal arrays give equal files, byte for byte. The mapping and its arrays stay as they are.

    Args:
        flat: an array for each name.
        path: where to; its folder must exist.
        metadata: must be empty, for the format has no place for it.

    Raises:
        OutputError: a name, a dtype or metadata has no place in the format, or the file cannot be
            written there.
    """
    arrays = checked_arrays(flat, path)
    problems = [
        f" ! {name}: {array.dtype}"
        for name, array in arrays.items()
        if array.dtype.kind == "V" and array.dtype != _BFLOAT16
    ]
    if metadata:
        problems.append(f" ! metadata: {', '.join(map(str, metadata))}")
    if problems:
        raise OutputError(
            "\n".join(
                [
                    f"{path}: expected what npz can hold (NumPy's dtypes, bfloat16, no metadata), "
                    "found:",
                    *problems,
                    "write .safetensors instead",
                ]
            )
        )

    def save(temporary: Path) -> None:
        with zipfile.ZipFile(temporary, "w") as archive:
            for name, array in arrays.items():
                info = zipfile.ZipInfo(name + _SUFFIX, _EARLIEST_DATE)
                with archive.open(info, "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)

    atomic_write(path, save)


READER = Reader(NAME, matches, read, inspect, write, suffix=".npz")
