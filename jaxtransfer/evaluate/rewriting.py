"""Run a function with other paddings, epsilons or activations than it was written with.

The function is traced, and its operations are carried out one by one, some of them otherwise. This
works for any function: none has to offer the choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxtransfer.models.fast_forms import plain_layers
from jaxtransfer.models.layers import pool_padding, same_padding
from jaxtransfer.tracing import Values, called, carry_out

Rewrite = Callable[[Any, Sequence[Any], bool], Any]
"""From an equation, its inputs, and whether it adds an epsilon, to its output or `None`."""


def rewritten(function: Callable[..., Any], rewrite: Rewrite) -> Callable[..., Any]:
    """The function with the operations for which `rewrite` gives an output carried out so.

    What runs inside of `lax.scan` and other loops stays as it is.
    """

    def run(*args: Any) -> Any:
        def anew(*args: Any) -> Any:  # not what JAX remembers from a trace in the other form
            return function(*args)

        with plain_layers():
            closed, shape = jax.make_jaxpr(anew, return_shape=True)(*args)
        outputs = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args), rewrite)
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    return run


def _evaluate(
    jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], rewrite: Rewrite
) -> list[Any]:
    known, epsilons = Values(jaxpr, consts, args), _epsilon_additions(jaxpr)
    for equation in jaxpr.eqns:
        inputs, inner = known.read(equation.invars), called(equation)
        output = rewrite(equation, inputs, id(equation) in epsilons)
        if output is not None:
            outputs = [output]
        elif inner is not None:
            outputs = _evaluate(*inner, inputs, rewrite)
        else:
            outputs = carry_out(jaxpr, equation, inputs)
        known.write(equation.outvars, outputs)
    return known.read(jaxpr.outvars)


def _epsilon_additions(jaxpr: Any) -> set[int]:
    """The equations that add a constant to what a square root is then taken of."""
    made_by = {out: equation for equation in jaxpr.eqns for out in equation.outvars}
    found = set()
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("rsqrt", "sqrt"):
            before = made_by.get(equation.invars[0])
            if before is not None and before.primitive.name == "add":
                found.add(id(before))
    return found


@dataclass(frozen=True)
class Change:
    """One way in which networks that should be the same are often not.

    Attributes:
        cause: its kind, such as "padding" or "epsilon".
        detail: what is done instead.
        rewrite: the operations that are carried out otherwise.
    """

    cause: str
    detail: str
    rewrite: Rewrite


def changes() -> Iterator[Change]:
    """The usual differences that operations alone show, likely ones first."""
    yield Change("padding", "convolutions padded as TensorFlow's SAME does", _same_padding)
    yield Change("padding", "convolutions padded by the same number on each side", _even_padding)
    yield Change("padding", "pooling padded as TensorFlow's SAME does", _same_pooling)
    yield Change("ceil pooling", "a last window that is not full counts", _ceil_pooling(True))
    yield Change("ceil pooling", "only full windows count", _ceil_pooling(False))
    for epsilon in (1e-3, 1e-5, 1e-6, 1e-12, 1.001e-5):
        yield Change("epsilon", f"{epsilon:g} in all normalisations", _epsilon(epsilon))
    for name, form in _GELU_FORMS.items():
        yield Change("gelu form", f"the {name} form of gelu", _gelu(form))


# ---------------------------------------------------------------------------------------------
# Padding


def _spatial(equation: Any, inputs: Sequence[Any]) -> list[tuple[int, int, int]]:
    """Size, dilated kernel and stride of each spatial axis of a convolution."""
    params, numbers = equation.params, equation.params["dimension_numbers"]
    sizes = [inputs[0].shape[axis] for axis in numbers.lhs_spec[2:]]
    kernels = [inputs[1].shape[axis] for axis in numbers.rhs_spec[2:]]
    dilated = [(k - 1) * d + 1 for k, d in zip(kernels, params["rhs_dilation"], strict=True)]
    return list(zip(sizes, dilated, params["window_strides"], strict=True))


def _padded(equation: Any, inputs: Sequence[Any], padding: Sequence[tuple[int, int]]) -> Any:
    if tuple(padding) == tuple(equation.params["padding"]):
        return None
    return equation.primitive.bind(*inputs, **{**equation.params, "padding": tuple(padding)})


def _same_padding(equation: Any, inputs: Sequence[Any], is_epsilon: bool) -> Any:
    del is_epsilon
    if equation.primitive.name != "conv_general_dilated":
        return None
    return _padded(equation, inputs, [same_padding(*axis) for axis in _spatial(equation, inputs)])


def _even_padding(equation: Any, inputs: Sequence[Any], is_epsilon: bool) -> Any:
    del is_epsilon
    if equation.primitive.name != "conv_general_dilated":
        return None
    sides = [(kernel - 1) // 2 for _, kernel, _ in _spatial(equation, inputs)]
    return _padded(equation, inputs, [(side, side) for side in sides])


def _windows(equation: Any, inputs: Sequence[Any]) -> list[tuple[int, int, int, tuple[int, int]]]:
    """Size, window, stride and padding of each axis of a pooling."""
    params = equation.params
    columns = (params["window_dimensions"], params["window_strides"], params["padding"])
    return list(zip(inputs[0].shape, *columns, strict=True))


def _same_pooling(equation: Any, inputs: Sequence[Any], is_epsilon: bool) -> Any:
    del is_epsilon
    if not equation.primitive.name.startswith("reduce_window"):
        return None
    windows = _windows(equation, inputs)
    return _padded(equation, inputs, [same_padding(*axis) for *axis, _ in windows])


def _ceil_pooling(ceil: bool) -> Rewrite:
    def rewrite(equation: Any, inputs: Sequence[Any], is_epsilon: bool) -> Any:
        del is_epsilon
        if not equation.primitive.name.startswith("reduce_window"):
            return None
        windows = _windows(equation, inputs)
        padding = [
            pool_padding(size, window, stride, low, ceil)
            for size, window, stride, (low, _) in windows
        ]
        return _padded(equation, inputs, padding)

    return rewrite


# ---------------------------------------------------------------------------------------------
# Epsilon and gelu


def _epsilon(epsilon: float) -> Rewrite:
    def rewrite(equation: Any, inputs: Sequence[Any], is_epsilon: bool) -> Any:
        del equation
        if not is_epsilon:
            return None
        constants = [value for value in inputs if jnp.ndim(value) == 0]
        others = [value for value in inputs if jnp.ndim(value) > 0]
        if len(constants) != 1 or len(others) != 1:
            return None
        return others[0] + jnp.asarray(epsilon, others[0].dtype)

    return rewrite


_CUBIC = 0.044715
"""Hendrycks & Gimpel 2016, "Gaussian Error Linear Units", arXiv 1606.08415, section 2."""

_QUICK = 1.702
"""The same, section 2."""


def _tanh_argument(x: jax.Array) -> jax.Array:
    return jnp.sqrt(2 / jnp.pi).astype(x.dtype) * (x + _CUBIC * x**3)


def _from_tanh_argument(z: jax.Array) -> jax.Array:
    """The x whose `_tanh_argument` is z: the one real root of a cubic, by Cardano's formula."""
    p, q = 1 / _CUBIC, -z / (jnp.sqrt(2 / jnp.pi).astype(z.dtype) * _CUBIC)
    # With p > 0 this form of the root loses no digits to cancellation.
    scale = 2 * jnp.sqrt(p / 3)
    return -scale * jnp.sinh(jnp.arcsinh(3 * q / (p * scale)) / 3)


# Each form of gelu is x times a share of it, from 0 to 1.
_GELU_FORMS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "exact (erf)": lambda x: (1 + jax.lax.erf(x / jnp.sqrt(2).astype(x.dtype))) / 2,
    "tanh": lambda x: (1 + jnp.tanh(_tanh_argument(x))) / 2,
    "quick (sigmoid)": lambda x: jax.nn.sigmoid(_QUICK * x),
}


def _gelu(share: Callable[[jax.Array], jax.Array]) -> Rewrite:
    """The activations of a network by their share, whichever form they have now."""

    def rewrite(equation: Any, inputs: Sequence[Any], is_epsilon: bool) -> Any:
        del is_epsilon
        name = equation.primitive.name
        if name == "erf":
            return 2 * share(inputs[0] * jnp.sqrt(2).astype(inputs[0].dtype)) - 1
        if name == "erfc":
            return 2 * share(-inputs[0] * jnp.sqrt(2).astype(inputs[0].dtype))
        if name == "tanh":
            return 2 * share(_from_tanh_argument(inputs[0])) - 1
        if name == "logistic":
            return share(inputs[0] / _QUICK)
        return None

    return rewrite
