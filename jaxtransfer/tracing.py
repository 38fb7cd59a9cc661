"""Functions that JAX has traced, carried out operation by operation, some of them otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jax.core import eval_jaxpr
from jax.extend import core

# Operations that only call a function that was traced on its own, and where they keep it.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "checkpoint": "jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}

_RECOMPUTES = ("checkpoint", "remat", "remat2")


class Values:
    """The values of the variables of a jaxpr, while its operations are carried out."""

    def __init__(self, jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> None:
        variables = (*jaxpr.constvars, *jaxpr.invars)
        self._known = dict(zip(variables, (*consts, *args), strict=True))

    def read(self, atoms: Sequence[Any]) -> list[Any]:
        """The values of variables and of literals."""
        return [atom.val if isinstance(atom, core.Literal) else self._known[atom] for atom in atoms]

    def write(self, variables: Sequence[Any], values: Sequence[Any]) -> None:
        """Let variables have these values from here on."""
        self._known.update(zip(variables, values, strict=True))


def recomputes(equation: Any) -> bool:
    """Whether an operation computes anew, in a backward pass, what the forward pass did not keep.

    The name of `jax.checkpoint`'s operation differs between versions of JAX.
    """
    return equation.primitive.name in _RECOMPUTES


def called(equation: Any) -> tuple[Any, Sequence[Any]] | None:
    """The jaxpr, and its constants, that an operation only calls; `None` for any other operation.

    Rules that a function has for its derivatives are not part of it.
    """
    inner = equation.params.get(_CALLS.get(equation.primitive.name, ""))
    return None if inner is None else (getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()))


def carry_out(jaxpr: Any, equation: Any, values: Sequence[Any]) -> list[Any]:
    """What one operation of a jaxpr gives for these values of its operands.

    It keeps the name scope and the line of code that it stands in.
    """
    operands = {
        atom: value
        for atom, value in zip(equation.invars, values, strict=True)
        if isinstance(atom, core.Var)
    }
    alone = jaxpr.replace(
        constvars=[], invars=list(operands), outvars=equation.outvars, eqns=[equation]
    )
    return eval_jaxpr(alone, [], *operands.values())
