"""NumPy's `.npz`: a zip archive in which every member is one array in the `.npy` format.

Names may contain `/`, as in the weights of big_vision. NumPy has no bfloat16: it writes such an
array as two bytes of no type (`|V2`), which come back as bfloat16 here.

Values are copied out of the archive, even those that are not compressed: each member has a
checksum, which a view of the file would leave unchecked.

Source: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html and
https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
"""

from __future__ import annotations

import itertools
import math
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np

from jaxtransfer.formats.base import (
    Damage,
    Inspection,
    PathLike,
    Reader,
    TensorInfo,
    atomic_write,
    check_size,
    checked_arrays,
    reading,
    refuse_any,
)

NAME = "npz"

_MEMBER = b"PK\x03\x04"
_ENTRY = b"PK\x01\x02"
_EMPTY_ARCHIVE = b"PK\x05\x06"
_SUFFIX = ".npy"
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_LOCAL_HEADER_BYTES = 30
_BLOCK_BYTES = 2**20
_REASON_CHARACTERS = 300  # zipfile and NumPy cite what they found, however long it is.
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
        for name, info in _members(archive, Path(path).stat().st_size).items():
            with _tensor(name, info), archive.open(info) as member:
                shape, is_fortran, dtype = _read_header(member, info)
                array = _read_values(member, math.prod(shape) * dtype.itemsize).view(dtype)
                if not dtype.isnative:
                    array = array.byteswap(inplace=True).view(dtype.newbyteorder("="))
                flat[name] = array.reshape(shape, order="F" if is_fortran else "C")
    return flat


def inspect(path: PathLike) -> Inspection:
    """Names, shapes and dtypes of an `.npz` file, from its headers.

    Raises:
        ReferenceNotFoundError: there is no such file.
        FormatError: the archive is damaged, holds Python objects, or something that is no array.
    """
    with reading(path, NAME), zipfile.ZipFile(path) as archive:
        tensors = []
        for name, info in _members(archive, Path(path).stat().st_size).items():
            with _tensor(name, info), archive.open(info) as member:
                shape, _, dtype = _read_header(member, info)
                tensors.append(
                    TensorInfo(name, shape, dtype.name, math.prod(shape) * dtype.itemsize)
                )
    return Inspection(Path(path), NAME, tuple(tensors))


def _members(archive: zipfile.ZipFile, archive_bytes: int) -> dict[str, zipfile.ZipInfo]:
    """The members by the names of their tensors, if all are arrays and none is a trap."""
    infos = archive.infolist()
    counts = Counter(info.filename for info in infos)
    for info in infos:
        if info.header_offset < 0:
            raise Damage(f"the member {info.filename!r} before the file's first byte")
        if not info.filename.endswith(_SUFFIX):
            raise Damage(f"the member {info.filename!r}, which is no {_SUFFIX}", info.header_offset)
        if counts[info.filename] > 1:
            raise Damage(f"the repeated member {info.filename!r}", info.header_offset)
        if info.compress_type not in _METHODS:
            method = f"{info.filename!r} compressed by method {info.compress_type}"
            raise Damage(f"{method}, which NumPy does not use", info.header_offset)
        if _ENTRY in info.extra + info.comment:
            # A damaged length makes zipfile take the entries that follow for a comment.
            raise Damage(f"an entry within that of {info.filename!r}", info.header_offset)
    placed = sorted(infos, key=lambda info: info.header_offset)
    if unlisted := placed[0].header_offset if placed else archive.start_dir:
        raise Damage(f"{unlisted} bytes that belong to no member")
    for info, after in itertools.pairwise(placed):
        if info.header_offset + _LOCAL_HEADER_BYTES + info.compress_size > after.header_offset:
            raise Damage(f"{after.filename!r} within {info.filename!r}", after.header_offset)
    # No more than this can be unpacked: zipfile stops at the size that a member states.
    check_size(sum(info.file_size for info in infos), archive_bytes, "unpacked members")
    return {info.filename.removesuffix(_SUFFIX): info for info in infos}


@contextmanager
def _tensor(name: str, info: zipfile.ZipInfo) -> Iterator[None]:
    """Say of whatever goes wrong which tensor it is and where its member begins."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        reason = str(error)[:_REASON_CHARACTERS] or type(error).__name__
        raise Damage(f"in {name!r}: {reason}", info.header_offset) from error


def _read_values(member: IO[bytes], size: int) -> np.ndarray:
    """The rest of a member, which must be of this size and have the right checksum."""
    values = np.empty(size, np.uint8)
    position = 0
    # At the end, zipfile compares the checksum. Small blocks: they are in memory twice.
    while block := member.read(_BLOCK_BYTES):
        values[position : position + len(block)] = np.frombuffer(block, np.uint8)
        position += len(block)
    if position != size:
        raise ValueError(f"{position} bytes of values, where {size} were announced")
    return values


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
    holds = "npz can hold (NumPy's dtypes, bfloat16, no metadata)"
    refuse_any(path, holds, problems, "write .safetensors instead")

    def save(temporary: Path) -> None:
        with zipfile.ZipFile(temporary, "w") as archive:
            for name, array in arrays.items():
                info = zipfile.ZipInfo(name + _SUFFIX, _EARLIEST_DATE)
                with archive.open(info, "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)

    atomic_write(path, save)


READER = Reader(NAME, matches, read, inspect, write, suffix=".npz")
