"""The tables of docs/results.md are those of its JSON files, and these are of real runs."""

from __future__ import annotations

import json

import pytest

from benchmarks.markdown import with_table
from benchmarks.results import PAGE, RESULTS, STUDIES
from jaxtransfer.evaluate.metrics import mean_interval


@pytest.mark.parametrize("name", STUDIES)
def test_a_table_shows_its_file(name):
    found = json.loads((RESULTS / f"{name}.json").read_text())
    page = PAGE.read_text()
    assert with_table(page, name, STUDIES[name].markdown(found)) == page


@pytest.mark.parametrize("name", ["ants_and_bees", "mnist_few_shot"])
def test_every_row_has_five_seeds_and_their_interval(name):
    rows = json.loads((RESULTS / f"{name}.json").read_text())["rows"]
    assert rows
    for row in rows:
        assert len(row["accuracies"]) == 5
        interval = row["interval"]
        bounds = interval.values() if isinstance(interval, dict) else interval
        assert list(bounds) == pytest.approx(list(mean_interval(row["accuracies"])))


def test_a_page_without_the_place_of_a_table_is_an_error():
    with pytest.raises(ValueError, match="<!-- other -->"):
        with_table("<!-- one --><!-- end -->", "other", "")
