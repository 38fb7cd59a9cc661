"""Gradients for which a CPU keeps as little as it can: each is taken as soon as it can be.

A program for a CPU runs its operations one after another, in an order that the compiler chooses
from what depends on what. Nothing but the optimizer depends on the gradient of a kernel, and the
compiler puts many of them off to the end: until then the activations and cotangents that they are
computed from are kept. And what is to be computed anew in place of being kept depends on nothing
but the forward pass, and is computed early. So here the order is made a dependency: a cotangent
waits for the last gradient of a parameter before it, and what is computed anew for the cotangent
that it is needed with. A training step of ResNet-50 needs a seventh less memory for it, and those
of ConvNeXt-T and ViT-B/16 a quarter and a seventh. On GPUs and TPUs nothing changes.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from jaxtransfer.models.fast_forms import after, has_fast_forms
from jaxtransfer.tracing import Values, carry_out, recomputes
from jaxtransfer.types import PyTree

LARGE = 2**15
"""The number of elements from which on an array is worth an order: 128 KiB of float32."""


def ordered_gradient(
    function: Callable[[PyTree], tuple[jax.Array, Any]],
) -> Callable[[PyTree], tuple[PyTree, Any]]:
    """`jax.grad(function, has_aux=True)`, in the order that needs the least memory.

    The values are the same but where a gradient is not finite: what comes before it in the backward
    pass is then NaN.

    Args:
        function: from parameters to a float scalar, and a pytree that is not differentiated.

    Example:
        `gradients, _ = ordered_gradient(lambda w: ((w**2).sum(), None))(jnp.arange(3.0))`
    """

    def gradient(parameters: PyTree) -> tuple[PyTree, Any]:
        if not has_fast_forms():
            return jax.grad(function, has_aux=True)(parameters)
        value, pull_back, aux = jax.vjp(function, parameters, has_aux=True)
        backward, (shapes,) = jax.make_jaxpr(pull_back, return_shape=True)(jnp.ones_like(value))
        found = _in_order(backward.jaxpr, backward.consts, jnp.ones_like(value))
        return jax.tree.unflatten(jax.tree.structure(shapes), found), aux

    return gradient


def _in_order(jaxpr: Any, consts: Sequence[Any], cotangent: jax.Array) -> list[Any]:
    """The gradients, by a backward pass whose operations wait for those before them.

    Args:
        jaxpr: the pass, from the cotangent of the value to the gradients.
        consts: its constants, which are what the forward pass keeps for it.
        cotangent: of the value.
    """
    known = Values(jaxpr, consts, [cotangent])
    forward, gradients = set(jaxpr.constvars), _variables(jaxpr.outvars)
    shared = _lead_to_several(jaxpr)
    unused: dict[core.Var, None] = {}  # large cotangents that nothing has used yet, latest last
    found: list[jax.Array] = []  # gradients that no cotangent waits for yet
    for equation in jaxpr.eqns:
        values = known.read(equation.invars)
        if recomputes(equation):
            kept = [isinstance(atom, core.Var) and atom in forward for atom in equation.invars]
            values = _delayed(values, kept)
        results = carry_out(jaxpr, equation, values)
        known.write(equation.outvars, results)
        if _variables(equation.invars) <= forward:  # such as a kernel's transpose
            forward |= set(equation.outvars)
            continue
        made = dict(zip(equation.outvars, results, strict=True))
        for atom in _variables(equation.invars):
            unused.pop(atom, None)
        unused |= {atom: None for atom in made if atom in shared and _is_large(made[atom])}
        found += [made[atom] for atom in made if atom in gradients and _is_float(made[atom])]
        if found and unused:
            latest = [next(reversed(unused))]
            [cotangent] = known.read(latest)
            known.write(latest, [after(cotangent, found)])
            found = []
    return known.read(jaxpr.outvars)


def _lead_to_several(jaxpr: Any) -> set[core.Var]:
    """The variables that more than one result depends on, and not only one that it is to become."""
    results: dict[core.Var, int] = {}  # of each variable, a bit for each result
    for position, atom in enumerate(jaxpr.outvars):
        for variable in _variables([atom]):
            results[variable] = results.get(variable, 0) | 1 << position
    for equation in reversed(jaxpr.eqns):
        reached = functools.reduce(operator.or_, (results.get(v, 0) for v in equation.outvars), 0)
        for variable in _variables(equation.invars):
            results[variable] = results.get(variable, 0) | reached
    return {variable for variable, bits in results.items() if bits.bit_count() > 1}


def _delayed(values: Sequence[Any], kept: Sequence[bool]) -> list[Any]:
    """What a part of the forward pass is computed anew from, once the other values are there."""
    pairs = list(zip(values, kept, strict=True))
    others = [value for value, is_kept in pairs if not is_kept and _is_float(value)]
    return [
        after(value, others) if is_kept and others and _is_large(value) else value
        for value, is_kept in pairs
    ]


def _variables(atoms: Sequence[Any]) -> set[core.Var]:
    return {atom for atom in atoms if isinstance(atom, core.Var)}


def _is_float(value: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(value), jnp.floating) and jnp.size(value) > 0


def _is_large(value: Any) -> bool:
    return _is_float(value) and jnp.size(value) >= LARGE
