"""Pickles written opcode by opcode, as no pickler writes them, and PyTorch's files with them."""

from __future__ import annotations

import pickle
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

STARTS = (pickle.PROTO + b"\x02", pickle.STOP)
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


@dataclass(frozen=True)
class Raw:
    """Opcodes as they are."""

    opcodes: bytes


@dataclass(frozen=True)
class Call:
    """A call of a global, such as `Call("torch Size", ((2, 3),))`."""

    name: str
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Persistent:
    """What a persistent id stands for."""

    identity: Any


def name(text: str) -> Raw:
    """A global: module and name with a space between them."""
    return Raw(b"c" + text.replace(" ", "\n").encode() + b"\n")


def coded(value: Any) -> bytes:
    """The opcodes that put a value on the stack."""
    match value:
        case Raw():
            return value.opcodes
        case Call():
            return coded(name(value.name)) + coded(value.arguments) + pickle.REDUCE
        case Persistent():
            return coded(value.identity) + pickle.BINPERSID
        case str():
            return pickle.BINUNICODE + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return pickle.MARK + b"".join(map(coded, value)) + pickle.TUPLE
        case list():
            return pickle.EMPTY_LIST + pickle.MARK + b"".join(map(coded, value)) + pickle.APPENDS
        case dict():
            entries = b"".join(coded(part) for pair in value.items() for part in pair)
            return pickle.EMPTY_DICT + pickle.MARK + entries + pickle.SETITEMS
        case _:
            return pickle.dumps(value, protocol=2)[2:-1]


def pickled(value: Any) -> bytes:
    """A whole pickle of a value."""
    return STARTS[0] + coded(value) + STARTS[1]


def storage(key: str, size: int, kind: str = "torch FloatStorage", *view: Any) -> Persistent:
    """The persistent id of a storage."""
    return Persistent(("storage", name(kind), key, "cpu", size, *view))


def tensor(
    key: str,
    shape: Any,
    strides: Any = None,
    start: Any = 0,
    size: int | None = None,
    kind: str = "torch FloatStorage",
) -> Call:
    """A tensor on a storage of its own size."""
    if strides is None:
        strides = tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
    size = int(np.prod(shape)) if size is None else size
    arguments = (storage(key, size, kind), start, shape, strides, False, Call(ORDERED))
    return Call("torch._utils _rebuild_tensor_v2", arguments)


ORDERED = "collections OrderedDict"


def zip_file(
    path: Path,
    value: Any,
    storages: dict[str, bytes] | None = None,
    packing: int = zipfile.ZIP_STORED,
    **members: bytes,
) -> Path:
    """A file as PyTorch writes it since 1.6; a value that is bytes is the pickle itself."""
    with zipfile.ZipFile(path, "w", packing) as archive:
        archive.writestr("a/data.pkl", value if isinstance(value, bytes) else pickled(value))
        for key, content in (storages or {}).items():
            archive.writestr(f"a/data/{key}", content)
        for member, content in members.items():
            archive.writestr(f"a/{member}", content)
    return path


def legacy_file(
    path: Path,
    value: Any,
    storages: dict[str, np.ndarray] | None = None,
    *,
    order: tuple[str, ...] | None = None,
    after: bytes = b"",
) -> Path:
    """A file as PyTorch wrote it before 1.6; a value that is bytes is the pickle itself."""
    storages = storages or {}
    keys = list(storages if order is None else order)
    with open(path, "wb") as file:
        for part in (MAGIC, PROTOCOL, {"little_endian": True}):
            file.write(pickled(part))
        file.write(value if isinstance(value, bytes) else pickled(value))
        file.write(pickled(keys))
        for key in keys:
            file.write(struct.pack("<q", storages[key].size) + storages[key].tobytes())
        file.write(after)
    return path
