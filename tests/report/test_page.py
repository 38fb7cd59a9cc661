import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure as MatplotlibFigure
from PIL import Image

from jaxtransfer.errors import OutputError
from jaxtransfer.report.page import Figure, Heading, Table, Text, png_bytes, to_html, write_page

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """What a browser would see: the elements' texts, and their attributes; all are closed."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.append((tag, ""))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.texts[-1][0] == self.open[-1]:
            tag, before = self.texts[-1]
            self.texts[-1] = (tag, before + data)

    def all(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.attributes if name == tag]


@pytest.fixture(scope="module")
def png() -> bytes:
    figure = MatplotlibFigure(figsize=(1, 1), dpi=50)
    figure.add_subplot().plot([0, 1], [0, 1])
    return png_bytes(figure)


def test_a_page_has_its_blocks_in_order_and_needs_no_other_file(png: bytes, tmp_path: Path) -> None:
    blocks = [
        Text("It helped.", is_lead=True),
        Heading("Table"),
        Table(["arm", "accuracy"], [["full", 0.9], ["scratch", 0.5]]),
        Heading("Curves"),
        Figure(png, 'Accuracy "a" <over> steps'),
    ]
    write_page(tmp_path / "page.html", "A title", blocks)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.all("title") == page.all("h1") == ["A title"]
    assert page.all("h2") == ["Table", "Curves"]
    assert page.all("p") == ["It helped."] and page.of("p") == [{"class": "lead"}]
    assert page.all("td") == ["full", "0.9", "scratch", "0.5"]
    (image,) = page.of("img")
    assert image["alt"] == 'Accuracy "a" <over> steps'
    head, data = (image["src"] or "").split(",")
    assert head == "data:image/png;base64" and base64.b64decode(data) == png
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert not page.of("script") and not page.of("link")
    assert not re.search(r"https?:|url\(|@import", text)


def test_a_page_suits_phones_and_both_colour_schemes() -> None:
    text = to_html("t", [Table(["a"], [["b"]])])
    page = Page(text)
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.of("meta")
    assert "prefers-color-scheme: dark" in text and "overflow-x: auto" in text
    assert page.of("div") == [{"class": "scroll", "tabindex": "0"}]


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1)


@given(WORDS, WORDS, WORDS, WORDS)
def test_whatever_is_written_is_text_and_never_markup(title, heading, text, cell) -> None:
    page = Page(to_html(title, [Heading(heading), Text(text), Table([cell], [[cell]])]))
    assert page.all("title") == page.all("h1") == [title]
    assert page.all("h2") == [heading] and page.all("p") == [text]
    assert page.all("th") == page.all("td") == [cell]


@pytest.mark.parametrize(
    ("cells", "is_number"),
    [
        (["1", "2.5", "-3e-4"], True),
        (["81.2 ± 0.4", "-", "90.1"], True),
        (["0.9 (0.85 to 0.95)", "+1.2 [-0.1, 2.5]"], True),
        (["1,797", "2 images/s"], True),
        (["2026-11-22"], False),
        (["12 %", "1.5 MiB", "0.3 s"], True),
        (["1/2/conv", "3"], False),
        (["-", "-"], False),
        (["word", "1"], False),
        ([], False),
    ],
)
def test_columns_of_numbers_are_set_to_the_right(cells: list[str], is_number: bool) -> None:
    page = Page(to_html("t", [Table(["column"], [[cell] for cell in cells])]))
    wanted = {"class": "number"} if is_number else {}
    assert page.of("th") == [wanted] and page.of("td") == [wanted] * len(cells)


def test_what_cannot_be_shown_is_told_at_once_and_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("mine")
    blocks = [Figure(b"GIF89a", "a"), Text("fine"), Table(["a", "b"], [["1", "2"], ["1"]])]
    with pytest.raises(OutputError, match=r"(?s)block 1: .*no PNG.*block 3: rows \[2\]"):
        write_page(path, "t", blocks)
    assert path.read_text() == "mine"


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError):
        write_page(tmp_path / "file" / "page.html", "t", [])
    assert (tmp_path / "file").read_text() == "mine"


def test_a_figure_becomes_a_png(png: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (50, 50) and np.asarray(picture.convert("L")).std() > 0
