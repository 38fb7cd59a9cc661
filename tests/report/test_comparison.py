import json

import pytest
from PIL import Image

import jaxtransfer as jt
from jaxtransfer.errors import OutputError
from jaxtransfer.evaluate.comparison import Arm
from jaxtransfer.evaluate.metrics import mean_interval
from jaxtransfer.report import write_comparison
from jaxtransfer.report.comparison import starts_sentence, table_rows, to_markdown


def arm(*curves: tuple[float, ...], **others) -> Arm:
    start, end = mean_interval([c[0] for c in curves]), mean_interval([c[-1] for c in curves])
    slope = mean_interval([(c[-1] - c[0]) / 10 for c in curves])
    return Arm(start, slope, end, curves=curves, **others)


def comparison(seeds: int = 2, reused: tuple[str, ...] = ("0", "1")) -> jt.Comparison:
    starts = {"reused_head": [0.5] * seeds, "new_head": [0.1] * seeds}
    arms = {
        "naive": arm(*[(0.1, 0.1, 0.1)] * seeds),
        "scratch": arm(*[(0.1, 0.4, 0.6 + i / 50) for i in range(seeds)], learning_rate=3e-3),
        "lp_ft": arm(*[(0.5, 0.8, 0.9 + i / 50) for i in range(seeds)], learning_rate=1e-3),
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


def test_three_files_are_written(tmp_path):
    paths = write_comparison(comparison(), tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["report.json", "curves.png", "report.md"]
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == sorted(
        path.name for path in paths
    )
    assert json.loads(paths[0].read_text()) == comparison().to_dict()
    with Image.open(paths[1]) as picture:
        assert picture.size[0] >= 1000
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 50
    assert "curves.png" in paths[2].read_text()


def test_the_page_has_the_table_and_the_verdict():
    page = to_markdown(comparison())
    assert "**Transfer helped: lp_ft ends above scratch.**" in page
    assert "| lp_ft | 50.0 ± 0.0 |" in page
    assert "| naive | 10.0 ± 0.0 | 0 | 10.0 ± 0.0 | - |" in page


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


def test_a_folder_that_cannot_be_made_is_refused_and_nothing_is_lost(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="choose another folder"):
        write_comparison(comparison(), tmp_path / "file" / "report")
    assert (tmp_path / "file").read_text() == "mine"
