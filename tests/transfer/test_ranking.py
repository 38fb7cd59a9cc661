import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.data import few_shot_split
from jaxtransfer.errors import DataError, ModelError
from jaxtransfer.ranking import leep, logme
from jaxtransfer.transfer.ranking import RANDOM_WEIGHTS, SCORES

GLYPHS = "checkpoints/glyphs"


@pytest.fixture(scope="module")
def few():
    return few_shot_split(jt.load_digits(), 6, 0).train


@pytest.fixture(scope="module")
def glyphs():
    return jt.load(GLYPHS)


@pytest.fixture(scope="module")
def ranking(few, glyphs):
    told = []
    sources = {"glyphs": GLYPHS, "stem": jt.truncate(glyphs, "stem")}
    found = jt.rank(
        sources, few, resamples=4, target="digits", on_candidate=lambda *now: told.append(now)
    )
    assert told == [("glyphs", 0, 3), ("stem", 1, 3), (RANDOM_WEIGHTS, 2, 3), ("done", 3, 3)]
    return found


def test_the_trained_network_comes_before_its_stem_and_random_weights(ranking):
    assert ranking.best == "glyphs" and ranking.baseline == RANDOM_WEIGHTS
    assert ranking.candidates == ("glyphs", "stem", RANDOM_WEIGHTS)
    assert tuple(ranking.scores) == SCORES
    for score in ("logme", "h_score", "leep", "nce", "linear_probe", "knn"):
        assert ranking.ranks[score]["glyphs"] == 1
    assert ranking.fooled == ()
    assert all(low <= high for low, high in ranking.rank_intervals["logme"].values())
    assert (ranking.examples, ranking.classes, ranking.target) == (60, 10, "digits")


def test_a_candidate_without_a_head_lacks_scores_of_probabilities_and_says_so(ranking):
    assert set(ranking.unavailable) == {"leep", "nce", "parc"}
    assert ranking.unavailable["leep"] == {"stem": "the network has no classifier head"}
    assert ranking.scores["parc"]["stem"] is None and ranking.seconds["parc"]["stem"] is None
    assert ranking.scores["n_leep"]["stem"] is not None


def test_scores_are_those_of_features_and_probabilities(ranking, few, glyphs):
    found = jt.features(glyphs, few)
    assert ranking.scores["logme"]["glyphs"] == pytest.approx(logme(found, few.labels), abs=1e-4)
    logits = jt.predict(glyphs, few).astype(np.float64)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    assert ranking.scores["leep"]["glyphs"] == pytest.approx(leep(shares, few.labels), abs=1e-4)


def test_the_same_call_gives_the_same_ranks_and_gaps_in_labels_do_not_matter(few, glyphs):
    def run(labels):
        data = jt.ArrayData(few.images, labels)
        found = jt.rank([GLYPHS], data, scores=["logme", "nce"], resamples=3)
        return found.scores, found.rank_intervals, found.ranks

    assert run(few.labels) == run(few.labels)
    assert run(few.labels) == run(3 * few.labels)


def test_no_resamples_give_no_intervals_and_no_baseline_none(few):
    found = jt.rank([GLYPHS], few, scores=["knn"], resamples=0, random_weights=False)
    assert found.candidates == (GLYPHS,) and found.baseline is None
    assert found.rank_intervals == {"knn": {GLYPHS: None}}


@pytest.mark.parametrize(
    ("sources", "others", "message"),
    [
        ([], {}, "at least one candidate"),
        ([GLYPHS, GLYPHS], {}, "several called"),
        ({RANDOM_WEIGHTS: GLYPHS}, {}, "several called"),
        ([GLYPHS], {"scores": ["bleep"]}, "found bleep"),
        ([GLYPHS], {"scores": []}, "found 0 scores"),
        ([GLYPHS], {"resamples": -1}, "found 9 scores and -1"),
        (["nowhere", GLYPHS, "neither"], {}, "(?s)nowhere.*neither"),
    ],
)
def test_what_cannot_be_ranked_is_refused_with_all_problems(sources, others, message, few):
    with pytest.raises(ModelError, match=message):
        jt.rank(sources, few, **others)


def test_images_that_no_candidate_takes_are_refused_before_the_work(few):
    data = jt.ArrayData(few.images + 5, few.labels)
    with pytest.raises(DataError, match=r"floats in \[0, 1\]"):
        jt.rank(GLYPHS, data)
