"""Tables of Markdown, for the benchmarks whose results are read as such."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def line(cells: Iterable[str]) -> str:
    """A row of a table.

    >>> line(["a", "b"])
    '| a | b |'
    """
    return f"| {' | '.join(cells)} |"


def head(cells: Sequence[str]) -> str:
    """The two lines that a table begins with.

    >>> head(["a", "b"]).splitlines()
    ['| a | b |', '| --- | --- |']
    """
    return f"{line(cells)}\n{line(['---'] * len(cells))}"
