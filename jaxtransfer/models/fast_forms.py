"""Where layers are traced in the form that a CPU computes fastest, and where as JAX has them."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from jax import lax

_plain = contextvars.ContextVar("plain_layers", default=False)


@contextlib.contextmanager
def plain_layers() -> Iterator[None]:
    """Functions that are traced meanwhile have JAX's own convolutions and poolings.

    What JAX has traced before it remembers as it was: give it a function of its own.
    """
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def has_fast_forms() -> bool:
    """Whether what is traced now is for a CPU, and nobody asked for JAX's own forms."""
    return jax.default_backend() == "cpu" and not _plain.get()


def apart(values: jax.Array) -> jax.Array:
    """The same values, such that XLA does not merge what computes them with what takes them.

    On CPUs it gives a library of products and sums (YNNPACK) all that this can compute in one
    piece, with what comes before and after: of a depthwise convolution the last sums, whose terms
    are then written to memory one by one. And what a gradient computes anew, for it not to be kept,
    XLA finds to be the same as before, and keeps. A clamp by infinities is nothing that the library
    knows or that XLA sees through, and costs nothing within a loop over the values. Where forms are
    not fast nothing happens.
    """
    return _clamped(values, jnp.array(jnp.inf, values.dtype)) if has_fast_forms() else values


def after(values: jax.Array, others: Sequence[jax.Array]) -> jax.Array:
    """The same values, computed only when the others are; NaN where one of these begins with it.

    They are clamped by bounds of which only the compiler does not know that they are infinite. An
    optimization barrier it would take away before it orders the program.
    """
    first = (lax.slice(other, (0,) * other.ndim, (1,) * other.ndim) for other in others)
    magnitudes = (jnp.abs(one).reshape(()).astype(values.dtype) for one in first)
    return _clamped(values, sum(magnitudes, jnp.array(jnp.inf, values.dtype)))


@jax.custom_jvp
def _clamped(values: jax.Array, bound: jax.Array) -> jax.Array:
    return lax.clamp(-bound, values, bound)


@_clamped.defjvp
def _clamped_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return _clamped(*primals), tangents[0]
