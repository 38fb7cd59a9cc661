"""PyTorch's own files (`.pt`, `.pth`, `.th`, `.bin`), read without PyTorch; nothing in them is run.

A file holds one pickled value, mostly a state dict, and the storages that its tensors are views of.
Since version 1.6 it is a zip archive (`data.pkl`, and `data/0` and so on for the storages), before
that a row of pickles with the storages after them. Of a TorchScript archive the parameters,
buffers and other tensors of its module are read, named as its `state_dict()` names them; its
program and the program's constants are not.

A tensor's name is the way to it: keys and list positions, joined by `/`. If all tensors lie below
one chain of containers (as in `{"state_dict": {...}, "epoch": 3}`), that chain is left out of their
names and is told by the metadata `container`; it is the longest list of keys with which the way to
every tensor begins, the last key of each way apart. A key such as `module.conv1.weight` is one key,
so what keys have in common stays. What is no tensor is metadata, as short text. NumPy arrays of
numbers count as tensors. Two names may be views of the same values. Attributes that a user gave to
single tensors, and the versions of modules in a state dict, are left out.

Sources: `torch/serialization.py`, `torch/_utils.py` and `torch/_tensor.py` of
https://github.com/pytorch/pytorch.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from jaxtransfer.errors import FormatError
from jaxtransfer.formats.base import (
    Damage,
    Inspection,
    PathLike,
    Reader,
    TensorInfo,
    check_size,
    map_file,
    reading,
)
from jaxtransfer.formats.members import Member, member_bytes, member_start, zip_members
from jaxtransfer.formats.pickled import (
    Allowance,
    Array,
    Refused,
    leaves,
    plain_text,
    shortened,
)
from jaxtransfer.formats.pickles import Unpickler
from jaxtransfer.formats.torch_tensors import Storage, Storages, Tensor, Unreadable, find_global

NAME = "torch"

_ZIP = b"PK\x03\x04"
_PICKLE = "data.pkl"
_IS_PICKLE = re.compile(rf"([^/]+/)?{re.escape(_PICKLE)}")
_MAGIC = 0x1950A86A20F9469CFC6C
_MAGIC_BYTES = _MAGIC.to_bytes(10, "little")
_PROTOCOL = 1001
_TAR_MEMBERS = ("sys_info", "pickle", "tensors", "storages")
_TAR_MARK = slice(257, 262)

_Leaf: TypeAlias = Tensor | Array


@dataclass
class _Checkpoint:
    """What a file holds beside the values of its tensors.

    Attributes:
        value: the pickled value.
        offset: the byte where the pickle begins.
        sizes: the bytes of each storage.
        storage: gives the bytes of the storage with a key.
        order: their byte order as NumPy writes it.
        notes: metadata about the file.
    """

    value: Any
    offset: int
    sizes: Mapping[str, int]
    storage: Callable[[str], np.ndarray]
    order: Literal["<", ">"] = "<"
    notes: Mapping[str, str] = field(default_factory=dict)


def matches(head: bytes, path: Path) -> bool:
    """Whether a file is of one of PyTorch's layouts, a damaged one that begins so included."""
    if head.startswith(_ZIP):
        return _is_zip_with_pickle(head, path)
    return _is_legacy(head) or _is_tar(head)


def _is_legacy(head: bytes) -> bool:
    # The number is the whole first pickle; protocol 4 and later put a frame before it.
    return head.startswith(b"\x80") and _MAGIC_BYTES in head[:32]


def _is_tar(head: bytes) -> bool:
    first_name = head[:100].rstrip(b"\0")
    return head[_TAR_MARK] == b"ustar" and first_name in [name.encode() for name in _TAR_MEMBERS]


def _is_zip_with_pickle(head: bytes, path: Path) -> bool:
    name_bytes = int.from_bytes(head[26:28], "little")
    if _IS_PICKLE.fullmatch(head[30 : 30 + name_bytes].decode(errors="replace")):
        return True
    try:
        return any(_IS_PICKLE.fullmatch(member.name) for member in zip_members(map_file(path)))
    except Exception:
        return False


def read(path: PathLike) -> dict[str, np.ndarray]:
    """All tensors of a PyTorch file, in the order of the file.

    Stored values are not copied: arrays are read-only views of a memory map, with strides where the
    tensor has them. Names that share a tensor share the array. bfloat16 and the float8 kinds come
    with their ml_dtypes dtype.

    Raises:
        ReferenceNotFoundError: there is no such file.
        FormatError: the file is damaged, its pickle asks for something that is no data (which is
            never done), or a tensor has no array form.
    """
    with _parsing(path):
        content = map_file(path)
        allowance = Allowance(content.size)
        checkpoint, tensors, _ = _scan(content, allowance)
        arrays = _Arrays(checkpoint, allowance)
        return {name: arrays.of(leaf) for name, leaf in tensors.items()}


def inspect(path: PathLike) -> Inspection:
    """Names, shapes and dtypes of a PyTorch file's tensors, from its pickle.

    Raises:
        ReferenceNotFoundError: there is no such file.
        FormatError: the file is damaged, its pickle asks for something that is no data (which is
            never done), or a tensor has no array form.
    """
    with _parsing(path):
        content = map_file(path)
        _, tensors, metadata = _scan(content, Allowance(content.size))
        found = tuple(
            TensorInfo(name, leaf.shape, leaf.dtype.name, leaf.bytes)
            for name, leaf in tensors.items()
        )
    return Inspection(Path(path), NAME, found, metadata)


class _NoArrays(Damage):
    """Tensors that are whole, but have no array form."""


@contextlib.contextmanager
def _parsing(path: PathLike) -> Iterator[None]:
    with reading(path, NAME):
        try:
            yield
        except Refused as error:
            raise FormatError(
                f"{path}: expected tensors, numbers and text alone, found at byte {error.offset}: "
                f"{error.found}; nothing of the file was run. If you trust it, load it with "
                "PyTorch and save a plain state_dict"
            ) from error
        except _NoArrays as error:
            raise FormatError(
                f"{path}: expected tensors of plain numbers, found at byte {error.offset}:\n"
                f"{error.found}\nsave these anew, or leave them out"
            ) from error


def _scan(
    content: np.ndarray, allowance: Allowance
) -> tuple[_Checkpoint, dict[str, _Leaf], dict[str, str]]:
    """Everything but the values, and all checks of it."""
    checkpoint = _open(content, allowance)
    try:
        return checkpoint, *_contents(checkpoint, allowance)
    except Damage as error:
        error.offset = checkpoint.offset
        raise


def _open(content: np.ndarray, allowance: Allowance) -> _Checkpoint:
    head = content[:1024].tobytes()
    if head.startswith(_ZIP):
        return _open_zip(content, allowance)
    if _is_tar(head):
        raise Refused("a tar archive, the layout of PyTorch's first releases, which is not read")
    if not _is_legacy(head):
        raise Damage("neither a zip archive nor the number with which PyTorch's older files begin")
    return _open_legacy(content, allowance)


# The layout since PyTorch 1.6.


def _open_zip(content: np.ndarray, allowance: Allowance) -> _Checkpoint:
    members: dict[str, Member] = {}
    for member in zip_members(content):
        allowance.take(_MEMBER + len(member.name), member.header)
        if member.name in members:
            raise Damage(f"two members named {shortened(member.name)!r}", member.header)
        members[member.name] = member
    pickles = [name for name in members if _IS_PICKLE.fullmatch(name)]
    if len(pickles) != 1:
        raise Damage(f"{len(pickles)} members named {_PICKLE}, where PyTorch writes one")
    folder = pickles[0].removesuffix(_PICKLE)

    def unpacked(name: str) -> np.ndarray:
        member = members[name]
        if not member.is_stored:
            allowance.take(member.bytes, member.header, f"the packed member {shortened(name)!r}")
        return member_bytes(content, member)

    member = members[pickles[0]]
    offset = member_start(content, member)
    try:
        value = Unpickler(
            unpacked(member.name).data, 0, allowance, find_global, Storages().load
        ).load()
    except Damage as error:
        # What is packed has no byte of its own in the file.
        error.offset = offset + error.offset if member.is_stored else offset
        raise
    is_script = any(name.startswith(f"{folder}code/") for name in members)
    prefix = f"{folder}data/"
    return _Checkpoint(
        value,
        offset,
        sizes={
            name.removeprefix(prefix): member.bytes
            for name, member in members.items()
            if name.startswith(prefix)
        },
        storage=lambda key: unpacked(prefix + key),
        order=_byte_order(members, folder, unpacked),
        notes={"program": "TorchScript; only its module's tensors are read"} if is_script else {},
    )


def _byte_order(
    members: Mapping[str, Member], folder: str, unpacked: Callable[[str], np.ndarray]
) -> Literal["<", ">"]:
    name = f"{folder}byteorder"
    if name not in members:
        return "<"  # Files from before it was stated.
    order = unpacked(name)[:8].tobytes()
    if order not in (b"little", b"big"):
        raise Damage(f"the byte order {order!r}", members[name].header)
    return "<" if order == b"little" else ">"


# The layout before PyTorch 1.6.


def _open_legacy(content: np.ndarray, allowance: Allowance) -> _Checkpoint:
    storages = Storages()
    position = 0

    def next_pickle() -> Any:
        nonlocal position
        machine = Unpickler(content.data, position, allowance, find_global, storages.load)
        value = machine.load()
        position = machine.position
        return value

    magic, protocol = next_pickle(), next_pickle()
    if magic != _MAGIC or protocol != _PROTOCOL:
        raise Damage(f"version {plain_text(protocol)} of PyTorch's older layout, not {_PROTOCOL}")
    next_pickle()  # About the machine that wrote the file; values are little-endian always.
    offset = position
    value = next_pickle()
    keys = next_pickle()
    places = _places(content, position, keys, storages.by_key)
    return _Checkpoint(
        value,
        offset,
        sizes={key: place.stop - place.start for key, place in places.items()},
        storage=lambda key: content[places[key]],
    )


def _places(
    content: np.ndarray, position: int, keys: Any, storages: Mapping[str, Storage]
) -> dict[str, slice]:
    """Where each storage is: they follow one another, each after the count of its numbers."""
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise Damage("keys of storages that are no list of text", position)
    places: dict[str, slice] = {}
    for key in keys:
        if key in places or key not in storages:
            what = "twice" if key in places else "which no tensor refers to"
            raise Damage(f"the storage {shortened(key)!r}, {what}", position)
        count = int.from_bytes(content[position : position + 8].tobytes(), "little")
        start = position + 8
        stop = start + storages[key].size * storages[key].dtype.itemsize
        if count != storages[key].size or stop > content.size:
            raise Damage(
                f"{count} numbers in the storage {shortened(key)!r}, where its tensors need "
                f"{storages[key].size} and the file has {content.size - start} bytes more",
                position,
            )
        places[key] = slice(start, stop)
        position = stop
    if position != content.size:
        raise Damage(f"{content.size - position} bytes after the last storage", position)
    return places


# From the pickled value to names and arrays.

_MEMBER = 350  # Bytes of memory that the entry of a member takes.
_TENSOR = 700  # And those that a name with its array take.
_MOST_METADATA = 100


def _contents(
    checkpoint: _Checkpoint, allowance: Allowance
) -> tuple[dict[str, _Leaf], dict[str, str]]:
    """All tensors by name, and the metadata."""
    ways: list[tuple[str, ...]] = []
    found: list[_Leaf] = []
    metadata: dict[str, str] = {}
    problems: list[str] = []
    left_out = 0
    for way, leaf in leaves(checkpoint.value, allowance):
        allowance.take(sum(map(len, way)))
        name = "/".join(way)
        tensor = _checked(name, leaf, checkpoint)
        if isinstance(leaf, Unreadable):
            problems.append(f" ! {shortened(name)}: {leaf.reason}")
        elif tensor is not None:
            allowance.take(_TENSOR)
            ways.append(way)
            found.append(tensor)
        elif len(metadata) < _MOST_METADATA:
            metadata[shortened(name)] = plain_text(leaf)
        else:
            left_out += 1
    if problems:
        raise _NoArrays("\n".join(problems[:_MOST_METADATA]))
    if left_out:
        metadata["left_out"] = f"{left_out} more values that are no tensors"
    container = os.path.commonprefix([way[:-1] for way in ways])
    if container:
        metadata["container"] = "/".join(container)
    _check_bytes(found, allowance)
    return _named(ways, found, len(container)), {**metadata, **checkpoint.notes}


def _checked(name: str, leaf: Any, checkpoint: _Checkpoint) -> _Leaf | None:
    """The tensor if a value is one whose storage is in the file."""
    if isinstance(leaf, Storage):
        leaf = Tensor(leaf, leaf.dtype, 0, (leaf.size,), (1,))
    if isinstance(leaf, Tensor):
        needed = (leaf.storage.start + leaf.storage.size) * leaf.storage.dtype.itemsize
        has = checkpoint.sizes.get(leaf.storage.key, -1)
        if has < needed:
            raise Damage(
                f"the tensor {shortened(name)!r} on {needed} bytes of the storage "
                f"{shortened(leaf.storage.key)!r}, which "
                + (f"has {has}" if has >= 0 else "is not in the file")
            )
        return leaf
    return leaf if isinstance(leaf, Array) and leaf.has_numbers else None


def _check_bytes(found: list[_Leaf], allowance: Allowance) -> None:
    """Refuse tensors that would take far more memory than the file, each of them counted once."""
    distinct = {leaf for leaf in found if isinstance(leaf, Tensor)}
    total = sum(tensor.bytes for tensor in distinct)
    check_size(total, allowance.file_bytes, "tensors")


def _named(ways: list[tuple[str, ...]], found: list[_Leaf], depth: int) -> dict[str, _Leaf]:
    flat: dict[str, _Leaf] = {}
    for way, leaf in zip(ways, found, strict=True):
        name = "/".join(way[depth:]) if way else "tensor"
        if name in flat:
            raise Damage(f"two tensors named {shortened(name)!r}")
        flat[name] = leaf
    return flat


class _Arrays:
    """Makes each tensor's array once, as a view of its storage where the byte order allows it."""

    def __init__(self, checkpoint: _Checkpoint, allowance: Allowance):
        self.checkpoint = checkpoint
        self.allowance = allowance
        self.storages: dict[str, np.ndarray] = {}
        self.made: dict[Tensor, np.ndarray] = {}

    def of(self, leaf: _Leaf) -> np.ndarray:
        """The array of a tensor, in native byte order."""
        if isinstance(leaf, Array):
            return self._native(leaf.values)
        if leaf not in self.made:
            self.made[leaf] = self._view(leaf)
        return self.made[leaf]

    def _view(self, tensor: Tensor) -> np.ndarray:
        dtype = tensor.dtype
        if 0 in tensor.shape:
            return np.empty(tensor.shape, dtype)
        key = tensor.storage.key
        if key not in self.storages:
            self.storages[key] = self.checkpoint.storage(key)
            self.storages[key].flags.writeable = False
        order = self.checkpoint.order
        # The dtypes of ml_dtypes have no byte order of their own.
        is_foreign = dtype.kind == "V"
        kept = np.dtype(f"{order}u{dtype.itemsize}") if is_foreign else dtype.newbyteorder(order)
        values = np.ndarray(
            tensor.shape,
            kept,
            buffer=self.storages[key].data,
            offset=tensor.storage.start * tensor.storage.dtype.itemsize
            + tensor.start * dtype.itemsize,
            strides=[stride * dtype.itemsize for stride in tensor.strides],
        )
        return self._native(values).view(dtype)

    def _native(self, values: np.ndarray) -> np.ndarray:
        if values.dtype.isnative:
            return values
        self.allowance.take(values.nbytes)
        return values.astype(values.dtype.newbyteorder("="))


READER = Reader(NAME, matches, read, inspect)
