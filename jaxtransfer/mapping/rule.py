"""Rules that pair the names of a source's tensors with those of a target's leaves."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from jaxtransfer.errors import MappingError
from jaxtransfer.mapping.layout import Layout

_PLACEHOLDER = re.compile(r"\{([a-z_][a-z0-9_]*)\}")


@dataclass(frozen=True)
class Rule:
    """One source tensor, or a numbered family of them, and the target leaf it fills.

    A placeholder such as `{i}` stands for one or more digits, the same ones wherever it appears;
    all else stands for itself. Both names have the same placeholders, so the rule works both ways.

    Attributes:
        source: the name in the file, with the separators that the file has.
        target: the leaf's name, `/`-joined.
        layout: how the source's array becomes the target's; see `LAYOUTS`.

    Raises:
        MappingError: a name is empty or has braces that are no placeholder, the names have
            different placeholders, digits cannot be told apart between two placeholders, or there
            is no such layout.

    >>> rule = Rule("layer{i}.{j}.conv{k}.weight", "params/layer{i}/{j}/conv{k}/kernel", "conv")
    >>> rule.target_for("layer4.0.conv2.weight")
    'params/layer4/0/conv2/kernel'
    >>> rule.source_for("params/layer4/0/conv2/kernel")
    'layer4.0.conv2.weight'
    """

    source: str
    target: str
    layout: str = "identity"

    def __post_init__(self) -> None:
        for name in (self.source, self.target):
            _check_name(name, self)
        only_here = _placeholders(self.source) ^ _placeholders(self.target)
        if only_here:
            raise MappingError(
                f"rule {self}: expected the same placeholders in both names, "
                f"found {', '.join(f'{{{name}}}' for name in sorted(only_here))} in one only"
            )
        if "" in self.target.split("/"):
            raise MappingError(f"rule {self}: expected a target such as params/head/kernel")
        try:
            Layout.parse(self.layout)
        except MappingError as error:
            raise MappingError(f"rule {self}: {error}") from error

    def __str__(self) -> str:
        return f"{self.source} -> {self.target} [{self.layout}]"

    @property
    def transform(self) -> Layout:
        """The layout as a transform."""
        return Layout.parse(self.layout)

    def target_for(self, source_name: str) -> str | None:
        """The leaf that a source tensor fills by this rule; `None` if the rule is not about it."""
        return _translate(self.source, self.target, source_name)

    def source_for(self, target_name: str) -> str | None:
        """The source tensor that fills a leaf by this rule; `None` if the rule is not about it."""
        return _translate(self.target, self.source, target_name)


def with_prefix(rules: Iterable[Rule], prefix: str) -> tuple[Rule, ...]:
    """The same rules for a file in which every source name has something before it.

    >>> with_prefix([Rule("fc.weight", "params/head/kernel", "dense")], "module.")[0].source
    'module.fc.weight'
    """
    return tuple(replace(rule, source=prefix + rule.source) for rule in rules)


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


@functools.lru_cache(maxsize=4096)
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


def _translate(pattern: str, other: str, name: str) -> str | None:
    found = _regex(pattern).fullmatch(name)
    if found is None:
        return None
    return _PLACEHOLDER.sub(lambda placeholder: found[placeholder[1]], other)
