from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from jaxtransfer.errors import PlanError
from jaxtransfer.models import Model
from jaxtransfer.models.catalog import build
from jaxtransfer.partition import (
    RECIPES,
    Group,
    Plan,
    full,
    last,
    layer_decay,
    lp_ft,
    probe,
    resolve_plans,
)
from jaxtransfer.tree import leaf_names

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


@pytest.mark.parametrize("share", [0.0, 1.0, float("nan")])
def test_lp_ft_needs_steps_for_both_parts(share: float, network: Model) -> None:
    with pytest.raises(PlanError, match="above 0 and below 1"):
        lp_ft(network, head_share=share)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("probe", ["probe"]),
        ("lp_ft", ["lp_ft: head", "lp_ft: all"]),
        (Plan((Group("**"),), name="mine"), ["mine"]),
        ([Plan((Group("**"),), name="a"), Plan((Group("**"),), name="b")], ["a", "b"]),
    ],
)
def test_plans_may_be_asked_for_in_many_ways(given: Any, names: list[str], network: Model) -> None:
    assert [plan.name for plan in resolve_plans(given, network)] == names


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("prob", "a recipe among probe, full, last, layer_decay, lp_ft, found 'prob'"),
        ([], "found list"),
        (5, "found int"),
        (["probe"], "found list"),
        (None, "found NoneType"),
    ],
)
def test_anything_else_is_an_error(given: Any, message: str, network: Model) -> None:
    with pytest.raises(PlanError, match=re.escape(message)):
        resolve_plans(given, network)


def test_the_head_may_lie_below_a_stage() -> None:
    params = {"body": {"kernel": np.zeros((2, 2))}, "top": {"out": {"kernel": np.zeros((2, 2))}}}
    model = Model.from_function(lambda params, x: x, params, head="top/out")
    assert probe(model).chooses(leaf_names(params)) == (False, True)
