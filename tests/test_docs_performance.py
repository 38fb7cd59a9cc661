"""The tables of docs/performance.md are those of its JSON files, and these are of real runs."""

from __future__ import annotations

import json

import pytest

from benchmarks.cases import all_cases
from benchmarks.markdown import with_table
from benchmarks.page import FOLDER, NOT_MEASURED, PAGE, SCALING, read, tables

PAIRS = 5


@pytest.fixture(scope="module")
def written() -> dict[str, str]:
    return tables(FOLDER)


def test_the_tables_show_the_files(written):
    page = shown = PAGE.read_text()
    for name, text in written.items():
        shown = with_table(shown, name, text)
    assert shown == page


def test_every_case_was_measured_in_as_many_rounds_as_are_asked_for():
    names = {name for name, case in all_cases().items() if not case.needs_accelerator}
    measured = read(FOLDER)
    for case in measured.values():
        assert all(len(runs) >= PAIRS for runs in case["runs"].values()), case["case"]
    assert names == set(measured)


def test_what_misses_its_target_is_bold_and_stays(written):
    missed = {
        (case["title"], figure["label"])
        for case in read(FOLDER).values()
        for figure in case["figures"]
        if figure.get("is_reached") is False
    }
    bold = [line for text in written.values() for line in text.splitlines() if "| **" in line]
    for title, label in missed:
        assert any(f"{title}, {label} |" in line for line in bold), (title, label)


def test_growth_was_measured_over_all_devices_and_batches():
    curves = json.loads((FOLDER / SCALING).read_text())["curves"]
    assert [curve["devices"] for curve in curves] == [1, 2, 4, 8]
    assert all(curve["batch_sizes"][-1] == 64 for curve in curves)


def test_a_case_in_two_files_is_an_error(tmp_path):
    found = {"cases": [{"case": "import"}]}
    for name in ("one", "two"):
        (tmp_path / f"{name}.json").write_text(json.dumps(found))
    with pytest.raises(ValueError, match=r"two\.json: expected each case in one file"):
        read(tmp_path)


def test_a_table_without_cases_says_so(tmp_path):
    assert set(tables(tmp_path).values()) >= {NOT_MEASURED}
