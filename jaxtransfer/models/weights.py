"""Fill a network of the catalog, or a user's own, from a file of weights of any format."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxtransfer.errors import MappingError
from jaxtransfer.formats import fingerprint_of, read_weights, reader_of
from jaxtransfer.formats.base import PathLike
from jaxtransfer.mapping import (
    TORCH_BUFFERS,
    Rule,
    RuleIndex,
    convert,
    find_prefix,
    with_prefix,
)
from jaxtransfer.models.catalog import build, preprocess_for, spec_of
from jaxtransfer.models.model import Model
from jaxtransfer.models.spec import ModelSpec, Source
from jaxtransfer.tree import leaf_names, place
from jaxtransfer.types import Pattern, PyTree

OWN_NAMES = "leaf names"
"""What the rules are called by which every leaf stands in the file under its own name."""


@dataclass(frozen=True)
class Match:
    """How a file's names go with the rules of a source of weights.

    Attributes:
        source: the source of weights, `None` where leaves stand under their own names.
        prefix: what stands before all names in the file.
        rules: the rules, with the prefix.
        count: how many of the file's names they match.
    """

    source: Source | None
    prefix: str
    rules: tuple[Rule, ...]
    count: int


def load_weights(
    model: Model,
    path: PathLike,
    *,
    source: str | None = None,
    part: str = "",
    architecture: PathLike | None = None,
    ignore: Pattern | Sequence[Pattern] = TORCH_BUFFERS,
    sharding: PyTree | None = None,
) -> Model:
    """The same network with the weights of a file, every leaf verified.

    The model's preprocessing becomes that of the source of the weights.

    Args:
        model: the network, from `init`, `build` or `Model.from_…`; its weights are not used.
        path: a file or folder of any format that `read_weights` knows.
        source: which rules of the network's spec translate the names, such as `torchvision`; by
            default those that match the most of the file's names, or the leaves' own names; among
            equals, those of the source whose options the network has. What stands before all names
            of the file, such as `module.`, is found.
        part: a group of the file, such as `ema`; see `read_weights`.
        architecture: the file that describes the network, for Darknet and Caffe.
        ignore: names in the file that are to be left out, beside those that the source says.
        sharding: where leaves go; see `place`.

    Raises:
        ReferenceNotFoundError: there is nothing at `path`.
        FormatError: the content is of no format that can be read here, or damaged.
        ModelError: the network has no rules for `source`.
        MappingError: file and network do not fit; the message lists all that is missing, left over
            or of another shape.
        TreeError: there are 64-bit values, which JAX would cut.
    """
    flat = read_weights(path, part=part, architecture=architecture)
    return _filled(model, flat, path, source, part, ignore, sharding)


def load_network(
    name: str,
    path: PathLike,
    *,
    source: str | None = None,
    part: str = "",
    architecture: PathLike | None = None,
    sharding: PyTree | None = None,
    **options: Any,
) -> Model:
    """A network of the catalog, built as the file's source and its tensors need it, and filled.

    The number of classes, the input channels and the grid of a position embedding are those of the
    file; `replace_head` and the other surgery change them afterwards.

    Args:
        name: a network of the catalog.
        path: a file or folder of any format that `read_weights` knows.
        source: as for `load_weights`.
        part: as for `load_weights`.
        architecture: as for `load_weights`.
        sharding: as for `load_weights`.
        **options: what the builder takes; they go before those of the source.

    Raises:
        ModelError: the name, an option or the source is unknown.
        ReferenceNotFoundError, FormatError, MappingError, TreeError: as `load_weights` says.
    """
    flat = read_weights(path, part=part, architecture=architecture)
    match = _choose(flat, spec_of(name, **options), source)
    if match.source is not None:
        known = {**match.source.options, **options}
        options = {**options_of(spec_of(name, **known), flat, match.rules), **known}
    named = match.source.name if match.source else None
    loaded = _filled(build(name, **options), flat, path, named, part, TORCH_BUFFERS, sharding)
    if options.get("num_classes") != 0:
        return loaded
    note = "the file has no head: the network gives features until replace_head"
    return replace(loaded, receipt=loaded.receipt.with_note(note))


def _filled(
    model: Model,
    flat: Mapping[str, np.ndarray],
    path: PathLike,
    source: str | None,
    part: str,
    ignore: Pattern | Sequence[Pattern],
    sharding: PyTree | None,
) -> Model:
    """The network with the arrays of a file, which `read_weights` gave; see `load_weights`."""
    like = {"params": model.params, "stats": model.stats}
    match = _choose(flat, model.spec, source, leaf_names(like))
    patterns = (ignore,) if isinstance(ignore, (str, re.Pattern)) else tuple(ignore)
    tree, receipt = convert(
        flat,
        match.rules,
        like,
        (*patterns, *(match.source.ignore if match.source else ())),
        file=Path(path).name,
        sha256=fingerprint_of(path),
        format=reader_of(path).name,
        rules_name=match.source.name if match.source else OWN_NAMES,
    )
    notes = (
        part and f"part of the file: {part}",
        match.prefix and f"prefix of names: {match.prefix}",
    )
    for note in filter(None, notes):
        receipt = receipt.with_note(note)
    placed = place(tree, sharding)
    how = preprocess_for(model.spec, match.source) if match.source else model.preprocess
    return replace(
        model, params=placed["params"], stats=placed["stats"], preprocess=how, receipt=receipt
    )


def match_sources(names: Iterable[str], sources: Iterable[Source]) -> list[Match]:
    """How names go with the rules of each source, the best match first."""
    names = list(names)
    return sorted(
        (_match(names, source, source.rules) for source in sources), key=lambda match: -match.count
    )


def options_of(
    spec: ModelSpec, tensors: Mapping[str, Any], rules: Sequence[Rule]
) -> dict[str, Any]:
    """The options of a builder that the shapes of a file's tensors tell.

    They are the number of classes, 0 where the file has no head; the input channels; and the input
    size where there is a position embedding. What is as usual or cannot be told is left out.

    Args:
        spec: of the network, built with the options of the source.
        tensors: the file's arrays by name; only shapes are looked at.
        rules: how names translate.
    """
    known = dict(spec.options)
    found: dict[str, Any] = {}
    if "num_classes" in known:
        head = _shape_of(f"params/{spec.head}/kernel", tensors, rules)
        found["num_classes"] = head[-1] if head else 0
    stem = _shape_of(f"params/{spec.stem}/kernel", tensors, rules)
    if len(stem) > 2 and "in_channels" in known:
        found["in_channels"] = stem[-2]
    embedding = spec.position_embedding
    if embedding is not None:
        shape = list(_shape_of(f"params/{embedding.path}", tensors, rules))
        patches = shape[-2] - embedding.prefix if len(shape) > 1 else 0
        side = math.isqrt(max(patches, 0))
        # Another size may give as many patches, one that they do not cover to the rim.
        usual = math.prod(length // embedding.patch for length in spec.input_size or (0, 0))
        if side and side**2 == patches != usual:
            found["input_size"] = (side * embedding.patch, side * embedding.patch)
    return {name: value for name, value in found.items() if value != known[name]}


def _shape_of(target: str, tensors: Mapping[str, Any], rules: Sequence[Rule]) -> tuple[int, ...]:
    """The shape that a leaf gets from the one tensor that fills it; empty where it has none."""
    for rule in rules:
        sources = rule.sources_for(target)
        if rule.parts == 1 and sources and sources[0] in tensors:
            try:
                return rule.transform.target_shape(tuple(np.shape(tensors[sources[0]])))
            except MappingError:
                return ()
    return ()


def _match(names: Sequence[str], source: Source | None, rules: tuple[Rule, ...]) -> Match:
    prefix = find_prefix(names, rules)
    prefixed = with_prefix(rules, prefix)
    index = RuleIndex(prefixed)
    return Match(source, prefix, prefixed, sum(map(index.matches, names)))


def _choose(
    names: Iterable[str], spec: ModelSpec, source: str | None, leaves: Sequence[str] = ()
) -> Match:
    names = list(names)
    if source is not None:
        return match_sources(names, [spec.source(source)])[0]
    own = _match(names, None, tuple(Rule(name, name) for name in leaves))
    found = [*match_sources(names, spec.sources), own]
    return max(found, key=lambda match: (match.count, agrees(match.source, spec)))


def agrees(source: Source | None, spec: ModelSpec) -> bool:
    """Whether a network is built with a source's options: what tells sources of one naming."""
    if source is None:
        return False
    options = dict(spec.options)
    return all(options.get(name) == value for name, value in source.options.items())
