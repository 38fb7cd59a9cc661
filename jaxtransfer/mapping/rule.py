"""Rules that pair the names of a source's tensors with those of a target's leaves."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from jaxtransfer.errors import MappingError
from jaxtransfer.mapping.layout import Layout

_PREFIXES_TRIED = 12
_LONGEST_PREFIX = 100

_PLACEHOLDER = re.compile(r"\{([a-z_][a-z0-9_]*)\}")
_DIGITS = re.compile(r"(?:[0-9]|\{[a-z_][a-z0-9_]*\})+")


@dataclass(frozen=True)
class Rule:
    """One source tensor, or a numbered family of them, and the target leaf it fills.

    A placeholder such as `{i}` stands for one or more digits, the same ones wherever it appears;
    all else stands for itself. All names have the same placeholders, so the rule works both ways.

    Several targets share one source that holds their values one after the other along an axis, as
    one matrix of queries, keys and values that the target has apart. Several sources are joined in
    the same way into one target.

    Attributes:
        source: the name in the file, with the separators that the file has; a tuple of names for
            tensors that are joined, in their order.
        target: the leaf's name, `/`-joined; a tuple of names for leaves that share the source.
        layout: how the source's array (a part of it, or the joined one) becomes the target's; see
            `LAYOUTS`.
        axis: the axis of the source's array along which parts follow each other.
        tied: whether source and target share their values with another pair: a file that has an
            embedding once fills embedding and output layer, or a file that has it twice fills one
            leaf. The first rule that is not tied goes first; what a tied rule pairs besides must be
            equal to the bit.

    Raises:
        MappingError: a name is empty or has braces that are no placeholder, the names have
            different placeholders, digits cannot be told apart between two placeholders, there is
            no such layout, or both sides have several names.

    >>> rule = Rule("layer{i}.{j}.conv{k}.weight", "params/layer{i}/{j}/conv{k}/kernel", "conv")
    >>> rule.targets_for("layer4.0.conv2.weight")
    ('params/layer4/0/conv2/kernel',)
    >>> rule.sources_for("params/layer4/0/conv2/kernel")
    ('layer4.0.conv2.weight',)
    >>> leaves = ("q/{i}/kernel", "k/{i}/kernel", "v/{i}/kernel")
    >>> Rule("qkv.{i}.weight", leaves, "dense").targets_for("qkv.3.weight")
    ('q/3/kernel', 'k/3/kernel', 'v/3/kernel')
    """

    source: str | tuple[str, ...]
    target: str | tuple[str, ...]
    layout: str = "identity"
    axis: int = 0
    tied: bool = False

    def __post_init__(self) -> None:
        for side in ("source", "target"):
            if not isinstance(name := getattr(self, side), str):
                object.__setattr__(self, side, tuple(name))
        if min(len(self.sources), len(self.targets)) != 1:
            raise MappingError(
                f"rule {self}: expected one name on one side at least, found several on both"
            )
        if self.tied and self.parts > 1:
            raise MappingError(f"rule {self}: expected one source and one target in a tied rule")
        for name in (*self.sources, *self.targets):
            _check_name(name, self)
        names = [_placeholders(name) for name in (*self.sources, *self.targets)]
        only_here = set.union(*names) - set.intersection(*names)
        if only_here:
            raise MappingError(
                f"rule {self}: expected the same placeholders in all names, "
                f"found {', '.join(f'{{{name}}}' for name in sorted(only_here))} not in all"
            )
        if any("" in target.split("/") for target in self.targets):
            raise MappingError(f"rule {self}: expected a target such as params/head/kernel")
        if not isinstance(self.axis, int) or self.axis < 0:
            raise MappingError(f"rule {self}: expected an axis from 0 on, found {self.axis!r}")
        try:
            Layout.parse(self.layout)
        except MappingError as error:
            raise MappingError(f"rule {self}: {error}") from error

    def __str__(self) -> str:
        along = f", axis {self.axis}" if self.parts > 1 else ""
        tied = ", tied" if self.tied else ""
        sides = " -> ".join(" + ".join(names) for names in (self.sources, self.targets))
        return f"{sides} [{self.layout}{along}{tied}]"

    @property
    def sources(self) -> tuple[str, ...]:
        """The source's names, however many."""
        return (self.source,) if isinstance(self.source, str) else self.source

    @property
    def targets(self) -> tuple[str, ...]:
        """The target's names, however many."""
        return (self.target,) if isinstance(self.target, str) else self.target

    @property
    def parts(self) -> int:
        """How many arrays lie in one: 1, or the number of names on the side that has several."""
        return max(len(self.sources), len(self.targets))

    @property
    def use(self) -> str:
        """What a receipt calls the pairs of this rule: `whole`, `split`, `joined` or `tied`."""
        if self.tied:
            return "tied"
        return "split" if len(self.targets) > 1 else "joined" if len(self.sources) > 1 else "whole"

    @property
    def transform(self) -> Layout:
        """The layout as a transform."""
        return Layout.parse(self.layout)

    def targets_for(self, source_name: str) -> tuple[str, ...]:
        """The leaves that a source tensor fills by this rule; none if the rule is not about it."""
        return _translate(self.sources, self.targets, source_name)

    def sources_for(self, target_name: str) -> tuple[str, ...]:
        """The source tensors that fill a leaf by this rule; none if the rule is not about it."""
        return _translate(self.targets, self.sources, target_name)


class RuleIndex:
    """Rules by what their names are with all digits left out, so that few are tried for a name.

    >>> index = RuleIndex([Rule("fc.weight", "head/kernel"), Rule("conv{i}.weight", "{i}/kernel")])
    >>> [rule.target for rule in index.matching("conv3.weight")]
    ['{i}/kernel']
    """

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._by_source: dict[str, list[tuple[int, Rule]]] = {}
        self._by_target: dict[str, list[tuple[int, Rule]]] = {}
        shapes = []
        for position, rule in enumerate(rules):
            for names, found in ((rule.sources, self._by_source), (rule.targets, self._by_target)):
                for key in dict.fromkeys(map(_key, names)):
                    found.setdefault(key, []).append((position, rule))
            shapes += map(_without_digits, rule.sources)
        self.shapes = frozenset(shapes)
        """The sources' names without their digits."""

    def matching(self, source: str) -> list[Rule]:
        """The rules that match a source's name, in their order."""
        return [r for r in _candidates(self._by_source, source) if r.targets_for(source)]

    def first(self, source: str) -> Rule | None:
        """The rule that counts for a source: the first one that matches it and is not tied."""
        return next((rule for rule in self.matching(source) if not rule.tied), None)

    def leading_to(self, target: str) -> list[Rule]:
        """The rules that lead to a leaf, in their order."""
        return [r for r in _candidates(self._by_target, target) if r.sources_for(target)]

    def matches(self, source: str) -> bool:
        """Whether a rule matches a source's name."""
        return bool(self.matching(source))

    def resembles(self, source: str) -> bool:
        """Whether a rule matches a source's name but for its digits."""
        return _without_digits(source) in self.shapes


def _key(name: str) -> str:
    """The name itself where it stands for one alone, else without digits and placeholders."""
    return _without_digits(name) if "{" in name else name


def _candidates(found: Mapping[str, list[tuple[int, Rule]]], name: str) -> list[Rule]:
    both = [*found.get(name, ()), *found.get(_without_digits(name), ())]
    return [rule for _, rule in sorted(dict(both).items())] if both else []


def _without_digits(name: str) -> str:
    return _DIGITS.sub("0", name)


def with_prefix(rules: Iterable[Rule], prefix: str) -> tuple[Rule, ...]:
    """The same rules for a file in which every source name has something before it.

    >>> with_prefix([Rule("fc.weight", "params/head/kernel", "dense")], "module.")[0].source
    'module.fc.weight'
    """

    def prefixed(source: str | tuple[str, ...]) -> str | tuple[str, ...]:
        return (
            prefix + source if isinstance(source, str) else tuple(prefix + name for name in source)
        )

    return tuple(replace(rule, source=prefixed(rule.source)) for rule in rules)


def find_prefix(names: Iterable[str], rules: Iterable[Rule], *, digits_differ: bool = False) -> str:
    """What must stand before the rules' sources so that they match the most names of a file.

    Wrappers put their own name before those of a network: `module.` of data-parallel training,
    `model.` or `backbone.` of a trainer. Only whole segments, up to a `.` or a `/`, are taken for a
    prefix; where none makes more names match, the prefix is empty. Names that match but for their
    digits count where `digits_differ`.

    >>> rules = [Rule("fc.weight", "params/head/kernel", "dense")]
    >>> find_prefix(["module.model.fc.weight", "epoch"], rules)
    'module.model.'
    """
    names, index = list(names), RuleIndex(rules)
    counts = Counter(
        name[: end.end()] for name in names for end in re.finditer(r"[./]", name[:_LONGEST_PREFIX])
    )
    best = [prefix for prefix, _ in counts.most_common(_PREFIXES_TRIED)]

    def matched(prefix: str) -> int:
        rest = (name.removeprefix(prefix) for name in names if name.startswith(prefix))
        return sum(map(index.resembles if digits_differ else index.matches, rest))

    return max(["", *best], key=lambda prefix: (matched(prefix), -len(prefix)))


def _placeholders(pattern: str) -> set[str]:
    return set(_PLACEHOLDER.findall(pattern))


def _check_name(pattern: str, rule: Rule) -> None:
    literals = _PLACEHOLDER.split(pattern)[::2]
    if not pattern or any("{" in text or "}" in text for text in literals):
        raise MappingError(
            f"rule {rule}: expected names in which each brace belongs to a placeholder "
            f"such as {{i}}, found {pattern!r}"
        )
    if any(re.fullmatch("[0-9]*", text) for text in literals[1:-1]):
        raise MappingError(
            f"rule {rule}: expected something other than digits between two placeholders, "
            f"found {pattern!r}, in which their digits cannot be told apart"
        )


@functools.cache
def _regex(pattern: str) -> re.Pattern[str]:
    parts = []
    seen = set()
    for index, text in enumerate(_PLACEHOLDER.split(pattern)):
        if index % 2 == 0:
            parts.append(re.escape(text))
        else:
            parts.append(f"(?P={text})" if text in seen else f"(?P<{text}>[0-9]+)")
            seen.add(text)
    return re.compile("".join(parts))


def _translate(patterns: tuple[str, ...], others: tuple[str, ...], name: str) -> tuple[str, ...]:
    found = next((match for p in patterns if (match := _regex(p).fullmatch(name))), None)
    if found is None:
        return ()
    digits = found.groupdict()
    return tuple(_PLACEHOLDER.sub(lambda part: digits[part[1]], other) for other in others)
