from __future__ import annotations

from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtransfer.data import ArrayData
from jaxtransfer.errors import TrainingError
from jaxtransfer.models import Model
from jaxtransfer.partition import Group, Plan, full, probe
from jaxtransfer.train import TrainState, TrainStep, cross_entropy, init_state, make_train_step
from jaxtransfer.tree import diff, flatten, leaf_names, merge, named_leaves

FROZEN = Group("**", frozen=True)
# The last stage trains and its statistics follow the data; all before it is frozen.
LAST = Plan((Group(("layer3/**", "head/**")), FROZEN))


def batch_of(examples: ArrayData, size: int = 8) -> dict[str, jax.Array]:
    return {
        "image": jnp.asarray(examples.images[:size]),
        "label": jnp.asarray(examples.labels[:size]),
    }


def start(model: Model, plan: Plan, **options: Any) -> tuple[TrainState, TrainStep]:
    tx = plan.optimizer(0.01, **{"weight_decay": 0.1, **options})
    return init_state(model, plan, tx), make_train_step(model.apply, cross_entropy(), tx, plan)


@pytest.fixture(scope="module")
def fifty_steps(network: Model, examples: ArrayData) -> tuple[TrainState, TrainState, list[Any]]:
    """The state before and after fifty steps of AdamW with weight decay, and their metrics."""
    state, step = start(network, LAST)
    before = replace(state, stats=network.stats, trainable=None, opt_state=None)
    metrics = []
    for number in range(50):
        chosen = (np.arange(8) + number) % len(examples)
        state, found = step(
            state, {"image": examples.images[chosen], "label": examples.labels[chosen]}
        )
        metrics.append({name: float(value) for name, value in found.items()})
    return before, state, metrics


# ---------------------------------------------------------------------------------------------
# Frozen means frozen


def test_after_fifty_steps_frozen_leaves_are_the_same_to_the_last_bit(
    network: Model, fifty_steps: Any
) -> None:
    _, state, _ = fifty_steps
    found = diff(network.params, state.params)
    assert found.fits
    for names, trains in ((found.changed, True), (found.unchanged, False)):
        assert names and all(name.startswith(("layer3", "head")) == trains for name in names)


def test_after_fifty_steps_frozen_statistics_are_the_same_to_the_last_bit(
    network: Model, fifty_steps: Any
) -> None:
    _, state, _ = fifty_steps
    found = diff(network.stats, state.stats)
    assert found.fits
    for names, follows in ((found.changed, True), (found.unchanged, False)):
        assert names and all(name.startswith("layer3") == follows for name in names)


def test_frozen_leaves_are_the_very_arrays_of_the_model(network: Model, fifty_steps: Any) -> None:
    _, state, _ = fifty_steps
    own = flatten(network.params)
    assert leaf_names(state.frozen)
    assert all(leaf is own[name] for name, leaf in named_leaves(state.frozen))


def test_the_optimizer_state_holds_trainable_leaves_alone(network: Model, fifty_steps: Any) -> None:
    _, state, _ = fifty_steps
    trainable = sum(leaf.size for leaf in jax.tree.leaves(state.trainable))
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
    assert moments == 2 * trainable
    assert trainable < sum(leaf.size for leaf in jax.tree.leaves(network.params))


def test_training_learns(fifty_steps: Any) -> None:
    _, state, metrics = fifty_steps
    assert int(state.step) == 50
    assert np.mean([m["loss"] for m in metrics[-10:]]) < 0.5 * metrics[0]["loss"]


def test_the_gradient_norm_is_that_of_the_trainable_gradients_before_clipping(
    network: Model, examples: ArrayData
) -> None:
    plan, batch = probe(network), batch_of(examples)

    def loss(head: Any) -> jax.Array:
        params = {**network.params, "head": head}
        logits, _ = network.apply(params, network.stats, batch["image"], train=False)
        return cross_entropy()(logits, batch).mean()

    expected = optax.tree.norm(jax.grad(loss)(network.params["head"]))
    state, step = start(network, plan, clip_norm=1e-3)
    _, metrics = step(state, batch)
    np.testing.assert_allclose(metrics["gradient_norm"], expected, rtol=1e-5)
    assert expected > 1e-3


# ---------------------------------------------------------------------------------------------
# What a step costs


def test_a_probe_computes_no_frozen_gradient(network: Model, examples: ArrayData) -> None:
    batch, head = batch_of(examples), network.params["head"]

    def logits(head: Any, rest: Any) -> jax.Array:
        params = {**rest, "head": head}
        return network.apply(params, network.stats, batch["image"], train=False)[0]

    def head_loss(head: Any, rest: Any) -> jax.Array:
        return cross_entropy()(logits(head, rest), batch).mean()

    def flops(lowered: Any) -> float:
        return lowered.compile().cost_analysis()["flops"]

    forward = flops(jax.jit(logits).lower(head, network.params))
    reference = flops(jax.jit(jax.value_and_grad(head_loss)).lower(head, network.params))
    costs = {}
    for plan in (probe(network), full(network)):
        # A clip norm reads all gradients there are: none may be there for frozen parameters.
        state, step = start(network, plan, clip_norm=1.0)
        costs[plan.name] = flops(step.lower(state, batch))
    # What is left is the optimizer of the head, and the key of a dropout that is not there.
    assert forward < costs["probe"] < 1.05 * reference
    assert costs["probe"] < 1.1 * forward
    assert costs["full"] > 2 * costs["probe"]


# ---------------------------------------------------------------------------------------------
# Normalisation


class Normed(nn.Module):
    """A BatchNorm, dropout where asked for, and a dense head."""

    rate: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-3, name="bn")(x)
        x = nn.Dropout(self.rate, deterministic=not train, name="dropout")(x)
        return nn.Dense(2, use_bias=False, name="head")(x)


INPUTS = np.random.default_rng(1).normal(2.0, 3.0, (6, 4)).astype(np.float32)
LABELS = np.array([0, 1, 1, 0, 1, 0], np.int32)
MEAN = np.array([1.0, -1.0, 0.5, 2.0], np.float32)
VAR = np.array([4.0, 1.0, 0.25, 9.0], np.float32)


@pytest.fixture
def normed() -> Model:
    module = Normed()
    variables = module.init(jax.random.key(0), jnp.asarray(INPUTS), train=False)
    params = {
        **variables["params"],
        "bn": {"scale": jnp.array([1.0, 2.0, 0.5, 1.5]), "bias": jnp.array([0.1, 0.2, 0.3, 0.4])},
    }
    stats = {"bn": {"mean": jnp.asarray(MEAN), "var": jnp.asarray(VAR)}}
    return Model.from_linen(module, {"params": params, "batch_stats": stats})


def loss_by_hand(model: Model, mean: np.ndarray, var: np.ndarray) -> float:
    """The mean cross-entropy with a normalisation by these statistics, in float64."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), model.params)
    x = (INPUTS - mean) / np.sqrt(var + 1e-3) * params["bn"]["scale"] + params["bn"]["bias"]
    logits = x @ params["head"]["kernel"]
    log_softmax = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return -log_softmax[np.arange(6), LABELS].mean()


@pytest.mark.parametrize(
    "plan",
    [
        Plan((Group("head/**"), FROZEN)),
        Plan((Group("bn/**", stats="frozen"), Group("**"))),
    ],
    ids=["frozen parameters", "frozen statistics alone"],
)
def test_a_frozen_norm_normalises_by_the_statistics_it_has(plan: Plan, normed: Model) -> None:
    state, step = start(normed, plan)
    state, metrics = step(state, {"image": jnp.asarray(INPUTS), "label": jnp.asarray(LABELS)})
    np.testing.assert_allclose(metrics["loss"], loss_by_hand(normed, MEAN, VAR), rtol=1e-5)
    assert diff(normed.stats, state.stats).is_empty


@pytest.mark.parametrize(
    "plan",
    [Plan((Group("**"),)), Plan((Group("head/**"), Group("**", frozen=True, stats="update")))],
    ids=["everything trains", "frozen parameters alone"],
)
def test_another_norm_normalises_by_the_batch_and_its_statistics_follow(
    plan: Plan, normed: Model
) -> None:
    state, step = start(normed, plan)
    state, metrics = step(state, {"image": jnp.asarray(INPUTS), "label": jnp.asarray(LABELS)})
    mean, var = INPUTS.mean(axis=0), INPUTS.var(axis=0)
    np.testing.assert_allclose(metrics["loss"], loss_by_hand(normed, mean, var), rtol=1e-4)
    # Flax: momentum x old + (1 - momentum) x batch, with the biased variance.
    np.testing.assert_allclose(state.stats["bn"]["mean"], 0.9 * MEAN + 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(state.stats["bn"]["var"], 0.9 * VAR + 0.1 * var, rtol=1e-5)


def test_the_affine_part_of_a_norm_with_frozen_statistics_trains(normed: Model) -> None:
    state, step = start(normed, Plan((Group("bn/**", stats="frozen"), Group("**"))))
    state, _ = step(state, {"image": jnp.asarray(INPUTS), "label": jnp.asarray(LABELS)})
    assert set(diff(normed.params, state.params).changed) == set(leaf_names(normed.params))


def test_statistics_that_are_frozen_stay_whatever_the_network_returns() -> None:
    def careless(params: Any, stats: Any, x: jax.Array, *, frozen_modules: Any) -> Any:
        return x @ params["head"]["kernel"], jax.tree.map(lambda leaf: leaf * jnp.float32(2), stats)

    params = {"bn": {"scale": jnp.ones(4)}, "head": {"kernel": jnp.ones((4, 2))}}
    stats = {"bn": {"mean": jnp.asarray(MEAN)}, "head": {"mean": jnp.asarray(MEAN)}}
    model = Model.from_function(careless, params, stats, head="head")
    state, step = start(model, Plan((Group("head/**"), FROZEN)))
    state, _ = step(state, {"image": jnp.asarray(INPUTS), "label": jnp.asarray(LABELS)})
    assert diff(stats, state.stats).unchanged == ("bn/mean",)
    assert diff(stats, state.stats).changed == ("head/mean",)


# ---------------------------------------------------------------------------------------------
# Dropout


def losses_with_dropout(normed: Model, plan: Plan, seed: int) -> list[float]:
    """The losses of three steps that change nothing but the random numbers."""
    model = Model.from_linen(
        Normed(rate=0.5), {"params": normed.params, "batch_stats": normed.stats}
    )
    tx = plan.optimizer(0.0)
    state = init_state(model, plan, tx, seed)
    step = make_train_step(model.apply, cross_entropy(), tx, plan)
    losses = []
    for _ in range(3):
        state, metrics = step(state, {"image": jnp.asarray(INPUTS), "label": jnp.asarray(LABELS)})
        losses.append(float(metrics["loss"]))
    return losses


def test_dropout_differs_from_step_to_step_and_from_seed_to_seed(normed: Model) -> None:
    plan = Plan((Group("bn/**", stats="frozen"), Group("**")))
    first = losses_with_dropout(normed, plan, 0)
    assert len(set(first)) == 3
    assert losses_with_dropout(normed, plan, 0) == first
    assert not set(losses_with_dropout(normed, plan, 1)) & set(first)


# ---------------------------------------------------------------------------------------------
# Donation and compilation


def test_the_state_is_donated_and_the_model_is_not(network: Model, examples: ArrayData) -> None:
    state, step = start(network, LAST)
    moved, _ = step(state, batch_of(examples))
    given_away = jax.tree.leaves([state.trainable, state.opt_state, state.stats["layer3"]])
    assert all(leaf.is_deleted() for leaf in given_away)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves([network.params, network.stats]))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(moved.params))
    assert np.isfinite(
        network.apply(network.params, network.stats, examples.images, train=False)[0]
    ).all()


def test_a_step_is_compiled_once_whatever_its_learning_rate(
    network: Model, examples: ArrayData
) -> None:
    state, step = start(network, LAST)
    state = replace(
        state, opt_state=optax.tree.set(state.opt_state, learning_rate=jnp.float32(0.5))
    )
    for rate in (0.1, 0.2, 0.3):
        state, _ = step(state, batch_of(examples))
        opt_state = optax.tree.set(state.opt_state, learning_rate=jnp.float32(rate))
        state = replace(state, opt_state=opt_state)
    assert step.jitted._cache_size() == 1


def test_images_are_prepared_inside_the_step(network: Model, examples: ArrayData) -> None:
    plan = probe(network)
    tx = plan.optimizer(0.01)
    plain = make_train_step(network.apply, cross_entropy(), tx, plan)
    doubled = make_train_step(
        network.apply, cross_entropy(), tx, plan, prepare=lambda x: x * jnp.float32(2)
    )
    batch = batch_of(examples)
    _, expected = plain(
        init_state(network, plan, tx), {**batch, "image": batch["image"] * jnp.float32(2)}
    )
    _, found = doubled(init_state(network, plan, tx), batch)
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-6)


# ---------------------------------------------------------------------------------------------
# The moving average


def test_the_average_follows_the_trainable_parameters(normed: Model) -> None:
    plan = Plan((Group("head/**"), FROZEN))
    tx = plan.optimizer(0.1, optimizer="sgd")
    state = init_state(normed, plan, tx, with_ema=True)
    step = make_train_step(normed.apply, cross_entropy(), tx, plan, ema_decay=0.75)
    expected = np.asarray(normed.params["head"]["kernel"])
    for _ in range(3):
        state, _ = step(state, {"image": jnp.asarray(INPUTS), "label": jnp.asarray(LABELS)})
        kernel = np.asarray(state.trainable["head"]["kernel"])
        expected = 0.75 * expected + 0.25 * kernel
        np.testing.assert_allclose(state.ema["head"]["kernel"], expected, rtol=1e-5)
    assert not np.allclose(expected, kernel, rtol=1e-4)
    assert merge(state.ema, state.frozen).keys() == normed.params.keys()


@pytest.mark.parametrize("with_ema", [True, False])
def test_an_average_needs_a_decay_and_a_decay_an_average(with_ema: bool, normed: Model) -> None:
    plan = Plan((Group("**"),))
    tx = plan.optimizer(0.1)
    state = init_state(normed, plan, tx, with_ema=with_ema)
    decay = None if with_ema else 0.9
    step = make_train_step(normed.apply, cross_entropy(), tx, plan, ema_decay=decay)
    with pytest.raises(TrainingError, match="no decay" if with_ema else "no average"):
        step(state, {"image": jnp.asarray(INPUTS), "label": jnp.asarray(LABELS)})


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_decay_out_of_range_is_an_error(decay: float, normed: Model) -> None:
    plan = Plan((Group("**"),))
    with pytest.raises(TrainingError, match=f"from 0, below 1, found {decay}"):
        make_train_step(normed.apply, cross_entropy(), plan.optimizer(0.1), plan, ema_decay=decay)
