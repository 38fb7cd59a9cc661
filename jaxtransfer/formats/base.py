"""What every file format has in common: the reader table's row, safe writing, and hashes."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import math
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from jaxtransfer.errors import (
    FormatError,
    JaxTransferError,
    MissingLibraryError,
    OutputError,
    ReferenceNotFoundError,
)
from jaxtransfer.tree.mapped import map_descriptor

Writer: TypeAlias = Callable[[Mapping[str, Any], Path, Mapping[str, str]], None]
"""Writes named arrays and text metadata to a path, atomically."""

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

    @property
    def parameters(self) -> int:
        """How many numbers the tensor holds."""
        return math.prod(self.shape)


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
        return sum(tensor.parameters for tensor in self.tensors)

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
        takes_architecture: whether `read` and `inspect` take `architecture`, the path of a file
            that describes the network, for formats whose weights do not say what they are.
        files: the files of one folder that are read together, for formats that have several;
            `None` for formats of one file, or of a folder with all that is in it.
    """

    name: str
    matches: Callable[[bytes, Path], bool]
    read: Callable[..., dict[str, np.ndarray]]
    inspect: Callable[..., Inspection]
    write: Writer | None = None
    suffix: str = ""
    takes_architecture: bool = False
    files: Callable[[Path], list[Path]] | None = None


class Damage(Exception):
    """What a parser found that cannot be, and where; `reading` makes a `FormatError` of it.

    Args:
        found: what is wrong, such as "a shape of 3 x -4".
        offset: the byte of the file where it stands, or where the part begins that has it.
    """

    def __init__(self, found: str, offset: int = 0):
        super().__init__(found)
        self.found = found
        self.offset = offset


@contextlib.contextmanager
def reading(path: PathLike, name: str, offset: int = 0) -> Iterator[None]:
    """Turn whatever goes wrong while a file is parsed into an error of the package.

    Parsers of untrusted bytes fail in many ways, so everything but a full memory is taken for the
    file's fault.

    Args:
        path: the file.
        name: its format.
        offset: the byte where the part begins that is being parsed, for errors that do not say.

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
        where = error.offset if isinstance(error, Damage) else offset
        raise FormatError(
            f"{path}: expected a whole {name} file, found at byte {where}: {reason}; "
            "the file is damaged or incomplete: fetch or write it again"
        ) from error


def _nothing_at(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"{path}: expected a file, found no folder {folder}; check the path"
    return f"{path}: expected a file, found nothing of that name in {folder}; check the path"


_ALLOWED_RATIO = 3
_ALLOWED_BYTES = 32 * 2**20


def check_size(needed: int, file_bytes: int, what: str, offset: int = 0) -> None:
    """Refuse a file whose headers or compressed parts ask for far more memory than the file takes.

    Call it before anything of a size that the file states is allocated, with the sum of all that
    is asked for. The bound leaves room, within 64 MiB over four times the file's size, for what a
    parser needs beside the arrays.

    Args:
        needed: bytes that the arrays would take.
        file_bytes: the size of the file, or of all files read together.
        what: what would take them, for the message.
        offset: where in the file this is stated.

    Raises:
        Damage: `needed` is more than 32 MiB over three times the file's size.
    """
    limit = _ALLOWED_RATIO * file_bytes + _ALLOWED_BYTES
    if needed > limit:
        raise Damage(
            f"{what} of {needed} bytes in a file of {file_bytes}, for which at most {limit} are "
            "allocated",
            offset,
        )


def map_file(path: PathLike) -> np.ndarray:
    """The bytes of a file as a read-only array; they are read when they are looked at.

    The array is a view of a memory map, which lives as long as any view of it.
    """
    with open(path, "rb") as file:
        return map_descriptor(file.fileno())


def array_at(
    content: np.ndarray, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...], what: str
) -> np.ndarray:
    """A view of the bytes at an offset as an array; nothing is copied.

    Args:
        content: the file's bytes, from `map_file`.
        offset: where the values begin.
        dtype: the dtype as the file has it; another byte order than the machine's stays so.
        shape: the array's shape.
        what: the name of the tensor, for the message.

    Raises:
        Damage: the shape is negative, or the file ends before the values do.

    >>> array_at(np.arange(8, dtype=np.uint8), 4, np.dtype("<u2"), (2, 1), "w").tolist()
    [[1284], [1798]]
    """
    size = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0:
        raise Damage(f"{what} with the shape {shape}", offset)
    if offset < 0 or offset + size > content.size:
        raise Damage(
            f"{what} with {size} bytes from byte {offset}, where the file has {content.size}",
            max(offset, 0),
        )
    return content[offset : offset + size].view(dtype).reshape(shape)


def file_beside(path: PathLike, name: str) -> Path:
    """The path of a file that another one names, such as a part of it in the same folder.

    Raises:
        Damage: the name leads out of the folder, directly or by a symbolic link. Links of the
            Hugging Face cache, from `snapshots` to `blobs` of one repository, are followed.
    """
    folder = Path(path).parent.resolve()
    allowed = [folder]
    allowed += [up.parent / "blobs" for up in folder.parents if up.name == "snapshots"]
    found = (folder / name).resolve()
    is_plain = name and not os.path.isabs(name) and ".." not in Path(name).parts
    if not (is_plain and any(found.is_relative_to(root) for root in allowed)):
        raise Damage(f"the name {name!r}, which leads out of the folder")
    return folder / name


def require(library: str, format: str, extra: str = "formats") -> Any:
    """A library of an extra, imported when a file needs it.

    Raises:
        MissingLibraryError: it is not installed.
    """
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise MissingLibraryError(
            f"{format}: expected the package {library.partition('.')[0]!r} to be installed, found: "
            f"{error}; run: python3 -m pip install 'jaxtransfer[{extra}]'"
        ) from error


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


def refuse_any(path: PathLike, expected: str, problems: Sequence[str], remedy: str) -> None:
    """Refuse to write what has no place in a format, everything at once.

    Raises:
        OutputError: there are problems.
    """
    if problems:
        raise OutputError(
            "\n".join([f"{path}: expected what {expected}, found:", *problems, remedy])
        )


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
