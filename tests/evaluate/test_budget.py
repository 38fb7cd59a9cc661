import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxtransfer as jt
from jaxtransfer.errors import NonFiniteLossError, TrainingError
from jaxtransfer.evaluate.budget import search_rate


@pytest.mark.parametrize(
    ("budget", "examples", "steps"),
    [
        (jt.Budget(steps=7), 1000, 7),
        (jt.Budget(epochs=1, batch_size=32), 64, 2),
        (jt.Budget(epochs=1, batch_size=32), 65, 3),
        (jt.Budget(epochs=0.01, batch_size=32), 64, 1),
    ],
)
def test_epochs_are_rounded_up_to_steps(budget, examples, steps):
    assert budget.steps_for(examples) == steps


def test_all_that_is_wrong_with_a_budget_is_told_at_once():
    with pytest.raises(TrainingError) as raised:
        jt.Budget(
            per_class=0, epochs=0, steps=0, batch_size=0, learning_rates=(1, 1), extensions=-1
        )
    for word in ("per_class", "epochs", "steps and batch_size", "learning_rates", "extensions"):
        assert word in str(raised.value)


@pytest.mark.parametrize("rates", [(), (0.0,), (-1.0, 1.0), (math.inf,), (0.1, 0.1)])
def test_rates_that_cannot_be_searched_are_refused(rates):
    with pytest.raises(TrainingError, match="learning_rates above 0, each once"):
        jt.Budget(learning_rates=rates)


def searched(scores, rates=(0.01, 0.1, 1.0), extensions=2):
    tried = []

    def score(rate):
        tried.append(rate)
        return scores(rate)

    return search_rate(rates, score, extensions), tried


def test_a_rate_inside_the_grid_ends_the_search():
    found, tried = searched(lambda rate: -abs(math.log10(rate) + 1))
    assert (found.rate, found.edge, tried) == (0.1, None, [0.01, 0.1, 1.0])


def test_a_rate_at_the_edge_is_passed_by_the_grids_own_factor_until_it_is_inside():
    found, tried = searched(lambda rate: -abs(math.log10(rate) - 1))
    assert tried == [0.01, 0.1, 1.0, 10.0, 100.0]
    assert (found.rate, found.edge) == (10.0, None)
    found, tried = searched(lambda rate: -abs(math.log10(rate) + 3))
    assert tried[3:] == [0.001, 0.0001] and (found.rate, found.edge) == (0.001, None)


def test_a_rate_at_the_edge_to_the_end_is_told():
    found, tried = searched(lambda rate: rate)
    assert (found.rate, found.edge, len(tried)) == (100.0, "highest", 5)
    found, tried = searched(lambda rate: -rate, extensions=1)
    assert (found.rate, found.edge, len(tried)) == (0.001, "lowest", 4)
    assert searched(lambda rate: rate, extensions=0)[0].edge == "highest"


def test_of_equal_scores_the_lowest_rate_counts_and_is_no_edge():
    found, tried = searched(lambda rate: 0.5)
    assert (found.rate, found.edge, len(tried)) == (0.01, None, 3)


def test_a_single_rate_is_not_tried():
    found, tried = searched(lambda rate: 1 / 0, rates=(0.3,))
    assert (found.rate, found.tried, tried) == (0.3, (), [])


def explodes_from(limit):
    def score(rate):
        if rate >= limit:
            raise NonFiniteLossError("too fast")
        return rate

    return score


def test_a_rate_that_explodes_is_a_try_without_a_score():
    found, _ = searched(explodes_from(1.0))
    assert found.rate == 0.1 and dict(found.tried)[1.0] is None and found.edge is None
    found, tried = searched(explodes_from(5.0))
    assert found.rate == 1.0 and tried == [0.01, 0.1, 1.0, 10.0]
    with pytest.raises(NonFiniteLossError, match="none among 0.01, 0.1, 1; give lower ones"):
        searched(explodes_from(0.0), extensions=0)


@given(
    st.lists(st.integers(-3, 3), min_size=2, max_size=5, unique=True),
    st.integers(0, 3),
    st.randoms(use_true_random=False),
)
def test_a_search_finds_the_best_of_what_it_tried_and_keeps_to_its_rule(powers, extensions, random):
    rates = [10.0**power for power in powers]
    found, tried = searched(lambda rate: random.randint(0, 3), rates, extensions)
    assert len(rates) <= len(tried) <= len(rates) + extensions
    assert sorted(tried[: len(rates)]) == sorted(rates)
    scores = dict(found.tried)
    assert scores[found.rate] == max(scores.values())
    assert all(scores[rate] < scores[found.rate] for rate in scores if rate < found.rate)
    # Whatever was tried beyond lies outside of all that was tried before it.
    for position in range(len(rates), len(tried)):
        before = tried[:position]
        assert not min(before) <= tried[position] <= max(before)
