"""Find the reader of a file by what is in it, never by what it is called."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from jaxtransfer.errors import FormatError, OutputError, ReferenceNotFoundError
from jaxtransfer.formats import sharded
from jaxtransfer.formats.base import Inspection, PathLike, Reader, Writer, reading, sha256_of
from jaxtransfer.tree.names import SEPARATOR, named_leaves
from jaxtransfer.types import PyTree


@functools.cache
def readers() -> tuple[Reader, ...]:
    """All formats; the first one whose `matches` is true reads the file.

    Their modules are imported when the first file is read, not with the package.
    """
    from jaxtransfer.formats import (
        caffe,
        darknet,
        keras,
        msgpack,
        npz,
        onnx,
        orbax,
        safetensors,
        tensorflow,
        torch,
        wordvectors,
    )

    return (
        # What begins with a signature, or has files of certain names, comes first;
        safetensors.READER,
        npz.READER,
        torch.READER,
        keras.READER,
        tensorflow.READER,
        orbax.READER,
        Reader(
            sharded.NAME,
            sharded.matches,
            read=lambda path: sharded.read(path, lambda shard: _shard_reader(shard).read(shard)),
            inspect=lambda path: sharded.inspect(
                path, lambda shard: _shard_reader(shard).inspect(shard)
            ),
            files=sharded.files,
        ),
        # then what is told by the structure of its first bytes,
        msgpack.READER,
        onnx.READER,
        caffe.READER,
        # and last what is told by little more than plausible numbers.
        wordvectors.READER,
        darknet.READER,
    )


def writers() -> dict[str, Writer]:
    """How files are written, by their ending."""
    return {reader.suffix: reader.write for reader in readers() if reader.write is not None}


_HEAD_BYTES = 1024

_TORCH_STYLE_SUFFIX = ".safetensors"
"""The ending of files in which PyTorch tools look for a state dict."""

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
    for reader in readers():
        if reader.matches(head, path):
            return reader
    raise FormatError(
        f"{path}: expected weights as {', '.join(reader.name for reader in readers())}, "
        f"found at byte 0: {_description(head, path)}"
    )


def _shard_reader(path: Path) -> Reader:
    reader = reader_of(path)
    if reader.name == sharded.NAME:
        raise FormatError(
            f"{path}: expected a shard with tensors, found at byte 0: another index of shards"
        )
    return reader


def _head(path: Path) -> bytes:
    from jaxtransfer.formats.tensorflow import is_prefix

    with reading(path, "regular"):
        if path.is_dir() or (not path.exists() and is_prefix(path)):
            return b""
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


def read_weights(
    path: PathLike, *, part: str = "", architecture: PathLike | None = None
) -> dict[str, np.ndarray]:
    """All tensors of a file by name, as host arrays; the format is found by the file's content.

    Names and arrays are as the file has them. Where the format allows it, arrays are read-only
    views of a memory map: their values are read from the disk when they are first looked at.

    Args:
        path: a file, or a folder for formats that are folders.
        part: a group of the file, such as `ema` of a checkpoint with `model` and `ema`: only the
            tensors below it, named without it.
        architecture: the file that describes the network, for Darknet (`.cfg`) and Caffe
            (`.prototxt`); by default the one beside the weights with the same stem.

    Raises:
        ReferenceNotFoundError: there is nothing at `path`, or nothing below `part`.
        FormatError: the content is of no format that can be read here, or damaged.
        MissingLibraryError: the format needs a library that is not installed.
    """
    reader = reader_of(path)
    options = _architecture(reader, path, architecture)
    flat = reader.read(Path(path), **options)
    if not part:
        return flat
    container = reader.inspect(Path(path), **options).metadata.get("container", "")
    return {name: flat[full] for name, full in _below(part, list(flat), path, container).items()}


def inspect_weights(
    path: PathLike, *, part: str = "", architecture: PathLike | None = None
) -> Inspection:
    """Names, shapes and dtypes of a file's tensors, read from headers where a format has them.

    Args:
        path: a file, or a folder for formats that are folders.
        part: only the tensors below this group of the file, named without it.
        architecture: the file that describes the network, for Darknet and Caffe.

    Raises:
        ReferenceNotFoundError: there is nothing at `path`, or nothing below `part`.
        FormatError: the content is of no format that can be read here, or damaged.
        MissingLibraryError: the format needs a library that is not installed.
    """
    reader = reader_of(path)
    found = reader.inspect(Path(path), **_architecture(reader, path, architecture))
    if not part:
        return found
    tensors = {tensor.name: tensor for tensor in found.tensors}
    chosen = _below(part, list(tensors), path, found.metadata.get("container", ""))
    return replace(
        found, tensors=tuple(replace(tensors[full], name=name) for name, full in chosen.items())
    )


def _architecture(
    reader: Reader, path: PathLike, architecture: PathLike | None
) -> dict[str, Path | None]:
    if reader.takes_architecture:
        return {"architecture": None if architecture is None else Path(architecture)}
    if architecture is not None:
        raise FormatError(
            f"{path}: expected no architecture, for {reader.name} files name their tensors, found "
            f"{architecture}; leave it out"
        )
    return {}


def _below(part: str, names: Sequence[str], path: PathLike, container: str) -> dict[str, str]:
    """From the name below a part of the file to the whole name."""
    prefix = part.removesuffix("/") + "/"
    if f"{container}/" == prefix:
        return {name: name for name in names}  # The reader has left it out of all names.
    chosen = {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}
    if not chosen:
        parts = sorted({name.partition("/")[0] for name in names if "/" in name})
        raise ReferenceNotFoundError(
            f"{path}: expected tensors below {prefix!r}, found none; its parts are "
            f"{', '.join(parts[:20]) or 'none: leave `part` out'}"
        )
    return chosen


def fingerprint_of(path: PathLike) -> str:
    """The SHA-256 that stands for all that is read from a path.

    For a file it is the hash of its content. For what lies in several files, such as a folder or an
    index with its shards, it is the hash of the list that `sha256sum` prints of them, in the order
    of their names.

    Raises:
        ReferenceNotFoundError: there is nothing at `path`.
        FormatError: a file cannot be read.
    """
    path = Path(path)
    reader = reader_of(path)
    if reader.files is not None:
        files = reader.files(path)
    else:
        files = [found for found in path.rglob("*") if found.is_file()] if path.is_dir() else [path]
    if files == [path]:
        return sha256_of(path)
    folder = path if path.is_dir() else path.parent
    names = {found.relative_to(folder).as_posix(): found for found in files}
    lines = [f"{sha256_of(names[name])}  {name}\n" for name in sorted(names)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def write_weights(
    tree: PyTree,
    path: PathLike,
    metadata: Mapping[str, str] | None = None,
    *,
    style: str = "jax",
) -> None:
    """Write a tree of arrays in the format that the file's ending asks for, whole or not at all.

    Args:
        tree: any pytree, or a flat dict with an array for each name; it stays as it is.
        path: where to, such as `weights.safetensors`; its folder must exist.
        metadata: text to keep beside the tensors, where the format has a place for it.
        style: "jax" for names joined by `/`; "torch" for a state dict as PyTorch tools expect it in
            safetensors: names joined by `.`, and `format: pt` in the metadata. Names and layouts of
            a source come back by `invert`, whose result is written in the style it came in.

    Raises:
        OutputError: the ending names no format that is written, an array has no place in it, or the
            file cannot be written there.
        TreeError: two leaves have the same name.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_weights({"head": {"bias": np.zeros(2)}}, f"{folder}/a.safetensors", style="torch")
    ...     list(read_weights(f"{folder}/a.safetensors"))
    ['head.bias']
    """
    path = Path(path)
    write = writers().get(path.suffix.lower())
    if write is None:
        raise OutputError(
            f"{path}: expected a file name that ends in {' or '.join(writers())}, "
            f"found {path.suffix or 'no ending'!r}"
        )
    if style not in ("jax", "torch"):
        raise OutputError(f"{path}: expected style 'jax' or 'torch', found {style!r}")
    named = named_leaves(tree)
    if style == "torch":
        if path.suffix.lower() != _TORCH_STYLE_SUFFIX:
            raise OutputError(
                f"{path}: expected a file name that ends in {_TORCH_STYLE_SUFFIX} for the "
                f"style 'torch', found {path.suffix!r}"
            )
        named = [(name.replace(SEPARATOR, "."), leaf) for name, leaf in named]
        metadata = {"format": "pt", **(metadata or {})}
    flat = dict(named)
    if len(flat) < len(named):
        counts = Counter(name for name, _ in named)
        repeated = [name for name, count in counts.items() if count > 1]
        raise OutputError(f"{path}: expected each name once, found more than one of {repeated}")
    write(flat, path, metadata or {})
