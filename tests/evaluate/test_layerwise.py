from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from jaxtransfer.evaluate.layerwise import EFFECTS, TREATMENTS, Transferability

BASE = (0.60, 0.62, 0.61)
FOUND = Transferability(
    network="net",
    stages=("stem", "layer1", "layer2", "head"),
    depths=(1, 2, 3),
    seeds=(0, 1, 2),
    base=BASE,
    accuracies={
        "BnB": ((0.60, 0.61, 0.61), (0.50, 0.53, 0.51), (0.58, 0.60, 0.60)),
        "BnB+": ((0.61, 0.62, 0.61), (0.60, 0.62, 0.62), (0.61, 0.61, 0.62)),
        "AnB": ((0.60, 0.62, 0.61), (0.49, 0.50, 0.50), (0.48, 0.51, 0.50)),
        "AnB+": ((0.61, 0.60, 0.63), (0.62, 0.60, 0.63), (0.61, 0.61, 0.62)),
    },
)


def test_treatments_are_called_as_in_the_paper():
    assert [one.name() for one in TREATMENTS.values()] == ["BnB", "BnB+", "AnB", "AnB+"]
    assert [one.name(3) for one in TREATMENTS.values()] == ["B3B", "B3B+", "A3B", "A3B+"]


@pytest.mark.parametrize("name", EFFECTS)
def test_effects_are_paired_differences_with_the_t_tests_interval(name):
    effect = EFFECTS[name]
    for row, found in enumerate(FOUND.effect(name)):
        of = FOUND.accuracies[effect.of][row]
        to = FOUND.accuracies[effect.to][row] if effect.to != "baseB" else BASE
        expected = stats.ttest_rel(of, to).confidence_interval(0.95)
        np.testing.assert_allclose((found.low, found.high), tuple(expected), atol=1e-12)
        assert found.mean == pytest.approx(np.mean(of) - np.mean(to))


def test_the_largest_effect_is_that_of_its_sign():
    assert FOUND.largest("co_adaptation")[0] == 2
    assert FOUND.largest("specificity")[0] == 3
    assert FOUND.largest("recovery")[0] == 2
    assert FOUND.largest("generalisation")[0] == 2
    assert [FOUND.is_seen(name) for name in EFFECTS] == [True, True, True, False]


def test_readings_say_what_was_not_seen():
    assert FOUND.readings() == (
        "Fragile co-adaptation: B2B is 9.7 points below baseB (95 % interval -11.1 to -8.2)",
        "Representation specificity: A3B is 9.7 points below B3B (95 % interval -11.1 to -8.2)",
        "Recovery by fine-tuning: B2B+ is 10.0 points above B2B (95 % interval +7.5 to +12.5)",
        "Better generalisation by transfer: not seen: A2B+ is 0.7 points above baseB "
        "(95 % interval -5.1 to +6.4)",
    )


def one_seed(base: float) -> Transferability:
    rows = {name: tuple(row[:1] for row in rows) for name, rows in FOUND.accuracies.items()}
    return replace(FOUND, seeds=(0,), base=(base,), accuracies=rows)


def test_one_seed_has_no_interval():
    found = one_seed(0.60)
    report = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert report["base"] == {"accuracies": [0.6], "mean": 0.6, "low": None, "high": None}
    assert found.readings()[0] == (
        "Fragile co-adaptation: B2B is 10.0 points below baseB (one seed)"
    )
    lower = one_seed(0.40)
    assert not lower.is_seen("co_adaptation")
    assert lower.readings()[0] == (
        "Fragile co-adaptation: not seen: B2B is 10.0 points above baseB (one seed)"
    )


def test_the_table_has_a_row_for_each_depth():
    lines = FOUND.table().splitlines()
    assert lines[0] == "| n | copied up to | BnB | BnB+ | AnB | AnB+ |"
    assert lines[2] == "| 0 | baseB | 61.0 ± 2.5 |  |  |  |"
    assert lines[4] == "| 2 | layer1 | 51.3 ± 3.8 | 61.3 ± 2.9 | 49.7 ± 1.4 | 61.7 ± 3.8 |"
    assert len(lines) == 6
    assert one_seed(0.6).table().splitlines()[3].startswith("| 1 | stem | 60.0 |")
