"""Divide a network's logits by a temperature, in the leaves of its head."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax

from jaxtransfer.errors import ModelError
from jaxtransfer.surgery.head import has_head
from jaxtransfer.surgery.network import AnyModel, compute, working_dtype
from jaxtransfer.tree import subtree, with_subtree
from jaxtransfer.types import PyTree

LINEAR_LEAVES = {"kernel", "bias"}


def with_temperature(model: AnyModel, temperature: float) -> AnyModel:
    """A model whose logits are divided by a temperature: kernel and bias of its last layer are.

    Nothing else changes, so the model is saved, loaded and exported like any other. For a network
    with heads for several tasks, each one's logits are divided.

    Args:
        model: a `Model` whose head ends in a dense layer or a 1x1 convolution, with nothing after
            it but what divides along, such as a mean over the positions or a ReLU; what comes after
            the head outside of it, such as a softmax, is for you to know. It stays as it is.
        temperature: above 0, as `temperature_scaling` finds it.

    Raises:
        ModelError: the temperature is no number above 0, or the head does not end in one layer of
            kernel and bias.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv 1706.04599, section
    4.2, equation 9.
    """
    where = f"with_temperature({model.spec.name})"
    if not (math.isfinite(temperature) and temperature > 0):
        raise ModelError(f"{where}: expected a temperature above 0, found {temperature!r}")
    if not has_head(model):
        raise ModelError(f"{where}: expected a network with a head, found one that gives features")
    params = model.params
    for path in _last_layers(model):
        layer = subtree(params, path)
        _check_linear(where, path, layer)
        params = with_subtree(params, path, jax.tree.map(lambda x: _divided(x, temperature), layer))
    note = f"with_temperature: {model.spec.head} gives logits divided by {temperature:g}"
    return replace(model, params=params, receipt=model.receipt.with_note(note))


def _last_layers(model: Any) -> list[str]:
    """Where the layers lie that give the logits: the only one of a head, or its last one."""
    spec = model.spec
    heads = {f"{spec.head}/{head.task}": head.layers for head in spec.task_heads}
    heads = heads or {spec.head: spec.head_layers}
    return [path if len(ls) <= 1 else f"{path}/{len(ls) - 1}" for path, ls in heads.items()]


def _check_linear(where: str, path: str, layer: PyTree) -> None:
    """Raise unless logits are linear in all leaves: one layer's, or of two whose outputs are added.

    The second one is that of a distilled transformer, which has a head for each of two tokens.
    """
    parts = [layer]
    if isinstance(layer, Mapping) and "distillation" in layer:
        parts = [{k: v for k, v in layer.items() if k != "distillation"}, layer["distillation"]]
    for part in parts:
        names = set(part) if isinstance(part, Mapping) else set()
        if "kernel" not in names or not names <= LINEAR_LEAVES:
            raise ModelError(
                f"{where}: expected kernel and bias of one layer at {path}, found "
                f"{sorted(names) or type(part).__name__}; replace_head gives a dense head"
            )


def _divided(leaf: jax.Array, temperature: float) -> jax.Array:
    def divide(x: jax.Array) -> jax.Array:
        return (x.astype(working_dtype(x.dtype)) / temperature).astype(x.dtype)

    return compute(divide, leaf)
