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
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

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
from jaxtransfer.formats.pickled import Allowance, Array, Refused, leaves, plain_text, shortened
from jaxtransfer.formats.torch_layouts import Checkpoint, matches, open_checkpoint
from jaxtransfer.formats.torch_tensors import Storage, Tensor, Unreadable

NAME = "torch"

_Leaf: TypeAlias = Tensor | Array


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
) -> tuple[Checkpoint, dict[str, _Leaf], dict[str, str]]:
    """Everything but the values, and all checks of it."""
    checkpoint = open_checkpoint(content, allowance)
    try:
        return checkpoint, *_contents(checkpoint, allowance)
    except Damage as error:
        error.offset = checkpoint.offset
        raise


# From the pickled value to names and arrays.

_TENSOR = 700  # Bytes of memory that a name with its array takes.
_MOST_LINES = 100


def _contents(
    checkpoint: Checkpoint, allowance: Allowance
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
        if isinstance(leaf, Unreadable) and len(problems) < _MOST_LINES:
            problems.append(f" ! {shortened(name)}: {leaf.reason}")
        elif tensor is not None:
            allowance.take(_TENSOR)
            ways.append(way)
            found.append(tensor)
        elif len(metadata) < _MOST_LINES:
            metadata[shortened(name)] = plain_text(leaf)
        else:
            left_out += 1
    if problems:
        raise _NoArrays("\n".join(problems))
    if left_out:
        metadata["left_out"] = f"{left_out} more values that are no tensors"
    container = os.path.commonprefix([way[:-1] for way in ways])
    if container:
        metadata["container"] = "/".join(container)
    _check_bytes(found, allowance)
    return _named(ways, found, len(container)), {**metadata, **checkpoint.notes}


def _checked(name: str, leaf: Any, checkpoint: Checkpoint) -> _Leaf | None:
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

    def __init__(self, checkpoint: Checkpoint, allowance: Allowance):
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
