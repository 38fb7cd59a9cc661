"""Convolutions in the form that a CPU computes fastest, with the values that XLA's own has.

XLA's code for CPUs is slow for kinds that networks are full of: the gradient of a 1x1 convolution,
and of one whose windows do not overlap, with respect to its kernel takes several times as long as
the same matrix product, and a depthwise convolution and its gradients ten to a hundred times as
long as sums over its taps.
`python3 -m benchmarks.convolutions` measures both forms. Elsewhere, and for all other convolutions,
it is `jax.lax.conv_general_dilated` alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxtransfer.models.fast_forms import apart, has_fast_forms
from jaxtransfer.models.products import channel_product

Pads = tuple[tuple[int, int], ...]
MAX_TOGETHER = 8
"""Images whose products are written out in one loop of the gradient by a depthwise kernel."""
FEW_TAPS = 9
"""Taps of a depthwise kernel up to which what comes after it may be computed along with it."""


def convolve(
    images: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> jax.Array:
    """`jax.lax.conv_general_dilated` for `flax.linen.Conv(conv_general_dilated=convolve)`.

    Args:
        images: shape (batch, height, width, channels).
        kernel: shape (height, width, channels of a group, features).
        strides: in height and width.
        padding: "SAME", "VALID", or zeros before and after for height and width.
        options: the others of `jax.lax.conv_general_dilated`, with the axes in this order.
    """
    plain = functools.partial(lax.conv_general_dilated, window_strides=strides, **options)
    dilations = [*(options.get("lhs_dilation") or ()), *(options.get("rhs_dilation") or ())]
    if not has_fast_forms() or images.ndim != 4 or any(dilation != 1 for dilation in dilations):
        return plain(images, kernel, padding=padding)
    height, width, group, features = kernel.shape
    pads = _pads(padding, images.shape, kernel.shape, strides)
    if group == images.shape[3] and (height, width) == tuple(strides) and not any(map(any, pads)):
        return _patchwise(images, kernel, options.get("precision"))
    if (height, width) == (1, 1) and group == images.shape[3] and not any(map(any, pads)):
        return _product(images[:, :: strides[0], :: strides[1]], kernel, options.get("precision"))
    if group == 1 and images.shape[3] == features > 1:
        return _depthwise(images, kernel, tuple(strides), pads)
    return plain(images, kernel, padding=padding)


def _product(images: jax.Array, kernel: jax.Array, precision: Any) -> jax.Array:
    matrix = kernel.reshape(-1, kernel.shape[3])
    dimensions = (((images.ndim - 1,), (0,)), ((), ()))
    return channel_product(images, matrix, dimensions, precision=precision)


def _patchwise(images: jax.Array, kernel: jax.Array, precision: Any) -> jax.Array:
    """A convolution whose windows touch and do not overlap, as a product with each of them."""
    height, width, channels, _ = kernel.shape
    count, rows, columns = len(images), images.shape[1] // height, images.shape[2] // width
    seen = images[:, : rows * height, : columns * width]
    windows = seen.reshape(count, rows, height, columns, width, channels).swapaxes(2, 3)
    flat = windows.reshape(count, rows, columns, height * width * channels)
    return _product(flat, kernel, precision)


def _pads(
    padding: str | Sequence[tuple[int, int]],
    shape: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
) -> Pads:
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(shape[1:3], kernel[:2], strides, padding)
    (top, bottom), (left, right) = padding
    return (top, bottom), (left, right)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _depthwise(
    images: jax.Array, kernel: jax.Array, strides: tuple[int, ...], pads: Pads
) -> jax.Array:
    """A depthwise convolution as a sum over its taps, which the compiler makes one loop of."""
    padded, taps, sizes = _prepared(images, kernel, strides, pads)
    rows = [_row(padded, taps, row, sizes, strides) for row in range(len(taps))]
    total = functools.reduce(jnp.add, rows)
    # A sum of many taps would be torn apart by what comes after it; one of few is better joined.
    return (apart(total) if taps[..., 0].size > FEW_TAPS else total).astype(images.dtype)


def _depthwise_jvp(
    strides: tuple[int, ...],
    pads: Pads,
    primals: tuple[jax.Array, jax.Array],
    tangents: tuple[Any, Any],
) -> tuple[jax.Array, jax.Array]:
    """A term for each that has a derivative, in the form whose transpose is fast."""
    images, kernel = primals
    by_images, by_kernel = tangents
    terms = []  # of what is frozen nothing is computed
    if not isinstance(by_images, SymbolicZero):
        terms.append(_loop_over_rows(by_images, kernel, strides, pads, _row))
    if not isinstance(by_kernel, SymbolicZero):
        # What a row sees is looked up again: kept, it would be a copy of the images for each.
        sum_row = jax.checkpoint(_row_by_kernel, prevent_cse=False, static_argnums=(3, 4))
        terms.append(_loop_over_rows(images, by_kernel, strides, pads, sum_row))
    return _depthwise(images, kernel, strides, pads), functools.reduce(jnp.add, terms)


_depthwise.defjvp(_depthwise_jvp, symbolic_zeros=True)


def _loop_over_rows(
    images: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, ...],
    pads: Pads,
    sum_row: Callable[..., jax.Array],
) -> jax.Array:
    """The same sum as a loop over the rows of the kernel, to be transposed.

    Args:
        images: shape (batch, height, width, channels).
        kernel: shape (height, width, 1, channels).
        strides: in height and width.
        pads: zeros before and after.
        sum_row: what is summed for a row: `_row` where the images vary, `_row_by_kernel` where the
            kernel does.
    """
    padded, taps, sizes = _prepared(images, kernel, strides, pads)

    def add_row(total: jax.Array, row: jax.Array) -> tuple[jax.Array, None]:
        return total + sum_row(padded, taps, row, sizes, strides), None

    zeros = jnp.zeros((len(images), *sizes, images.shape[3]), padded.dtype)
    return lax.scan(add_row, zeros, jnp.arange(len(taps)))[0].astype(images.dtype)


def _prepared(
    images: jax.Array, kernel: jax.Array, strides: tuple[int, ...], pads: Pads
) -> tuple[jax.Array, jax.Array, tuple[int, ...]]:
    """Padded images, taps of shape (height, width, channels), and the sides of the result.

    In float32 at least, in which a convolution is summed, too.
    """
    dtype = jnp.float32 if images.dtype.itemsize < 4 else images.dtype
    padded = jnp.pad(images, ((0, 0), *pads, (0, 0))).astype(dtype)
    sizes = tuple(
        (padded.shape[1 + axis] - kernel.shape[axis]) // stride + 1
        for axis, stride in enumerate(strides)
    )
    return padded, kernel[:, :, 0].astype(dtype), sizes


def _row(
    padded: jax.Array,
    taps: jax.Array,
    row: int | jax.Array,
    sizes: tuple[int, ...],
    strides: tuple[int, ...],
) -> jax.Array:
    """The sum over the taps of a row of the kernel, each spread over all pixels."""
    seen = _seen(padded, row, sizes, strides)
    total = jnp.zeros((), padded.dtype)
    for column in range(taps.shape[1]):
        tap = lax.dynamic_index_in_dim(taps, row, keepdims=False)[column]
        total += _shifted(seen, column, sizes, strides) * tap
    return total


def _row_by_kernel(
    padded: jax.Array,
    taps: jax.Array,
    row: int | jax.Array,
    sizes: tuple[int, ...],
    strides: tuple[int, ...],
) -> jax.Array:
    """The same, to be transposed with respect to the taps.

    That is a sum over images and pixels. Written out for some images, its first part is one loop
    that the compiler makes fast, and the rest has that many times fewer summands. The tap of a
    column comes from a split, whose transpose joins what that loop gives before it is summed: as a
    part of a sum over pixels it would be slow again.
    """
    count, columns = len(padded), taps.shape[1]
    together = max(size for size in range(1, MAX_TOGETHER + 1) if count % size == 0)
    seen = _seen(padded, row, sizes, strides).reshape(
        count // together, together, sizes[0], *padded.shape[2:]
    )
    shape = (count // together, *sizes, padded.shape[3])
    tap = lax.dynamic_index_in_dim(taps, row, keepdims=False)[:, np.newaxis, np.newaxis, np.newaxis]
    spread = lax.split(jnp.broadcast_to(tap, (columns, *shape)), (1,) * columns)
    totals = []
    for image in range(together):
        total = jnp.zeros((), padded.dtype)
        for column in range(columns):
            total += _shifted(seen[:, image], column, sizes, strides) * spread[column][0]
        totals.append(total)
    return jnp.stack(totals, axis=1).reshape(count, *shape[1:])


def _seen(
    padded: jax.Array, row: int | jax.Array, sizes: tuple[int, ...], strides: tuple[int, ...]
) -> jax.Array:
    """The rows of the images that a row of the kernel is laid on."""
    seen = lax.dynamic_slice_in_dim(padded, row, (sizes[0] - 1) * strides[0] + 1, axis=1)
    return seen[:, :: strides[0]]


def _shifted(
    seen: jax.Array, column: int, sizes: tuple[int, ...], strides: tuple[int, ...]
) -> jax.Array:
    """The pixels of these rows that a column of the kernel is laid on."""
    end = column + (sizes[1] - 1) * strides[1] + 1
    return seen[:, :, column : end : strides[1]]
