"""Guess which network of the catalog a file's tensors belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxtransfer.errors import MappingError
from jaxtransfer.formats import Inspection
from jaxtransfer.mapping import TORCH_BUFFERS, Rule, convert
from jaxtransfer.models.catalog import CATALOG, build
from jaxtransfer.models.model import Model
from jaxtransfer.models.weights import match_rules
from jaxtransfer.tree import named_leaves
from jaxtransfer.tree.select import matches

_LEAST_SHARE = 0.5
"""The share of tensors that the rules must match before networks are compared leaf by leaf."""


@dataclass(frozen=True)
class Guess:
    """A network that a file's tensors may belong to.

    Attributes:
        architecture: a name in the catalog.
        options: what `build` needs beside the name, such as another number of classes.
        source: the rules that translate the names.
        prefix: what stands before all names.
        fitting: how many leaves find a tensor of the right shape.
        leaves: how many leaves the network has.
        is_exact: whether all leaves and all tensors pair up.
    """

    architecture: str
    options: tuple[tuple[str, Any], ...]
    source: str
    prefix: str
    fitting: int
    leaves: int
    is_exact: bool

    def __str__(self) -> str:
        options = "".join(f", {name}={value}" for name, value in self.options)
        fit = "every tensor fits" if self.is_exact else f"{self.fitting} of {self.leaves} leaves"
        prefix = f", prefix {self.prefix!r}" if self.prefix else ""
        return f"{self.architecture}{options} (rules {self.source}{prefix}; {fit})"


def recognise(inspection: Inspection) -> list[Guess]:
    """The networks of the catalog that a file's tensors may belong to, the best one first.

    Names and shapes are compared, never values. Networks whose rules match fewer than half of the
    names are left out, so the list may be empty.
    """
    tensors = {
        tensor.name: np.broadcast_to(np.zeros((), np.dtype(tensor.dtype)), tensor.shape)
        for tensor in inspection.tensors
        if not any(matches(pattern, tensor.name) for pattern in TORCH_BUFFERS)
    }
    guesses = []
    known: dict[Any, Any] = {}
    for name in CATALOG:
        rules = build(name).spec.rules
        if not tensors or not rules:
            continue
        if rules not in known:
            known[rules] = match_rules(tensors, rules)
        source, prefix, prefixed, count = known[rules]
        if count >= _LEAST_SHARE * len(tensors):
            guesses.append(_compare(name, tensors, source, prefix, prefixed))
    return sorted(
        guesses, key=lambda guess: (not guess.is_exact, -guess.fitting / guess.leaves, guess.leaves)
    )


def _compare(
    name: str,
    tensors: Mapping[str, np.ndarray],
    source: str,
    prefix: str,
    rules: Sequence[Rule],
) -> Guess:
    model = build(name)
    options = _options(model, tensors, rules)
    if options:
        model = build(name, **dict(options))
    like = {"params": model.params, "stats": model.stats}
    wanted = {target: tuple(leaf.shape) for target, leaf in named_leaves(like)}
    fitting = sum(_fits(target, shape, tensors, rules) for target, shape in wanted.items())
    try:
        convert(tensors, rules, like)
        is_exact = True
    except MappingError:
        is_exact = False
    return Guess(name, options, source, prefix, fitting, len(wanted), is_exact)


def _options(
    model: Model, tensors: Mapping[str, np.ndarray], rules: Sequence[Rule]
) -> tuple[tuple[str, Any], ...]:
    """The number of classes, if the file's head has another one than the catalog's."""
    known = dict(model.spec.options).get("num_classes")
    bias = f"params/{model.spec.head}/bias"
    shapes = [tensors[name].shape for name in _sources(bias, rules) if name in tensors]
    if known is None or not shapes or len(shapes[0]) != 1 or shapes[0][0] in (known, 0):
        return ()
    return (("num_classes", shapes[0][0]),)


def _sources(target: str, rules: Sequence[Rule]) -> list[str]:
    return [source for rule in rules for source in rule.sources_for(target)]


def _fits(
    target: str,
    shape: tuple[int, ...],
    tensors: Mapping[str, np.ndarray],
    rules: Sequence[Rule],
) -> bool:
    """Whether there is a tensor for a leaf, of the right shape where they pair up one to one."""
    for rule in rules:
        sources = rule.sources_for(target)
        if not sources or any(source not in tensors for source in sources):
            continue
        if rule.parts > 1:
            return True
        try:
            return rule.transform.target_shape(tensors[sources[0]].shape) == shape
        except MappingError:
            return False
    return False
