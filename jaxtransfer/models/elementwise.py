"""Smooth elementwise functions, of which a CPU keeps one number for the gradient: the slope.

JAX keeps what each operation of a function needs, for gelu three numbers for each that comes in,
and memory that is touched anew takes time.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxtransfer.models.fast_forms import has_fast_forms


def smooth(
    function: Callable[[jax.Array], jax.Array],
    fast: Callable[[jax.Array], jax.Array] | None = None,
) -> Callable[[jax.Array], jax.Array]:
    """The same function, which keeps its slope alone for the gradient where forms are fast.

    Args:
        function: elementwise.
        fast: another form of it that takes less time there.
    """

    @jax.custom_jvp
    def sloped(x: jax.Array) -> jax.Array:
        return (fast or function)(x)

    @sloped.defjvp
    def _sloped_jvp(
        primals: tuple[jax.Array], tangents: tuple[jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        (x,), (tangent,) = primals, tangents
        _, slope = jax.jvp(fast or function, (x,), (jnp.ones_like(x),))
        return sloped(x), slope * tangent

    return lambda x: sloped(x) if has_fast_forms() else function(x)


def gelu_by_erf(x: jax.Array) -> jax.Array:
    """The product of x and the normal distribution function, as PyTorch computes it.

    Source: Hendrycks & Gimpel 2016, arXiv 1606.08415, section 2;
    https://docs.pytorch.org/docs/stable/generated/torch.nn.GELU.html. JAX has it by the complement
    of erf, which is exact to more digits for large negative x, where both are nearly zero, and
    takes longer on CPUs.
    """
    return x * (0.5 * (1 + lax.erf(x * math.sqrt(0.5))))
