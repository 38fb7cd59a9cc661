import functools
import json
import math
from typing import Any

import jax
import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.errors import DataError, ModelError, PlanError
from jaxtransfer.evaluate.comparison import compare_arms
from jaxtransfer.train.proof import Cost

BUDGET = jt.Budget(per_class=2, steps=6, batch_size=8, learning_rates=(1e-3, 1e-2), extensions=0)
ARMS = ("naive", "scratch", "probe", "full", "lp_ft")
# Of the networks of the catalog one that compiles quickly.
SMALL: dict[str, Any] = {"patch": 8, "width": 16, "depth": 1, "heads": 1, "input_size": (8, 8)}


@pytest.fixture(scope="module")
def source():
    model = jt.init("vit_ti16", **SMALL, in_channels=1, num_classes=3)
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
        assert tuple(rate for rate, _ in arm.search) == BUDGET.learning_rates
        best = max(score for _, score in arm.search)
        assert dict(arm.search)[arm.learning_rate] == best


def test_differences_are_paired_by_seed(comparison):
    scratch, full = comparison.arms["scratch"], comparison.arms["full"]
    pairs = zip(full.curves, scratch.curves, strict=True)
    differences = [mine[0] - theirs[0] for mine, theirs in pairs]
    assert full.versus_scratch["start"].mean == pytest.approx(np.mean(differences))
    assert scratch.versus_scratch == {}


def without_seconds(comparison):
    report = comparison.to_dict()
    for arm in report["arms"].values():
        (arm["cost"] or {}).pop("seconds", None)
    return report


def test_the_same_seeds_give_the_same_comparison(source, target, comparison):
    again = compare_arms(source, target, budget=BUDGET, seeds=(0, 1))
    assert without_seconds(again) == without_seconds(comparison)


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


def test_every_trained_arm_beats_or_loses_to_naive_by_what_its_curves_say(comparison):
    naive = np.array(comparison.arms["naive"].curves)[:, 0]
    for name in ARMS[1:]:
        arm = comparison.arms[name]
        starts = np.array(arm.curves)[:, 0]
        assert arm.versus_naive["start"].mean == pytest.approx(np.mean(starts - naive))


def test_the_ends_of_single_examples_make_up_the_asymptote(comparison):
    for name in ARMS[1:]:
        arm = comparison.arms[name]
        assert [len(end) for end in arm.ends] == [comparison.examples["test"]] * 2
        assert np.mean([end.mean() for end in arm.ends]) == pytest.approx(arm.asymptote.mean)
        over = arm.bootstrap["asymptote over examples"]
        assert over.mean == pytest.approx(arm.asymptote.mean)
        assert over.low <= over.mean <= over.high
    paired = comparison.arms["full"].bootstrap["versus_scratch over examples"]
    assert paired.mean == pytest.approx(comparison.arms["full"].versus_scratch["asymptote"].mean)


def test_any_two_arms_can_be_told_apart_paired_by_seed(comparison):
    found = comparison.difference("full", "probe", "start")
    assert found == (0, 0, 0)
    assert (
        comparison.difference("full", "scratch")
        == comparison.arms["full"].versus_scratch["asymptote"]
    )
    assert comparison.bootstrap_difference("full", "full") == (0, 0, 0)
    assert comparison.bootstrap_difference("full", "naive") is None
    with pytest.raises(ModelError, match="expected arms among naive.*found fool"):
        comparison.difference("fool", "probe")
    with pytest.raises(ModelError, match="expected arms among naive.*found fool"):
        comparison.bootstrap_difference("full", "fool")
    with pytest.raises(ModelError, match="expected one of start.*found 'end'"):
        comparison.difference("full", "probe", "end")


def test_an_arm_that_trains_less_costs_less(comparison):
    cost = {name: comparison.arms[name].cost for name in ARMS[1:]}
    assert comparison.arms["naive"].cost is None
    assert cost["probe"].flops < cost["lp_ft"].flops < cost["full"].flops
    assert cost["full"].flops == cost["scratch"].flops
    assert cost["probe"].trainable_parameters == 16 * 3 + 3
    assert cost["probe"].trainable_bytes == 4 * (16 * 3 + 3)
    # The moments of AdamW, and some scalars.
    for one in cost.values():
        assert 0 <= one.optimizer_bytes - 2 * one.trainable_bytes < 200
        assert one.seconds > 0 and one.memory > one.trainable_bytes


def test_costs_are_those_of_the_steps(target, monkeypatch):
    costs = iter([Cost(10.0, 5, 7), Cost(100.0, None, 3)])
    monkeypatch.setattr("jaxtransfer.evaluate.cost.step_cost", lambda *_: next(costs))
    budget = jt.Budget(per_class=2, steps=8, batch_size=4, learning_rates=(1e-3,))
    arm = compare_arms(own_net(0), target, arms=("lp_ft",), budget=budget, seeds=(0,)).arms["lp_ft"]
    # A quarter of the steps trains the head alone.
    assert arm.cost.flops == 2 * 10 + 6 * 100
    assert (arm.cost.memory, arm.cost.optimizer_bytes) == (5, 7)


def own_net(seed, classes=3):
    keys = jax.random.split(jax.random.key(seed))
    params = {
        "body": {"kernel": 0.2 * jax.random.normal(keys[0], (64, 8))},
        "head": {"kernel": 0.2 * jax.random.normal(keys[1], (8, classes))},
    }
    return jt.Model.from_function(own_forward, params, stages=("body", "head"))


def own_forward(params, x):
    hidden = jax.nn.relu(x.reshape(len(x), -1) @ params["body"]["kernel"])
    return hidden @ params["head"]["kernel"]


@pytest.fixture(scope="module")
def own(target):
    """A user's own networks, plans and settings, on all examples, with parts of their own."""
    parts = jt.stratified_split(target.labels, (0.2, 0.2, 0.6), seed=0)
    train, validation, test = (target.take(part) for part in parts)
    head = jt.Plan((jt.Group("head/**"), jt.Group("**", frozen=True)), name="mine: head")
    return compare_arms(
        own_net(1, classes=5),
        train,
        test=test,
        validation=validation,
        arms={
            "guess": None,
            "from nothing": "scratch",
            "mine": (head, jt.Plan((jt.Group("**", lr_scale=0.5),), name="mine: all")),
            "by name": "last(1)",
            "other": jt.Arm(
                lambda model: jt.full(model),
                source=own_net(2, classes=5),
                settings=lambda start: {"regularisers": jt.l2_sp(start), "weight_decay": 0.0},
                learning_rates=(1e-4, 1e-3),
            ),
        },
        budget=jt.Budget(
            per_class=None, epochs=1.5, batch_size=16, learning_rates=(1e-3, 1e-2), extensions=1
        ),
        settings={"optimizer": "sgd"},
        seeds=(3, 5),
        initialise=functools.partial(own_net, classes=5),
    )


def test_arms_have_the_names_plans_and_sources_that_were_given(own):
    assert {name: arm.kind for name, arm in own.arms.items()} == {
        "guess": "naive",
        "from nothing": "scratch",
        "mine": "transfer",
        "by name": "transfer",
        "other": "transfer",
    }
    assert own.arms["mine"].plan == "mine: head, then mine: all"
    assert own.arms["by name"].plan == "last(1)"
    assert own.arms["mine"].curves[0][0] != own.arms["other"].curves[0][0]
    assert own.reused == () and own.verdict


def test_settings_of_all_arms_and_of_one_reach_its_runs(own):
    # SGD with momentum keeps one moment, or none.
    cost = own.arms["other"].cost
    assert cost.optimizer_bytes <= cost.trainable_bytes + 200
    grids = {name: {rate for rate, _ in own.arms[name].search} for name in ("mine", "other")}
    assert {1e-3, 1e-2} <= grids["mine"] and {1e-4, 1e-3} <= grids["other"]
    assert all(len(grid) <= 3 for grid in grids.values())


def test_epochs_of_all_examples_are_steps(own, target):
    count = own.examples["train"]
    assert count + own.examples["validation"] + own.examples["test"] == len(target)
    assert own.steps == math.ceil(1.5 * count / 16)


def test_the_report_of_own_arms_is_json(own):
    report = json.loads(json.dumps(own.to_dict(), allow_nan=False))
    assert report["budget"]["epochs"] == 1.5 and report["arms"]["guess"]["cost"] is None


def test_progress_counts_the_steps_beyond_the_grid_too(target):
    seen = []
    budget = jt.Budget(per_class=2, steps=2, batch_size=4, learning_rates=(1e-6, 1e-5))
    comparison = compare_arms(
        own_net(0),
        target,
        arms=("full",),
        budget=budget,
        seeds=(0,),
        on_progress=lambda what, done, total: seen.append((done, total)),
    )
    search = comparison.arms["full"].search
    runs = len(search) + 1
    assert seen[-1] == (2 * runs, 2 * runs)


def test_a_rate_at_which_the_loss_explodes_is_not_chosen(target):
    budget = jt.Budget(per_class=2, steps=12, batch_size=4, learning_rates=(1e-3, 1e38))
    comparison = compare_arms(
        own_net(0),
        target,
        arms=("full",),
        budget=budget,
        settings={"optimizer": "sgd"},
        seeds=(0,),
    )
    arm = comparison.arms["full"]
    assert dict(arm.search)[1e38] is None and arm.learning_rate < 1


def test_scratch_needs_to_know_random_weights(target):
    with pytest.raises(ModelError, match="or initialise="):
        compare_arms(own_net(0), target, arms=("scratch",), budget=BUDGET, seeds=(0,))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": ()}, "at least one seed, found none"),
        ({"seeds": (1, 1)}, "seeds, each once"),
        ({"seeds": (1, -1)}, "seeds of at least 0, found -1"),
        (
            {"arms": {"a": jt.Arm(learning_rates=(1.0,))}, "budget": BUDGET},
            "as many learning rates of 'a' as the budget has, for the same chance, 2, found 1",
        ),
        ({"arms": {"a": jt.Arm(settings={"step": 1})}, "seeds": (0,)}, r"found \['step'\]"),
        ({"settings": {"seed": 1}, "seeds": (0,)}, r"found \['seed'\]"),
    ],
)
def test_what_does_not_fit_together_is_told(source, target, arguments, message):
    with pytest.raises(ModelError, match=message):
        compare_arms(source, target, **arguments)


def test_unknown_recipes_are_refused(source, target):
    with pytest.raises(PlanError, match="a recipe among"):
        compare_arms(source, target, arms=("naive", "prob"))


def test_without_validation_images_there_is_no_search(target):
    few = target.take(np.arange(30))
    with pytest.raises(DataError, match="to choose a learning rate by, found none"):
        compare_arms(own_net(0), few, test=target, budget=BUDGET, validation=few.take(np.arange(0)))


def test_classes_without_names_are_counted(target):
    plain = jt.ArrayData(target.images, target.labels)
    budget = jt.Budget(per_class=2, steps=2, batch_size=4, learning_rates=(1e-3,))
    comparison = compare_arms(own_net(0, classes=7), plain, arms=("probe",), budget=budget)
    assert comparison.reused == () and comparison.arms["probe"].cost.trainable_parameters == 8 * 3


def test_the_moving_average_is_what_is_measured(target):
    budget = jt.Budget(per_class=2, steps=3, batch_size=4, learning_rates=(0.1,))
    arms = {
        "plain": jt.Arm(settings={"ema_decay": 0.0}),
        "frozen": jt.Arm(settings={"ema_decay": 0.9999999}),
    }
    found = compare_arms(own_net(0), target, arms=arms, budget=budget, seeds=(0,)).arms
    assert len(set(found["frozen"].curves[0])) == 1 < len(set(found["plain"].curves[0]))
