from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtransfer.errors import PlanError
from jaxtransfer.models import init
from jaxtransfer.partition import (
    Group,
    Plan,
    carry_opt_state,
    constant,
    evaluation_params,
    gradual,
)
from jaxtransfer.tree import flatten, leaf_names, split

RATE = 0.01
FROZEN = Group("**", frozen=True)
HEAD = Plan((Group("head/**"), FROZEN))
ALL = Plan((Group("**"),))
APART = Plan((Group("head/**"), Group("body/**", lr_scale=0.5, weight_decay=0.1)))
MIXED = Plan((Group("head/**"), Group("body/**", optimizer="lion")))


@pytest.fixture(scope="module")
def params() -> dict[str, Any]:
    rng = np.random.default_rng(0)

    def array(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return {
        "body": {"bias": array(3), "kernel": array(4, 3)},
        "head": {"bias": array(2), "kernel": array(3, 2)},
    }


def train(tx: Any, trainable: Any, state: Any, steps: int, start: int = 0) -> tuple[Any, Any]:
    """Steps whose gradients depend on the leaf and the number of the step."""

    @jax.jit
    def step(carried: Any, number: jax.Array) -> tuple[Any, None]:
        trainable, state = carried
        gradients = jax.tree.map(
            lambda leaf: jnp.sin(leaf * jnp.float32(3) + number.astype(jnp.float32)), trainable
        )
        with jax.numpy_dtype_promotion("standard"):
            updates, state = tx.update(gradients, state, trainable)
        return (optax.apply_updates(trainable, updates), state), None

    return jax.lax.scan(step, (trainable, state), jnp.arange(start, start + steps))[0]


def paths(state: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def assert_same(ours: Any, theirs: Any) -> None:
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for name, leaf in flatten(ours).items():
        np.testing.assert_allclose(leaf, flatten(theirs)[name], rtol=2e-6, atol=2e-7, err_msg=name)


# ---------------------------------------------------------------------------------------------
# Moments that carry


@pytest.mark.parametrize(
    ("name", "after"),
    [("adamw", ALL), ("adamw", APART), ("adamw", MIXED), ("sgd", ALL), ("adafactor", APART)]
    + [("muon", APART)],
)
def test_what_trains_on_goes_on_and_what_is_new_starts(name: str, after: Plan, params: Any) -> None:
    trainable, _ = split(params, HEAD)
    first = HEAD.optimizer(RATE, optimizer=name)
    half, old = train(first, trainable, first.init(trainable), 4)
    whole = {"body": params["body"], "head": half["head"]}
    tx = after.optimizer(RATE, optimizer=name)
    moved, _ = train(tx, whole, carry_opt_state(old, tx.init(whole)), 3, start=4)

    throughout, _ = train(first, trainable, first.init(trainable), 7)
    assert_same(moved["head"], throughout["head"])
    body = {"body": params["body"], "head": None}
    alone, _ = train(tx, body, tx.init(body), 3, start=4)
    assert_same(moved["body"], alone["body"])


def test_plans_of_a_real_network_carry_leaf_by_leaf() -> None:
    network = init("cifar_resnet8", width=4, input_size=(8, 8), in_channels=1, num_classes=3)
    first, second, third = gradual(network, 3)
    txs = [plan.optimizer(RATE) for plan in (first, second, third)]
    trees = [split(network.params, plan)[0] for plan in (first, second, third)]
    state = txs[0].init(trees[0])
    for i in (0, 1):
        filled = jax.tree.map(lambda leaf, i=i: jnp.full_like(leaf, i + 1), state)
        state = carry_opt_state(filled, txs[i + 1].init(trees[i + 1]))
    trained_from = [set(leaf_names(tree)) for tree in trees]
    seen = set()
    for path, leaf in paths(state).items():
        name = next((n for n in trained_from[2] if as_keys(n) in path), None)
        if name is None:
            continue  # the learning rate and the count of the schedule
        expected = 2 if name in trained_from[1] else 0
        seen.add((name, expected))
        assert (np.asarray(leaf) == expected).all(), path
    assert {value for _, value in seen} == {0, 2} and len(seen) == len(trained_from[2])


def as_keys(name: str) -> str:
    return "".join(f"['{segment}']" for segment in name.split("/"))


def test_the_learning_rate_is_new_and_the_schedule_warms_up_again(params: Any) -> None:
    old_tx = ALL.optimizer(1.0, schedule=constant(20, 0.5))
    _, old = train(old_tx, params, old_tx.init(params), 6)
    tx = ALL.optimizer(RATE, schedule=constant(40, 0.5))
    new = tx.init(params)
    state = carry_opt_state(old, new)
    assert float(optax.tree.get(state, "learning_rate")) == pytest.approx(RATE)
    moved, _ = train(tx, params, state, 1)
    assert_same(moved, params)  # the first factor of the schedule is 0
    assert float(optax.tree.norm(optax.tree.get(state, "mu"))) > 0
    before, after, fresh = paths(old), paths(state), paths(new)
    restarted = [path for path in after if after[path] is fresh[path]]
    assert len(restarted) == 4  # the rate, the factor, and two counts
    assert all(after[path] is before[path] for path in after if path not in restarted)


def test_another_optimizer_takes_nothing_over(params: Any) -> None:
    old = ALL.optimizer(RATE, optimizer="rmsprop").init(params)
    new = ALL.optimizer(RATE, optimizer="adamw").init(params)
    state = carry_opt_state(jax.tree.map(jnp.ones_like, old), new)
    assert all(a is b for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(new), strict=True))


def test_a_state_that_leaves_share_carries_where_no_leaf_is_new(params: Any) -> None:
    trainable, _ = split(params, HEAD)
    old_tx = HEAD.optimizer(1.0, optimizer="prodigy")
    half, old = train(old_tx, trainable, old_tx.init(trainable), 4)
    new = old_tx.init(half)
    carried = paths(carry_opt_state(old, new))
    kept = [path for path, leaf in carried.items() if leaf is paths(old)[path]]
    assert len(kept) == len(carried) - 2  # all but the rate and its count
    tx = ALL.optimizer(1.0, optimizer="prodigy")
    whole = {"body": params["body"], "head": half["head"]}
    fresh = tx.init(whole)
    state = carry_opt_state(old, fresh)
    assert all(a is b for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(fresh), strict=True))


def test_a_schedule_free_optimizer_averages_anew(params: Any) -> None:
    tx = ALL.optimizer(RATE, optimizer="schedule_free_adamw")
    moved, old = train(tx, params, tx.init(params), 4)
    start = evaluation_params(old, moved)
    state = carry_opt_state(old, tx.init(start))
    assert_same(evaluation_params(state, start), start)
    assert_same(optax.tree.get(state, "z"), start)
    assert not np.any(flatten(optax.tree.get(state, "weight_sum"))["head/bias"])
    assert_same(optax.tree.get(state, "nu"), optax.tree.get(old, "nu"))


@pytest.mark.parametrize("position", [0, 1])
def test_states_of_other_transformations_are_refused(position: int, params: Any) -> None:
    states = [ALL.optimizer(RATE).init(params), optax.adamw(RATE).init(params)]
    which = "old" if position == 0 else "new"
    with pytest.raises(PlanError, match=f"expected the {which} state to be that of a Plan.optimi"):
        carry_opt_state(states[1 - position], states[position])


# ---------------------------------------------------------------------------------------------
# What is evaluated


def test_averages_are_those_of_optax(params: Any) -> None:
    theirs = optax.contrib.schedule_free_sgd(RATE)
    ours = ALL.optimizer(RATE, optimizer="schedule_free_sgd")
    moved, state = train(ours, params, ours.init(params), 5)
    expected_moved, expected = train(theirs, params, theirs.init(params), 5)
    average = evaluation_params(state, moved)
    assert_same(average, optax.contrib.schedule_free_eval_params(expected, expected_moved))
    assert_same(average, jax.jit(evaluation_params)(state, moved))
    assert_same(evaluation_params(expected, expected_moved), average)  # Optax's own state serves
    assert float(optax.tree.norm(optax.tree.sub(average, moved))) > 1e-4


def test_only_what_a_schedule_free_optimizer_trains_is_averaged(params: Any) -> None:
    plan = Plan((Group("head/kernel", optimizer="schedule_free_sgd"), Group("head/**"), FROZEN))
    trainable, _ = split(params, plan)
    tx = plan.optimizer(RATE)
    moved, state = train(tx, trainable, tx.init(trainable), 5)
    average = evaluation_params(state, moved)
    assert jax.tree.structure(average) == jax.tree.structure(moved)
    assert average["head"]["bias"] is moved["head"]["bias"]
    assert float(jnp.abs(average["head"]["kernel"] - moved["head"]["kernel"]).max()) > 1e-4


def test_where_nothing_is_averaged_the_very_same_tree_comes_back(params: Any) -> None:
    tx = APART.optimizer(RATE, optimizer="prodigy")
    assert evaluation_params(tx.init(params), params) is params
    assert evaluation_params(optax.adam(RATE).init(params), params) is params
