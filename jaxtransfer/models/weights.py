"""Fill a network of the catalog, or a user's own, from a file of weights of any format."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from jaxtransfer.formats import fingerprint_of, read_weights, reader_of
from jaxtransfer.formats.base import PathLike
from jaxtransfer.mapping import TORCH_BUFFERS, Rule, convert, find_prefix, with_prefix
from jaxtransfer.models.model import Model
from jaxtransfer.models.spec import ModelSpec
from jaxtransfer.tree import leaf_names, place
from jaxtransfer.types import Pattern, PyTree

OWN_NAMES = "leaf names"
"""What the rules are called by which every leaf stands in the file under its own name."""


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

    Args:
        model: the network, from `init`, `build` or `Model.from_…`; its weights are not used.
        path: a file or folder of any format that `read_weights` knows.
        source: which rules of the network's spec translate the names, such as `torchvision`; by
            default those that match the most of the file's names, or the leaves' own names. What
            stands before all names of the file, such as `module.`, is found.
        part: a group of the file, such as `ema`; see `read_weights`.
        architecture: the file that describes the network, for Darknet and Caffe.
        ignore: names in the file that are to be left out.
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
    like = {"params": model.params, "stats": model.stats}
    name, prefix, rules = _choose_rules(flat, model.spec, leaf_names(like), source)
    tree, receipt = convert(
        flat,
        rules,
        like,
        ignore,
        file=Path(path).name,
        sha256=fingerprint_of(path),
        format=reader_of(path).name,
        rules_name=name,
    )
    for note in (part and f"part of the file: {part}", prefix and f"prefix of names: {prefix}"):
        receipt = receipt.with_note(note) if note else receipt
    placed = place(tree, sharding)
    return replace(model, params=placed["params"], stats=placed["stats"], receipt=receipt)


def match_rules(
    names: Iterable[str], candidates: Iterable[tuple[str, tuple[Rule, ...]]]
) -> tuple[str, str, tuple[Rule, ...], int]:
    """The named rules that match the most names: their name, the prefix, they with it, the count.

    The first of equally good ones is taken.
    """
    names = list(names)
    found = []
    for name, rules in candidates:
        prefix = find_prefix(names, rules)
        prefixed = with_prefix(rules, prefix)
        count = sum(any(rule.targets_for(source) for rule in prefixed) for source in names)
        found.append((name, prefix, prefixed, count))
    return max(found, key=lambda match: match[-1])


def _choose_rules(
    names: Iterable[str], spec: ModelSpec, leaves: Sequence[str], source: str | None
) -> tuple[str, str, tuple[Rule, ...]]:
    own = (OWN_NAMES, tuple(Rule(name, name) for name in leaves))
    candidates = [*spec.rules, own] if source is None else [(source, spec.rules_for(source))]
    return match_rules(names, candidates)[:3]
