import json
import math

import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.errors import DataError, ModelError
from jaxtransfer.evaluate.comparison import (
    Arm,
    compare_arms,
    reinitialise,
    start_of_arm,
    verdict,
)
from jaxtransfer.evaluate.metrics import Interval

BUDGET = jt.Budget(per_class=2, steps=6, batch_size=8, learning_rates=(1e-3, 1e-2))
ARMS = ("naive", "scratch", "probe", "full", "lp_ft")


@pytest.fixture(scope="module")
def source():
    model = jt.init("cifar_resnet8", in_channels=1, width=4, input_size=(8, 8), num_classes=3)
    return model.with_labels(["1", "x", "0"])


@pytest.fixture(scope="module")
def target():
    digits = jt.load_digits()
    few = digits.take(np.flatnonzero(digits.labels < 3))
    return jt.ArrayData(few.images, few.labels, ("0", "1", "2"))


@pytest.fixture(scope="module")
def comparison(source, target):
    return compare_arms(source, target, budget=BUDGET, seeds=(0, 1))


def test_every_arm_is_there_with_a_curve_for_each_seed(comparison):
    assert tuple(comparison.arms) == ARMS
    for arm in comparison.arms.values():
        assert len(arm.curves) == 2
        assert all(len(curve) == len(comparison.evaluated_at) for curve in arm.curves)
    assert comparison.evaluated_at[0] == 0 and comparison.evaluated_at[-1] == BUDGET.steps


def test_json_has_the_documented_keys_and_no_nan(comparison):
    report = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    for key in ("arms", "verdict", "seeds", "budget", "environment"):
        assert key in report
    for name in ARMS:
        for quantity in ("start", "slope", "asymptote"):
            assert set(report["arms"][name][quantity]) == {"mean", "low", "high"}
    assert report["seeds"] == [0, 1]
    assert report["budget"]["steps"] == BUDGET.steps


def test_summaries_are_those_of_the_curves(comparison):
    for arm in comparison.arms.values():
        assert arm.start.mean == pytest.approx(np.mean([curve[0] for curve in arm.curves]))
        last = [t >= 0.8 * BUDGET.steps for t in comparison.evaluated_at]
        assert arm.asymptote.mean == pytest.approx(np.mean(np.array(arm.curves)[:, last]))


def test_transfer_arms_share_their_start_and_naive_does_not_learn(comparison):
    starts = {name: [c[0] for c in comparison.arms[name].curves] for name in ARMS}
    assert starts["probe"] == starts["full"] == starts["lp_ft"]
    assert comparison.arms["probe"].start.mean == comparison.starts["reused_head"].mean
    naive = comparison.arms["naive"]
    assert all(len(set(curve)) == 1 for curve in naive.curves)
    assert naive.slope.mean == 0 and naive.learning_rate is None


def test_each_arm_chose_the_rate_of_the_best_validation_score(comparison):
    for name in ARMS[1:]:
        arm = comparison.arms[name]
        assert [rate for rate, _ in arm.search] == sorted(BUDGET.learning_rates)
        best = max(score for _, score in arm.search)
        assert dict(arm.search)[arm.learning_rate] == best


def test_differences_are_paired_by_seed(comparison):
    scratch, full = comparison.arms["scratch"], comparison.arms["full"]
    pairs = zip(full.curves, scratch.curves, strict=True)
    differences = [mine[0] - theirs[0] for mine, theirs in pairs]
    assert full.versus_scratch["start"].mean == pytest.approx(np.mean(differences))
    assert scratch.versus_scratch == {}


def test_the_same_seeds_give_the_same_comparison(source, target, comparison):
    again = compare_arms(source, target, budget=BUDGET, seeds=(0, 1))
    assert again.to_dict() == comparison.to_dict()


def test_progress_counts_every_step_of_every_run(source, target):
    seen = []
    budget = jt.Budget(per_class=2, steps=3, batch_size=4, learning_rates=(1e-3,))
    compare_arms(
        source,
        target,
        arms=("scratch", "probe"),
        budget=budget,
        seeds=(5,),
        on_progress=lambda what, done, total: seen.append((what, done, total)),
    )
    assert [done for _, done, _ in seen] == list(range(1, 7))
    assert {total for _, _, total in seen} == {6}
    assert {what for what, _, _ in seen} == {"scratch: seed 5", "probe: seed 5"}


def test_the_reused_rows_are_named(comparison):
    assert comparison.reused == ("0", "1")


def test_scratch_has_nothing_of_the_source(source):
    scratch, plans = start_of_arm(source, "scratch", ("0", "1", "2"), seed=0)
    difference = jt.diff(source.params, scratch.params)
    kernels = [name for name in jt.select(source.params, "**/kernel") if "head" not in name]
    other_source = reinitialise(source, 7)
    assert set(kernels) <= set(jt.diff(other_source.params, scratch.params).changed)
    assert difference.reshaped == ()
    assert plans[0].name == "full"


def test_a_network_that_is_not_in_the_catalog_has_no_scratch_arm(target):
    model = jt.Model.from_function(lambda params, x: x.mean() * params["head"], {"head": 1.0})
    with pytest.raises(ModelError, match="leave the arm out"):
        reinitialise(model, 0)


@pytest.mark.parametrize("arms", [("naive", "prob"), ("guess",)])
def test_unknown_arms_are_refused(source, target, arms):
    with pytest.raises(ModelError, match="arms among"):
        compare_arms(source, target, arms=arms)


def test_data_without_names_is_refused(source, target):
    with pytest.raises(DataError, match="names of classes"):
        compare_arms(source, jt.ArrayData(target.images, target.labels))


def arm(**versus: tuple[float, float, float]) -> Arm:
    values = {key: Interval(0.0, -1.0, 1.0) for key in ("start", "slope", "asymptote")}
    values |= {key: Interval(*value) for key, value in versus.items()}
    end = values["asymptote"]
    return Arm(end, end, end, curves=((0.1, 0.2),) * 3, versus_scratch=values)


SCRATCH = Arm(*(Interval(0, 0, 0),) * 3, curves=((0.1, 0.2),) * 3)
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
    assert sentence in verdict({"scratch": SCRATCH, "probe": probe})


def test_the_verdict_is_about_the_best_arm():
    arms = {
        "scratch": SCRATCH,
        "probe": arm(asymptote=(-0.2, -0.3, -0.1)),
        "full": arm(asymptote=(-0.1, -0.15, -0.05)),
    }
    assert "best transfer arm, full, ends 10.0 points below" in verdict(arms)


def test_without_scratch_there_is_no_verdict():
    assert verdict({"probe": arm()}).startswith("No verdict")
