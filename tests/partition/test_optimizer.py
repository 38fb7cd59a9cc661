from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtransfer.errors import PlanError
from jaxtransfer.partition import Group, Plan
from jaxtransfer.partition.optimizer import OPTIMIZERS
from jaxtransfer.tree import flatten, leaf_names, named_leaves, split

ALL = Plan((Group("**"),))
RATE = 0.01

OPTAX: dict[str, Callable[[float], optax.GradientTransformation]] = {
    "adamw": lambda decay: optax.adamw(
        RATE, weight_decay=decay, mask=lambda tree: jax.tree.map(lambda p: p.ndim > 1, tree)
    ),
    "sgd": lambda decay: optax.chain(
        optax.trace(0.9),
        optax.add_decayed_weights(decay, lambda tree: jax.tree.map(lambda p: p.ndim > 1, tree)),
        optax.scale(-RATE),
    ),
    "lion": lambda decay: optax.lion(
        RATE, weight_decay=decay, mask=lambda tree: jax.tree.map(lambda p: p.ndim > 1, tree)
    ),
    "rmsprop": lambda decay: optax.chain(
        optax.scale_by_rms(),
        optax.add_decayed_weights(decay, lambda tree: jax.tree.map(lambda p: p.ndim > 1, tree)),
        optax.scale(-RATE),
    ),
}


@pytest.fixture(scope="module")
def params() -> dict[str, Any]:
    rng = np.random.default_rng(0)

    def array(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return {
        "body": {
            "conv": {"kernel": array(3, 3, 2, 4)},
            "bn": {"bias": array(4), "scale": array(4)},
        },
        "head": {"bias": array(5), "kernel": array(4, 5)},
    }


def gradients_of(tree: Any, step: int) -> Any:
    """Gradients that depend on the leaf and the step alone."""
    return jax.tree.map(lambda leaf: jnp.sin(leaf * jnp.float32(3) + jnp.float32(step)), tree)


def run(tx: optax.GradientTransformation, tree: Any, steps: int = 8) -> list[Any]:
    """The parameters after each step."""

    @jax.jit
    def step(tree: Any, state: Any, gradients: Any) -> tuple[Any, Any]:
        with jax.numpy_dtype_promotion("standard"):  # which Optax needs
            updates, state = tx.update(gradients, state, tree)
        return optax.apply_updates(tree, updates), state

    state, trees = tx.init(tree), []
    for number in range(steps):
        tree, state = step(tree, state, gradients_of(tree, number))
        trees.append(tree)
    return trees


def assert_close(ours: Any, theirs: Any) -> None:
    assert leaf_names(ours) == leaf_names(theirs)
    for (name, a), b in zip(named_leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-7, err_msg=name)


# ---------------------------------------------------------------------------------------------
# The same as Optax


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_one_group_is_the_optimizer_of_optax(name: str, decay: float, params: Any) -> None:
    tx = ALL.optimizer(RATE, optimizer=name, weight_decay=decay)
    for ours, theirs in zip(run(tx, params), run(OPTAX[name](decay), params), strict=True):
        assert_close(ours, theirs)


def test_each_of_two_groups_is_its_own_optimizer_alone(params: Any) -> None:
    plan = Plan((Group("head/**", optimizer="sgd", weight_decay=0.2), Group("**")))
    last = run(plan.optimizer(RATE, optimizer="lion", weight_decay=0.1), params)[-1]
    assert_close(last["head"], run(OPTAX["sgd"](0.2), params["head"])[-1])
    assert_close(last["body"], run(OPTAX["lion"](0.1), params["body"])[-1])


def test_the_scale_of_a_group_is_a_factor_on_its_learning_rate(params: Any) -> None:
    plan = Plan((Group("head/**", lr_scale=0.25), Group("**")))
    scaled = run(plan.optimizer(RATE, weight_decay=0.3), params)[-1]
    slower = run(ALL.optimizer(RATE * 0.25, weight_decay=0.3), params["head"])[-1]
    assert_close(scaled["head"], slower)
    assert_close(scaled["body"], run(OPTAX["adamw"](0.3), params["body"])[-1])


def test_a_scale_of_zero_stands_still_without_being_frozen(params: Any) -> None:
    plan = Plan((Group("head/**", lr_scale=0.0), Group("**")))
    last = run(plan.optimizer(RATE, weight_decay=0.3), params)[-1]
    assert_close(last["head"], params["head"])
    assert plan.chooses(leaf_names(params)) == (True,) * 5


# ---------------------------------------------------------------------------------------------
# Weight decay and clipping


def test_weight_decay_touches_kernels_alone(params: Any) -> None:
    tx = ALL.optimizer(RATE, optimizer="sgd", weight_decay=0.5)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    for name, update in named_leaves(updates):
        if name.endswith("kernel"):
            np.testing.assert_allclose(update, -RATE * 0.5 * flatten(params)[name], rtol=1e-6)
        else:
            assert not np.asarray(update).any(), name


def test_a_groups_weight_decay_replaces_the_common_one(params: Any) -> None:
    plan = Plan((Group("head/**", weight_decay=0.0), Group("**")))
    last = run(plan.optimizer(RATE, weight_decay=0.4), params)[-1]
    assert_close(last["head"], run(OPTAX["adamw"](0.0), params["head"])[-1])
    assert_close(last["body"], run(OPTAX["adamw"](0.4), params["body"])[-1])


def test_the_clip_norm_is_that_of_all_trainable_gradients(params: Any) -> None:
    plan = Plan((Group("head/**", optimizer="rmsprop"), Group("**/bn/*"), Group("**", frozen=True)))
    trainable, frozen = split(params, plan)
    gradients = jax.tree.map(lambda leaf: leaf * jnp.float32(100), trainable)
    norm = np.sqrt(sum(np.square(np.asarray(leaf)).sum() for leaf in jax.tree.leaves(gradients)))
    scaled = jax.tree.map(lambda leaf: leaf * jnp.float32(0.5 / norm), gradients)
    clipping = plan.optimizer(1.0, optimizer="sgd", clip_norm=0.5)
    free = plan.optimizer(1.0, optimizer="sgd")
    clipped, _ = clipping.update(gradients, clipping.init(trainable), trainable)
    expected, _ = free.update(scaled, free.init(trainable), trainable)
    assert_close(clipped, expected)
    assert jax.tree.leaves(frozen)  # whose gradients, if there were any, would not count


def test_small_gradients_are_not_clipped(params: Any) -> None:
    clipped = run(ALL.optimizer(RATE, clip_norm=1e6), params)[-1]
    assert_close(clipped, run(ALL.optimizer(RATE), params)[-1])


# ---------------------------------------------------------------------------------------------
# The learning rate


def test_the_learning_rate_in_the_state_can_be_changed(params: Any) -> None:
    tx = ALL.optimizer(RATE, weight_decay=0.3)
    state = tx.init(params)
    assert float(optax.tree.get(state, "learning_rate")) == pytest.approx(RATE)
    state = optax.tree.set(state, learning_rate=jnp.float32(RATE * 4))
    gradients = gradients_of(params, 0)
    with jax.numpy_dtype_promotion("standard"):
        changed, _ = tx.update(gradients, state, params)
        before, _ = tx.update(gradients, tx.init(params), params)
    assert_close(changed, jax.tree.map(lambda leaf: leaf * jnp.float32(4), before))


def test_the_schedule_is_a_factor_on_the_learning_rate(params: Any) -> None:
    def factor(step: Any) -> Any:
        return jnp.where(step < 3, 1.0, 0.0)

    trees = run(ALL.optimizer(RATE, weight_decay=0.3, schedule=factor), params)
    assert_close(trees[2], run(OPTAX["adamw"](0.3), params, 3)[-1])
    assert_close(trees[-1], trees[2])


def test_the_learning_rate_may_be_a_schedule_itself(params: Any) -> None:
    schedule = optax.linear_schedule(RATE, 0.0, 5)
    ours = run(ALL.optimizer(schedule), params)[-1]
    assert_close(ours, run(optax.adamw(schedule, weight_decay=0.0), params)[-1])


# ---------------------------------------------------------------------------------------------
# The state, and errors


def test_the_state_holds_the_trainable_leaves_alone(params: Any) -> None:
    plan = Plan((Group("head/**"), Group("**/bn/*", optimizer="sgd"), Group("**", frozen=True)))
    trainable, _ = split(params, plan)
    state = plan.optimizer(RATE).init(trainable)
    shapes = sorted(leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim)
    assert shapes == [(4,), (4,), (4, 5), (4, 5), (5,), (5,)]


@pytest.mark.parametrize("optimizers", [(None, None), ("adamw", "sgd")])
def test_a_tree_with_frozen_leaves_is_refused(optimizers: tuple[Any, Any], params: Any) -> None:
    plan = Plan(
        (
            Group("head/kernel", optimizer=optimizers[0]),
            Group("head/**", optimizer=optimizers[1]),
            Group("**", frozen=True),
        )
    )
    with pytest.raises(PlanError, match=r"freezes: \['body/bn/bias', .*take the first half"):
        plan.optimizer(RATE).init(params)


def test_a_tree_with_unknown_leaves_is_refused(params: Any) -> None:
    with pytest.raises(PlanError, match=r"in no group: \['body/bn/bias', .*first half of split"):
        Plan((Group("head/**"),)).optimizer(RATE).init(params)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adam"}, "one of adamw, sgd, lion, rmsprop, found ['adam']"),
        ({"weight_decay": -1e-4}, "weight_decay: expected a number from 0, found -0.0001"),
        ({"weight_decay": float("nan")}, "weight_decay: expected a number from 0, found nan"),
        ({"clip_norm": 0.0}, "clip_norm: expected a number above 0 or None, found 0.0"),
        ({"clip_norm": float("inf")}, "clip_norm: expected a number above 0 or None, found inf"),
    ],
)
def test_an_option_out_of_range_is_an_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=re.escape(message)):
        ALL.optimizer(RATE, **options)
