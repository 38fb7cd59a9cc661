"""Fill a tree from a file's tensors by rules, and write the tensors back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtransfer.errors import MappingError
from jaxtransfer.mapping.layout import Layout
from jaxtransfer.mapping.receipt import Receipt, ReceiptEntry
from jaxtransfer.mapping.rule import Rule
from jaxtransfer.tree.names import named_leaves
from jaxtransfer.tree.select import matches, nearest
from jaxtransfer.tree.summary import as_host_array
from jaxtransfer.types import Pattern, PyTree

_NEAREST_LIMIT = 20
"""For how many problems the nearest names are looked up, which takes time with long lists."""


@dataclass
class _Problems:
    """All that stands in the way, in the order in which it is told."""

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)

    def raise_if_any(self, expectation: str, remedy: str) -> None:
        kinds = {"-": self.missing, "+": self.unexpected, "~": self.reshaped, "!": self.others}
        lines = [f" {sign} {line}" for sign, kind in kinds.items() for line in kind]
        if lines:
            legend = "(- missing, + unexpected, ~ other shape, ! conflict)"
            count = f"{len(lines)} problem{'s' if len(lines) > 1 else ''}"
            head = f"{expectation}, found {count} {legend}:"
            raise MappingError("\n".join([head, *lines, *self.hints, remedy]))


def convert(
    flat: Mapping[str, Any],
    rules: Iterable[Rule],
    like: PyTree,
    ignore: Pattern | Sequence[Pattern] = (),
    *,
    file: str = "",
    sha256: str = "",
    format: str = "",
) -> tuple[PyTree, Receipt]:
    """A tree like `like` with a file's values, and the receipt that says what came from where.

    The first rule whose source matches a tensor's name is the one that counts; rules that match
    nothing are no error, for one set of rules serves a family of networks. Each tensor is used
    exactly once or ignored, and each leaf is filled exactly once, or nothing is returned at all.

    Floating-point values keep the dtype that they have in the file. Leaves are host arrays, and
    views of the arrays in `flat` where the layout allows it.

    Args:
        flat: the file's tensors by name, as `read_weights` gives them.
        rules: how names and layouts translate.
        like: the tree to fill, with arrays or `jax.ShapeDtypeStruct` leaves, from `jax.eval_shape`;
            the names of its leaves are the rules' targets.
        ignore: globs or regular expressions over source names that are to be left out, even where
            a rule matches. Files differ in what they carry beside weights, so one that matches
            nothing is no error: a misspelt one leaves its tensor unexpected.
        file: a name for the receipt.
        sha256: the file's hash, for the receipt.
        format: the file's format, for the receipt.

    Raises:
        MappingError: anything does not pair up; the message lists all problems.

    >>> like = jax.eval_shape(lambda: {"params": {"head": {"kernel": jax.numpy.zeros((3, 2))}}})
    >>> rules = [Rule("fc.weight", "params/head/kernel", "dense")]
    >>> tree, receipt = convert({"fc.weight": np.ones((2, 3), np.float32)}, rules, like)
    >>> tree["params"]["head"]["kernel"].shape, receipt.entries[0].source
    ((3, 2), 'fc.weight')
    """
    rules = tuple(rules)
    patterns = (ignore,) if isinstance(ignore, (str, re.Pattern)) else tuple(ignore)
    ignored = tuple(name for name in flat if any(matches(pattern, name) for pattern in patterns))
    wanted = dict(named_leaves(like))
    problems = _Problems()
    paired = _pair([name for name in flat if name not in set(ignored)], rules, wanted, problems)

    values: dict[str, np.ndarray] = {}
    entries: list[ReceiptEntry] = []
    for target, leaf in wanted.items():
        if target not in paired:
            continue
        source, rule = paired[target]
        value = as_host_array(flat[source])
        entry = ReceiptEntry(
            target=target,
            source=source,
            layout=str(rule.transform),
            source_shape=tuple(value.shape),
            target_shape=tuple(leaf.shape),
            source_dtype=str(value.dtype),
            target_dtype=str(leaf.dtype),
        )
        if _fits(entry, value, leaf, problems):
            entries.append(entry)
            values[target] = rule.transform.apply(value)

    _tell_missing(wanted, paired, ignored, rules, flat, problems)
    problems.raise_if_any(
        f"weights {file or 'in memory'}: expected each of {len(flat) - len(ignored)} tensors "
        f"to fill one of {len(wanted)} leaves",
        "add or correct rules, or name in `ignore` what is to be left out; "
        "a head of another size is loaded whole first and replaced afterwards",
    )
    tree = jax.tree.unflatten(jax.tree.structure(like), [values[name] for name in wanted])
    return tree, Receipt(tuple(entries), ignored, file, sha256, format, rules)


def _first_match(source: str, rules: Sequence[Rule]) -> tuple[Rule, str] | None:
    for rule in rules:
        target = rule.target_for(source)
        if target is not None:
            return rule, target
    return None


def _pair(
    sources: Sequence[str], rules: Sequence[Rule], wanted: Mapping[str, Any], problems: _Problems
) -> dict[str, tuple[str, Rule]]:
    """For each leaf the source and the rule that fill it."""
    paired: dict[str, tuple[str, Rule]] = {}
    unmatched: list[str] = []
    for source in sources:
        found = _first_match(source, rules)
        if found is None:
            unmatched.append(source)
            continue
        rule, target = found
        if target not in wanted:
            hint = _nearest(target, wanted, len(problems.unexpected))
            problems.unexpected.append(f"{source}: leads to {target}, which is no leaf{hint}")
        elif target in paired:
            other, other_rule = paired[target]
            problems.others.append(
                f"{target}: filled twice, by {other} (rule {other_rule}) and {source} (rule {rule})"
            )
        else:
            paired[target] = (source, rule)
    patterns = [rule.source for rule in rules]
    for source in unmatched:
        hint = _nearest(source, patterns, len(problems.unexpected), "sources in the rules")
        problems.unexpected.append(f"{source}: no rule matches{hint}")
    _tell_prefix(unmatched, rules, problems)
    return paired


def _nearest(name: str, names: Iterable[str], told: int, what: str = "leaves") -> str:
    found = nearest(name, names, count=2) if told < _NEAREST_LIMIT else []
    return f"; nearest {what}: {', '.join(found)}" if found else ""


def _tell_prefix(unmatched: Sequence[str], rules: Sequence[Rule], problems: _Problems) -> None:
    """Say so when the rules would match, were it not for what all the names begin with."""
    first = re.match(r"[^./]*[./]", unmatched[0]) if unmatched else None
    if first is None or not all(name.startswith(first[0]) for name in unmatched):
        return
    prefix = first[0]
    if any(_first_match(name.removeprefix(prefix), rules) for name in unmatched):
        problems.hints.append(
            f"what no rule matches begins with {prefix!r}: try with_prefix(rules, {prefix!r})"
        )


def _fits(entry: ReceiptEntry, value: np.ndarray, leaf: Any, problems: _Problems) -> bool:
    """Whether a tensor has the shape and the kind of dtype that its leaf needs."""
    where = f"{entry.target}: from {entry.source} {entry.source_shape} by {entry.layout}"
    kinds = _dtype_kind(value.dtype), _dtype_kind(leaf.dtype)
    if kinds[0] != kinds[1]:
        problems.others.append(
            f"{where}: expected {kinds[1]} values such as {entry.target_dtype}, "
            f"found {entry.source_dtype}"
        )
    try:
        found = Layout.parse(entry.layout).target_shape(entry.source_shape)
    except MappingError as error:
        problems.reshaped.append(f"{where}: expected {entry.target_shape}; {error}")
        return False
    if found != entry.target_shape:
        problems.reshaped.append(f"{where}: expected {entry.target_shape}, found {found}")
    return found == entry.target_shape and kinds[0] == kinds[1]


def _dtype_kind(dtype: Any) -> str:
    kinds = {
        "boolean": np.bool_,
        "integer": np.integer,
        "floating-point": np.floating,
        "complex": np.complexfloating,
    }
    for name, parent in kinds.items():
        if jnp.issubdtype(dtype, parent):
            return name
    return str(dtype)


def _tell_missing(
    wanted: Mapping[str, Any],
    paired: Mapping[str, tuple[str, Rule]],
    ignored: Sequence[str],
    rules: Sequence[Rule],
    flat: Mapping[str, Any],
    problems: _Problems,
) -> None:
    used = {source for source, _ in paired.values()}
    free = [name for name in flat if name not in used]
    for target, leaf in wanted.items():
        if target in paired:
            continue
        sources = [name for rule in rules if (name := rule.source_for(target)) is not None]
        left_out = [name for name in sources if name in set(ignored)]
        if left_out:
            reason = f"its source {left_out[0]} is ignored"
        elif sources:
            hint = _nearest(sources[0], free, len(problems.missing), "tensors not used")
            reason = f"there is no tensor {' or '.join(sources)}{hint}"
        else:
            reason = "no rule leads there"
        problems.missing.append(f"{target} {tuple(leaf.shape)}: {reason}")


def invert(
    tree: PyTree, rules: Iterable[Rule], *, receipt: Receipt | None = None
) -> dict[str, np.ndarray]:
    """The tensors that `convert` would turn into `tree`: what it was given, bit for bit.

    The first rule that leads to a leaf, and by which `convert` would fill that very leaf, names its
    source. Where several names lead to one leaf, this may be another than the file had; with a
    receipt its names and layouts come first.

    Args:
        tree: the tree to write; leaves may be on a device.
        rules: the rules that `convert` had.
        receipt: the receipt that `convert` gave, if the file's own names matter.

    Raises:
        MappingError: a leaf leads to no source, or two to the same; the message lists all problems.

    >>> rules = [Rule("fc.weight", "params/head/kernel", "dense")]
    >>> invert({"params": {"head": {"kernel": np.zeros((3, 2))}}}, rules)["fc.weight"].shape
    (2, 3)
    """
    rules = tuple(rules)
    known = {entry.target: entry for entry in receipt.entries} if receipt else {}
    problems = _Problems()
    flat: dict[str, np.ndarray] = {}
    leaves = named_leaves(tree)
    for target, leaf in leaves:
        if target in known:
            source, layout = known[target].source, Layout.parse(known[target].layout)
        else:
            found = _source_of(target, rules)
            if isinstance(found, str):
                problems.missing.append(f"{target} {np.shape(leaf)}: {found}")
                continue
            source, layout = found
        if source in flat:
            problems.others.append(f"{source}: filled twice, the second time by {target}")
            continue
        try:
            flat[source] = layout.invert(as_host_array(leaf))
        except MappingError as error:
            problems.reshaped.append(f"{target}: for {source}: {error}")
    problems.raise_if_any(
        f"tree: expected each of {len(leaves)} leaves to give one tensor",
        "add or correct rules, or choose the leaves that the source format has a place for",
    )
    return flat


def _source_of(target: str, rules: Sequence[Rule]) -> tuple[str, Layout] | str:
    """The source of a leaf and its layout, or why there is none."""
    reasons = []
    for rule in rules:
        source = rule.source_for(target)
        if source is None:
            continue
        # An earlier rule may take that source elsewhere, and then this rule never filled the leaf.
        first = _first_match(source, rules)
        if first == (rule, target):
            return source, rule.transform
        if first is not None:
            reasons.append(f"ambiguous: {source} fills {first[1]} by the earlier rule {first[0]}")
    return "; ".join(reasons) or "no rule leads there"
