"""Reports as pages: one HTML file that holds its style and its figures, for phone and desktop."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from jaxtransfer.errors import OutputError
from jaxtransfer.formats.output import write_text

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

# A cell that is set to the right: a number with its spread, its unit and its bounds, or a dash for
# none.
_DIGITS = r"[-+−]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?"
_UNIT = r"(?:%|[A-Za-z]{1,6}(?:/[a-z]+)?)"
NUMBER = re.compile(
    rf"{_DIGITS}(?:\s?±\s?{_DIGITS})?(?:\s?{_UNIT})?(?:\s?[\[(]{_DIGITS}(?:, | to ){_DIGITS}[\])])?"
    "|[-–—]?"
)

# The colours of the dark scheme are those of the light one turned round; figures keep their white
# ground, since their lines and words are drawn for it.
STYLE = """
:root { color-scheme: light dark; --ink: #24292f; --soft: #57606a; --ground: #ffffff;
  --raised: #f4f6f8; --line: #d8dee4; --accent: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #9aa4ae; --ground: #15191e;
  --raised: #1f252c; --line: #38414a; --accent: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 56rem; color: var(--ink);
  background: var(--ground); line-height: 1.55; overflow-wrap: break-word;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
p { margin: .6rem 0; white-space: pre-line; }
p.lead { margin: 1rem 0; padding: .8rem 1rem; font-size: 1.1rem; font-weight: 600;
  background: var(--raised); border-left: 4px solid var(--accent); border-radius: 4px; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
th { background: var(--raised); font-weight: 600; white-space: nowrap; }
td:first-child { font-weight: 500; }
.number { text-align: right; white-space: nowrap; }
figure { margin: 1.2rem 0; }
figure img { display: block; max-width: 100%; height: auto; background: #ffffff;
  border: 1px solid var(--line); border-radius: 4px; }
figcaption { margin-top: .4rem; color: var(--soft); font-size: .9rem; }
@media print { body { max-width: none; padding: 0; } .scroll { overflow: visible; } }
"""


@dataclass(frozen=True)
class Heading:
    """The heading of a section."""

    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph; its line breaks are kept.

    Attributes:
        text: plain text.
        is_lead: whether it is the page's answer, which is set apart.
    """

    text: str
    is_lead: bool = False


@dataclass(frozen=True)
class Table:
    """A table, which scrolls by itself where the screen is narrow.

    Attributes:
        header: the names of the columns.
        rows: cells, shown by `str`; each row has one for each column. Columns of numbers are set to
            the right.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Figure:
    """A picture.

    Attributes:
        png: the bytes of a PNG file.
        caption: what it shows, in words; also read to those who do not see it.
    """

    png: bytes
    caption: str


Block: TypeAlias = Heading | Text | Table | Figure


def write_page(path: str | Path, title: str, blocks: Sequence[Block]) -> None:
    """Write a page as one HTML file, as a whole or not at all.

    The file needs nothing beside it: its style and its figures are in it, and it runs no script.

    Args:
        path: of the file; one that is there already is replaced.
        title: the page's first heading.
        blocks: what follows it.

    Raises:
        OutputError: a figure is no PNG, a row has more or fewer cells than the header, or the file
            cannot be written there.

    Example:
        `write_page("report.html", "Scores", [Table(["model", "score"], [["resnet18", "0.91"]])])`
    """
    write_text(to_html(title, blocks), path)


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """The page that `write_page` writes.

    >>> "<p>2 &lt; 3</p>" in to_html("Sums", [Text("2 < 3")])
    True
    """
    _check(blocks)
    body = "\n".join(_html(block) for block in blocks)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{html.escape(title)}</h1>
{body}
</main>
</body>
</html>
"""


def png_bytes(figure: Any) -> bytes:
    """A matplotlib figure as the bytes of a PNG file, as `Figure` takes them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _check(blocks: Sequence[Block]) -> None:
    problems = []
    for number, block in enumerate(blocks, 1):
        if isinstance(block, Figure) and not block.png.startswith(PNG_SIGNATURE):
            problems.append(f" - block {number}: the figure's bytes are no PNG file")
        if isinstance(block, Table):
            wrong = [i for i, row in enumerate(block.rows, 1) if len(row) != len(block.header)]
            if wrong:
                problems.append(
                    f" - block {number}: rows {wrong} of the table do not have "
                    f"{len(block.header)} cells, one for each column"
                )
    if problems:
        raise OutputError("page: expected blocks that can be shown, found\n" + "\n".join(problems))


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h2>{html.escape(block.text)}</h2>"
    if isinstance(block, Text):
        kind = ' class="lead"' if block.is_lead else ""
        return f"<p{kind}>{html.escape(block.text)}</p>"
    if isinstance(block, Figure):
        data, caption = base64.b64encode(block.png).decode("ascii"), html.escape(block.caption)
        return (
            f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    return _table(block)


def _table(table: Table) -> str:
    rows = [[str(cell) for cell in row] for row in table.rows]
    columns = [[row[i] for row in rows] for i in range(len(table.header))]
    kinds = [' class="number"' if _is_numeric(column) else "" for column in columns]

    def line(tag: str, cells: Sequence[str]) -> str:
        parts = zip(cells, kinds, strict=True)
        return "".join(f"<{tag}{kind}>{html.escape(cell)}</{tag}>" for cell, kind in parts)

    body = "\n".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    head = line("th", [str(name) for name in table.header])
    # The focus lets those without a mouse scroll it.
    return (
        f'<div class="scroll" tabindex="0"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def _is_numeric(cells: Sequence[str]) -> bool:
    """Whether a column has numbers, and nothing but numbers and dashes for none."""
    has_number = any(any(character.isdigit() for character in cell) for cell in cells)
    return has_number and all(NUMBER.fullmatch(cell.strip()) for cell in cells)
