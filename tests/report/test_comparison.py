import base64
import dataclasses
import json
import math

import pytest
from PIL import Image

import jaxtransfer as jt
from jaxtransfer.errors import OutputError
from jaxtransfer.evaluate.cost import RunCost
from jaxtransfer.evaluate.metrics import mean_interval
from jaxtransfer.evaluate.results import ArmResult
from jaxtransfer.report import write_comparison
from jaxtransfer.report.comparison import (
    cost_rows,
    difference_rows,
    edge_sentence,
    starts_sentence,
    table_rows,
)
from jaxtransfer.report.curves import arm_styles


def arm(*curves: tuple[float, ...], **others) -> ArmResult:
    start, end = mean_interval([c[0] for c in curves]), mean_interval([c[-1] for c in curves])
    slope = mean_interval([(c[-1] - c[0]) / 10 for c in curves])
    return ArmResult(start, slope, end, curves=curves, **others)


def comparison(seeds: int = 2, reused: tuple[str, ...] = ("0", "1")) -> jt.Comparison:
    starts = {"reused_head": [0.5] * seeds, "new_head": [0.1] * seeds}
    arms = {
        "naive": arm(*[(0.1, 0.1, 0.1)] * seeds, kind="naive"),
        "scratch": arm(
            *[(0.1, 0.4, 0.6 + i / 50) for i in range(seeds)],
            learning_rate=3e-3,
            kind="scratch",
            cost=RunCost(6e10, 2.5, 2**20, 2048, 1024, 256),
        ),
        "lp_ft": arm(
            *[(0.5, 0.8, 0.9 + i / 50) for i in range(seeds)],
            learning_rate=1e-3,
            search=((1e-3, 0.9), (1e-2, None)),
            search_edge="lowest",
            cost=RunCost(1e9, math.nan, None, 20, 10, 3),
        ),
    }
    return jt.Comparison(
        arms=arms,
        verdict="Transfer helped: lp_ft ends above scratch.",
        source="checkpoints/glyphs",
        target="handwritten digits",
        seeds=tuple(range(seeds)),
        budget=jt.Budget(steps=10),
        evaluated_at=(0, 5, 10),
        starts={name: mean_interval(values) for name, values in starts.items()},
        reused=reused,
        environment={"jax": "0.10"},
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "new" / "folder"
    return {path.name: path for path in write_comparison(comparison(), folder)}


def test_four_files_are_written_and_nothing_else(written):
    names = ["report.json", "curves.png", "report.md", "report.html"]
    assert list(written) == names
    folder = written["report.json"].parent
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    assert json.loads(written["report.json"].read_text()) == comparison().to_dict()
    with Image.open(written["curves.png"]) as picture:
        assert picture.size[0] >= 1000
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 50


def test_the_markdown_has_the_table_and_the_verdict(written):
    page = written["report.md"].read_text()
    assert page.startswith("# Does transfer help? checkpoints/glyphs to handwritten digits\n")
    assert "**Transfer helped: lp_ft ends above scratch.**" in page
    assert "| lp_ft | 50.0 ± 0.0 |" in page
    assert "| naive | 10.0 ± 0.0 | 0 | 10.0 ± 0.0 | - |" in page
    assert "](curves.png)" in page


def test_the_page_says_the_verdict_first_and_holds_its_curves(written):
    page = written["report.html"].read_text()
    order = ["Transfer helped", "<table>", "<img", "Which arms differ", "Cost", "How to read it"]
    order += ["Method", "Environment"]
    positions = [page.index(part, page.index("<body>")) for part in order]
    assert positions == sorted(positions)
    assert base64.b64encode(written["curves.png"].read_bytes()).decode() in page


def test_costs_are_told_in_units(written):
    rows = {row[0]: row[1:] for row in cost_rows(comparison())}
    assert rows["scratch"] == ("60", "2.5", "1.0 MiB", "1.0 KiB", "256", "2.0 KiB")
    assert rows["lp_ft"][:3] == ("1", "-", "-") and "naive" not in rows


def test_any_two_arms_are_compared_the_better_one_first():
    rows = difference_rows(comparison())
    assert [row[:3] for row in rows] == [
        ("lp_ft", "scratch", "+30.0"),
        ("lp_ft", "naive", "+81.0"),
        ("scratch", "naive", "+51.0"),
    ]
    assert rows[0][3] == "+30.0 to +30.0" and rows[0][4] == "-"
    assert [row[3] for row in difference_rows(comparison(seeds=1))] == ["-"] * 3


def test_a_best_rate_at_the_edge_is_told():
    assert "for lp_ft (0.001, the lowest): one beyond" in edge_sentence(comparison())
    inside = {
        name: dataclasses.replace(arm, search_edge=None) for name, arm in comparison().arms.items()
    }
    assert edge_sentence(dataclasses.replace(comparison(), arms=inside)) == ""


def test_arms_of_any_names_can_be_told_apart_in_the_plot():
    arms = {f"arm {i}": arm((0.1, 0.2, 0.3)) for i in range(9)}
    arms |= comparison().arms
    styles = arm_styles(dataclasses.replace(comparison(), arms=arms))
    assert list(styles) == list(arms) and len(set(styles.values())) == len(arms)
    assert styles["scratch"] == arm_styles(comparison())["scratch"]


def test_one_seed_has_means_without_a_spread():
    rows = {row[0]: row for row in table_rows(comparison(seeds=1))}
    assert rows["scratch"] == ("scratch", "10.0", "5.00", "60.0", "0.003")


@pytest.mark.parametrize(
    ("reused", "sentence"),
    [
        (("0", "1"), "50.0 ± 0.0 % with the head rows of 2 known classes reused, 10.0 ± 0.0"),
        ((), "the source knows none of the classes"),
    ],
)
def test_both_starts_are_told(reused, sentence):
    assert sentence in starts_sentence(comparison(reused=reused))


def test_no_starts_are_told_where_no_arm_starts_from_the_source():
    assert starts_sentence(dataclasses.replace(comparison(), starts={})) == ""


def test_one_seed_and_all_images_can_be_shown_too(tmp_path):
    budget = jt.Budget(per_class=None, learning_rates=(0.1,))
    one = dataclasses.replace(comparison(seeds=1, reused=()), budget=budget)
    page = write_comparison(one, tmp_path)[2].read_text()
    assert "all labelled training images" in page and "unless an arm has its own" in page


def test_a_folder_that_cannot_be_made_is_refused_and_nothing_is_lost(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="choose another folder"):
        write_comparison(comparison(), tmp_path / "file" / "report")
    assert (tmp_path / "file").read_text() == "mine"
