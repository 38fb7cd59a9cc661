"""Tables of Markdown, for the benchmarks whose results are read as such."""

from __future__ import annotations

import re
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


def with_table(page: str, name: str, table: str) -> str:
    r"""The page with another table between the comments.

    >>> with_table("A <!-- x -->old<!-- end --> B", "x", "new")
    'A <!-- x -->\nnew\n<!-- end --> B'
    """
    between = re.compile(rf"(<!-- {name} -->).*?(<!-- end -->)", re.DOTALL)
    if not between.search(page):
        raise ValueError(f"expected the comments <!-- {name} --> and <!-- end --> in the page")
    return between.sub(lambda found: f"{found[1]}\n{table}\n{found[2]}", page)
