"""Find the reader of a file by what is in it, never by what it is called."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxtransfer.errors import FormatError, OutputError
from jaxtransfer.formats import npz, safetensors
from jaxtransfer.formats.base import Inspection, PathLike, Reader, reading

READERS: tuple[Reader, ...] = (
    safetensors.READER,
    npz.READER,
)
"""All formats; the first one whose `matches` is true reads the file."""

_HEAD_BYTES = 1024

_NO_WEIGHTS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs.github.com/spec/", "a Git LFS pointer: run `git lfs pull`"),
    (b"<!doctype html", "a web page: the download led to a page, not to the file"),
    (b"<html", "a web page: the download led to a page, not to the file"),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
)
"""First bytes (in lower case) of what is often found where weights should be."""


def reader_of(path: PathLike) -> Reader:
    """The reader whose format a file has, found by the file's content.

    Raises:
        ReferenceNotFoundError: there is nothing at `path`.
        FormatError: the content is of no format that can be read here.
    """
    path = Path(path)
    head = _head(path)
    for reader in READERS:
        if reader.matches(head, path):
            return reader
    raise FormatError(
        f"{path}: expected weights as {', '.join(reader.name for reader in READERS)}, "
        f"found {_description(head, path)}"
    )


def _head(path: Path) -> bytes:
    if path.is_dir():
        return b""
    with reading(path, "regular"):
        if path.exists() and not path.is_file():
            raise FormatError(f"{path}: expected a file, found a device, a pipe or a socket")
        with open(path, "rb") as file:
            return file.read(_HEAD_BYTES)


def _description(head: bytes, path: Path) -> str:
    if path.is_dir():
        names = sorted(entry.name for entry in path.iterdir())
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        return f"a folder with {', '.join(names[:5]) or 'nothing in it'}{more}; name a file"
    if not head:
        return "an empty file; fetch or write it again"
    size = path.stat().st_size
    for start, meaning in _NO_WEIGHTS:
        if head.lower().startswith(start):
            return f"{meaning} ({size} bytes)"
    return f"{size} bytes that begin with {head[:16]!r}; the file is damaged or of another format"


def read_weights(path: PathLike) -> dict[str, np.ndarray]:
    """All tensors of a file by name, as host arrays; the format is found by the file's content.

    Raises:
        ReferenceNotFoundError: there is nothing at `path`.
        FormatError: the content is of no format that can be read here, or damaged.
    """
    return reader_of(path).read(Path(path))


def inspect_weights(path: PathLike) -> Inspection:
    """Names, shapes and dtypes of a file's tensors, without their values.

    Raises:
        ReferenceNotFoundError: there is nothing at `path`.
        FormatError: the content is of no format that can be read here, or damaged.
    """
    return reader_of(path).inspect(Path(path))


def write_weights(
    flat: Mapping[str, Any], path: PathLike, metadata: Mapping[str, str] | None = None
) -> None:
    """Write named arrays in the format that the file's ending asks for, as a whole or not at all.

    Args:
        flat: an array for each name; flatten nested dicts first.
        path: where to, such as `weights.safetensors`; its folder must exist.
        metadata: text to keep beside the tensors, where the format has a place for it.

    Raises:
        OutputError: the ending names no format that is written, an array has no place in it, or the
            file cannot be written there.
    """
    path = Path(path)
    writers = {reader.suffix: reader.write for reader in READERS if reader.write is not None}
    write = writers.get(path.suffix.lower())
    if write is None:
        raise OutputError(
            f"{path}: expected a file name that ends in {' or '.join(writers)}, "
            f"found {path.suffix or 'no ending'!r}"
        )
    write(flat, path, metadata or {})
