import json
from dataclasses import replace

import numpy as np
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
    ImageFacts,
    Probes,
    better_stage,
    check_amount,
    check_features,
    check_input,
)

COUNT = 200
FOLDS = tuple(
    (np.setdiff1d(np.arange(COUNT), held), held) for held in np.split(np.arange(COUNT), 5)
)
FACTS = ImageFacts(((64, 64),) * 3, 3, 0.0, 1.0, 0.45, 0.25)
YES, UNKNOWN = Check("condition", True, "", {}), Check("condition", None, "", {})


def right(share: float, seed: int = 0) -> np.ndarray:
    """Which examples a probe of this accuracy answers."""
    correct = np.arange(COUNT) < round(share * COUNT)
    return np.random.default_rng(seed).permutation(correct)


def probes(
    *stages: float, random: tuple[float, ...] = (0.6, 0.55), majority: float = 0.2
) -> Probes:
    return Probes(
        {f"stage{i}": right(share, i) for i, share in enumerate(stages)},
        [{"stage0": right(share, 50), "stage1": right(0.3, 51)} for share in random],
        right(majority, 60),
        FOLDS,
    )


def advise(found: Probes, examples: int = COUNT, first: Check = YES, second: Check = YES) -> Advice:
    return advice_from("a", "b", 5, (first, second, check_features(found)), found, examples)


@pytest.mark.parametrize(
    ("facts", "met", "told"),
    [
        ({}, True, "reduced to 0.50x for 32x32; channels: 3 for 3; values from 0.00 to 1.00"),
        ({"sizes": ((6, 6),)}, False, "They have less detail"),
        ({"sizes": ((32, 300), (400, 400), (400, 400))}, False, "Small things in them vanish"),
        ({"channels": 1}, False, "They have no colours"),
        ({"brightness": 0.1}, False, "They are much darker or brighter"),
        ({"contrast": 0.01}, False, "They are all but flat"),
        ({"sizes": ()}, True, "Channels: 3 for 3; values"),
    ],
)
def test_the_same_input_is_a_matter_of_size_channels_and_values(facts, met, told):
    check = check_input(replace(FACTS, **facts), (32, 32), 3, 0.45)
    assert check.met is met
    assert told in check.evidence


def test_what_a_network_does_not_tell_is_not_compared():
    check = check_input(replace(FACTS, brightness=0.05), None, None, None)
    assert check.met is True and check.numbers["resize_factor"] is None


def test_all_problems_of_the_input_are_told_at_once():
    flat = replace(FACTS, channels=4, contrast=0.0, sizes=((4, 4),))
    assert check_input(flat, (32, 32), 3, None).evidence.endswith(
        "They have less detail than the network looks for (8.0x); their colours are lost; they are "
        "all but flat."
    )


@pytest.mark.parametrize(
    ("source", "target", "met"), [(1000, 100, True), (999, 100, False), (None, 100, None)]
)
def test_far_more_is_ten_times_as_much(source, target, met):
    assert check_amount(source, target).met is met


def test_features_help_where_they_beat_majority_and_random_weights():
    check = check_features(probes(0.5, 0.9))
    assert check.met is True
    assert check.numbers["probe"] == 0.9 and check.numbers["random"] == 0.6
    assert check.numbers["errors_avoided"] == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("found", "met"),
    [
        (probes(0.2, 0.21, random=(0.2,)), False),  # no better than the majority answer
        (probes(0.6, 0.62), False),  # no better than random weights
        (probes(0.95, 0.96, random=(0.95,)), False),  # a fifth of the errors is too few
        (probes(0.5, 0.9, random=()), None),  # nothing to compare with
        (probes(0.9, 1.0, random=(1.0,)), False),  # nothing left to be better at
    ],
)
def test_features_do_not_help_where_others_do_as_well(found, met):
    assert check_features(found).met is met


def test_few_examples_cannot_tell():
    few = Probes(
        {"head": np.arange(10) < 9},
        [{"head": np.arange(10) >= 2}],
        np.zeros(10, bool),
        FOLDS,
    )
    assert check_features(few).met is None


def test_an_earlier_stage_must_be_better_beyond_doubt():
    assert better_stage(probes(0.9, 0.5)) == "stage0"
    assert better_stage(probes(0.82, 0.8)) is None
    assert better_stage(probes(0.9)) is None


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


def test_where_images_are_too_few_the_other_conditions_decide():
    found = probes(0.5, 0.9, random=())
    advised = advise(found)
    assert advised.transfer and "too few to prove" in " ".join(advised.reasons)
    for first, second in ((UNKNOWN, YES), (YES, UNKNOWN)):
        refused = advise(found, first=first, second=second)
        assert not refused.transfer and "label more" in " ".join(refused.reasons)


def test_labels_that_nothing_foretells_are_told():
    advice = advise(probes(0.2, 0.2, random=(0.2,)))
    assert "look at images and labels first" in " ".join(advice.reasons)


def test_conditions_that_are_not_met_are_cautions():
    image, amount = check_input(FACTS, (8, 8), 1, None), check_amount(10, 200)
    advice = advise(probes(0.5, 0.9), first=image, second=amount)
    assert advice.transfer and len(advice.reasons) == 5
