from __future__ import annotations

import copy
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from jaxtransfer import tree as jt
from jaxtransfer.errors import TreeError

KEYS = st.text("abcxyz019_.-* ", min_size=1, max_size=4)
NESTED_DICTS = st.dictionaries(
    KEYS,
    st.recursive(st.integers(), lambda below: st.dictionaries(KEYS, below, min_size=1, max_size=3)),
    max_size=4,
)


def test_names_are_paths_in_the_order_of_jax_leaves(sample: Any) -> None:
    assert jt.leaf_names(sample.tree) == sample.names
    leaves = [leaf for _, leaf in jt.named_leaves(sample.tree)]
    assert all(a is b for a, b in zip(leaves, jax.tree.leaves(sample.tree), strict=True))


def test_flatten_keeps_the_leaves_themselves(sample: Any) -> None:
    flat = jt.flatten(sample.tree)
    assert tuple(flat) == sample.names
    assert all(a is b for a, b in zip(flat.values(), jax.tree.leaves(sample.tree), strict=True))


def test_map_with_names_keeps_the_structure(sample: Any) -> None:
    named = jt.map_with_names(lambda name, leaf: name, sample.tree)
    assert jax.tree.structure(named) == jax.tree.structure(sample.tree)
    assert tuple(jax.tree.leaves(named)) == sample.names


def test_map_with_names_over_several_trees() -> None:
    total = jt.map_with_names(
        lambda name, a, b: (name, a + b), {"a": 1, "b": [2]}, {"a": 10, "b": [20]}
    )
    assert total == {"a": ("a", 11), "b": [("b/0", 22)]}


def test_sequences_are_named_by_index_and_none_is_no_leaf() -> None:
    assert jt.leaf_names({"a": [1, (2, None, 3)], "b": None}) == ("a/0", "a/1/0", "a/1/2")


def test_a_bare_leaf_has_the_empty_name_and_an_empty_tree_no_names() -> None:
    assert jt.leaf_names(np.ones(2)) == ("",)
    assert jt.leaf_names({}) == jt.leaf_names(None) == ()


def test_nnx_module_state_and_pure_dict_differ_by_the_value_segment_alone() -> None:
    module = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    _, params, rest = nnx.split(module, nnx.Param, ...)
    assert jt.leaf_names(module) == jt.leaf_names(params) == ("bias/value", "kernel/value")
    assert jt.leaf_names(nnx.to_pure_dict(params)) == ("bias", "kernel")
    assert jt.leaf_names(rest) == ()


def test_optimizer_state_is_named_through_its_tuples() -> None:
    state = optax.adam(1e-3).init({"head": {"bias": jnp.zeros(2)}})
    assert jt.leaf_names(state) == ("0/count", "0/mu/head/bias", "0/nu/head/bias")


def test_equinox_fields_without_arrays_are_named_too_and_none_is_not() -> None:
    network = eqx.nn.MLP(2, 1, 2, 1, use_final_bias=False, key=jax.random.key(0))
    assert jt.leaf_names(network) == (
        "layers/0/weight",
        "layers/0/bias",
        "layers/1/weight",
        "activation",
        "final_activation",
    )


def test_repeated_names_are_an_error_that_lists_them() -> None:
    with pytest.raises(TreeError, match=r"found more than one leaf named \['a/b'\].*rename"):
        jt.named_leaves({"a": {"b": 1}, "a/b": 2, "c": 3})


@pytest.mark.parametrize(
    "function", [jt.flatten, jt.leaf_names, jt.summary, lambda tree: jt.select(tree, "**")]
)
def test_no_function_is_silent_about_repeated_names(function: Any) -> None:
    with pytest.raises(TreeError, match="1/x"):
        function({"1": {"x": 0}, "1/x": 1})


@given(NESTED_DICTS)
def test_unflatten_inverts_flatten(tree: dict[str, Any]) -> None:
    before = copy.deepcopy(tree)
    flat = jt.flatten(tree)
    assert jt.unflatten(flat) == before
    assert tree == before
    assert flat == jt.flatten(before)


@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a")])
def test_unflatten_refuses_a_leaf_that_has_leaves_below(names: tuple[str, str]) -> None:
    with pytest.raises(TreeError, match="leaf"):
        jt.unflatten(dict.fromkeys(names, 1))


def test_subtree_is_the_very_object() -> None:
    tree = {"head": {"dense": {"bias": np.ones(2)}}}
    assert jt.subtree(tree, "head/dense") is tree["head"]["dense"]
    assert jt.subtree(tree, "head/dense/bias") is tree["head"]["dense"]["bias"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("haed", r"haed: expected the key 'haed', found head, stem"),
        ("head/dense", r"head/dense: expected the key 'dense', found bias"),
        ("head/bias/x", r"head/bias/x: expected the key 'x', found int"),
        ("stem/x", r"stem/x: expected the key 'x', found an empty tree"),
    ],
)
def test_subtree_says_what_is_there_instead(path: str, message: str) -> None:
    with pytest.raises(TreeError, match=message):
        jt.subtree({"head": {"bias": 1}, "stem": {}}, path)


def test_subtree_of_an_nnx_state_follows_its_integer_keys() -> None:
    state = nnx.state(nnx.List([nnx.Linear(1, 1, rngs=nnx.Rngs(0))]))
    assert jt.subtree(state, "0/kernel") is state[0]["kernel"]
    assert jt.subtree(nnx.to_pure_dict(state), "0/bias").shape == (1,)


def test_with_subtree_replaces_adds_and_removes_without_touching_its_argument() -> None:
    kernel = np.ones(2)
    tree = {"stem": {"kernel": kernel}, "head": {"bias": 1, "kernel": 2}}
    before = copy.deepcopy(tree)
    replaced = jt.with_subtree(tree, "head/bias", 9)
    assert replaced["head"] == {"bias": 9, "kernel": 2}
    assert replaced["stem"]["kernel"] is kernel
    assert jt.with_subtree(tree, "a/b/c", 5)["a"] == {"b": {"c": 5}}
    assert list(jt.with_subtree(tree, "head", None)) == ["stem"]
    assert jt.with_subtree(tree, "head/bias", None)["head"] == {"kernel": 2}
    assert jt.diff(tree, before).is_empty


@pytest.mark.parametrize("path", ["tail", "tail/bias", "head/gain"])
def test_with_subtree_removes_what_is_not_there_without_a_trace(path: str) -> None:
    assert jt.with_subtree({"head": {"bias": 1}}, path, None) == {"head": {"bias": 1}}


def test_with_subtree_does_not_go_through_a_leaf() -> None:
    with pytest.raises(TreeError, match="x: expected nested dicts on the way, found ndarray"):
        jt.with_subtree({"head": np.ones(2)}, "head/x", 1)
    with pytest.raises(TreeError, match="found list"):
        jt.with_subtree({"blocks": [1, 2]}, "blocks/0", 1)


def test_with_subtree_keeps_integer_keys_as_they_are() -> None:
    tree = nnx.to_pure_dict(nnx.state(nnx.List([nnx.Linear(1, 1, rngs=nnx.Rngs(0))])))
    changed = jt.with_subtree(tree, "0/bias", jnp.ones(1))
    assert jt.leaf_names(changed) == jt.leaf_names(tree) == ("0/bias", "0/kernel")
    assert jt.diff(tree, changed) == jt.TreeDiff(changed=("0/bias",), unchanged=("0/kernel",))


@pytest.mark.parametrize(
    ("path", "prefixes", "expected"),
    [
        ("layer1/0/bn1", {"layer1"}, True),
        ("layer1", {"layer1"}, True),
        ("layer10/0", {"layer1"}, False),
        ("layer1", {"layer1/0"}, False),
        ("layer1/0", {"head", "layer1/0"}, True),
        ("layer1/0", set(), False),
    ],
)
def test_is_below_compares_whole_segments(path: str, prefixes: set[str], expected: bool) -> None:
    assert jt.is_below(path, prefixes) is expected
