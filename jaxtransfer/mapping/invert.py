"""Write a tree back as the tensors of a file: the other direction of `convert`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from jaxtransfer.errors import MappingError
from jaxtransfer.mapping.convert import joined_shape, starts_of
from jaxtransfer.mapping.layout import Layout
from jaxtransfer.mapping.problems import Problems
from jaxtransfer.mapping.receipt import Receipt, ReceiptEntry
from jaxtransfer.mapping.rule import Rule, RuleIndex
from jaxtransfer.tree.names import named_leaves
from jaxtransfer.tree.summary import as_host_array
from jaxtransfer.types import PyTree


def invert(
    tree: PyTree, rules: Iterable[Rule], *, receipt: Receipt | None = None
) -> dict[str, np.ndarray]:
    """The tensors that `convert` would turn into `tree`: what it was given, bit for bit.

    The first rule that leads to a leaf, and by which `convert` would fill that very leaf, names its
    source. Where several names lead to one leaf, this may be another than the file had, and tensors
    joined in one leaf are taken for equally large; with a receipt its names, layouts and sizes come
    first.

    Args:
        tree: the tree to write; leaves may be on a device.
        rules: the rules that `convert` had.
        receipt: the receipt that `convert` gave, if the file's own names matter.

    Raises:
        MappingError: a leaf leads to no source, two leaves that are not tied lead to the same, or
            tied leaves differ; the message lists all problems.

    >>> rules = [Rule("fc.weight", "params/head/kernel", "dense")]
    >>> invert({"params": {"head": {"kernel": np.zeros((3, 2))}}}, rules)["fc.weight"].shape
    (2, 3)
    """
    index = RuleIndex(rules)
    leaves = {name: as_host_array(leaf) for name, leaf in named_leaves(tree)}
    problems = Problems()
    entries = [entry for entry in receipt.entries if entry.target in leaves] if receipt else []
    known = {entry.target for entry in entries}
    for target in leaves:
        if target not in known:
            entries += _entries_of(target, leaves, index, problems)

    _check_joined(entries, leaves, problems)
    flat: dict[str, np.ndarray] = {}
    by_source: dict[str, list[ReceiptEntry]] = {}
    for entry in entries:
        by_source.setdefault(entry.source, []).append(entry)
    for source, parts in by_source.items():
        written = _write(source, parts, leaves, problems)
        if written is not None:
            flat[source] = written
    problems.raise_if_any(
        f"tree: expected each of {len(leaves)} leaves to give one tensor",
        "add or correct rules, or choose the leaves that the source format has a place for",
    )
    return flat


def _entries_of(
    target: str, leaves: Mapping[str, np.ndarray], index: RuleIndex, problems: Problems
) -> list[ReceiptEntry]:
    """The entries that `convert` would note for a leaf, as far as the rules tell them."""
    rule = _rule_of(target, index)
    if isinstance(rule, str):
        problems.missing.append(f"{target} {leaves[target].shape}: {rule}")
        return []
    sources = rule.sources_for(target)
    targets = rule.targets_for(sources[0])
    absent = [name for name in targets if name not in leaves]
    if absent:
        problems.missing.append(
            f"{', '.join(absent)}: no such leaf, which is a part of {sources[0]} as {target} is"
        )
        return []
    layout, axis = rule.transform, rule.axis
    try:
        shapes = [layout.source_shape(leaves[name].shape) for name in targets]
        parts = _equal_parts(shapes[0], axis, len(sources)) if len(sources) > 1 else shapes
    except MappingError as error:
        problems.reshaped.append(f"{target}: for {' + '.join(sources)}: {error}")
        return []
    starts = starts_of(parts, axis) if rule.parts > 1 else [0]
    chosen = [targets.index(target)] if rule.use == "split" else range(len(sources))
    return [
        ReceiptEntry(
            target=target,
            source=sources[min(index, len(sources) - 1)],
            layout=str(layout),
            source_shape=joined_shape(parts, axis) if rule.use == "split" else parts[index],
            target_shape=leaves[target].shape,
            source_dtype=str(leaves[target].dtype),
            target_dtype=str(leaves[target].dtype),
            use=rule.use,
            axis=axis if rule.parts > 1 else 0,
            start=starts[index],
        )
        for index in chosen
    ]


def _rule_of(target: str, index: RuleIndex) -> Rule | str:
    """The rule by which `convert` fills a leaf, or why there is none."""
    reasons = []
    for rule in sorted(index.leading_to(target), key=lambda rule: rule.tied):
        sources = rule.sources_for(target)
        # An earlier rule may take a source elsewhere, and then this rule never filled the leaf.
        first = (
            None
            if rule.tied
            else next((other for name in sources if (other := index.first(name)) != rule), None)
        )
        if first is None:
            return rule
        taken = ", ".join(first.targets_for(sources[0]))
        reasons.append(f"ambiguous: {sources[0]} fills {taken} by the earlier rule {first}")
    return "; ".join(reasons) or "no rule leads there"


def _equal_parts(shape: tuple[int, ...], axis: int, count: int) -> list[tuple[int, ...]]:
    if len(shape) <= axis or shape[axis] % count:
        raise MappingError(
            f"expected {count} parts of one size along axis {axis}, found {shape}; give the "
            "receipt, which knows their sizes"
        )
    return [(*shape[:axis], shape[axis] // count, *shape[axis + 1 :])] * count


def _write(
    source: str,
    entries: Sequence[ReceiptEntry],
    leaves: Mapping[str, np.ndarray],
    problems: Problems,
) -> np.ndarray | None:
    """One tensor from the leaves that have its values; `None` if they do not make one."""
    entries = sorted(entries, key=lambda entry: entry.use == "tied")
    untied = [entry for entry in entries if entry.use != "tied"]
    if len(untied) > 1 and any(entry.use != "split" for entry in untied):
        problems.others.append(f"{source}: filled twice, the second time by {untied[1].target}")
        return None
    try:
        pieces = [_piece(entry, leaves[entry.target]) for entry in entries]
        if untied and untied[0].use == "split":
            return _joined(untied, pieces[: len(untied)])
    except MappingError as error:
        targets = " + ".join(entry.target for entry in entries)
        problems.reshaped.append(f"{targets}: for {source}: {error}")
        return None
    for entry, piece in zip(entries[1:], pieces[1:], strict=True):
        if piece.tobytes() != pieces[0].tobytes():
            problems.others.append(
                f"{source}: tied leaves {entries[0].target} and {entry.target} differ"
            )
    return pieces[0]


def _piece(entry: ReceiptEntry, leaf: np.ndarray) -> np.ndarray:
    """What one leaf gives to one tensor."""
    array = Layout.parse(entry.layout).invert(leaf)
    if entry.use != "joined":
        return array
    stop = entry.start + entry.source_shape[entry.axis]
    return array[(slice(None),) * entry.axis + (slice(entry.start, stop),)]


def _check_joined(
    entries: Sequence[ReceiptEntry], leaves: Mapping[str, np.ndarray], problems: Problems
) -> None:
    """Tell of each leaf that is not, to its end, made of the tensors that were joined in it."""
    parts: dict[str, list[ReceiptEntry]] = {}
    for entry in entries:
        if entry.use == "joined":
            parts.setdefault(entry.target, []).append(entry)
    for target, joined in parts.items():
        layout = Layout.parse(joined[0].layout)
        try:
            expected = joined_shape([entry.source_shape for entry in joined], joined[0].axis)
            found = layout.source_shape(leaves[target].shape)
            if found != expected:
                raise MappingError(f"expected {expected} as they were joined, found {found}")
        except MappingError as error:
            sources = " + ".join(entry.source for entry in joined)
            problems.reshaped.append(f"{target}: for {sources}: {error}")


def _joined(entries: Sequence[ReceiptEntry], pieces: Sequence[np.ndarray]) -> np.ndarray:
    axis = entries[0].axis
    ordered = sorted(zip(entries, pieces, strict=True), key=lambda pair: pair[0].start)
    shapes = [piece.shape for _, piece in ordered]
    found = joined_shape(shapes, axis)
    expected = entries[0].source_shape
    if found != expected or [entry.start for entry, _ in ordered] != starts_of(shapes, axis):
        raise MappingError(f"expected parts that make {expected}, found {found}")
    return np.concatenate([piece for _, piece in ordered], axis)
