"""Guess which network of the catalog a file's tensors belong to."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxtransfer.errors import MappingError
from jaxtransfer.formats import Inspection
from jaxtransfer.mapping import (
    TORCH_BUFFERS,
    RuleIndex,
    convert,
    find_prefix,
    with_prefix,
)
from jaxtransfer.models.catalog import build, families, spec_of
from jaxtransfer.models.family import Family
from jaxtransfer.models.spec import ModelSpec, Source
from jaxtransfer.models.weights import match_sources, options_of
from jaxtransfer.tree import named_leaves
from jaxtransfer.tree.select import matches_any
from jaxtransfer.types import PyTree

_LEAST_SHARE = 0.5
"""The share of tensors that a family's rules must match."""

_NEARLY = 0.9
"""The share of the most matches of any family that is good enough to be compared."""

_COMPARED = 4
"""How many networks of a family are compared with a file."""


@dataclass(frozen=True)
class Guess:
    """A network that a file's tensors may belong to.

    Attributes:
        architecture: a name in the catalog.
        options: what `build` needs beside the name and the options of the source, such as another
            number of classes.
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

    Names and shapes are compared, never values. Only the networks nearest in size of the families
    whose rules match the most names, and at least half of them, are compared, so the list may be
    empty.
    """
    tensors = {
        tensor.name: np.broadcast_to(np.zeros((), np.dtype(tensor.dtype)), tensor.shape)
        for tensor in inspection.tensors
        if not matches_any(TORCH_BUFFERS, tensor.name)
    }
    size = sum(array.size for array in tensors.values())
    guesses = [
        _compare(variant, source, tensors)
        for family, source in _likely_families(list(tensors))
        for variant in _nearest_in_size(family, source, size)
    ]
    return sorted(guesses, key=lambda guess: (not guess.is_exact, -guess.likeness))


@functools.cache
def _spec(name: str) -> ModelSpec:
    """The rules of all networks take a second to make, so they are kept."""
    return spec_of(name)


def _likely_families(names: list[str]) -> list[tuple[Family, str]]:
    """The families whose rules resemble the most names, each with the source that they are of."""
    found: list[tuple[int, Family, str]] = []
    for family in {id(family): family for family in families().values()}.values():
        # Networks of a family differ in digits mostly, so that one stands for many.
        sources = {
            (source.name, RuleIndex(source.rules).shapes): source
            for variant in family.parameters
            for source in _spec(variant).sources
        }
        enough = [
            (count, source.name)
            for source in sources.values()
            for count, total in [_resembling(names, source)]
            if count >= max(_LEAST_SHARE * total, 1)
        ]
        if enough:
            count, name = max(enough, key=lambda pair: pair[0])
            found.append((count, family, name))
    least = max((count for count, *_ in found), default=0) * _NEARLY
    return [(family, source) for count, family, source in found if count >= least]


def _resembling(names: list[str], source: Source) -> tuple[int, int]:
    """How many names a source's rules resemble, of how many that it does not ignore."""
    kept = [name for name in names if not matches_any(source.ignore, name)]
    prefix = find_prefix(kept, source.rules, digits_differ=True)
    index = RuleIndex(with_prefix(source.rules, prefix))
    return sum(map(index.resembles, kept)), len(kept)


def _nearest_in_size(family: Family, source: str, size: int) -> list[str]:
    """The few networks with a source whose published number of parameters is nearest."""
    distance = {
        name: abs(math.log(max(size, 1) / count))
        for name, count in family.parameters.items()
        if any(known.name == source for known in _spec(name).sources)
    }
    return sorted(distance, key=lambda name: distance[name])[:_COMPARED]


def _compare(name: str, source_name: str, tensors: Mapping[str, np.ndarray]) -> Guess:
    source = _spec(name).source(source_name)
    options = dict(source.options)
    (match,) = match_sources(tensors, [spec_of(name, **options).source(source_name)])
    rules = match.rules
    tensors = {
        tensor: array for tensor, array in tensors.items() if not matches_any(source.ignore, tensor)
    }
    found = options_of(spec_of(name, **options), tensors, rules)
    like = _leaves_of(name, tuple({**options, **found}.items()))
    wanted = {target: tuple(leaf.shape) for target, leaf in named_leaves(like)}
    index = RuleIndex(rules)
    fitting = sum(_fits(target, shape, tensors, index) for target, shape in wanted.items())
    try:
        convert(tensors, rules, like)
        is_exact = True
    except MappingError:
        is_exact = False
    return Guess(
        architecture=name,
        options=tuple(found.items()),
        source=source_name,
        prefix=match.prefix,
        fitting=fitting,
        leaves=len(wanted),
        tensors=len(tensors),
        is_exact=is_exact,
    )


@functools.lru_cache(maxsize=256)
def _leaves_of(name: str, options: tuple[tuple[str, Any], ...]) -> PyTree:
    """Tracing a network takes a good part of a second, so its leaves are kept."""
    model = build(name, **dict(options))
    return {"params": model.params, "stats": model.stats}


def _fits(
    target: str,
    shape: tuple[int, ...],
    tensors: Mapping[str, np.ndarray],
    index: RuleIndex,
) -> bool:
    """Whether there is a tensor for a leaf, of the right shape where they pair up one to one."""
    for rule in index.leading_to(target):
        sources = rule.sources_for(target)
        if any(source not in tensors for source in sources):
            continue
        if rule.parts > 1:
            return True
        try:
            return rule.transform.target_shape(tensors[sources[0]].shape) == shape
        except MappingError:
            return False
    return False
