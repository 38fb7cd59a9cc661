"""Fill a tree from a file's tensors by rules."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtransfer.errors import MappingError
from jaxtransfer.mapping.problems import Problems, nearest_hint
from jaxtransfer.mapping.receipt import Receipt, ReceiptEntry
from jaxtransfer.mapping.rule import Rule, RuleIndex, find_prefix
from jaxtransfer.tree.names import named_leaves
from jaxtransfer.tree.select import matches_any
from jaxtransfer.tree.summary import as_host_array
from jaxtransfer.types import Pattern, PyTree

TORCH_BUFFERS: tuple[Pattern, ...] = (
    re.compile(
        r"(.*\.)?(num_batches_tracked|position_ids|token_type_ids|attn_mask"
        r"|relative_position_index|relative_coords_table)"
    ),
)
"""Tensors of PyTorch state dicts that count or index, and are no weights: for `ignore`.

`num_batches_tracked` is BatchNorm's counter of steps, which only `momentum=None` reads; the others
are index tables and masks that networks of torchvision, timm and transformers compute when built.
"""


@dataclass
class _Pairing:
    """A rule with the names it stands for in one place, and which of its sources there are."""

    rule: Rule
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    found: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{' + '.join(self.sources)} (rule {self.rule})"


def convert(
    flat: Mapping[str, Any],
    rules: Iterable[Rule],
    like: PyTree,
    ignore: Pattern | Sequence[Pattern] = (),
    *,
    file: str = "",
    sha256: str = "",
    format: str = "",
    rules_name: str = "",
) -> tuple[PyTree, Receipt]:
    """A tree like `like` with a file's values, and the receipt that says what came from where.

    The first rule whose source matches a tensor's name is the one that counts; rules that match
    nothing are no error, for one set of rules serves a family of networks. Each tensor is used
    exactly once or ignored, and each leaf is filled exactly once, or nothing is returned at all;
    only where a rule says that values are tied, equal ones may be used or filled once more.

    Floating-point values keep the dtype that they have in the file. Leaves are host arrays, and
    views of the arrays in `flat` where the layout allows it.

    Args:
        flat: the file's tensors by name, as `read_weights` gives them.
        rules: how names and layouts translate.
        like: the tree to fill, with arrays or `jax.ShapeDtypeStruct` leaves, from `jax.eval_shape`;
            the names of its leaves are the rules' targets.
        ignore: globs or regular expressions over source names that are to be left out, even where
            a rule matches, such as `TORCH_BUFFERS`. Files differ in what they carry beside weights,
            so one that matches nothing is no error: a misspelt one leaves its tensor unexpected.
        file: a name for the receipt.
        sha256: the file's hash, for the receipt.
        format: the file's format, for the receipt.
        rules_name: what the rules are called, for the receipt.

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
    ignored = tuple(name for name in flat if matches_any(patterns, name))
    left_out = set(ignored)
    given = {name: as_host_array(flat[name]) for name in flat if name not in left_out}
    wanted = dict(named_leaves(like))
    problems = Problems()

    values: dict[str, np.ndarray] = {}
    entries: list[ReceiptEntry] = []
    pairings = _pair(list(given), rules, wanted, problems)
    for pairing in pairings:
        for entry, value in _fill(pairing, given, wanted, problems):
            before = values.setdefault(entry.target, value)
            if pairing.rule.tied and not _same_bits(before, value):
                problems.others.append(
                    f"{entry.target}: tied to {entry.source} (rule {pairing.rule}), whose values "
                    "differ from those that it was filled with"
                )
            entries.append(entry)

    led_to = {target for pairing in pairings for target in pairing.targets}
    _tell_missing(wanted, led_to, ignored, rules, pairings, given, problems)
    problems.raise_if_any(
        f"weights {file or 'in memory'}: expected each of {len(given)} tensors "
        f"to fill one of {len(wanted)} leaves",
        "add or correct rules, or name in `ignore` what is to be left out; "
        "a head of another size is loaded whole first and replaced afterwards",
    )
    position = {name: index for index, name in enumerate(wanted)}
    entries.sort(key=lambda entry: position[entry.target])
    tree = jax.tree.unflatten(jax.tree.structure(like), [values[name] for name in wanted])
    return tree, Receipt(
        tuple(entries), ignored, file, sha256, format, rules, rules_name=rules_name
    )


def _pair(
    sources: Sequence[str], rules: Sequence[Rule], wanted: Mapping[str, Any], problems: Problems
) -> list[_Pairing]:
    """Which tensors fill which leaves; pairings of tied values come last."""
    pairings: dict[tuple[Rule, tuple[str, ...]], _Pairing] = {}
    tied: list[_Pairing] = []
    unmatched: list[str] = []
    index = RuleIndex(rules)
    for source in sources:
        matching = index.matching(source)
        others = [rule for rule in matching if rule.tied]
        rule = index.first(source)
        if rule is not None:
            targets = rule.targets_for(source)
            pairing = pairings.setdefault(
                (rule, targets), _Pairing(rule, rule.sources_for(targets[0]), targets)
            )
            pairing.found.append(source)
        elif not others:
            unmatched.append(source)
        for other in others:
            targets = other.targets_for(source)
            # Where a tensor is used otherwise, the network may lack the leaf that it is tied to.
            if targets[0] in wanted or rule is None:
                tied.append(_Pairing(other, (source,), targets, [source]))

    filled: dict[str, _Pairing] = {}
    kept = []
    for pairing in [*pairings.values(), *tied]:
        if _leads_to_leaves(pairing, wanted, filled, problems):
            kept.append(pairing)
            filled.update({target: pairing for target in pairing.targets if target not in filled})
    _tell_unmatched(unmatched, rules, problems)
    return kept


def _leads_to_leaves(
    pairing: _Pairing,
    wanted: Mapping[str, Any],
    filled: Mapping[str, _Pairing],
    problems: Problems,
) -> bool:
    absent = [target for target in pairing.targets if target not in wanted]
    for target in absent:
        hint = nearest_hint(target, wanted, len(problems.unexpected))
        for source in pairing.found:
            problems.unexpected.append(f"{source}: leads to {target}, which is no leaf{hint}")
    twice = [t for t in pairing.targets if t in filled and not pairing.rule.tied]
    for target in twice:
        problems.others.append(f"{target}: filled twice, by {filled[target]} and {pairing}")
    parts = [source for source in pairing.sources if source not in pairing.found]
    if not absent and not twice:
        for source in parts:
            problems.missing.append(
                f"{pairing.targets[0]}: there is no tensor {source}, which is a part of it"
            )
    return not (absent or twice)


def _tell_unmatched(unmatched: Sequence[str], rules: Sequence[Rule], problems: Problems) -> None:
    patterns = [source for rule in rules for source in rule.sources]
    for source in unmatched:
        hint = nearest_hint(source, patterns, len(problems.unexpected), "sources in the rules")
        problems.unexpected.append(f"{source}: no rule matches{hint}")
    prefix = find_prefix(unmatched, rules)
    if prefix:
        problems.hints.append(
            f"what no rule matches begins with {prefix!r}: try with_prefix(rules, {prefix!r})"
        )


def _fill(
    pairing: _Pairing,
    given: Mapping[str, np.ndarray],
    wanted: Mapping[str, Any],
    problems: Problems,
) -> list[tuple[ReceiptEntry, np.ndarray]]:
    """The entries of one pairing with the values of their leaves; none if they do not fit."""
    if len(pairing.found) < len(pairing.sources):
        return []
    arrays = [given[source] for source in pairing.sources]
    leaves = [wanted[target] for target in pairing.targets]
    if not _kinds_fit(pairing, arrays, leaves, problems):
        return []
    try:
        values, starts = _arrange(pairing, arrays, leaves)
    except MappingError as error:
        shapes = " + ".join(str(array.shape) for array in arrays)
        problems.reshaped.append(
            f"{' + '.join(pairing.targets)}: from {' + '.join(pairing.sources)} {shapes} by "
            f"{pairing.rule.layout}: expected {' + '.join(str(leaf.shape) for leaf in leaves)}"
            f"{error}"
        )
        return []
    entries = []
    for index, start in enumerate(starts):
        source, target = min(index, len(arrays) - 1), min(index, len(leaves) - 1)
        entry = ReceiptEntry(
            target=pairing.targets[target],
            source=pairing.sources[source],
            layout=str(pairing.rule.transform),
            source_shape=tuple(arrays[source].shape),
            target_shape=tuple(leaves[target].shape),
            source_dtype=str(arrays[source].dtype),
            target_dtype=str(leaves[target].dtype),
            use=pairing.rule.use,
            axis=pairing.rule.axis if pairing.rule.parts > 1 else 0,
            start=start,
        )
        entries.append((entry, values[target]))
    return entries


def _arrange(
    pairing: _Pairing, arrays: Sequence[np.ndarray], leaves: Sequence[Any]
) -> tuple[list[np.ndarray], list[int]]:
    """The values of the leaves, and where each part begins along the rule's axis.

    Raises:
        MappingError: the shapes do not fit; the message ends the caller's.
    """
    layout, axis = pairing.rule.transform, pairing.rule.axis
    if pairing.rule.use == "split":
        try:
            parts = [layout.source_shape(tuple(leaf.shape)) for leaf in leaves]
        except MappingError as error:
            raise MappingError(f"; {error}") from error
        whole = joined_shape(parts, axis)
        if whole != arrays[0].shape:
            raise MappingError(f", which need a source of {whole}")
        starts = starts_of(parts, axis)
        pieces = np.split(arrays[0], starts[1:], axis)
        return [layout.apply(piece) for piece in pieces], starts
    source = arrays[0]
    if pairing.rule.use == "joined":
        joined_shape([array.shape for array in arrays], axis)
        source = np.concatenate(arrays, axis)
    try:
        value = layout.apply(source)
    except MappingError as error:
        raise MappingError(f"; {error}") from error
    if value.shape != tuple(leaves[0].shape):
        raise MappingError(f", found {value.shape}")
    return [value], starts_of([array.shape for array in arrays], axis)


def joined_shape(shapes: Sequence[tuple[int, ...]], axis: int) -> tuple[int, ...]:
    """The shape of arrays joined along an axis.

    Raises:
        MappingError: they have no such axis, or differ elsewhere.
    """
    first = shapes[0]
    rest = [shape[:axis] + shape[axis + 1 :] for shape in shapes]
    if min(map(len, shapes)) <= axis or any(other != rest[0] for other in rest):
        raise MappingError(f", found parts {', '.join(map(str, shapes))}, which do not join")
    return (*first[:axis], sum(shape[axis] for shape in shapes), *first[axis + 1 :])


def starts_of(shapes: Sequence[tuple[int, ...]], axis: int) -> list[int]:
    """Where each of several arrays begins when they are joined along an axis.

    >>> starts_of([(2, 3), (4, 3), (1, 3)], 0)
    [0, 2, 6]
    """
    return [sum(shape[axis] for shape in shapes[:index]) for index in range(len(shapes))]


def _kinds_fit(
    pairing: _Pairing, arrays: Sequence[np.ndarray], leaves: Sequence[Any], problems: Problems
) -> bool:
    """Whether tensors and leaves hold one kind of numbers, and joined tensors one dtype."""
    pairs = {
        (target, str(leaf.dtype)): (source, array)
        for target, leaf in zip(pairing.targets, leaves, strict=True)
        for source, array in zip(pairing.sources, arrays, strict=True)
        if _dtype_kind(array.dtype) != _dtype_kind(leaf.dtype)
    }
    for (target, wanted), (source, array) in pairs.items():
        problems.others.append(
            f"{target}: from {source} {array.shape} by {pairing.rule.layout}: expected "
            f"{_dtype_kind(wanted)} values such as {wanted}, found {array.dtype}"
        )
    dtypes = {str(array.dtype) for array in arrays}
    if len(dtypes) > 1:
        problems.others.append(
            f"{pairing.targets[0]}: from {' + '.join(pairing.sources)}: expected one dtype in all "
            f"parts, found {', '.join(sorted(dtypes))}"
        )
    return not pairs and len(dtypes) == 1


def _same_bits(first: np.ndarray, second: np.ndarray) -> bool:
    return (
        first.dtype == second.dtype
        and first.shape == second.shape
        and (first is second or first.tobytes() == second.tobytes())
    )


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
    led_to: set[str],
    ignored: Sequence[str],
    rules: Sequence[Rule],
    pairings: Sequence[_Pairing],
    given: Mapping[str, Any],
    problems: Problems,
) -> None:
    used = {source for pairing in pairings for source in pairing.found}
    free = [name for name in given if name not in used]
    index = RuleIndex(rules)
    for target, leaf in wanted.items():
        if target in led_to:
            continue
        sources = [name for rule in index.leading_to(target) for name in rule.sources_for(target)]
        left_out = [name for name in sources if name in set(ignored)]
        if left_out:
            reason = f"its source {left_out[0]} is ignored"
        elif sources:
            hint = nearest_hint(sources[0], free, len(problems.missing), "tensors not used")
            reason = f"there is no tensor {' or '.join(sources)}{hint}"
        else:
            reason = "no rule leads there"
        problems.missing.append(f"{target} {tuple(leaf.shape)}: {reason}")
