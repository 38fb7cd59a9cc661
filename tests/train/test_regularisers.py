from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtransfer.data import ArrayData
from jaxtransfer.errors import TrainingError
from jaxtransfer.models import Model
from jaxtransfer.partition import Group, Plan, full, last, probe
from jaxtransfer.train.losses import cross_entropy
from jaxtransfer.train.regularisers import (
    BatchSpectralShrinkage,
    Forward,
    batch_spectral_shrinkage,
    l2_sp,
)
from jaxtransfer.tree import flatten, named_leaves, split


def batch_of(examples: ArrayData, size: int = 8) -> dict[str, Any]:
    return {
        "image": jnp.asarray(examples.images[:size]),
        "label": jnp.asarray(examples.labels[:size]),
    }


def moved(model: Model, plan: Plan, seed: int = 0, by: float = 0.1) -> Any:
    """The model's trainable leaves, each moved at random."""
    rng = np.random.default_rng(seed)
    trainable, _ = split(model.params, plan)
    return jax.tree.map(
        lambda x: x + jnp.asarray(rng.normal(0, by, x.shape), jnp.float32), trainable
    )


def features_alone(features: Any) -> Forward:
    return Forward({}, {}, None, None, {"head": jnp.asarray(features, jnp.float32)}, {})


# ---------------------------------------------------------------------------------------------
# L2-SP


@pytest.mark.parametrize("kernels_only", [True, False])
def test_l2_sp_is_the_papers_formula(
    kernels_only: bool, network: Model, examples: ArrayData, forward_of: Any
) -> None:
    plan = full(network)
    term = l2_sp(network, plan, alpha=0.3, beta=0.05, kernels_only=kernels_only)
    trainable = moved(network, plan)
    before, expected = flatten(network.params), 0.0
    for name, leaf in named_leaves(trainable):
        value = np.asarray(leaf, np.float64)
        if kernels_only and value.ndim < 2:
            continue
        if name.startswith("head/"):
            expected += 0.05 / 2 * np.sum(value**2)
        else:
            expected += 0.3 / 2 * np.sum((value - np.asarray(before[name], np.float64)) ** 2)
    found = term(forward_of(network, plan, batch_of(examples))(trainable))
    assert found.shape == ()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_gradient_of_l2_sp_leads_back_to_the_source(
    network: Model, examples: ArrayData, forward_of: Any
) -> None:
    plan = full(network)
    term, run = l2_sp(network, plan), forward_of(network, plan, batch_of(examples))
    trainable = moved(network, plan)
    gradient = flatten(jax.jit(jax.grad(lambda leaves: term(run(leaves))))(trainable))
    before = flatten(network.params)
    for name, leaf in named_leaves(trainable):
        if leaf.ndim < 2:
            expected = np.zeros(leaf.shape)
        elif name.startswith("head/"):
            expected = 0.01 * leaf
        else:
            expected = 0.1 * (leaf - before[name])
        np.testing.assert_allclose(gradient[name], expected, rtol=1e-4, atol=1e-8)


def test_l2_sp_keeps_the_parameters_of_its_plan_alone(network: Model) -> None:
    term = l2_sp(network, last(network, 2))
    assert term.source and all(name.startswith("layer3/") for name in term.source)
    assert len(jax.tree.leaves(term)) == len(term.source)
    assert l2_sp(network, probe(network)).source == {}


def test_l2_sp_refuses_what_it_has_no_source_of(
    network: Model, examples: ArrayData, forward_of: Any
) -> None:
    plan = last(network, 3)
    run = forward_of(network, plan, batch_of(examples))
    with pytest.raises(TrainingError, match="found none for .*'layer2/0/bn1/bias'.*for the plan"):
        l2_sp(network, last(network, 2))(run(split(network.params, plan)[0]))


def train(model: Model, plan: Plan, batch: Any, terms: Any, run: Any, steps: int = 15) -> Any:
    """The trainable leaves after some steps of gradient descent, by a small step of our own."""
    tx = optax.sgd(0.2)

    @jax.jit
    def step(leaves: Any, state: Any, terms: Any) -> Any:
        def total(leaves: Any) -> jax.Array:
            forward = run(leaves)
            losses = cross_entropy()(forward.outputs, batch)
            return jnp.mean(losses + sum(term(forward) for term in terms))

        updates, state = tx.update(jax.grad(total)(leaves), state)
        return optax.apply_updates(leaves, updates), state

    leaves, _ = split(model.params, plan)
    state = tx.init(leaves)
    for _ in range(steps):
        leaves, state = step(leaves, state, terms)
    return leaves


def test_the_distance_to_the_source_shrinks_with_alpha(
    network: Model, examples: ArrayData, forward_of: Any
) -> None:
    plan, batch = last(network, 2), batch_of(examples)
    run = forward_of(network, plan, batch)
    start = flatten(network.params)
    distances = []
    for alpha in (0.0, 0.3, 2.0):
        leaves = train(network, plan, batch, (l2_sp(network, plan, alpha=alpha),), run)
        kernels = [(n, x) for n, x in named_leaves(leaves) if n.startswith("layer") and x.ndim > 1]
        distances.append(sum(float(jnp.sum((x - start[n]) ** 2)) for n, x in kernels))
    assert distances[1] < 0.8 * distances[0]
    assert distances[2] < 0.5 * distances[1]


def test_numbers_are_static_and_arrays_are_leaves(network: Model) -> None:
    one, other = l2_sp(network, alpha=0.1), l2_sp(network, alpha=0.2)
    assert jax.tree.structure(one) != jax.tree.structure(other)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(one))
    assert jax.tree.leaves(batch_spectral_shrinkage(network)) == []


@pytest.mark.parametrize("weights", [{"alpha": -1.0}, {"beta": float("nan")}])
def test_a_weight_that_is_no_number_from_0_is_refused(
    weights: dict[str, float], network: Model
) -> None:
    with pytest.raises(TrainingError, match="l2_sp: expected finite numbers from 0"):
        l2_sp(network, **weights)


# ---------------------------------------------------------------------------------------------
# Batch spectral shrinkage


@pytest.mark.parametrize(("shape", "k"), [((8, 5), 1), ((5, 8), 2), ((6, 6), 6)])
def test_shrinkage_is_the_sum_of_the_smallest_squares(shape: tuple[int, int], k: int) -> None:
    features = np.random.default_rng(0).normal(size=shape)
    values = np.linalg.svd(features, compute_uv=False)
    found = BatchSpectralShrinkage(("head",), eta=0.25, k=k)(features_alone(features))
    np.testing.assert_allclose(found, 0.25 * np.sum(values[-k:] ** 2), rtol=1e-4)


def test_the_gradient_of_shrinkage_is_that_of_the_singular_values() -> None:
    features = np.random.default_rng(1).normal(size=(7, 4))
    left, values, right = np.linalg.svd(features, full_matrices=False)
    expected = 2 * sum(values[i] * np.outer(left[:, i], right[i]) for i in (2, 3))
    term = BatchSpectralShrinkage(("head",), eta=1.0, k=2)
    found = jax.grad(lambda x: term(features_alone(x)))(jnp.asarray(features, jnp.float32))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    "features",
    [np.eye(6, 4), np.zeros((6, 4)), np.ones((6, 4)), np.ones((3, 5))],
    ids=["equal values", "zeros", "rank one", "rank one, wide"],
)
def test_the_gradient_of_shrinkage_is_finite_where_values_are_equal(features: np.ndarray) -> None:
    term = BatchSpectralShrinkage(("head",), k=2)
    gradient = jax.grad(lambda x: term(features_alone(x)))(jnp.asarray(features, jnp.float32))
    assert np.isfinite(gradient).all()


def test_shrinkage_takes_the_mean_over_positions() -> None:
    maps = np.random.default_rng(2).normal(size=(6, 2, 2, 4))
    term = BatchSpectralShrinkage(("head",))
    np.testing.assert_allclose(
        term(features_alone(maps)), term(features_alone(maps.mean(axis=(1, 2)))), rtol=1e-4
    )


def test_shrinkage_shrinks_the_smallest_value_of_a_networks_features(
    network: Model, examples: ArrayData, forward_of: Any
) -> None:
    plan, batch = last(network, 2), batch_of(examples)
    run = forward_of(network, plan, batch, ("head",))

    def smallest(leaves: Any) -> float:
        return float(np.linalg.svd(run(leaves).features["head"], compute_uv=False)[-1])

    plain = train(network, plan, batch, (), run)
    term = batch_spectral_shrinkage(network, eta=5.0)
    assert term.stages == ("head",)
    assert smallest(train(network, plan, batch, (term,), run)) < 0.7 * smallest(plain)


def test_more_singular_values_than_there_are_is_an_error(network: Model) -> None:
    with pytest.raises(TrainingError, match=r"k = 5 singular values, found 4 .*\(6, 4\)"):
        BatchSpectralShrinkage(("head",), k=5)(features_alone(np.ones((6, 4))))
    with pytest.raises(TrainingError, match="k of at least 1, found 0"):
        batch_spectral_shrinkage(network, k=0)


def test_a_head_inside_a_stage_is_looked_at_where_the_stage_is_entered(network: Model) -> None:
    nested = replace(network, spec=replace(network.spec, head="head/last"))
    assert batch_spectral_shrinkage(nested).stages == ("head",)


def test_frozen_parameters_need_no_source(
    network: Model, examples: ArrayData, forward_of: Any
) -> None:
    plan = Plan((Group("head/**"), Group("**", frozen=True)))
    run = forward_of(network, plan, batch_of(examples))
    head = network.params["head"]["kernel"]
    found = l2_sp(network, plan, beta=2.0)(run(split(network.params, plan)[0]))
    np.testing.assert_allclose(found, np.sum(np.square(head)), rtol=1e-5)
