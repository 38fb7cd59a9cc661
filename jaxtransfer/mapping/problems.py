"""All that stands between a file's tensors and a tree's leaves, told at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from jaxtransfer.errors import MappingError
from jaxtransfer.tree.select import nearest

_NEAREST_LIMIT = 20
"""For how many problems the nearest names are looked up, which takes time with long lists."""


@dataclass
class Problems:
    """What was found, by kind, in the order in which it is told."""

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)

    def raise_if_any(self, expectation: str, remedy: str) -> None:
        """Raise one error that lists everything, if there is anything.

        Raises:
            MappingError: there is.
        """
        kinds = {"-": self.missing, "+": self.unexpected, "~": self.reshaped, "!": self.others}
        lines = [f" {sign} {line}" for sign, kind in kinds.items() for line in kind]
        if lines:
            legend = "(- missing, + unexpected, ~ other shape, ! conflict)"
            count = f"{len(lines)} problem{'s' if len(lines) > 1 else ''}"
            head = f"{expectation}, found {count} {legend}:"
            raise MappingError("\n".join([head, *lines, *self.hints, remedy]))


def nearest_hint(name: str, names: Iterable[str], told: int, what: str = "leaves") -> str:
    """`; nearest leaves: …` for the end of a message, while not too many have been told."""
    found = nearest(name, names, count=2) if told < _NEAREST_LIMIT else []
    return f"; nearest {what}: {', '.join(found)}" if found else ""
