"""Recipes that train a small part of every layer: biases, or normalisations."""

from __future__ import annotations

import re
from typing import Any

from jaxtransfer.errors import PlanError
from jaxtransfer.partition.group import Group, StatsPolicy
from jaxtransfer.partition.plan import Plan
from jaxtransfer.partition.stages import below, scanned_blocks
from jaxtransfer.tree import is_below, leaf_names, named_leaves
from jaxtransfer.tree.names import SEPARATOR

_BIASES = frozenset({"bias", "b", "beta"})
_SCALES = frozenset({"scale", "weight", "gamma", "g"})
_LAYER_SCALE = re.compile(r"(.*_)?layer_?scale_?\d*|ls_?\d*", re.IGNORECASE)


def bias_only(model: Any) -> Plan:
    """The biases of all layers train, and the head; the rest is frozen, statistics included.

    Biases of normalisations are among them.

    Args:
        model: a `Model`.

    Source: Ben Zaken et al. 2022, "BitFit" (arXiv 2106.10199), section 3.

    Raises:
        PlanError: there are no biases but those of the head.
    """
    biases = [
        name
        for name in leaf_names(model.params)
        if name.rpartition(SEPARATOR)[2] in _BIASES and not is_below(name, {model.spec.head})
    ]
    return _with_head(model, "bias_only", "biases", biases, stats="frozen")


def norm_only(model: Any) -> Plan:
    """Scales and biases of all normalisation layers train, and the head; the rest is frozen.

    A layer is one of normalisation where statistics lie beside its parameters, as in batch
    normalisation, whose statistics follow the data then; or where all that it has are a scale of
    one axis and maybe a bias, as in layer, group and RMS normalisation. Layers by the name of
    `layer_scale`, which scale residual branches, are none. In a scanned stage the axis of the
    blocks does not count.

    Args:
        model: a `Model`.

    Source: Frankle et al. 2021, "Training BatchNorm and Only BatchNorm" (arXiv 2003.00152), section
    3; for layer normalisation, Lu et al. 2022, "Frozen Pretrained Transformers" (arXiv 2103.05247).

    Raises:
        PlanError: there are no such layers.
    """
    modules: dict[str, dict[str, int]] = {}
    for name, leaf in named_leaves(model.params):
        module, _, last = name.rpartition(SEPARATOR)
        has_blocks = scanned_blocks(model, name.split(SEPARATOR)[0]) > 0
        modules.setdefault(module, {})[last] = leaf.ndim - has_blocks
    with_statistics = {name.rpartition(SEPARATOR)[0] for name in leaf_names(model.stats)}
    norms = [
        f"{module}{SEPARATOR}*"
        for module, axes in modules.items()
        if not is_below(module, {model.spec.head})
        and set(axes.values()) == {1}
        and (module in with_statistics or _is_norm(module, set(axes)))
    ]
    return _with_head(model, "norm_only", "normalisation layers", norms)


def _is_norm(module: str, leaves: set[str]) -> bool:
    """Whether a module whose leaves have one axis is a normalisation, by the names."""
    is_layer_scale = _LAYER_SCALE.fullmatch(module.rpartition(SEPARATOR)[2]) is not None
    return bool(leaves & _SCALES) and leaves <= _SCALES | _BIASES and not is_layer_scale


def _with_head(
    model: Any, name: str, what: str, patterns: list[str], stats: StatsPolicy | None = None
) -> Plan:
    if not patterns:
        raise PlanError(
            f"{name}: expected {what} outside the head of {model.spec.name!r}, found none; write "
            "a Plan with the names of what shall train"
        )
    groups = (
        Group(below(model.spec.head)),
        Group(tuple(patterns), stats=stats),
        Group("**", frozen=True, stats="frozen"),
    )
    return Plan(groups, name=name)
