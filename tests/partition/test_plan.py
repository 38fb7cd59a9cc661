from __future__ import annotations

import json
import re
from typing import Any

import jax
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxtransfer.errors import PlanError
from jaxtransfer.models import Model
from jaxtransfer.models.catalog import build
from jaxtransfer.partition import OPTIMIZERS, Group, Plan, probe
from jaxtransfer.tree import count_bytes, leaf_names, matches, split

NAMES = (
    "head/bias",
    "head/kernel",
    "layer1/0/bn/bias",
    "layer1/0/bn/scale",
    "layer1/0/conv/kernel",
    "stem/kernel",
)
PATTERNS = ("**", "head/**", "**/kernel", "layer1/**", "**/bn/*", "{stem,head}/*", "stem/kernel")
FROZEN = Group("**", frozen=True)


@pytest.fixture(scope="module")
def network() -> Model:
    """A small residual network of which only the shapes are there."""
    return build("cifar_resnet8", width=4, input_size=(8, 8), shortcut="projection")


def numbers(*names: str) -> dict[str, Any]:
    """A tree with a leaf of two by three for each name that ends in kernel, of three for others."""
    tree: dict[str, Any] = {}
    for name in names:
        node = tree
        *parents, last = name.split("/")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = np.zeros((2, 3) if last == "kernel" else 3, np.float32)
    return tree


# ---------------------------------------------------------------------------------------------
# Which group


@given(st.lists(st.sampled_from(PATTERNS), max_size=5))
def test_the_first_group_that_matches_wins(patterns: list[str]) -> None:
    plan = Plan(tuple(map(Group, [*patterns, "**"])))
    expected = [
        next(i for i, pattern in enumerate([*patterns, "**"]) if matches(pattern, name))
        for name in NAMES
    ]
    if set(expected) == set(range(len(patterns) + 1)):
        assert list(plan.assign(NAMES)) == expected
    else:
        with pytest.raises(PlanError, match="belong to earlier groups"):
            plan.assign(NAMES)


def test_any_of_several_patterns_counts() -> None:
    plan = Plan((Group(("stem/**", re.compile(r"head/.*"))), FROZEN))
    assert plan.assign(NAMES) == (0, 0, 1, 1, 1, 0)
    assert plan.chooses(NAMES) == (True, True, False, False, False, True)


def test_all_problems_are_told_at_once_with_the_nearest_names() -> None:
    plan = Plan((Group("haed/**"), Group("stem/**"), Group("stem/kernel"), Group("laier1/**")))
    with pytest.raises(PlanError) as caught:
        plan.assign(NAMES)
    message = str(caught.value)
    assert "a group for each of 6 leaves and a leaf for each of 4 groups" in message
    for name in NAMES[:-1]:
        assert f" - {name}: in no group" in message
    assert "stem/kernel: in no group" not in message
    assert re.search(r" - group 'haed/\*\*': .*nearest names are head/", message)
    assert re.search(r" - group 'laier1/\*\*': .*nearest names are layer1/", message)
    assert " - group 'stem/kernel': all leaves that it matches belong to earlier" in message
    assert "group 'stem/**'" not in message


def test_a_plan_cuts_a_tree_in_what_trains_and_what_is_frozen() -> None:
    tree = numbers(*NAMES)
    trainable, frozen = split(tree, Plan((Group("head/**"), FROZEN)))
    assert leaf_names(trainable) == NAMES[:2]
    assert leaf_names(frozen) == NAMES[2:]


# ---------------------------------------------------------------------------------------------
# The whole fit


def test_check_accepts_a_plan_that_fits(network: Model) -> None:
    probe(network).check(network.params, network.stats)
    # A pattern may be there for a statistic alone.
    Plan((Group(("head/**", "**/mean")), FROZEN)).check(network.params, network.stats)


def test_check_finds_a_misspelt_pattern_beside_a_good_one(network: Model) -> None:
    plan = Plan((Group(("layer3/**", "haed/**")), FROZEN))
    assert plan.assign(leaf_names(network.params))  # the group has leaves
    with pytest.raises(PlanError, match=r"'haed/\*\*' matches no leaf; .* head/") as caught:
        plan.check(network.params, network.stats)
    assert "layer3/** matches" not in str(caught.value)


def test_check_tells_problems_of_parameters_patterns_and_statistics_at_once() -> None:
    params, stats = numbers("conv/kernel", "head/kernel"), numbers("norm/mean", "norm/var")
    plan = Plan((Group(("conv/**", "cnov/**")), Group("bn/**")))
    with pytest.raises(PlanError) as caught:
        plan.check(params, stats)
    lines = str(caught.value).splitlines()[1:]
    assert [line.split(":")[0] for line in lines] == [
        " - head/kernel",
        " - group 'bn/**'",
        " - group 'conv/** | cnov/**'",
        " - norm/mean",
        " - norm/var",
    ]


def test_the_remedy_for_a_statistic_without_a_group_is_one() -> None:
    params, stats = numbers("conv/kernel"), numbers("norm/mean")
    with pytest.raises(PlanError, match=r"norm/mean: .*add 'norm/mean' to the patterns"):
        Plan((Group("conv/**"),)).assign_stats(params, stats)
    mended = Plan((Group(("conv/**", "norm/mean"), stats="frozen"),))
    mended.check(params, stats)
    assert mended.assign_stats(params, stats)["norm/mean"].freezes_stats


# ---------------------------------------------------------------------------------------------
# Statistics


def test_a_statistic_belongs_to_the_first_group_that_matches_its_own_name() -> None:
    params = numbers("bn/bias", "bn/scale", "conv/kernel")
    plan = Plan((Group("bn/{bias,scale}"), Group(("conv/**", "**/mean"), stats="frozen")))
    assert plan.assign(leaf_names(params)) == (0, 0, 1)
    # The variance, which no pattern matches, goes with the parameters beside it.
    assert plan.assign_stats(params, numbers("bn/mean", "bn/var")) == {
        "bn/mean": plan.groups[1],
        "bn/var": plan.groups[0],
    }


def test_a_statistic_that_no_pattern_matches_goes_with_its_modules_parameters() -> None:
    params, stats = numbers("a/bn/bias", "a/bn/scale", "b/kernel"), numbers("a/bn/mean")
    plan = Plan((Group("b/*"), Group("**/scale", frozen=True), Group("**/bias")))
    assert plan.assign_stats(params, stats)["a/bn/mean"] is plan.groups[1]


# ---------------------------------------------------------------------------------------------
# Modules that run as in evaluation


def test_a_probe_freezes_every_module_but_the_head(network: Model) -> None:
    modules = probe(network).frozen_modules(network.params, network.stats)
    assert modules == {"stem", "layer1", "layer2", "layer3"}


def test_nothing_is_frozen_where_everything_trains(network: Model) -> None:
    assert Plan((Group("**"),)).frozen_modules(network.params, network.stats) == set()


def test_of_a_stage_that_trains_in_part_the_frozen_modules_are_named(network: Model) -> None:
    plan = Plan((Group(("head/**", "layer3/0/conv2/**", "layer3/0/bn2/**")), FROZEN))
    assert plan.frozen_modules(network.params, network.stats) == {
        *("stem", "layer1", "layer2"),
        *(f"layer3/0/{name}" for name in ("conv1", "bn1", "shortcut_conv", "shortcut_bn")),
    }


def test_norms_may_train_and_still_normalise_by_what_they_have(network: Model) -> None:
    plan = Plan((Group("layer1/**", stats="frozen"), Group("**")))
    modules = plan.frozen_modules(network.params, network.stats)
    assert modules == {"layer1/0/bn1", "layer1/0/bn2"}


def test_frozen_parameters_may_have_statistics_that_follow_the_data(network: Model) -> None:
    plan = Plan((Group("head/**"), Group("**", frozen=True, stats="update")))
    assert plan.frozen_modules(network.params, network.stats) == set()


def test_statistics_frozen_by_name_freeze_their_norms_alone(network: Model) -> None:
    plan = Plan((Group(("head/**", "stem/bn/mean"), stats="frozen"), Group("**")))
    assert plan.frozen_modules(network.params, network.stats) == {"stem/bn"}


# ---------------------------------------------------------------------------------------------
# The table


def test_the_table_counts_leaves_parameters_and_bytes() -> None:
    tree = numbers(*NAMES)
    plan = Plan(
        (
            Group("head/**", weight_decay=0.1, optimizer="sgd"),
            Group("**/bn/*", lr_scale=0.5, stats="frozen"),
            FROZEN,
        ),
        name="three groups",
    )
    assert plan.describe(tree) == "\n".join(
        [
            "plan three groups",
            "match    rate    decay    optimizer  statistics  leaves  parameters",
            "-------  ------  -------  ---------  ----------  ------  ----------",
            "head/**  1x      0.1      sgd        update           2           9",
            "**/bn/*  0.5x    default  default    frozen           2           6",
            "**       frozen  -        -          frozen           2          12",
            # 9 numbers of momentum, 2 x 6 moments, Adam's step of 2 leaves, the rate and its step.
            f"15 of 27 parameters train (55.6%); optimizer state {4 * (9 + 12 + 2 + 2)} B",
        ]
    )


def test_the_table_of_a_network_needs_no_weights(network: Model) -> None:
    text = probe(network).describe(network)
    names = leaf_names(network.params)
    state = probe(network).optimizer(1.0).init({"head": {"kernel": np.zeros((16, 10), "f4")}})
    assert re.search(r"head/\*\* .* 2 +170$", text, re.MULTILINE)
    assert re.search(rf"\*\* +frozen .* {len(names) - 2} ", text)
    assert f"{(count_bytes(state) + 80) / 1024:.1f} KiB" in text


def test_the_table_of_a_plan_that_does_not_fit_is_an_error(network: Model) -> None:
    with pytest.raises(PlanError, match="haed"):
        Plan((Group(("head/**", "haed/**")), FROZEN)).describe(network)


def test_a_plan_that_trains_nothing_can_be_looked_at(network: Model) -> None:
    assert "0 of " in Plan((FROZEN,)).describe(network)


def test_a_plan_prints_as_a_table_without_a_model() -> None:
    many = tuple(f"layer{i}/**/bn/*" for i in range(9))
    plan = Plan(
        (
            Group(many, lr_scale=(0.25, 0.5, 1.0), weight_decay=0.1, decay_all=True),
            Group("head/**", lr_scale=(1.0, 0.25, 0.5)),
            Group("stem/**", lr_scale=(0.5, 0.5), optimizer="muon"),
            FROZEN,
        ),
        name="mine",
        share=0.25,
        patience=3,
    )
    assert str(plan).splitlines() == [
        "plan mine, share 0.25, patience 3",
        "match                                    rate                   decay            optimizer"
        "  statistics",
        "---------------------------------------  ---------------------  ---------------  ---------"
        "  ----------",
        "layer0/**/bn/* | layer1/**/bn/*, 7 more  0.25x to 1x, 3 blocks  0.1, all leaves  default"
        "    update",
        "head/**                                  0.25x to 1x, 3 blocks  default          default"
        "    update",
        "stem/**                                  0.5x, 2 blocks         default          muon   "
        "    update",
        "**                                       frozen                 -                -      "
        "    frozen",
    ]


def test_the_bytes_are_those_of_the_optimizer_that_is_asked_for() -> None:
    tree = numbers("head/bias", "head/kernel")
    plan = Plan((Group("**"),))
    assert "state 88 B" in plan.describe(tree)  # 2 x 9 moments, 2 steps, the rate and its step
    assert "state 44 B" in plan.describe(tree, optimizer="sgd")
    mine = {"mine": lambda: optax.trace(0.5)}
    assert "state 44 B" in plan.describe(tree, optimizer="mine", optimizers=mine)


# ---------------------------------------------------------------------------------------------
# JSON and checks

RATES = st.floats(0, 10)
GLOBS = st.text("ab*/", min_size=1, max_size=6)
REGEXES = st.builds(re.compile, st.sampled_from(["a.*", r"\d+", "(x|y)"]), st.sampled_from([0, 2]))
GROUPS = st.builds(
    Group,
    st.one_of(GLOBS, REGEXES, st.lists(GLOBS | REGEXES, min_size=2, max_size=3).map(tuple)),
    lr_scale=RATES | st.lists(RATES, min_size=1, max_size=3).map(tuple),
    weight_decay=st.none() | RATES,
    frozen=st.booleans(),
    stats=st.sampled_from(["update", "frozen", None]),
    optimizer=st.sampled_from([None, *OPTIMIZERS, "mine"]),
    decay_all=st.booleans(),
)


@given(
    st.lists(GROUPS, min_size=1, max_size=4),
    st.text(max_size=5),
    st.floats(0, 1e6, exclude_min=True),
    st.none() | st.integers(1, 99),
)
def test_a_plan_survives_json(
    groups: list[Group], name: str, share: float, patience: int | None
) -> None:
    plan = Plan(tuple(groups), name, share, patience)
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert hash(again) == hash(plan)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"groups": 5, "name": "x", "share": 1}',
        '{"groups": [{}], "name": "x", "share": 1}',
        '{"groups": [{"match": ["a"], "speed": 1}], "name": "x", "share": 1}',
        '{"groups": [{"match": [{"regex": "("}]}], "name": "x", "share": 1}',
        '{"groups": [{"match": ["a"]}], "name": "x", "share": "half"}',
        '{"groups": [{"match": ["a"]}], "name": "x"}',
    ],
)
def test_text_that_is_no_plan_is_an_error(text: str) -> None:
    with pytest.raises(PlanError):
        Plan.from_json(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((),), "found 0 groups"),
        (((Group("**"),), "p", 1.0, 0), "patience 0"),
        (((Group("**"),), "p", 1.0, True), "patience True"),
        (((Group("**"),), "p", 1.0, 2.5), "patience 2.5"),
        (((Group("**"),), "p", 0.0), "share 0.0"),
        (((Group("**"),), "p", float("inf")), "share inf"),
        ((("head/**",),), "expected several groups, found"),
        ((Group("**"),), "expected several groups, found"),
    ],
)
def test_a_plan_without_sense_is_an_error(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Plan(*arguments)


def test_groups_may_be_a_list() -> None:
    assert Plan([Group("**")]) == Plan((Group("**"),))  # type: ignore[arg-type]


def test_a_plan_takes_any_tree() -> None:
    tree = [{"bias": np.zeros(2)}, (np.ones(3),)]
    trainable, _ = split(tree, Plan((Group("1/*"), FROZEN)))
    assert jax.tree.leaves(trainable)[0] is tree[1][0]
    assert leaf_names(trainable) == ("1/0",)


def test_json_is_readable() -> None:
    fields = json.loads(Plan((Group("head/**"), FROZEN), name="mine").to_json())
    assert fields["name"] == "mine"
    assert [group["match"] for group in fields["groups"]] == [["head/**"], ["**"]]
