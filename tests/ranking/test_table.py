import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from jaxtransfer.errors import DataError
from jaxtransfer.ranking.table import (
    Measured,
    Ranking,
    agreement,
    rank_of,
    stratified_resamples,
    summarise,
)


def ranking(measured, baseline=None) -> Ranking:
    return summarise(
        measured,
        target="t",
        examples=9,
        classes=3,
        seconds=dict.fromkeys(measured, 1.0),
        baseline=baseline,
        seed=0,
    )


@pytest.fixture(scope="module")
def found() -> Ranking:
    none = Measured(None, reason="no head")
    return ranking(
        {
            "a": {"x": Measured(0.9, np.array([3.0, 3, 1, 3]), 0.1), "y": Measured(2.0), "z": none},
            "b": {"x": Measured(0.5, np.array([2.0, 2, 2, 2]), 0.2), "y": Measured(2.0), "z": none},
            "c": {
                "x": Measured(0.7, np.array([1.0, 1, 3, 1])),
                "y": Measured(9.0),
                "z": Measured(1),
            },
        },
        baseline="c",
    )


def test_the_best_has_rank_1_and_equals_share(found):
    assert found.ranks["x"] == {"a": 1, "c": 2, "b": 3}
    assert found.ranks["y"] == {"a": 2.5, "b": 2.5, "c": 1}
    assert found.ranks["z"] == {"a": None, "b": None, "c": 1}


def test_intervals_are_percentiles_of_the_ranks_of_each_resample(found):
    # Ranks of a: 1, 1, 3, 1; of b always 2; of c: 3, 3, 1, 3.
    assert found.rank_intervals["x"] == {"a": (1, 3), "b": (2, 2), "c": (1, 3)}
    assert set(found.rank_intervals["y"].values()) == {None}


def test_the_mean_rank_is_over_scores_that_all_have(found):
    assert found.mean_ranks == {"a": 1.75, "b": 2.75, "c": 1.5}
    assert found.best == "c"
    assert found.fooled == ("y", "z")


def test_where_no_score_is_common_those_that_there_are_count():
    none = Measured(None, reason="no head")
    found = ranking({"a": {"x": none}, "b": {"x": Measured(0.1)}, "c": {"x": Measured(0.2)}})
    assert found.best == "c" and found.order == ("c", "b", "a")
    assert found.to_dict()["mean_ranks"] == {"a": None, "b": 2, "c": 1}
    assert [row[-1] for row in found.table()[1:]] == ["1.0", "2.0", "-"]
    assert found.fooled == ()
    with pytest.raises(DataError, match="one of the scores x, found none: no head"):
        ranking({"a": {"x": none}})


def test_the_table_has_the_best_first_and_dashes_for_what_is_missing(found):
    header, *rows = found.table()
    assert header == ("candidate", "x", "y", "z", "mean rank")
    assert [row[0] for row in rows] == ["c", "a", "b"]
    assert rows[1] == ("a", "0.9 (rank 1, 1 to 3)", "2 (rank 2.5)", "-", "1.8")


def test_json_holds_all_of_it(found):
    read = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert read["scores"]["z"] == {"a": None, "b": None, "c": 1}
    assert read["unavailable"] == {"z": {"a": "no head", "b": "no head"}}
    assert read["seconds"]["features"] == {"a": 1.0, "b": 1.0, "c": 1.0}
    assert read["rank_intervals"]["x"]["a"] == [1, 3]
    assert read["resamples"] == 4


def test_no_candidate_is_refused():
    with pytest.raises(DataError, match="at least one candidate"):
        ranking({})


def test_agreement_is_scipys_agreement(found):
    assert found.agreement["x"]["x"] == 1 and found.agreement["x"]["z"] is None
    first, second = [0.3, 0.9, 0.1, 0.5], [1.0, 4.0, 3.0, 2.0]
    assert agreement(first, second) == pytest.approx(stats.weightedtau(first, second)[0])
    assert agreement(first, [-value for value in first]) == -1
    assert agreement([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None
    assert agreement([1.0, 2.0], [1.0, 2.0]) is None


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(0, 5))
def test_resamples_keep_each_example_in_its_class(labels, seed):
    labels = np.array(labels)
    drawn = stratified_resamples(labels, 3, seed)
    assert (labels[drawn] == labels).all()
    assert (drawn == stratified_resamples(labels, 3, seed)).all()


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=8))
def test_ranks_count_those_that_are_higher(values):
    expected = [sum(v > x for v in values) + (values.count(x) + 1) / 2 for x in values]
    assert rank_of(np.array(values)).tolist() == expected
