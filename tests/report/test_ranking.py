import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from jaxtransfer.errors import OutputError
from jaxtransfer.ranking.table import Measured, Ranking, summarise
from jaxtransfer.report.ranking import BASELINE, CANDIDATE, sentence, write_ranking

SCORES = ("logme", "h_score", "transrate", "leep", "linear_probe", "knn")


def ranking(order: dict[str, float], baseline: str | None = "random weights") -> Ranking:
    rng = np.random.default_rng(0)
    none = Measured(None, reason="the network has no classifier head")
    return summarise(
        {
            name: {
                score: none
                if score == "leep" and name == "a"
                else Measured(height, height + 0.3 * rng.normal(size=20), 0.01)
                for score in SCORES
            }
            for name, height in order.items()
        },
        target="digits",
        examples=50,
        classes=10,
        seconds=dict.fromkeys(order, 1.5),
        baseline=baseline,
        seed=0,
    )


@pytest.fixture(scope="module")
def found() -> Ranking:
    return ranking({"a": 0.9, "b": 0.8, "a source with a long name": 0.7, "random weights": 0.1})


def test_four_files_are_written(found, tmp_path):
    paths = write_ranking(found, tmp_path / "new")
    assert [p.name for p in paths] == ["ranking.json", "ranks.png", "agreement.png", "ranking.html"]
    assert sorted(tmp_path.joinpath("new").iterdir()) == sorted(paths)
    assert json.loads(paths[0].read_text()) == found.to_dict()
    page = paths[3].read_text()
    for word in (sentence(found), "LogME", "LEEP of a: the network has no", "Seconds", "1.5"):
        assert word in page
    with Image.open(paths[1]) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    for colour in (CANDIDATE, BASELINE):
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (pixels == wanted).all(axis=1).sum() > 100


def test_the_sentence_names_the_best_and_scores_that_random_weights_fool(found):
    assert sentence(found) == "a comes out first, with a mean rank of 1.0 of 4 candidates."
    first = sentence(ranking({"a": 0.1, "random weights": 0.9}))
    assert first.startswith("Random weights come out first") and first.endswith(".")
    assert "trusted" not in first
    ranks = {**found.ranks, "logme": {**found.ranks["logme"], "random weights": 1.0}}
    fooled = sentence(replace(found, ranks=ranks))
    assert fooled.endswith("since random weights are first by it: LogME.")
    assert "random" not in sentence(ranking({"a": 0.9, "b": 0.1}, baseline=None))


def test_a_folder_that_cannot_be_made_is_refused(found, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="choose another folder"):
        write_ranking(found, tmp_path / "file" / "report")
    assert (tmp_path / "file").read_text() == "mine"
