from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import numpy as np
import pytest

from jaxtransfer.errors import PlanError
from jaxtransfer.partition import Group


@pytest.mark.parametrize(
    "group",
    [
        Group("head/**"),
        Group(("stem/**", re.compile(r"LAYER\d/.*", re.IGNORECASE)), lr_scale=0.1),
        Group(re.compile(r".*/kernel"), weight_decay=0.0, optimizer="lion"),
        Group("**", frozen=True, stats="update"),
        Group("blocks/**", lr_scale=(0.5, 1.0), decay_all=True),
    ],
)
def test_a_group_survives_json(group: Group) -> None:
    assert Group.from_dict(json.loads(json.dumps(group.to_dict()))) == group


def test_fields_that_json_leaves_out_have_their_defaults() -> None:
    assert Group.from_dict({"match": "head/**"}) == Group("head/**")
    assert Group.from_dict({"match": ["a", "b"], "lr_scale": 2.0}) == Group(("a", "b"), 2.0)


def test_several_patterns_may_be_a_list() -> None:
    group = Group(["stem/**", "head/**"])  # type: ignore[arg-type]
    assert group == Group(("stem/**", "head/**"))
    assert hash(group) == hash(Group(("stem/**", "head/**")))


def test_numbers_become_those_of_python() -> None:
    group = Group("**", lr_scale=[np.float32(0.5), 1], weight_decay=np.float64(0.25))  # type: ignore[arg-type]
    assert group == Group("**", lr_scale=(0.5, 1.0), weight_decay=0.25)
    assert json.dumps(group.to_dict()) and hash(group)


def test_the_label_shows_globs_and_regular_expressions() -> None:
    assert Group(("stem/**", re.compile(r"layer\d/.*"))).label == r"stem/** | layer\d/.*"


@pytest.mark.parametrize(
    ("frozen", "stats", "expected"),
    [
        (False, None, False),
        (True, None, True),
        (False, "frozen", True),
        (True, "update", False),
    ],
)
def test_statistics_are_frozen_where_parameters_are_unless_said_otherwise(
    frozen: bool, stats: Any, expected: bool
) -> None:
    assert Group("**", frozen=frozen, stats=stats).freezes_stats is expected


def test_a_group_that_is_frozen_later_freezes_its_statistics_too() -> None:
    assert dataclasses.replace(Group("**"), frozen=True).freezes_stats


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"match": 5}, "match: expected a pattern or several, found 5"),
        ({"match": ()}, "match: expected a pattern or several, found ()"),
        ({"match": (re.compile(b"bytes"),)}, "match: expected a pattern"),
        ({"stats": "freeze"}, "stats: expected 'update', 'frozen' or None, found 'freeze'"),
        (
            {"lr_scale": -1.0},
            "lr_scale: expected a number from 0, or one for each block, found -1.0",
        ),
        (
            {"lr_scale": float("nan")},
            "lr_scale: expected a number from 0, or one for each block, found nan",
        ),
        (
            {"lr_scale": float("inf")},
            "lr_scale: expected a number from 0, or one for each block, found inf",
        ),
        (
            {"lr_scale": "fast"},
            "lr_scale: expected a number from 0, or one for each block, found 'fast'",
        ),
        ({"lr_scale": ()}, "lr_scale: expected a number from 0, or one for each block, found ()"),
        ({"lr_scale": (1.0, -1.0)}, "or one for each block, found (1.0, -1.0)"),
        ({"optimizer": 5}, "optimizer: expected a name or None, found 5"),
        ({"weight_decay": -0.1}, "weight_decay: expected a number from 0, found -0.1"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=re.escape(message)):
        Group(**{"match": "head/**", **fields})


def test_all_wrong_fields_are_named_at_once() -> None:
    with pytest.raises(PlanError, match=r"(?s)stats: .*lr_scale: .*weight_decay: "):
        Group("head/**", stats="no", lr_scale=-1, weight_decay=-1)  # type: ignore[arg-type]


def test_a_regular_expression_that_cannot_be_read_is_an_error() -> None:
    with pytest.raises(PlanError, match=r"regex '\(': missing \)"):
        Group.from_dict({"match": [{"regex": "("}]})
