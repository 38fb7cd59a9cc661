from __future__ import annotations

import re
from typing import Any

import jax
import numpy as np
import pytest

from jaxtransfer.errors import PlanError
from jaxtransfer.models import Model, init
from jaxtransfer.models.catalog import build
from jaxtransfer.partition import (
    RECIPES,
    Group,
    Plan,
    discriminative,
    freeze_until,
    full,
    gradual,
    last,
    layer_decay,
    lp_ft,
    probe,
    resolve_plans,
    surgical,
)
from jaxtransfer.surgery import stack, unstack_blocks
from jaxtransfer.train import cross_entropy, init_state, make_train_step
from jaxtransfer.tree import flatten, leaf_names, named_leaves

STAGES = ("stem", "layer1", "layer2", "layer3", "head")


@pytest.fixture(scope="module")
def network() -> Model:
    return build("cifar_resnet8", width=4, input_size=(8, 8))


def stages_that_train(plan: Plan, model: Model) -> list[str]:
    """The stages all of whose parameters train; none may train in part."""
    names = leaf_names(model.params)
    trains = {}
    for name, chosen in zip(names, plan.chooses(names), strict=True):
        assert trains.setdefault(name.split("/")[0], chosen) == chosen
    return [stage for stage in STAGES if trains[stage]]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_fits_every_leaf(name: str, network: Model) -> None:
    for plan in resolve_plans(name, network):
        plan.check(network.params, network.stats)


def test_a_probe_trains_the_head_alone_and_freezes_all_statistics(network: Model) -> None:
    plan = probe(network)
    assert stages_that_train(plan, network) == ["head"]
    groups = plan.assign_stats(network.params, network.stats).values()
    assert groups and all(group.freezes_stats for group in groups)


def test_full_trains_everything_and_updates_all_statistics(network: Model) -> None:
    plan = full(network)
    assert stages_that_train(plan, network) == list(STAGES)
    groups = plan.assign_stats(network.params, network.stats).values()
    assert groups and not any(group.freezes_stats for group in groups)


@pytest.mark.parametrize("n", range(1, 6))
def test_last_trains_the_last_stages_that_have_parameters(n: int, network: Model) -> None:
    plan = last(network, n)
    assert stages_that_train(plan, network) == list(STAGES[-n:])
    for name, group in plan.assign_stats(network.params, network.stats).items():
        assert group.freezes_stats == (name.split("/")[0] not in STAGES[-n:])


@pytest.mark.parametrize("n", [0, -1, 6])
def test_last_knows_how_many_stages_there_are(n: int, network: Model) -> None:
    with pytest.raises(PlanError, match=rf"from 1 to 5 \(stem, .*, head\), found {n}"):
        last(network, n)


def test_layer_decay_slows_each_stage_by_the_same_factor(network: Model) -> None:
    plan = layer_decay(network, 0.5)
    scales = {
        name.split("/")[0]: plan.groups[position].lr_scale
        for name, position in zip(
            leaf_names(network.params), plan.assign(leaf_names(network.params)), strict=True
        )
    }
    assert scales == {"head": 1, "layer3": 0.5, "layer2": 0.25, "layer1": 0.125, "stem": 0.0625}


@pytest.mark.parametrize("decay", [0.0, -0.5, 1.01, float("nan")])
def test_layer_decay_needs_a_factor(decay: float, network: Model) -> None:
    with pytest.raises(PlanError, match="above 0 and at most 1"):
        layer_decay(network, decay)


def test_lp_ft_trains_the_head_and_then_everything(network: Model) -> None:
    head, everything = lp_ft(network, head_share=0.25, lr_scale=0.1)
    assert stages_that_train(head, network) == ["head"]
    assert stages_that_train(everything, network) == list(STAGES)
    assert (head.share, everything.share) == (0.25, 0.75)
    assert [group.lr_scale for group in everything.groups] == [0.1]
    assert head.name != everything.name


@pytest.mark.parametrize(
    ("stage", "trained"), [("stem", 5), ("layer2", 3), ("pool", 1), ("head", 1)]
)
def test_freeze_until_trains_a_stage_and_all_after_it(
    stage: str, trained: int, network: Model
) -> None:
    plan = freeze_until(network, stage)
    assert stages_that_train(plan, network) == list(STAGES[-trained:])
    for name, group in plan.assign_stats(network.params, network.stats).items():
        assert group.freezes_stats == (name.split("/")[0] not in STAGES[-trained:])


@pytest.mark.parametrize("recipe", [freeze_until, surgical])
def test_a_stage_must_be_there(recipe: Any, network: Model) -> None:
    with pytest.raises(PlanError, match=r"a stage among stem, .*head, found 'layer9'"):
        recipe(network, "layer9")


def test_discriminative_rates_grow_by_equal_factors(network: Model) -> None:
    plan = discriminative(network, 0.0625, 1.0)
    scales = {group.label: group.lr_scale for group in plan.groups}
    expected = {"head": 1.0, "layer3": 0.5, "layer2": 0.25, "layer1": 0.125, "stem": 0.0625}
    assert scales == pytest.approx({f"{stage}/**": scale for stage, scale in expected.items()})


@pytest.mark.parametrize(("lo", "hi"), [(0.0, 1.0), (0.1, -1.0), (float("nan"), 1.0)])
def test_discriminative_rates_have_ends(lo: float, hi: float, network: Model) -> None:
    with pytest.raises(PlanError, match="discriminative: expected numbers above 0"):
        discriminative(network, lo, hi)


def test_surgery_trains_one_stage_alone(network: Model) -> None:
    assert stages_that_train(surgical(network, "layer1"), network) == ["layer1"]
    with_head = surgical(network, "layer1", train_head=True)
    assert stages_that_train(with_head, network) == ["layer1", "head"]
    assert surgical(network, "head", train_head=True).groups == surgical(network, "head").groups
    for name, group in with_head.assign_stats(network.params, network.stats).items():
        assert group.freezes_stats == (not name.startswith("layer1/"))


def test_gradual_unfreezes_from_the_head_down(network: Model) -> None:
    plans = gradual(network, 3, patience=2)
    assert [stages_that_train(plan, network) for plan in plans] == [
        ["head"],
        ["layer2", "layer3", "head"],
        list(STAGES),
    ]
    assert [plan.name for plan in plans] == [
        "gradual 1 of 3: head",
        "gradual 2 of 3: from layer2",
        "gradual 3 of 3: from stem",
    ]
    assert {(plan.share, plan.patience) for plan in plans} == {(1.0, 2)}


@pytest.mark.parametrize(("phases", "expected"), [(1, 1), (2, 2), (5, 5), (50, 5)])
def test_gradual_has_no_more_phases_than_stages(phases: int, expected: int, network: Model) -> None:
    plans = gradual(network, phases)
    trained = [stages_that_train(plan, network) for plan in plans]
    assert len(plans) == expected
    assert trained[-1] == list(STAGES)
    assert all(len(a) < len(b) for a, b in zip(trained, trained[1:], strict=False))


def test_gradual_needs_a_phase(network: Model) -> None:
    with pytest.raises(PlanError, match="at least 1 phase, found 0"):
        gradual(network, 0)


# ---------------------------------------------------------------------------------------------
# Scanned blocks


@pytest.mark.parametrize("recipe", [layer_decay, discriminative])
def test_rates_go_along_scanned_blocks(recipe: Any) -> None:
    sizes = {"depth": 3, "width": 8, "heads": 2, "hidden": 8, "input_size": (32, 32)}
    apart, scanned = (recipe(build("vit_ti16", **sizes, scan=scan)) for scan in (False, True))
    rates = {group.label: group.lr_scale for group in apart.groups}
    expected = tuple(rates.pop(f"block{i}/**") for i in range(3))
    assert len(set(rates.values()) | set(expected)) == 6
    found = {group.label: group.lr_scale for group in scanned.groups}
    assert found.pop("blocks/**") == expected
    assert found == rates
    scanned.check(build("vit_ti16", **sizes, scan=True).params, {})


@pytest.mark.slow
def test_scanned_training_is_training_block_by_block() -> None:
    sizes = {"depth": 2, "width": 4, "heads": 1, "hidden": 4, "patch": 4, "input_size": (4, 4)}
    start = init("vit_ti16", **sizes, in_channels=1, num_classes=3)
    batch = {
        "image": np.random.default_rng(0).random((6, 4, 4, 1)).astype(np.float32),
        "label": np.arange(6) % 3,
    }
    trained = []
    for model in (start, stack(start)):
        plan = layer_decay(model, 0.5)
        # Biases of keys have no gradient but noise, which Adam would make large.
        tx = plan.optimizer(0.1, optimizer="sgd", weight_decay=0.1)
        step = make_train_step(model.apply, cross_entropy(), tx, plan)
        state = init_state(model, plan, tx)
        for _ in range(3):
            state, _ = step(state, batch)
        trained.append(state.trainable)
    again = unstack_blocks(trained[1])
    moved = 0.0
    for (name, leaf), expected in zip(
        named_leaves(trained[0]), jax.tree.leaves(again), strict=True
    ):
        np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=1e-6, err_msg=name)
        moved = max(moved, float(np.abs(leaf - flatten(start.params)[name]).max()))
    assert moved > 0.01


@pytest.mark.parametrize("recipe", [freeze_until, surgical])
def test_a_block_of_a_scanned_stage_is_no_stage(recipe: Any) -> None:
    model = build("vit_ti16", depth=2, scan=True)
    with pytest.raises(PlanError, match=r"unstack\(model\) has a stage for each block"):
        recipe(model, "block1")


@pytest.mark.parametrize("share", [0.0, 1.0, float("nan")])
def test_lp_ft_needs_steps_for_both_parts(share: float, network: Model) -> None:
    with pytest.raises(PlanError, match="above 0 and below 1"):
        lp_ft(network, head_share=share)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("probe", ["probe"]),
        ("lp_ft", ["lp_ft: head", "lp_ft: all"]),
        ("lp_ft(0.5)", ["lp_ft: head", "lp_ft: all"]),
        ("last(2)", ["last(2)"]),
        ("last()", ["last(1)"]),
        ("layer_decay( 0.5 )", ["layer_decay(0.5)"]),
        ("discriminative(1e-2, 1)", ["discriminative(0.01, 1)"]),
        (Plan((Group("**"),), name="mine"), ["mine"]),
        ([Plan((Group("**"),), name="a"), Plan((Group("**"),), name="b")], ["a", "b"]),
    ],
)
def test_plans_may_be_asked_for_in_many_ways(given: Any, names: list[str], network: Model) -> None:
    assert [plan.name for plan in resolve_plans(given, network)] == names


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("prob", "a recipe among probe, full, last, layer_decay, discriminative, bias_only,"),
        ("freeze_until", "with arguments such as last(2) or freeze_until(STAGE)"),
        ("guess(2)", "found 'guess(2)'"),
        ("last(2, 3)", "plan: expected last(n=1), found"),
        ("last(two)", "plan: expected last(n=1), found"),
        ("last(99)", "last: expected n from 1 to"),
        ("surgical()", "plan: expected surgical(stage, train_head=False), found"),
        ([], "found list"),
        (5, "found int"),
        (["probe"], "found list"),
        (None, "found NoneType"),
    ],
)
def test_anything_else_is_an_error(given: Any, message: str, network: Model) -> None:
    with pytest.raises(PlanError, match=re.escape(message)):
        resolve_plans(given, network)


@pytest.mark.parametrize("quote", ["", "'", '"'])
def test_a_recipe_in_words_may_name_a_stage(quote: str, network: Model) -> None:
    stage = network.spec.stages[1]
    (plan,) = resolve_plans(f"freeze_until({quote}{stage}{quote})", network)
    assert plan == freeze_until(network, stage)


def test_the_head_may_lie_below_a_stage() -> None:
    params = {"body": {"kernel": np.zeros((2, 2))}, "top": {"out": {"kernel": np.zeros((2, 2))}}}
    model = Model.from_function(lambda params, x: x, params, head="top/out")
    assert probe(model).chooses(leaf_names(params)) == (False, True)
