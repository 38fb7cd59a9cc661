"""The layouts of PyTorch's files: where the pickle is, and where the values of its tensors are.

Sources: `torch/serialization.py` (`_save`, `_legacy_save`, `_legacy_load`) and
`caffe2/serialize/inline_container.h` of https://github.com/pytorch/pytorch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxtransfer.formats.base import Damage, map_file
from jaxtransfer.formats.members import Member, member_bytes, member_start, zip_members
from jaxtransfer.formats.pickled import Allowance, Refused, plain_text, shortened
from jaxtransfer.formats.pickles import Unpickler
from jaxtransfer.formats.torch_tensors import Storage, Storages, find_global

_ZIP = b"PK\x03\x04"
_PICKLE = "data.pkl"
_IS_PICKLE = re.compile(rf"([^/]+/)?{re.escape(_PICKLE)}")
_MAGIC = 0x1950A86A20F9469CFC6C
_MAGIC_BYTES = _MAGIC.to_bytes(10, "little")
_PROTOCOL = 1001
_TAR_MEMBERS = ("sys_info", "pickle", "tensors", "storages")
_TAR_MARK = slice(257, 262)


@dataclass
class Checkpoint:
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


def open_checkpoint(content: np.ndarray, allowance: Allowance) -> Checkpoint:
    """What a file holds, by the layout that it has.

    Args:
        content: the bytes of the file.
        allowance: what the file may still ask for.

    Raises:
        Damage: the file is of no layout, or cannot be whole.
        Refused: its pickle asks for something that is no data, or the layout is not read.
    """
    head = content[:1024].tobytes()
    if head.startswith(_ZIP):
        return _open_zip(content, allowance)
    if _is_tar(head):
        raise Refused("a tar archive, the layout of PyTorch's first releases, which is not read")
    if not _is_legacy(head):
        raise Damage("neither a zip archive nor the number with which PyTorch's older files begin")
    return _open_legacy(content, allowance)


# The layout since PyTorch 1.6.

_MEMBER = 350  # Bytes of memory that the entry of a member takes.


def _open_zip(content: np.ndarray, allowance: Allowance) -> Checkpoint:
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
    pickle = unpacked(member.name)
    try:
        value = Unpickler(pickle.data, 0, allowance, find_global, Storages().load).load()
    except Damage as error:
        # What is packed has no byte of its own in the file.
        error.offset = offset + error.offset if member.is_stored else offset
        raise
    is_script = any(name.startswith(f"{folder}code/") for name in members)
    prefix = f"{folder}data/"
    return Checkpoint(
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


def _open_legacy(content: np.ndarray, allowance: Allowance) -> Checkpoint:
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
    return Checkpoint(
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
