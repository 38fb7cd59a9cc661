from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jaxtransfer import tree as jt
from jaxtransfer.errors import PatternError
from jaxtransfer.tree.select import check_pattern

NAMES = (
    "stem/conv/kernel",
    "layer1/0/conv1/kernel",
    "layer3/0/bn1/scale",
    "layer4/0/bn1/scale",
    "layer4/1/conv2/kernel",
    "head/bias",
    "head/kernel",
)


# An independent matcher: it walks the text instead of building a regular expression.


def alternatives(text: str) -> list[str]:
    """Expand braces from the left, by recursive descent."""

    def sequence(at: int, stops: str) -> tuple[list[str], int]:
        made = [""]
        while at < len(text) and text[at] not in stops:
            if text[at] == "{":
                choices: list[str] = []
                while text[at] != "}":
                    more, at = sequence(at + 1, ",}")
                    choices += more
                made = [a + b for a in made for b in choices]
            else:
                made = [a + text[at] for a in made]
            at += 1
        return made, at

    return sequence(0, "")[0]


def segment_matches(glob: str, segment: str) -> bool:
    if not glob:
        return not segment
    if glob[0] == "*":
        return any(segment_matches(glob[1:], segment[i:]) for i in range(len(segment) + 1))
    return bool(segment) and glob[0] == segment[0] and segment_matches(glob[1:], segment[1:])


def path_matches(globs: Sequence[str], segments: Sequence[str]) -> bool:
    if not globs:
        return not segments
    if globs[0] == "**":
        return any(path_matches(globs[1:], segments[i:]) for i in range(len(segments) + 1))
    return (
        bool(segments)
        and segment_matches(globs[0], segments[0])
        and path_matches(globs[1:], segments[1:])
    )


def brute_force(pattern: str, name: str) -> bool:
    return any(path_matches(glob.split("/"), name.split("/")) for glob in alternatives(pattern))


SEGMENTS = st.text("ab.", min_size=1, max_size=3)
WORDS = st.lists(SEGMENTS, min_size=1, max_size=4).map("/".join)
GLOB_TEXTS = st.recursive(
    st.text("ab.*", max_size=3),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: "{" + ",".join(parts) + "}"),
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map("/".join),
    ),
    max_leaves=4,
)
GLOBS = st.lists(st.one_of(st.just("**"), SEGMENTS, GLOB_TEXTS), min_size=1, max_size=4).map(
    "/".join
)


@given(GLOBS, WORDS)
@example("**/a", "a")
@example("a/**", "a")
@example("a/**/b", "a/b")
@example("a/**/b", "a/a/.b")
@example("**/**", "a/b/a")
@example("{a,{b,a.}}/*", "a./b")
@example("{**/a,b}", "b/a")
@example("{,a}b", "b")
def test_globs_match_as_a_brute_force_matcher_says(pattern: str, name: str) -> None:
    assert jt.matches(pattern, name) == brute_force(pattern, name)


@given(WORDS)
def test_a_name_matches_itself_and_the_open_globs(name: str) -> None:
    depth = name.count("/") + 1
    assert jt.matches(name, name)
    assert jt.matches("**", name)
    assert jt.matches("/".join("*" * depth), name)
    assert not jt.matches("/".join("*" * (depth + 1)), name)


@pytest.mark.parametrize(
    ("pattern", "chosen"),
    [
        ("head/*", (5, 6)),
        ("**", (0, 1, 2, 3, 4, 5, 6)),
        ("**/kernel", (0, 1, 4, 6)),
        ("**/conv*/kernel", (0, 1, 4)),
        ("layer4/**", (3, 4)),
        ("layer4/**/kernel", (4,)),
        ("layer{3,4}/**", (2, 3, 4)),
        ("{layer{1,3}/**,head/*}", (1, 2, 5, 6)),
        ("layer*/0/*/*", (1, 2, 3)),
        ("head/{bias,kernel}", (5, 6)),
        (re.compile(r"layer[34]/.*"), (2, 3, 4)),
        (re.compile(r".*/kernel"), (0, 1, 4, 6)),
        (re.compile(r"HEAD/.*", re.IGNORECASE), (5, 6)),
    ],
    ids=str,
)
def test_patterns_on_a_residual_network(
    pattern: str | re.Pattern[str], chosen: tuple[int, ...]
) -> None:
    tree = dict.fromkeys(NAMES, 0)
    assert set(jt.select(tree, pattern)) == {NAMES[i] for i in chosen}


def test_a_regular_expression_must_match_the_whole_name() -> None:
    assert not jt.matches(re.compile("head"), "head/kernel")
    assert not jt.matches(re.compile("kernel"), "head/kernel")
    assert jt.matches(re.compile("head/kernel"), "head/kernel")


@pytest.mark.parametrize("character", list(".+?[](|)^$\\"))
def test_a_glob_takes_other_characters_literally(character: str) -> None:
    assert jt.matches(f"a{character}b", f"a{character}b")
    assert not jt.matches(f"a{character}b", "ab")
    assert not jt.matches(f"a{character}b", "aab")


@pytest.mark.parametrize("pattern", ["{a", "a}", "{a,{b}", "a}{b"])
def test_a_brace_without_its_partner_is_an_error(pattern: str) -> None:
    with pytest.raises(PatternError, match="expected each brace to have its partner"):
        jt.matches(pattern, "a")


def test_select_on_every_kind_of_tree(sample: Any) -> None:
    assert jt.select(sample.tree, sample.head) == sample.head_names
    assert jt.select(sample.tree, sample.kernels) == sample.kernel_names
    assert jt.select(sample.tree, "**") == sample.names
    assert jt.select(sample.tree, re.compile(".*")) == sample.names


def test_several_patterns_choose_their_union_in_the_order_of_the_tree(sample: Any) -> None:
    both = set(sample.head_names) | set(sample.kernel_names)
    chosen = tuple(name for name in sample.names if name in both)
    assert jt.select(sample.tree, [sample.kernels, sample.head]) == chosen
    assert jt.select(sample.tree, (sample.head, re.compile(r".*(kernel|weight).*"))) == chosen


def test_a_predicate_gets_the_name(sample: Any) -> None:
    chosen = jt.select(sample.tree, lambda name: "head" in name)
    assert chosen == sample.head_names
    assert jt.select(sample.tree, lambda name: False) == ()


def test_a_selector_sees_all_names_at_once(sample: Any) -> None:
    class EverySecond:
        def chooses(self, names: Sequence[str]) -> Sequence[bool]:
            return [i % 2 == 0 for i in range(len(names))]

    assert jt.select(sample.tree, EverySecond()) == sample.names[::2]


def test_an_empty_sequence_of_patterns_chooses_nothing(sample: Any) -> None:
    assert jt.select(sample.tree, []) == ()


def test_a_bare_leaf_is_chosen_by_the_pattern_for_everything() -> None:
    assert jt.select(np.ones(2), "**") == ("",)
    with pytest.raises(PatternError):
        jt.select(np.ones(2), "*")


def test_a_pattern_without_a_match_names_the_nearest() -> None:
    with pytest.raises(PatternError) as caught:
        jt.select(dict.fromkeys(NAMES, 0), "haed/kernel")
    message = str(caught.value)
    assert "'haed/kernel'" in message
    assert "one of 7 names, found no match" in message
    assert "the nearest are head/kernel" in message


@pytest.mark.parametrize(
    ("pattern", "remedy"),
    [
        ("layer4", "write 'layer4/**' for the leaves below it (2)"),
        ("layer4/", "write 'layer4/**' for the leaves below it (2)"),
        ("layer{3,4}", "write 'layer{3,4}/**' for the leaves below it (3)"),
        ("layer*", "write 'layer*/**' for the leaves below it (4)"),
        ("**/bn1", "write '**/bn1/**' for the leaves below it (2)"),
    ],
)
def test_a_pattern_that_stops_above_the_leaves_gets_its_remedy(pattern: str, remedy: str) -> None:
    with pytest.raises(PatternError) as caught:
        jt.select(dict.fromkeys(NAMES, 0), pattern)
    assert remedy in str(caught.value)


def test_the_head_alone_gets_its_remedy_on_every_kind_of_tree(sample: Any) -> None:
    with pytest.raises(
        PatternError, match=re.escape(f"write '{sample.head}' for the leaves below it (2)")
    ):
        jt.select(sample.tree, sample.head.removesuffix("/**"))


def test_each_of_several_patterns_must_match(sample: Any) -> None:
    with pytest.raises(PatternError, match="'nothing/here'"):
        jt.select(sample.tree, [sample.head, "nothing/here"])
    with pytest.raises(PatternError, match="nothing"):
        jt.select(sample.tree, re.compile("nothing"))


def test_a_pattern_on_an_empty_tree_says_that_there_are_no_leaves() -> None:
    with pytest.raises(PatternError, match="none: the tree has no leaves"):
        jt.select({}, "**")


def test_check_pattern_says_where_the_pattern_stands() -> None:
    with pytest.raises(PatternError, match="^group 2 'stern/"):
        check_pattern("stern/**", NAMES, where="group 2")
    check_pattern("stem/**", NAMES)


def test_nearest_is_best_first_and_bounded() -> None:
    assert jt.nearest("head/kernl", NAMES)[0] == "head/kernel"
    assert len(jt.nearest("head/kernl", NAMES, count=2)) == 2
    assert jt.nearest("x", []) == []


def test_select_works_on_shapes_alone() -> None:
    shapes = jax.eval_shape(lambda: {"head": {"bias": jax.numpy.zeros(3)}})
    assert jt.select(shapes, "head/*") == ("head/bias",)
