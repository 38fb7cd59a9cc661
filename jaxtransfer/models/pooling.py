"""The largest values of windows in the form that a CPU computes fastest.

XLA's gradient of a maximum over windows looks for the largest value anew, with code that is slow on
CPUs. `python3 -m benchmarks.convolutions` measures both forms.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxtransfer.models.fast_forms import has_fast_forms

Pads = tuple[tuple[int, int], ...]


def window_max(x: jax.Array, size: int, stride: int, pads: Sequence[tuple[int, int]]) -> jax.Array:
    """The largest values of square windows; of equal ones the first gets the gradient.

    Args:
        x: shape (batch, height, width, channels), floating.
        size: side of the windows.
        stride: their distance.
        pads: how far they reach over the edges, before and after, in height and width.
    """
    if has_fast_forms():
        return _largest(x, size, stride, tuple(pads))
    return _reduced(x, size, stride, pads)


def _reduced(x: jax.Array, size: int, stride: int, pads: Sequence[tuple[int, int]]) -> jax.Array:
    """As JAX has it."""
    return lax.reduce_window(
        x,
        # A NumPy value, for only of a reduction that is known to be a maximum is there a gradient.
        np.array(-np.inf, x.dtype),
        lax.max,
        (1, size, size, 1),
        (1, stride, stride, 1),
        [(0, 0), *pads, (0, 0)],
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def _largest(x: jax.Array, size: int, stride: int, pads: Pads) -> jax.Array:
    if any(map(any, pads)):  # a padded copy would take longer
        return _reduced(x, size, stride, pads)
    return functools.reduce(jnp.maximum, _places(x, size, stride, pads, -np.inf))


@_largest.defjvp
def _largest_jvp(
    size: int, stride: int, pads: Pads, primals: tuple[jax.Array], tangents: tuple[Any]
) -> tuple[jax.Array, jax.Array]:
    (x,), (tangent,) = primals, tangents
    largest = _largest(x, size, stride, pads)
    first = jnp.full(largest.shape, size * size, jnp.uint8 if size < 16 else jnp.int32)
    for number, place in reversed([*enumerate(_places(x, size, stride, pads, -np.inf))]):
        first = jnp.where(place == largest, first.dtype.type(number), first)

    @jax.checkpoint  # so that the numbers are kept, not a mask for each place
    def chosen(first: jax.Array, tangent: jax.Array) -> jax.Array:
        zero = jnp.zeros((), tangent.dtype)
        places = enumerate(_places(tangent, size, stride, pads, 0))
        terms = [jnp.where(first == number, place, zero) for number, place in places]
        return functools.reduce(jnp.add, terms)

    return largest, chosen(first, tangent)


def _places(x: jax.Array, size: int, stride: int, pads: Pads, fill: float) -> Iterator[jax.Array]:
    """What stands at each place of the windows, row by row."""
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=fill)
    height, width = ((side - size) // stride * stride + 1 for side in padded.shape[1:3])
    for row in range(size):
        for column in range(size):
            yield padded[:, row : row + height : stride, column : column + width : stride]
