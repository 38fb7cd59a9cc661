from dataclasses import replace

import numpy as np
import pytest

from jaxtransfer.evaluate.conditions import (
    Probes,
    better_stage,
    check_amount,
    check_features,
    check_input,
)
from tests.evaluate.made_probes import FACTS, FOLDS, probes


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
    assert "the best of 2 networks with random weights 60.0 %" in check.evidence
    alone = check_features(probes(0.5, 0.9, random=(0.6,)))
    assert "one on a network with random weights 60.0 %" in alone.evidence


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
