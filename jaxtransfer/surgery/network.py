"""What the surgeries ask of a network: shapes, options that follow, and whether it still runs.

A network is known here by what it has, not by its class, which stands a floor above: `spec`,
`apply`, `params`, `stats`, `preprocess`, `labels` and `receipt`. What is around a network's own
forward pass, such as another head, keeps it as `body`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxtransfer.errors import ModelError
from jaxtransfer.types import PyTree

AnyModel = TypeVar("AnyModel", bound=Any)
"""`jaxtransfer.Model`, which stands a floor above."""


def float_dtype(tree: PyTree) -> Any:
    """The dtype of the first leaf of floats; float32 where there is none."""
    floats = [x.dtype for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return floats[0] if floats else jnp.dtype(jnp.float32)


def working_dtype(dtype: Any) -> Any:
    """The dtype in which to compute what is then kept in `dtype`: at least float32."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def output_shapes(model: Any, apply: Callable[..., Any], stop: str | None = None) -> PyTree:
    """The shapes of what a forward pass gives for one image, without computing it.

    Args:
        model: whose leaves and whose size of images are taken.
        apply: the forward pass.
        stop: the stage before which it ends.

    Returns:
        `jax.ShapeDtypeStruct`s; `None` where the model does not know the size of its images.
    """
    spec = model.spec
    if spec.input_size is None or spec.in_channels is None:
        return None
    shape = (1, *spec.input_size, spec.in_channels)
    image = jax.ShapeDtypeStruct(shape, float_dtype(model.params))

    def outputs(params: PyTree, stats: PyTree, inputs: jax.Array) -> PyTree:
        return apply(params, stats, inputs, train=False, stop=stop)[0]

    return jax.eval_shape(outputs, model.params, model.stats, image)


def check_that_it_runs(where: str, model: Any, remedy: str) -> None:
    """Raise unless the shapes go together, as far as the model knows the size of its images.

    Raises:
        ModelError: they do not.
    """
    try:
        output_shapes(model, model.apply)
    except Exception as error:  # a network of a user's own raises whatever it likes
        spec = model.spec
        found = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise ModelError(
            f"{where}: expected a network that runs on images of {spec.input_size} with "
            f"{spec.in_channels} channels, found: {found}; {remedy}"
        ) from error


def linen_module(apply: Any) -> nn.Module | None:
    """The Linen module below whatever is around it; `None` where the network is none."""
    if hasattr(apply, "body"):
        return linen_module(apply.body)
    module = getattr(apply, "module", None)
    return module if isinstance(module, nn.Module) else None


def with_option(model: AnyModel, name: str, old: Any, new: Any) -> AnyModel:
    """The model with another value of an option, and of its module's field of that name.

    The field may be one of a dataclass among the module's fields, too. A module of a user's own may
    mean something else by that name: it follows only where it has the old value.
    """
    known = tuple((key, new if key == name else value) for key, value in model.spec.options)
    apply = _with_module(model.apply, lambda module: _with_field(module, name, old, new))
    return replace(model, spec=replace(model.spec, options=known), apply=apply)


def _with_module(apply: Any, change: Callable[[nn.Module], nn.Module]) -> Any:
    if hasattr(apply, "body"):
        return replace(apply, body=_with_module(apply.body, change))
    module = linen_module(apply)
    return apply if module is None else replace(apply, module=change(module))


def _with_field(module: nn.Module, name: str, old: Any, new: Any) -> nn.Module:
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(module):
        value = getattr(module, field.name, None)
        if field.name == name and value == old:
            changes[field.name] = new
        elif dataclasses.is_dataclass(value) and not isinstance(value, type | nn.Module):
            if getattr(value, name, None) == old and old is not None:
                changes[field.name] = replace(value, **{name: new})
    return module.clone(**changes) if changes else module


def compute(function: Callable[..., Any], *leaves: Any) -> Any:
    """What a function gives for leaves; only its shape where they are no more than shapes.

    So that surgery can be tried on a network of the catalog that has no weights yet.
    """
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves):
        return jax.eval_shape(function, *leaves)
    return function(*leaves)
