"""Where layers are traced in the form that a CPU computes fastest, and where as JAX has them."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

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
    return _clamped(values) if has_fast_forms() else values


@jax.custom_jvp
def _clamped(values: jax.Array) -> jax.Array:
    bound = jnp.array(jnp.inf, values.dtype)
    return lax.clamp(-bound, values, bound)


@_clamped.defjvp
def _clamped_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return _clamped(*primals), tangents[0]
