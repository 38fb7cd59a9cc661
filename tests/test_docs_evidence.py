"""The code of docs/evidence.md runs, from top to bottom, and its links lead somewhere."""

import re
from pathlib import Path

import pytest

import jaxtransfer as jt

PAGE = Path(__file__).parent.parent / "docs/evidence.md"


@pytest.mark.slow
def test_the_code_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text()
    names = {"__name__": "evidence"}
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    assert blocks
    for block in blocks:
        # Lines of a traceback are those of the page.
        line = text[: block.start()].count("\n") + 1
        exec(compile("\n" * line + block.group(1), str(PAGE), "exec"), names)
    written = {path.name for path in tmp_path.rglob("*.html")}
    assert written == {"report.html"}
    assert len(list(tmp_path.glob("*.png"))) == 5


def test_the_names_of_the_page_exist():
    used = set(re.findall(r"\bjt\.(\w+)", PAGE.read_text()))
    assert {name for name in used if not hasattr(jt, name)} == set()


def headings(page: Path) -> set[str]:
    """The anchors of a page: its headings in small letters, spaces as hyphens."""
    lines = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in lines}


def test_the_links_of_the_page_lead_to_headings():
    links = re.findall(r"\]\(([\w.]*)#([\w-]+)\)", PAGE.read_text())
    assert len(links) > 5
    broken = [
        (page, anchor)
        for page, anchor in links
        if anchor not in headings(PAGE.parent / page if page else PAGE)
    ]
    assert broken == []
