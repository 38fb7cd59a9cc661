import math

import pytest

from jaxtransfer.evaluate.metrics import Interval
from jaxtransfer.evaluate.results import ArmResult
from jaxtransfer.evaluate.verdict import verdict


def arm(naive=None, **versus: tuple[float, float, float]) -> ArmResult:
    values = {key: Interval(0.0, -1.0, 1.0) for key in ("start", "slope", "asymptote")}
    values |= {key: Interval(*value) for key, value in versus.items()}
    end = values["asymptote"]
    over = {} if naive is None else {"asymptote": Interval(*naive)}
    return ArmResult(
        end, end, end, curves=((0.1, 0.2),) * 3, versus_scratch=values, versus_naive=over
    )


SCRATCH = ArmResult(*(Interval(0, 0, 0),) * 3, curves=((0.1, 0.2),) * 3, kind="scratch")
NAN = math.nan


@pytest.mark.parametrize(
    ("probe", "sentence"),
    [
        (arm(asymptote=(0.1, 0.05, 0.15)), "Transfer helped: probe ends 10.0 points above scratch"),
        (
            arm(asymptote=(0.1, 0.05, 0.15), start=(0.5, 0.4, 0.6), slope=(0.1, 0.01, 0.2)),
            "with a higher start and a higher slope.",
        ),
        (
            arm(asymptote=(-0.1, -0.15, -0.05)),
            "Negative transfer: the best transfer arm, probe, ends 10.0 points below scratch",
        ),
        (
            arm(asymptote=(0.01, -0.05, 0.07)),
            "Transfer did not help: the best transfer arm, probe, ends 1.0 points above scratch "
            "(95 % interval -5.0 to +7.0, 3 seeds).",
        ),
        (
            arm(asymptote=(0.0, -0.05, 0.05), start=(0.5, 0.4, 0.6)),
            "Transfer helped early only: probe has a higher start, but ends 0.0 points above",
        ),
        (arm(asymptote=(0.1, NAN, NAN)), "One seed cannot tell: probe ends 10.0 points above"),
    ],
)
def test_the_verdict_follows_the_intervals(probe, sentence):
    assert sentence in verdict({"nothing": SCRATCH, "probe": probe})


def test_the_verdict_is_about_the_best_arm():
    arms = {
        "scratch": SCRATCH,
        "probe": arm(asymptote=(-0.2, -0.3, -0.1)),
        "full": arm(asymptote=(-0.1, -0.15, -0.05)),
    }
    assert "best transfer arm, full, ends 10.0 points below" in verdict(arms)


@pytest.mark.parametrize(
    ("naive", "found"),
    [
        ((0.2, 0.1, 0.3), None),
        ((0.2, NAN, NAN), None),
        (
            (0.02, -0.01, 0.05),
            "is not shown to beat the naive answer: it ends"
            " 2.0 points above the majority answer (95 % interval -1.0 to +5.0).",
        ),
        (
            (-0.02, -0.05, 0.01),
            "is not shown to beat the naive answer: it ends"
            " 2.0 points below the majority answer (95 % interval -5.0 to +1.0).",
        ),
        (
            (-0.02, -0.05, -0.01),
            "is no better than the naive answer: it ends"
            " 2.0 points below the majority answer (95 % interval -5.0 to -1.0).",
        ),
        (
            (-0.02, NAN, NAN),
            "does not beat the naive answer: it ends 2.0 points below the majority answer.",
        ),
        (
            (0.0, 0.0, 0.0),
            "is no better than the naive answer: it ends"
            " 0.0 points above the majority answer (95 % interval +0.0 to +0.0).",
        ),
    ],
)
def test_a_source_that_does_not_beat_naive_is_said_so(naive, found):
    probe = arm(naive, asymptote=(0.1, 0.05, 0.15))
    sentence = verdict({"scratch": SCRATCH, "probe": probe})
    assert sentence.startswith("Transfer helped: probe ends 10.0 points above scratch")
    assert ("naive" in sentence) == (found is not None)
    assert found is None or sentence.endswith(found)


def test_without_scratch_there_is_no_verdict_but_on_naive():
    alone = ArmResult(
        *(Interval(0.5, 0.4, 0.6),) * 3,
        curves=((0.1, 0.2),) * 3,
        versus_naive={"asymptote": Interval(-0.1, -0.2, 0.0)},
    )
    sentence = verdict({"probe": alone})
    assert sentence.startswith("No verdict: it takes the scratch arm; of the transfer arms probe")
    assert "is no better than the naive answer" in sentence
    assert verdict({"scratch": SCRATCH}).startswith("No verdict")
