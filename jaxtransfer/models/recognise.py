"""Guess which network of the catalog a file's tensors belong to."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxtransfer.errors import MappingError
from jaxtransfer.formats import Inspection
from jaxtransfer.mapping import TORCH_BUFFERS, Rule, convert
from jaxtransfer.models.catalog import CATALOG, build, spec_of
from jaxtransfer.models.spec import ModelSpec
from jaxtransfer.models.weights import match_rules
from jaxtransfer.tree import named_leaves
from jaxtransfer.tree.select import matches
from jaxtransfer.types import PyTree

_LEAST_SHARE = 0.5
"""The share of tensors that a network's rules must match."""


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
        tensors: how many tensors the file has, buffers left out.
        is_exact: whether all leaves and all tensors pair up.
    """

    architecture: str
    options: tuple[tuple[str, Any], ...]
    source: str
    prefix: str
    fitting: int
    leaves: int
    tensors: int
    is_exact: bool

    @property
    def likeness(self) -> float:
        """The share of pairs that fit among all leaves and tensors, from 0 to 1."""
        return self.fitting / (self.leaves + self.tensors - self.fitting)

    def __str__(self) -> str:
        options = "".join(f", {name}={value}" for name, value in self.options)
        fit = f"{self.fitting} of {self.leaves} leaves and {self.tensors} tensors pair up"
        fit = "every tensor fits" if self.is_exact else fit
        prefix = f", prefix {self.prefix!r}" if self.prefix else ""
        return f"{self.architecture}{options} (rules {self.source}{prefix}; {fit})"


def recognise(inspection: Inspection) -> list[Guess]:
    """The networks of the catalog that a file's tensors may belong to, the best one first.

    Names and shapes are compared, never values. Only networks whose rules match the most names, and
    at least half of them, are compared, so the list may be empty.
    """
    tensors = {
        tensor.name: np.broadcast_to(np.zeros((), np.dtype(tensor.dtype)), tensor.shape)
        for tensor in inspection.tensors
        if not any(matches(pattern, tensor.name) for pattern in TORCH_BUFFERS)
    }
    matched: dict[str, tuple[str, str, tuple[Rule, ...], int]] = {}
    known: dict[Any, tuple[str, str, tuple[Rule, ...], int]] = {}
    for name in CATALOG:
        rules = spec_of(name).rules
        if tensors and rules:
            if rules not in known:
                known[rules] = match_rules(tensors, rules)
            matched[name] = known[rules]
    most = max([_LEAST_SHARE * len(tensors), *(count for *_, count in matched.values())])
    guesses = [
        _compare(name, tensors, source, prefix, rules)
        for name, (source, prefix, rules, count) in matched.items()
        if count >= most
    ]
    return sorted(guesses, key=lambda guess: (not guess.is_exact, -guess.likeness))


def _compare(
    name: str,
    tensors: Mapping[str, np.ndarray],
    source: str,
    prefix: str,
    rules: Sequence[Rule],
) -> Guess:
    options = _options(spec_of(name), tensors, rules)
    like = _leaves_of(name, options)
    wanted = {target: tuple(leaf.shape) for target, leaf in named_leaves(like)}
    fitting = sum(_fits(target, shape, tensors, rules) for target, shape in wanted.items())
    try:
        convert(tensors, rules, like)
        is_exact = True
    except MappingError:
        is_exact = False
    return Guess(name, options, source, prefix, fitting, len(wanted), len(tensors), is_exact)


@functools.lru_cache(maxsize=256)
def _leaves_of(name: str, options: tuple[tuple[str, Any], ...]) -> PyTree:
    """Tracing a network takes a good part of a second, so its leaves are kept."""
    model = build(name, **dict(options))
    return {"params": model.params, "stats": model.stats}


def _options(
    spec: ModelSpec, tensors: Mapping[str, np.ndarray], rules: Sequence[Rule]
) -> tuple[tuple[str, Any], ...]:
    """The number of classes, if the file's head has another one than the catalog's."""
    known = dict(spec.options).get("num_classes")
    bias = f"params/{spec.head}/bias"
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
