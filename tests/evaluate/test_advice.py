import json

import pytest

from jaxtransfer.evaluate.advice import (
    LARGE,
    LARGE_DIFFERENT,
    LARGE_SIMILAR,
    SMALL_DIFFERENT,
    SMALL_SIMILAR,
    UNHELPFUL,
    Advice,
    advice_from,
)
from jaxtransfer.evaluate.conditions import (
    Check,
    Probes,
    check_amount,
    check_features,
    check_input,
)
from tests.evaluate.made_probes import COUNT, FACTS, probes

YES, UNKNOWN = Check("condition", True, "", {}), Check("condition", None, "", {})


def advise(found: Probes, examples: int = COUNT, first: Check = YES, second: Check = YES) -> Advice:
    return advice_from("a", "b", 5, (first, second, check_features(found)), found, examples)


@pytest.mark.parametrize(
    ("found", "examples", "case", "plan", "stage"),
    [
        (probes(0.5, 0.9), COUNT, SMALL_SIMILAR, "probe", None),
        (probes(0.5, 0.9), LARGE, LARGE_SIMILAR, "lp_ft", None),
        (probes(0.9, 0.6), COUNT, SMALL_DIFFERENT, "probe", "stage0"),
        (probes(0.9, 0.6), LARGE, LARGE_DIFFERENT, "full", None),
        (probes(0.5, 0.6), LARGE, UNHELPFUL, "scratch", None),
    ],
)
def test_the_four_cases_and_none(found, examples, case, plan, stage):
    advice = advise(found, examples)
    assert (advice.case, advice.plan, advice.stage) == (case, plan, stage)
    assert advice.transfer is (plan != "scratch")
    assert advice.learning_rate > 0
    words = str(advice)
    assert advice.reasons[0] in words and all(check.evidence in words for check in advice.checks)
    assert json.loads(json.dumps(advice.to_dict(), allow_nan=False))["case"] == case


@pytest.mark.parametrize(
    ("found", "why", "remedy"),
    [
        (probes(0.5, 0.9, random=()), "Without random weights to compare with", "random_networks"),
        (probes(0.5, 0.9, random=(0.86,)), "too few to prove", "label more"),
    ],
)
def test_where_nothing_is_proven_the_other_conditions_decide(found, why, remedy):
    assert check_features(found).met is None
    advised = advise(found)
    assert advised.transfer and why in " ".join(advised.reasons)
    for first, second in ((UNKNOWN, YES), (YES, UNKNOWN)):
        refused = advise(found, first=first, second=second)
        assert not refused.transfer and why in " ".join(refused.reasons)
        assert remedy in " ".join(refused.reasons)


def test_labels_that_nothing_foretells_are_told():
    advice = advise(probes(0.2, 0.2, random=(0.2,)))
    assert "look at images and labels first" in " ".join(advice.reasons)


def test_conditions_that_are_not_met_are_cautions():
    image, amount = check_input(FACTS, (8, 8), 1, None), check_amount(10, 200)
    advice = advise(probes(0.5, 0.9), first=image, second=amount)
    assert advice.transfer and len(advice.reasons) == 5
