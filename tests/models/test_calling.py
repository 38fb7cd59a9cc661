from __future__ import annotations

import functools

import pytest

from jaxtransfer.models.calling import (
    evaluation_arguments,
    keywords_of,
    mode_values,
    positional_count,
)


def everything(a, /, b, c=1, *args, d, e=2, **others):
    return a, b, c, args, d, e, others


def test_mode_values_switch_together():
    assert mode_values(True) == {
        "train": True,
        "training": True,
        "is_training": True,
        "deterministic": False,
        "use_running_average": False,
    }
    assert mode_values(False) == {name: not value for name, value in mode_values(True).items()}


def test_keywords_are_those_that_can_be_given_by_name():
    assert keywords_of(everything) == {"b", "c", "d", "e"}
    assert keywords_of(functools.partial(everything, d=3)) == {"b", "c", "d", "e"}


def test_a_callable_without_a_signature_has_no_keywords():
    assert keywords_of(dict.update) == frozenset() or "self" not in keywords_of(dict.update)
    assert keywords_of(type) == frozenset()
    assert positional_count(type) == 0


def test_positional_arguments_are_those_without_a_default():
    assert positional_count(everything) == 2
    assert positional_count(lambda params, stats, x: None) == 3
    assert positional_count(lambda params, x, train: None, others=("train",)) == 2


@pytest.mark.parametrize(
    ("method", "args", "kwargs", "expected"),
    [
        (lambda x, train: None, ("x", True), {}, (("x", False), {})),
        (lambda x, *, deterministic=None: None, ("x",), {}, (("x",), {"deterministic": True})),
        (lambda x, training=True: None, (), {"x": 1, "training": True}, ((1, False), {})),
        (lambda x, mask=None, train=True: None, ("x",), {}, (("x",), {"train": False})),
        (lambda x, mask=None: None, ("x",), {"mask": 1}, (("x", 1), {})),
    ],
)
def test_evaluation_arguments_override_what_the_caller_gave(method, args, kwargs, expected):
    assert evaluation_arguments(method, args, kwargs) == expected
    found_args, found_kwargs = evaluation_arguments(method, args, kwargs)
    method(*found_args, **found_kwargs)
