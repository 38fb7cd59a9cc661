"""Convolutions in the form that a CPU computes fastest, with the values that XLA's own has.

XLA's code for CPUs is fast for dense convolutions and slow for two kinds that networks are full of.
The gradient of a 1x1 convolution with respect to its kernel ran at a tenth of the speed of the same
matrix product, and a depthwise convolution takes twenty to a hundred times as long as the sum over
its taps. `python3 -m benchmarks.convolutions` measures both forms. Elsewhere, and for all other
convolutions, it is `jax.lax.conv_general_dilated` alone.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

# Where a sum over taps has a slower gradient of the kernel than a convolution: each tap is a
# reduction of its own, and one over few channels is not vectorised.
FEW_CHANNELS, MANY_TAPS = 128, 9

Pads = tuple[tuple[int, int], ...]

_plain = contextvars.ContextVar("plain_convolutions", default=False)


@contextlib.contextmanager
def plain_convolutions() -> Iterator[None]:
    """Functions that are traced meanwhile have XLA's convolutions, for those who look for them.

    What JAX has traced before it remembers as it was: give it a function of its own.
    """
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


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
    if (
        _plain.get()
        or jax.default_backend() != "cpu"
        or images.ndim != 4
        or any(dilation != 1 for dilation in dilations)
    ):
        return plain(images, kernel, padding=padding)
    height, width, group, features = kernel.shape
    pads = _pads(padding, images.shape, kernel.shape, strides)
    if (height, width) == (1, 1) and group == images.shape[3] and not any(map(any, pads)):
        looked_at = images[:, :: strides[0], :: strides[1]]
        return jnp.matmul(looked_at, kernel[0, 0], precision=options.get("precision"))
    if group == 1 and images.shape[3] == features > 1:
        if features >= FEW_CHANNELS and height * width <= MANY_TAPS:
            return _taps(images, kernel, tuple(strides), pads)
        return _depthwise(images, kernel, plain, tuple(strides), pads)
    return plain(images, kernel, padding=padding)


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


def _taps(images: jax.Array, kernel: jax.Array, strides: tuple[int, ...], pads: Pads) -> jax.Array:
    """A depthwise convolution as a sum over its taps, which the compiler makes one loop of.

    It is summed in float32 at least, as a convolution is.
    """
    height, width, _, _ = kernel.shape
    dtype = jnp.float32 if images.dtype.itemsize < 4 else images.dtype
    padded = jnp.pad(images, ((0, 0), *pads, (0, 0))).astype(dtype)
    last = [size - length for size, length in zip(padded.shape[1:3], (height, width), strict=True)]
    total = None
    for row in range(height):
        for column in range(width):
            seen = padded[
                :,
                row : row + last[0] + 1 : strides[0],
                column : column + last[1] + 1 : strides[1],
            ]
            term = seen * kernel[row, column, 0].astype(dtype)
            total = term if total is None else total + term
    assert total is not None
    return total.astype(images.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4))
def _depthwise(
    images: jax.Array, kernel: jax.Array, plain: Any, strides: tuple[int, ...], pads: Pads
) -> jax.Array:
    """The sum over taps, whose derivative by the kernel is that of a convolution."""
    del plain
    return _taps(images, kernel, strides, pads)


def _depthwise_jvp(
    plain: Any,
    strides: tuple[int, ...],
    pads: Pads,
    primals: tuple[jax.Array, jax.Array],
    tangents: tuple[Any, Any],
) -> tuple[jax.Array, Any]:
    images, kernel = primals
    by_images, by_kernel = tangents
    terms = []  # of what is frozen nothing is computed
    if not isinstance(by_images, SymbolicZero):
        terms.append(_taps(by_images, kernel, strides, pads))
    if not isinstance(by_kernel, SymbolicZero):
        terms.append(plain(images, by_kernel, padding=pads))
    outputs = _depthwise(images, kernel, plain, strides, pads)
    return outputs, functools.reduce(jnp.add, terms)


_depthwise.defjvp(_depthwise_jvp, symbolic_zeros=True)
