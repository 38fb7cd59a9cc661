"""Arrays that are views of a file, and how their values get into memory with one read."""

from __future__ import annotations

import contextlib
import mmap
import os
import weakref
from typing import Any

import numpy as np

_LARGEST_READ = 2**30
"""Bytes asked for at once; systems give no more than about 2 GiB."""


_ALIGNMENT = 64
"""JAX takes over host memory that begins at such a multiple without copying it (CPU)."""

_LEAST_MAPPED = 2**20
"""Bytes from which memory is asked of the system directly: it gives only so many maps."""


def new_memory(size: int) -> np.ndarray:
    """Bytes that a device on the host can take over as they are; what is in them is not defined.

    Large ones come from the system with all their pages at once, in the usual size: pages of 2 MiB,
    which NumPy asks for, took three times as long to come in a virtual machine.
    """
    if size < _LEAST_MAPPED or not hasattr(mmap, "MAP_POPULATE"):
        memory = np.empty(size + _ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % _ALIGNMENT
        return memory[start : start + size]
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    return np.frombuffer(mmap.mmap(-1, size, flags=flags), np.uint8)


class MappedFile(mmap.mmap):
    """A read-only memory map that can also be read as the file that it is.

    Values that are needed whole come faster by reading than by looking at the map, which brings in
    a few pages at a time.

    Args:
        descriptor: an open, not empty file; it may be closed afterwards.
    """

    def __new__(cls, descriptor: int) -> MappedFile:
        """Map the file, and keep a descriptor of it for as long as the map lives."""
        mapped = super().__new__(cls, descriptor, 0, access=mmap.ACCESS_READ)
        mapped.descriptor = os.dup(descriptor)
        weakref.finalize(mapped, os.close, mapped.descriptor)
        return mapped

    descriptor: int


def map_descriptor(descriptor: int) -> np.ndarray:
    """The bytes of an open file as a read-only array; they are read when they are looked at."""
    if os.fstat(descriptor).st_size == 0:
        return np.empty(0, np.uint8)  # Nothing cannot be mapped.
    return np.frombuffer(MappedFile(descriptor), np.uint8)


def copy_values(values: np.ndarray, copy: np.ndarray) -> None:
    """Copy an array into one of the same shape and dtype that lies in one piece.

    What a view of a mapped file takes up of the file is read in one go if nothing else lies between
    its values, in whatever order its axes are; otherwise the map is looked at, and its pages are
    let go afterwards.
    """
    owner = _owner(values)
    if owner is None or not values.nbytes:
        copy[...] = values
        return
    low, high = np.lib.array_utils.byte_bounds(values)
    offset = low - np.frombuffer(owner, np.uint8).ctypes.data
    if high - low != values.nbytes:
        copy[...] = values
        _release(owner, offset, high - low)
    elif values.flags.c_contiguous:
        _read(owner.descriptor, offset, copy.reshape(-1).view(np.uint8))
    else:
        content = new_memory(values.nbytes)
        _read(owner.descriptor, offset, content)
        start = values.__array_interface__["data"][0] - low
        copy[...] = np.ndarray(values.shape, values.dtype, content.data, start, values.strides)


def _owner(values: np.ndarray) -> MappedFile | None:
    owner: Any = values
    while isinstance(owner, np.ndarray):
        owner = owner.base
    owner = owner.obj if isinstance(owner, memoryview) else owner
    return owner if isinstance(owner, MappedFile) else None


def _read(descriptor: int, offset: int, content: np.ndarray) -> None:
    done = 0
    while done < content.size:
        piece = content[done : done + _LARGEST_READ]
        count = os.preadv(descriptor, [piece.data], offset + done)
        if count == 0:
            raise OSError(f"the file ends at byte {offset + done}; it was cut while in use")
        done += count


def _release(owner: MappedFile, offset: int, size: int) -> None:
    start = offset // mmap.PAGESIZE * mmap.PAGESIZE
    if hasattr(mmap, "MADV_DONTNEED"):
        with contextlib.suppress(OSError):
            owner.madvise(mmap.MADV_DONTNEED, start, offset + size - start)
