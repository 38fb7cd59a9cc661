"""What every file format has in common: the reader table's row, safe writing, and hashes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from jaxtransfer.errors import FormatError, JaxTransferError, OutputError, ReferenceNotFoundError

PathLike: TypeAlias = str | os.PathLike[str]
"""A path as people write it."""


@dataclass(frozen=True)
class TensorInfo:
    """What a file says about one tensor, before its values are read.

    Attributes:
        name: the tensor's name in the file.
        shape: its shape in the file.
        dtype: the name of its NumPy (or ml_dtypes) dtype, such as `float32` or `bfloat16`.
        bytes: how many bytes its values take.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int


@dataclass(frozen=True)
class Inspection:
    """What a file of weights holds, read from its headers alone.

    Attributes:
        path: the file.
        format: the name of the format, such as `safetensors`.
        tensors: one entry a tensor, in the order of the file.
        metadata: the text that the file keeps beside its tensors.
    """

    path: Path
    format: str
    tensors: tuple[TensorInfo, ...]
    metadata: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def parameters(self) -> int:
        """How many numbers all tensors hold together."""
        return sum(int(np.prod(tensor.shape, dtype=object)) for tensor in self.tensors)

    @property
    def bytes(self) -> int:
        """How many bytes the values of all tensors take."""
        return sum(tensor.bytes for tensor in self.tensors)


@dataclass(frozen=True)
class Reader:
    """One row in the table of formats.

    Attributes:
        name: the name of the format.
        matches: whether a file's first bytes (empty for a folder) are of this format; a reader that
            shares its first bytes with another may look further into the file at the path.
        read: all tensors of a file by name, as host arrays.
        inspect: names, shapes and dtypes, without the values.
        write: writes named arrays and text metadata to a path, atomically; `None` if the format is
            only read.
        suffix: the usual ending of a file name, which chooses the writer (never the reader).
    """

    name: str
    matches: Callable[[bytes, Path], bool]
    read: Callable[[Path], dict[str, np.ndarray]]
    inspect: Callable[[Path], Inspection]
    write: Callable[[Mapping[str, Any], Path, Mapping[str, str]], None] | None = None
    suffix: str = ""


@contextlib.contextmanager
def reading(path: PathLike, name: str) -> Iterator[None]:
    """Turn whatever goes wrong while a file is parsed into an error of the package.

    Parsers of untrusted bytes fail in many ways, so everything but a full memory is taken for the
    file's fault.

    Raises:
        ReferenceNotFoundError: there is no such file.
        FormatError: the file cannot be parsed.
    """
    try:
        yield
    except (JaxTransferError, MemoryError):
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ReferenceNotFoundError(_nothing_at(Path(path))) from error
    except OSError as error:
        raise FormatError(
            f"{path}: expected a file that can be read, found: {error.strerror or error}; "
            "check the path and its permissions"
        ) from error
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise FormatError(
            f"{path}: expected a whole {name} file, found: {reason}; "
            "the file is damaged or incomplete: fetch or write it again"
        ) from error


def _nothing_at(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"{path}: expected a file, found no folder {folder}; check the path"
    return f"{path}: expected a file, found nothing of that name in {folder}; check the path"


def checked_arrays(flat: Mapping[str, Any], path: PathLike) -> dict[str, np.ndarray]:
    """Named host arrays, C-contiguous and in native byte order, ready to be written.

    The mapping and its arrays stay as they are: what must be laid out anew is copied.

    Raises:
        OutputError: a name or a value cannot be written to any file of weights.

    >>> checked_arrays({"w": np.zeros((2, 3)).T}, "w.npz")["w"].flags.c_contiguous
    True
    """
    problems = []
    arrays = {}
    for name, value in flat.items():
        if problem := _name_problem(name):
            problems.append(f" ! {name!r}: {problem}")
            continue
        try:
            # Not `np.ascontiguousarray`, which gives a scalar a dimension.
            array = np.asarray(value, order="C")
        except Exception as error:
            problems.append(f" ! {name}: expected an array, found {type(value).__name__}: {error}")
            continue
        if array.dtype.hasobject:
            problems.append(f" ! {name}: expected numbers, found {_kind_of(value)}")
            continue
        arrays[name] = array.astype(array.dtype.newbyteorder("="), order="C", copy=False)
    if problems:
        raise OutputError(
            "\n".join([f"{path}: expected flat names with one array each, found:", *problems])
        )
    return arrays


def _name_problem(name: Any) -> str:
    if not isinstance(name, str) or not name:
        return "expected a name that is not empty"
    if "\0" in name:
        return "expected a name without NUL characters"
    try:
        name.encode()
    except UnicodeEncodeError:
        return "expected a name that UTF-8 can express"
    return ""


def _kind_of(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a nested dict; flatten the tree first"
    return f"Python objects ({type(value).__name__})"


def atomic_write(path: PathLike, write: Callable[[Path], object]) -> None:
    """Write a file as a whole or not at all.

    `write` gets a temporary path in the same folder; what it writes there takes the final name only
    when all of it is on disk. Until then, and whenever it fails, what stood under that name stays.

    Args:
        path: the final name; its folder must exist.
        write: writes the whole content to the path it is given.

    Raises:
        OutputError: the file cannot be written there.
    """
    path = Path(path)
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        # Renaming onto a device, a pipe or a socket would destroy it.
        if path.exists() and not path.is_file():
            raise OutputError(
                f"{path}: expected a file or nothing, found {_what_is(path)}; choose another name"
            )
        mode = _create(temporary)
        try:
            write(temporary)
            # A library may have put a file of its own there, with permissions of its own.
            temporary.chmod(mode)
            _sync(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # Not every file system can sync a folder.
            _sync(path.parent)
    except OSError as error:
        raise OutputError(
            f"{path}: expected to write a file here, found: {error.strerror or error}; "
            f"{_remedy(path.parent)}"
        ) from error


def _create(path: Path) -> int:
    """Create an empty file; return the permissions that new files have here."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        return stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _what_is(path: Path) -> str:
    return "a folder" if path.is_dir() else "a device, a pipe or a socket"


def _remedy(folder: Path) -> str:
    if folder.is_dir():
        return f"make room in {folder}, make it writable, or write elsewhere"
    if any(parent.is_file() for parent in (folder, *folder.parents)):
        return f"{folder} cannot be a folder, for a file is in its way: write elsewhere"
    return f"there is no folder {folder}: create it first"


def sha256_of(path: PathLike) -> str:
    """The SHA-256 of a file's content, in lower-case hexadecimal digits.

    Raises:
        ReferenceNotFoundError: there is no such file.
        FormatError: the file cannot be read.
    """
    with reading(path, "regular"), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
