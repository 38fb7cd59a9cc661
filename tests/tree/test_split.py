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
from jaxtransfer.errors import PatternError, TreeError

LEAVES = st.one_of(
    st.integers(0, 3).map(lambda size: np.arange(size, dtype=np.float32)),
    st.floats(width=32).map(np.float32),
    st.just(len),  # an Equinox module has functions for leaves
)
KEYS = st.text("abc", min_size=1, max_size=2)
TREES = st.recursive(
    st.one_of(LEAVES, st.none()),
    lambda below: st.one_of(
        st.dictionaries(KEYS, below, max_size=3),
        st.lists(below, max_size=3),
        st.lists(below, max_size=3).map(tuple),
    ),
    max_leaves=8,
)


def is_hole(node: Any) -> bool:
    return node is None


def skeleton(tree: Any) -> Any:
    """The structure of a tree in which `None` counts as a leaf."""
    return jax.tree.structure(tree, is_leaf=is_hole)


def assert_same(tree: Any, other: Any) -> None:
    """One structure, and the very same objects for leaves."""
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    assert all(a is b for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True))


@given(TREES, st.data())
def test_merge_undoes_split_on_any_tree(tree: Any, data: st.DataObject) -> None:
    names = jt.leaf_names(tree)
    chosen = {name for name in names if data.draw(st.booleans())}
    leaves_before, structure_before = jax.tree.flatten(tree)

    first, second = jt.split(tree, chosen.__contains__)

    assert set(jt.leaf_names(first)) == chosen
    assert set(jt.leaf_names(second)) == set(names) - chosen
    assert skeleton(first) == skeleton(second) == skeleton(tree)
    assert_same(jt.merge(first, second), tree)
    assert_same(jt.merge(second, first), tree)
    leaves_after, structure_after = jax.tree.flatten(tree)
    assert structure_after == structure_before
    assert all(a is b for a, b in zip(leaves_before, leaves_after, strict=True))


@pytest.mark.parametrize("selection", ["head", "kernels", "everything", "nothing"])
def test_merge_undoes_split_in_every_framework(sample: Any, selection: str) -> None:
    choice = {
        "head": sample.head,
        "kernels": [sample.kernels],
        "everything": "**",
        "nothing": (),
    }[selection]
    first, second = jt.split(sample.tree, choice)
    assert type(first) is type(second) is type(sample.tree)
    assert jt.leaf_names(first) == jt.select(sample.tree, choice)
    assert set(jt.leaf_names(first)) | set(jt.leaf_names(second)) == set(sample.names)
    assert_same(jt.merge(first, second), sample.tree)


def test_split_by_a_pattern_without_a_match_is_an_error(sample: Any) -> None:
    with pytest.raises(PatternError, match="haed"):
        jt.split(sample.tree, "haed/**")


def test_gradients_and_optimizer_state_know_the_chosen_half_alone(sample: Any) -> None:
    trainable, frozen = jt.split(sample.tree, sample.head)

    def loss(trainable: Any) -> jax.Array:
        leaves = jt.flatten(jt.merge(trainable, frozen))
        return sum(jnp.sum(leaves[name] ** 2) for name in sample.head_names)

    gradients = jax.jit(jax.grad(loss))(trainable)
    assert jt.leaf_names(gradients) == sample.head_names
    assert skeleton(gradients) == skeleton(trainable)
    moments = optax.adam(1e-3).init(trainable)
    assert len(jax.tree.leaves(moments)) == 1 + 2 * len(sample.head_names)
    updated = jt.merge(optax.apply_updates(trainable, gradients), frozen)
    difference = jt.diff(sample.tree, updated)
    assert difference.fits
    assert set(difference.changed) <= set(sample.head_names)


def test_a_merged_nnx_state_makes_a_module_again() -> None:
    module = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    graph, state = nnx.split(module)
    again = nnx.merge(graph, jt.merge(*jt.split(state, "kernel/**")))
    x = jnp.ones((1, 2))
    np.testing.assert_array_equal(again(x), module(x))


def test_an_nnx_module_is_split_as_it_stands() -> None:
    module = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    first, second = jt.split(module, "kernel/**")
    assert jt.leaf_names(first) == ("kernel/value",)
    assert jt.leaf_names(second) == ("bias/value",)
    assert jt.leaf_names(module) == ("bias/value", "kernel/value")
    merged = jt.merge(first, second)
    np.testing.assert_array_equal(merged(jnp.ones((1, 2))), module(jnp.ones((1, 2))))


def test_a_merged_equinox_module_computes_as_before() -> None:
    network = eqx.nn.MLP(2, 1, 3, 2, use_bias=False, key=jax.random.key(0))
    merged = jt.merge(*jt.split(network, "layers/{0,2}/weight"))
    np.testing.assert_array_equal(merged(jnp.ones(2)), network(jnp.ones(2)))


def test_equinox_partition_and_split_agree() -> None:
    network = eqx.nn.MLP(2, 1, 3, 1, key=jax.random.key(0))
    first, second = jt.split(network, "layers/**")
    theirs = eqx.partition(network, eqx.is_array)
    assert eqx.tree_equal(first, theirs[0]) and eqx.tree_equal(second, theirs[1])
    assert eqx.tree_equal(jt.merge(first, second), eqx.combine(*theirs))


def test_holes_that_were_there_before_stay() -> None:
    tree = {"a": None, "b": [None, 1], "c": ()}
    first, second = jt.split(tree, "b/1")
    assert first == {"a": None, "b": [None, 1], "c": ()}
    assert second == {"a": None, "b": [None, None], "c": ()}
    assert jt.merge(first, second) == tree


def test_merge_refuses_leaves_that_both_halves_fill() -> None:
    with pytest.raises(TreeError, match=r"found in both: \['b/0', 'c'\]"):
        jt.merge({"a": 1, "b": [2], "c": 3}, {"a": None, "b": [4], "c": 5})


def test_merge_refuses_a_tree_with_itself(sample: Any) -> None:
    with pytest.raises(TreeError, match="expected each leaf in one half"):
        jt.merge(sample.tree, sample.tree)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"a": 1}, {"b": None}, r"only in the first: \['a'\]; only in the second: \['b'\]"),
        ({"a": 1, "b": None}, {"a": None}, r"only in the first: \['b'\]; only in the second: \[\]"),
        ({"a": None}, {"a": {"b": 1}}, r"only in the second: \['a/b'\]"),
        ([1, None], (None, 2), "the same names in other containers"),
        ([1], [None, 2], r"only in the second: \['1'\]"),
    ],
)
def test_merge_refuses_halves_of_different_trees(first: Any, second: Any, message: str) -> None:
    with pytest.raises(TreeError, match=message):
        jt.merge(first, second)


def test_merge_of_another_module_says_what_does_not_fit(sample: Any) -> None:
    first, _ = jt.split(sample.tree, sample.head)
    with pytest.raises(TreeError, match="only in the second: .*'other'"):
        jt.merge(first, {"other": None})


def test_no_argument_is_changed() -> None:
    tree = {"a": {"kernel": np.ones(2)}, "b": [np.zeros(1), None]}
    before = copy.deepcopy(tree)
    first, second = jt.split(tree, "a/**")
    halves = copy.deepcopy((first, second))
    jt.merge(first, second)
    assert jt.diff(tree, before).is_empty
    assert jt.diff((first, second), halves).is_empty
