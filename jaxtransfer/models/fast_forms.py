"""Where layers are traced in the form that a CPU computes fastest, and where as JAX has them."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import jax

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
