from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtransfer.errors import PlanError, TrainingError
from jaxtransfer.models import Model
from jaxtransfer.partition import Group, Plan, full, probe
from jaxtransfer.train import init_state
from jaxtransfer.tree import diff, leaf_names, named_leaves

FROZEN = Group("**", frozen=True)


def test_the_state_begins_with_the_models_values(network: Model) -> None:
    plan = probe(network)
    state = init_state(network, plan, plan.optimizer(1e-3), seed=3)
    assert int(state.step) == 0 and state.step.dtype == jnp.int32
    assert diff(network.params, state.params).is_empty
    assert diff(network.stats, state.stats).is_empty
    assert leaf_names(state.trainable) == ("head/bias", "head/kernel")
    assert state.ema is None
    assert (jax.random.key_data(state.rng) == jax.random.key_data(jax.random.key(3))).all()


def test_what_steps_donate_is_copied_and_what_is_frozen_is_the_models_own(network: Model) -> None:
    plan = probe(network)
    state = init_state(network, plan, plan.optimizer(1e-3), with_ema=True)
    own = {name: leaf for name, leaf in named_leaves(network.params)}
    assert all(leaf is own[name] for name, leaf in named_leaves(state.frozen))
    donated = [state.trainable, state.stats, state.ema, state.opt_state]
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(donated)]
    kept = [
        leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves([network.params, network.stats])
    ]
    assert len(set(buffers)) == len(buffers)  # none of them is donated twice
    assert not set(buffers) & set(kept)


def test_weights_may_be_numpy_arrays() -> None:
    weights = {"body": {"kernel": np.ones((2, 2), np.float32)}, "head": {"kernel": np.ones((2, 3))}}
    model = Model.from_function(lambda params, x: x, weights)
    state = init_state(model, Plan((Group("head/*"), FROZEN)), optax.sgd(0.1))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state.params))
    assert weights["head"]["kernel"].dtype == np.float64  # the model itself stays as it is


def test_the_optimizer_and_the_average_know_nothing_of_frozen_leaves(network: Model) -> None:
    plan = probe(network)
    state = init_state(network, plan, plan.optimizer(1e-3), with_ema=True)
    assert leaf_names(state.ema) == leaf_names(state.trainable)
    assert diff(state.ema, state.trainable).is_empty
    sizes = {leaf.size for leaf in jax.tree.leaves(state.opt_state)}
    assert sizes == {1, 3, 48}  # counts and rates, the head's bias, its kernel


def test_a_plan_that_trains_nothing_is_an_error(network: Model) -> None:
    plan = Plan((FROZEN,), name="rest")
    with pytest.raises(PlanError, match="'rest': .*every group is frozen; let a group train"):
        init_state(network, plan, plan.optimizer(1e-3))


def test_integers_cannot_train() -> None:
    weights = {"table": jnp.arange(3), "head": {"kernel": jnp.ones((2, 2))}}
    model = Model.from_function(lambda params, x: x, weights)
    with pytest.raises(PlanError, match=r"table \(int32\); put these into a frozen group"):
        init_state(model, full(model), optax.sgd(0.1))
    init_state(model, Plan((Group("table", frozen=True), Group("**"))), optax.sgd(0.1))


def test_a_misspelt_pattern_is_found_before_the_first_step(network: Model) -> None:
    plan = Plan((Group(("head/**", "laier3/**")), FROZEN))
    with pytest.raises(PlanError, match="laier3"):
        init_state(network, plan, plan.optimizer(1e-3))


def test_the_average_starts_as_a_copy_and_is_merged_with_what_is_frozen(network: Model) -> None:
    plan = probe(network)
    state = init_state(network, plan, plan.optimizer(1e-3), with_ema=True)
    assert diff(network.params, state.ema_params).is_empty
    assert leaf_names(state.ema) == leaf_names(state.trainable)
    with pytest.raises(
        TrainingError, match="ema_params: expected .* give init_state with_ema=True"
    ):
        init_state(network, plan, plan.optimizer(1e-3)).ema_params  # noqa: B018


def test_the_average_answers_where_there_is_one(network: Model) -> None:
    plan = probe(network)
    state = init_state(network, plan, plan.optimizer(1e-3), with_ema=True)
    averaged = replace(state, ema=jax.tree.map(lambda leaf: leaf + 1, state.trainable))
    expected = jax.tree.map(lambda leaf: leaf + 1, network.params["head"])
    assert jax.tree.all(jax.tree.map(jnp.array_equal, averaged.evaluated_params["head"], expected))
    plain = replace(averaged, ema=None)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, plain.evaluated_params, network.params))
