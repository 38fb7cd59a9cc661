"""Where activations are kept between steps, and in what dtype: written once, read many times."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtransfer.formats.output import make_folder

DTYPES = ("float32", "bfloat16", "int8")
PLACES = ("device", "host", "disk")
"""Where activations can be, the fastest place first."""

SHARE = 0.25
"""Of a device's or the host's memory what activations may take by default; the step needs memory
too. Of a disk it is the share of what is free."""

# Where nobody tells how much memory there is: little enough for any machine that trains networks.
UNKNOWN_MEMORY = 4 * 2**30

CGROUP = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Form:
    """What is kept of each example, and in what dtype.

    Attributes:
        shape: of an example's activations; the last axis is that of the channels.
        dtype: in which the network computes them, and takes them.
        stored: in which they are kept; int8 has a scale for each channel of a block of examples.
        count: number of examples.
        views: how often there is each of them.
        block: examples that are written at a time.
    """

    shape: tuple[int, ...]
    dtype: Any
    stored: Any
    count: int
    views: int
    block: int

    @property
    def stride(self) -> int:
        """The rows of a view: whole blocks, the last one filled up."""
        return -(-self.count // self.block) * self.block

    @property
    def has_scales(self) -> bool:
        """Whether numbers are kept as integers with scales."""
        return self.stored == np.dtype(np.int8)

    @property
    def bytes(self) -> int:
        """What all of them take."""
        rows = self.views * self.stride
        numbers = rows * math.prod(self.shape) * np.dtype(self.stored).itemsize
        return numbers + (4 * rows // self.block * self.shape[-1] if self.has_scales else 0)


def stored_dtype(wanted: str, dtype: Any) -> Any:
    """The dtype asked for, or the activations' own where that takes no more memory.

    >>> str(stored_dtype("float32", jnp.bfloat16)), str(stored_dtype("int8", jnp.bfloat16))
    ('bfloat16', 'int8')
    """
    own, asked = jnp.dtype(dtype), jnp.dtype(wanted)
    return own if own.itemsize <= asked.itemsize else asked


@functools.partial(jax.jit, static_argnames="stored")
def encode(values: jax.Array, stored: Any) -> tuple[jax.Array, jax.Array | None, jax.Array]:
    """Activations as they are kept, their scales, and what that changes.

    int8 is symmetric, for each channel by its largest absolute value in these examples, which
    becomes 127 (Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", arXiv 1712.05877, section 2.1, with a zero point of 0).
    Where a channel has a value that is not finite, all its values come back as not finite.

    Args:
        values: shape (batch, …, channels), floats.
        stored: the dtype.

    Returns:
        The same in `stored`; scales of shape (1, channels), or `None`; and float32, shape (3,): the
        largest difference as a share of the largest value of its channel, the sum of all absolute
        differences, and the sum of all absolute values.
    """
    exact = values.astype(jnp.float32)
    axes = tuple(range(values.ndim - 1))
    largest = jnp.max(jnp.abs(exact), axis=axes)
    if stored == np.dtype(np.int8):
        scales = largest / 127
        # A channel of zeros alone has no scale to divide by.
        steps = exact / jnp.where(scales == 0, jnp.float32(1), scales)
        kept = jnp.clip(jnp.round(steps), -127, 127).astype(jnp.int8)
        back = kept.astype(jnp.float32) * scales
        scales = scales[None]
    else:
        kept, scales = values.astype(stored), None
        back = kept.astype(jnp.float32)
    difference = jnp.abs(exact - back)
    share = jnp.max(difference, axis=axes) / jnp.where(largest == 0, jnp.float32(1), largest)
    return kept, scales, jnp.stack([jnp.max(share), jnp.sum(difference), jnp.sum(jnp.abs(exact))])


@functools.partial(jax.jit, static_argnames="dtype")
def decode(kept: jax.Array, scales: jax.Array | None, dtype: Any) -> jax.Array:
    """Activations from what `encode` made of them.

    Args:
        kept: shape (batch, …, channels).
        scales: shape (batch, channels), or `None`.
        dtype: that the network takes.
    """
    if scales is None:
        return kept.astype(dtype)
    between = (1,) * (kept.ndim - 2)
    scales = scales.reshape(len(kept), *between, kept.shape[-1])
    return (kept.astype(jnp.float32) * scales).astype(dtype)


@functools.partial(jax.jit, donate_argnums=0)
def _write(whole: jax.Array, rows: jax.Array, first: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(whole, rows, first, 0)


@functools.partial(jax.jit, static_argnames=("block", "dtype"))
def _read(
    whole: jax.Array, scales: jax.Array | None, indices: jax.Array, block: int, dtype: Any
) -> jax.Array:
    own = None if scales is None else scales[indices // block]
    return decode(whole[indices], own, dtype)


class Store:
    """Activations of examples, block after block; read in any order.

    On a device they are gathered and brought to the network's dtype there, so that a step waits for
    no copy; in the memory of the host or in a file they lie as NumPy arrays, and a batch is moved
    to the device as it is kept.

    Args:
        form: what is kept.
        place: one of `PLACES`.
        device: where batches are gathered; `None` for the default one.
        file: that they lie in on the disk.
    """

    def __init__(self, form: Form, place: str, device: Any, file: Path | None = None):
        self.form, self.place, self._device = form, place, device
        shape = (form.views * form.stride, *form.shape)
        self._rows: Any
        if place == "device":
            self._rows = jnp.zeros(shape, form.stored, device=device)
        elif file is not None:
            self._rows = np.memmap(file, form.stored, "w+", shape=shape)
        else:
            self._rows = np.empty(shape, form.stored)
        self._scales: Any = []
        self._errors: list[Any] = []

    def write(self, first: int, values: jax.Array) -> None:
        """Keep the activations of a block from a row on, and wait until they are computed."""
        kept, scales, errors = encode(jax.device_put(values, self._device), self.form.stored)
        self._errors.append(errors)
        if scales is not None:
            self._scales.append(scales)
        if self.place == "device":
            self._rows = _write(self._rows, kept, jnp.int32(first))
            jax.block_until_ready(errors)
        else:
            self._rows[first : first + self.form.block] = np.asarray(kept)

    def finish(self) -> tuple[float, float]:
        """Wait until all is written; the maximal and the mean relative error, as measured.

        The first is the largest difference as a share of the largest value of its channel in the
        block, the second the sum of all differences as a share of the sum of all values.
        """
        jax.block_until_ready((self._rows, self._scales))
        self._scales = jnp.concatenate(self._scales) if self._scales else None
        errors = np.asarray(jax.device_get(self._errors), np.float64)
        total = errors[:, 2].sum()
        return float(errors[:, 0].max()), float(errors[:, 1].sum() / total) if total else 0.0

    def read(self, indices: np.ndarray) -> Any:
        """The activations in these rows, shape (batch, …, channels), in the network's dtype."""
        form = self.form
        if self.place == "device":
            places = np.asarray(indices, np.int32)
            return _read(self._rows, self._scales, places, form.block, form.dtype)
        kept = self._rows[indices]
        if self._scales is None and form.stored == form.dtype:
            return kept
        own = None if self._scales is None else self._scales[indices // form.block]
        return decode(jax.device_put(kept, self._device), own, form.dtype)


@contextlib.contextmanager
def new_file(folder: str | Path | None) -> Iterator[Path | None]:
    """A file for activations that is gone afterwards; `None` where there is no folder.

    Raises:
        OutputError: the folder cannot be made, or nothing can be written in it.
    """
    if folder is None:
        yield None
        return
    own = tempfile.TemporaryDirectory(
        prefix="activations-", dir=make_folder(folder), ignore_cleanup_errors=True
    )
    with own as path:
        yield Path(path) / "activations"


def room(place: str, device: Any, folder: str | Path | None = None) -> int:
    """How many bytes activations may take in a place by default.

    Args:
        place: one of `PLACES`.
        device: whose memory it is about; `None` for the default one.
        folder: on the disk; without one there is no room there.
    """
    if place == "device":
        device = next(iter(jnp.zeros(()).devices())) if device is None else device
        known = device.memory_stats() or {}
        if "bytes_limit" in known:
            return int(SHARE * known["bytes_limit"])
    if place != "disk":
        return int(SHARE * _host_memory())
    if folder is None:
        return 0
    return int(SHARE * shutil.disk_usage(make_folder(folder)).free)


def _host_memory() -> int:
    """The bytes that this process may have at most: of the machine, or of its container."""
    found = []
    with contextlib.suppress(AttributeError, ValueError, OSError):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(ValueError, OSError):  # "max" is no number
        found.append(int(CGROUP.read_text()))
    return min(found, default=UNKNOWN_MEMORY)
