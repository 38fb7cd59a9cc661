from __future__ import annotations

from dataclasses import dataclass, field, replace
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
from jaxtransfer.train.regularisers import Forward
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


def compiled_programs(step: TrainStep) -> int:
    return sum(jitted._cache_size() for jitted in step.jitted._jitted.values())


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
    assert compiled_programs(step) == 1


class Deep(nn.Module):
    """Small dense layers, as many as asked for."""

    depth: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = x.reshape(len(x), -1)
        for _ in range(self.depth):
            x = nn.relu(nn.Dense(4)(x))
        return x


def test_the_program_grows_with_the_number_of_leaves_and_not_faster() -> None:
    def instructions(depth: int) -> int:
        network = Deep(depth)
        images = jnp.ones((2, 2, 2, 1))
        model = Model.from_linen(network, network.init(jax.random.key(0), images, train=False))
        state, step = start(model, Plan((Group("**"),)))
        rows = {"image": images, "label": jnp.zeros(2, jnp.int32)}
        return step.lower(state, rows).compile().as_text().count(" = ")

    few, some, many = (instructions(depth) for depth in (4, 8, 16))
    assert many - some < 2.2 * (some - few)


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


# ---------------------------------------------------------------------------------------------
# Weights, micro-batches, recomputation and devices all give one and the same step

FULL = Plan((Group("**"),))
STILL = Plan((Group("**", stats="frozen"),))  # a micro-batch has other statistics than its batch


def one_step(
    model: Model, batch: Any, plan: Plan = FULL, loss: Any = None, **options: Any
) -> tuple[TrainState, dict[str, jax.Array]]:
    """The state after a step of gradient descent at a rate of 1, and its metrics."""
    tx = options.pop("tx", optax.sgd(1.0))
    kept = {name: options[name] for name in ("precision",) if name in options}
    state = init_state(model, plan, tx, 7, with_ema="ema_decay" in options, **kept)
    loss = cross_entropy() if loss is None else loss
    return make_train_step(model.apply, loss, tx, plan, **options)(state, batch)


def assert_same(found: Any, expected: Any, tolerance: float = 2e-6) -> None:
    (state, metrics), (other_state, other_metrics) = found, expected
    assert metrics.keys() == other_metrics.keys()
    pairs = (
        (state.trainable, state.stats, metrics),
        (
            other_state.trainable,
            other_state.stats,
            other_metrics,
        ),
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=tolerance), *pairs)


def without(batch: Any, *names: str) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if name not in names}


def test_the_loss_is_the_weighted_mean(staged: Model, rows: Any) -> None:
    logits, _ = staged.apply(staged.params, staged.stats, rows["image"], train=False)
    losses = cross_entropy()(logits, rows)
    _, metrics = one_step(staged, rows, STILL)
    expected = np.average(losses, weights=rows["weight"])
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-6)


def test_what_fills_up_a_batch_counts_nothing(staged: Model, rows: Any) -> None:
    first = {name: value[:5] for name, value in without(rows, "weight").items()}
    filled = {
        "image": np.concatenate([first["image"], np.zeros((3, 4), np.float32)]),
        "label": np.concatenate([first["label"], np.full(3, -1, np.int32)]),  # whose loss is NaN
        "weight": np.array([1, 1, 1, 1, 1, 0, 0, 0], np.float32),
    }
    assert_same(one_step(staged, filled, STILL), one_step(staged, first, STILL))


def test_class_weights_divide_by_the_weights_of_the_labels(staged: Model, rows: Any) -> None:
    weights = (0.2, 1.0, 5.0)
    loss = cross_entropy(class_weights=weights)
    found = one_step(staged, without(rows, "weight"), STILL, loss)
    same = {**rows, "weight": np.asarray(weights, np.float32)[rows["label"]]}
    assert_same(found, one_step(staged, same, STILL))
    micro = one_step(staged, without(rows, "weight"), STILL, loss, accumulate=4)
    assert_same(micro, found)


@pytest.mark.parametrize("count", [2, 8])
def test_the_gradient_of_micro_batches_is_that_of_the_batch(
    count: int, staged: Model, rows: Any
) -> None:
    expected = one_step(staged, rows, STILL)
    assert_same(one_step(staged, rows, STILL, accumulate=count), expected)
    # Means of means would be another gradient, by far.
    parts = [
        one_step(staged, {k: v[i::count] for k, v in rows.items()}, STILL) for i in range(count)
    ]
    mean = np.mean([state.trainable["head"]["bias"] for state, _ in parts], axis=0)
    assert np.abs(mean - expected[0].trainable["head"]["bias"]).max() > 1e-3


def test_statistics_go_through_the_micro_batches_in_order(staged: Model, rows: Any) -> None:
    stats = staged.stats
    for i in range(4):
        _, stats = staged.apply(staged.params, stats, rows["image"][i::4], train=True)
    state, _ = one_step(staged, rows, accumulate=4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), state.stats, stats)


def test_each_micro_batch_has_a_dropout_of_its_own(staged_with_dropout: Model) -> None:
    # The same example four times over: without a key for each part all parts were the same.
    batch = {"image": np.ones((4, 4), np.float32), "label": np.zeros(4, np.int32)}

    def loss(logits: jax.Array, batch: Any) -> jax.Array:
        return logits[:, 0] * batch["sign"]

    signs = {**batch, "sign": np.array([1, -1, 1, -1], np.float32)}
    _, metrics = one_step(staged_with_dropout, signs, STILL, loss, accumulate=4)
    assert abs(metrics["loss"]) > 1e-4


def test_a_batch_that_cannot_be_divided_is_an_error(staged: Model, rows: Any) -> None:
    with pytest.raises(TrainingError, match="accumulate: expected .* 3 micro-batches, found 16"):
        one_step(staged, rows, accumulate=3)
    odd = {name: value[:9] for name, value in rows.items()}
    with pytest.raises(TrainingError, match="parallel: expected .* 8 devices, found 9"):
        one_step(staged, odd, parallel="pmap")


@pytest.mark.parametrize("remat", [("body",), ("stem", "neck"), "all"])
def test_what_is_recomputed_is_the_same(remat: Any, staged_with_dropout: Model, rows: Any) -> None:
    stages = staged_with_dropout.spec.stages
    found = one_step(staged_with_dropout, rows, remat=remat, stages=stages)
    assert_same(found, one_step(staged_with_dropout, rows))


def test_recomputation_and_micro_batches_go_together(staged: Model, rows: Any) -> None:
    found = one_step(staged, rows, remat="all", stages=staged.spec.stages, accumulate=4)
    assert_same(found, one_step(staged, rows, accumulate=4))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_pmap_agrees_with_jit(accumulate: int, staged: Model, rows: Any) -> None:
    found = one_step(staged, rows, parallel="pmap", accumulate=accumulate)
    assert_same(found, one_step(staged, rows, accumulate=accumulate))


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_pmap_agrees_with_jit_on_fewer_devices(
    devices: int, staged: Model, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = jax.local_devices()[:devices]
    monkeypatch.setattr(jax, "local_devices", lambda: chosen)
    assert_same(one_step(staged, rows, parallel="pmap"), one_step(staged, rows))


def test_pmap_takes_and_gives_an_ordinary_state(staged: Model, rows: Any) -> None:
    tx = optax.sgd(1.0, momentum=0.9)
    traces = []

    def loss(logits: jax.Array, batch: Any) -> jax.Array:
        traces.append(logits.shape)
        return cross_entropy()(logits, batch)

    states = {}
    for parallel in ("pmap", "jit"):
        state = init_state(staged, FULL, tx)
        step = make_train_step(staged.apply, loss, tx, FULL, parallel=parallel)
        for _ in range(3):
            state, _ = step(state, rows)
        states[parallel] = state
    shapes = [jax.tree.map(jnp.shape, state) for state in states.values()]
    assert shapes[0] == shapes[1] and int(states["pmap"].step) == 3
    assert_same((states["pmap"], {}), (states["jit"], {}), 1e-5)
    assert traces == [(2, 3), (16, 3)]  # each was traced once


# ---------------------------------------------------------------------------------------------
# Steps that are left out


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_step_that_is_not_finite_changes_nothing(
    bad: float, accumulate: int, staged: Model, rows: Any
) -> None:
    tx = FULL.optimizer(0.1, clip_norm=1.0)
    state = init_state(staged, FULL, tx, with_ema=True)
    step = make_train_step(
        staged.apply, cross_entropy(), tx, FULL, ema_decay=0.9, accumulate=accumulate
    )
    state, metrics = step(state, rows)
    assert metrics["skipped"] == 0
    parts = ("trainable", "stats", "opt_state", "ema")
    before = {name: jax.tree.map(np.array, jax.tree.leaves(getattr(state, name))) for name in parts}
    spoilt = {**rows, "image": rows["image"].copy()}
    spoilt["image"][3, 1] = bad
    moved, metrics = step(state, spoilt)
    assert metrics["skipped"] == 1 and not np.isfinite(metrics["gradient_norm"])
    for name, leaves in before.items():
        after = jax.tree.leaves(getattr(moved, name))
        assert all(np.array_equal(a, b) for a, b in zip(after, leaves, strict=True)), name
    assert int(moved.step) == 2
    moved, metrics = step(moved, rows)
    assert metrics["skipped"] == 0 and np.isfinite(metrics["loss"])
    assert compiled_programs(step) == 1


@pytest.mark.parametrize("optimizer", ["sam", "sam_adamw"])
def test_a_gradient_uphill_that_is_not_finite_changes_nothing(
    optimizer: str, staged: Model, rows: Any
) -> None:
    outputs, _ = staged.apply(staged.params, staged.stats, rows["image"], train=False)
    here = float(jnp.mean(cross_entropy()(outputs, rows)))

    def loss(outputs: Any, batch: Any) -> jax.Array:
        losses = cross_entropy()(outputs, batch)
        is_uphill = jax.lax.stop_gradient(jnp.mean(losses)) > here + 1e-4
        return losses * jnp.where(is_uphill, jnp.float32(jnp.inf), 1)

    plan = probe(staged)
    tx = plan.optimizer(0.1, optimizer=optimizer)
    step = make_train_step(staged.apply, loss, tx, plan)
    state, metrics = step(init_state(staged, plan, tx), rows)
    assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["gradient_norm"])
    assert metrics["skipped"] == 1
    assert diff(staged.params, state.params).is_empty
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.opt_state))


# ---------------------------------------------------------------------------------------------
# Augmentation and regularisers


def test_augmentation_sees_floats_and_draws_anew_in_each_step(staged: Model) -> None:
    seen = []

    def augment(key: jax.Array, batch: Any) -> Any:
        jax.debug.callback(lambda image: seen.append(np.array(image)), batch["image"])
        noise = jax.random.uniform(key, batch["image"].shape)
        jax.debug.callback(lambda noise: seen.append(np.array(noise)), noise)
        return {**batch, "image": batch["image"] + noise}

    images = np.random.default_rng(0).integers(0, 256, (2, 4)).astype(np.uint8)
    batch = {"image": images, "label": np.zeros(2, np.int32)}
    plan = FULL
    tx = plan.optimizer(0.1)
    for _ in range(2):
        state = init_state(staged, plan, tx, 3)
        step = make_train_step(staged.apply, cross_entropy(), tx, plan, augment=augment)
        for _ in range(2):
            state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        jax.effects_barrier()
    images_seen = [image for image in seen if (image == seen[0]).all()]
    np.testing.assert_allclose(seen[0], images / np.float32(255), rtol=1e-6)
    noises = [other for other in seen if not (other == seen[0]).all()]
    assert len(images_seen) == len(noises) == 4
    assert len({noise.tobytes() for noise in noises}) == 2  # the steps of both runs are the same


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Distance:
    """Half the squared distance of the trainable parameters to others."""

    start: Any
    stages: tuple[str, ...] = field(default=(), metadata={"static": True})

    def __call__(self, forward: Forward) -> Any:
        pairs = jax.tree.map(lambda a, b: jnp.sum(jnp.square(a - b)), forward.trainable, self.start)
        return sum(jax.tree.leaves(pairs), jnp.float32(0)) / 2


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sizes:
    """The mean of the squared features, for each example."""

    stages: tuple[str, ...] = field(default=("body", "head"), metadata={"static": True})

    def __call__(self, forward: Forward) -> Any:
        return sum(jnp.mean(jnp.square(x), axis=-1) for x in forward.features.values())


@pytest.mark.parametrize(
    "options",
    [{}, {"accumulate": 4}, {"remat": ("body",)}, {"parallel": "pmap"}],
    ids=["plain", "micro-batches", "recomputed", "pmap"],
)
def test_regularisers_are_added_to_the_loss(options: Any, staged: Model, rows: Any) -> None:
    origin = jax.tree.map(jnp.zeros_like, staged.params)
    found, metrics = one_step(
        staged,
        rows,
        STILL,
        regularisers=(Distance(origin), Sizes()),
        stages=staged.spec.stages,
        **options,
    )

    def value(params: Any) -> Any:
        def run(**cut: Any) -> jax.Array:
            return staged.apply(params, staged.stats, rows["image"], train=False, **cut)[0]

        weight = rows["weight"]
        distance = sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(params)) / 2
        sizes = jnp.mean(jnp.square(run(stop="body")), -1) + jnp.mean(
            jnp.square(run(stop="head")), -1
        )
        losses = cross_entropy()(run(), rows)
        share = jnp.sum(weight * sizes) / jnp.sum(weight)
        return jnp.sum(weight * losses) / jnp.sum(weight) + distance + share, (distance, share)

    (total, (distance, share)), gradients = jax.value_and_grad(value, has_aux=True)(staged.params)
    for name, expected in (
        ("loss", total),
        ("regulariser/Distance", distance),
        ("regulariser/Sizes", share),
    ):
        np.testing.assert_allclose(metrics[name], expected, rtol=1e-5)
    jax.tree.map(
        lambda new, old, gradient: np.testing.assert_allclose(
            new, old - gradient, rtol=1e-4, atol=2e-6
        ),
        found.trainable,
        staged.params,
        gradients,
    )


def test_regularisers_of_one_class_are_numbered(staged: Model, rows: Any) -> None:
    terms = (Distance(staged.params), Distance(jax.tree.map(jnp.zeros_like, staged.params)))
    _, metrics = one_step(staged, rows, regularisers=terms)
    assert metrics["regulariser/Distance"] == 0 < metrics["regulariser/Distance_2"]


def test_a_loss_or_a_term_of_another_shape_is_an_error(staged: Model, rows: Any) -> None:
    with pytest.raises(TrainingError, match=r"loss: expected .* \(16,\).*found \(\)"):
        one_step(staged, rows, loss=lambda logits, batch: jnp.mean(logits))

    class Logits(Sizes):
        def __call__(self, forward: Forward) -> jax.Array:
            return forward.outputs

    jax.tree_util.register_dataclass(Logits, [], ["stages"])
    with pytest.raises(TrainingError, match=r"regulariser Logits: .*\(\) or \(16,\)"):
        one_step(staged, rows, regularisers=(Logits(()),))


# ---------------------------------------------------------------------------------------------
# Optimizers that ask for more, layouts, and arguments


def test_sharpness_aware_minimisation_gets_gradients_of_the_same_batch(
    staged: Model, rows: Any
) -> None:
    # Foret et al. 2021, arXiv 2010.01412, equations 2 and 3: the gradient at w + rho g / |g|.
    def value(params: Any) -> jax.Array:
        logits, _ = staged.apply(params, staged.stats, rows["image"], train=False)
        return jnp.sum(rows["weight"] * cross_entropy()(logits, rows)) / jnp.sum(rows["weight"])

    gradient = jax.grad(value)(staged.params)
    norm = optax.tree.norm(gradient)
    near = jax.tree.map(lambda w, g: w + 0.1 * g / norm, staged.params, gradient)
    expected = jax.tree.map(lambda w, g: w - 0.5 * g, staged.params, jax.grad(value)(near))
    with jax.numpy_dtype_promotion("standard"):
        tx = optax.contrib.sam(
            optax.sgd(0.5),
            optax.chain(optax.contrib.normalize(), optax.sgd(0.1)),
            sync_period=2,
            opaque_mode=True,
        )
    state, _ = one_step(staged, rows, STILL, tx=tx)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        state.trainable,
        expected,
    )


def test_an_optimizer_is_told_the_loss(staged: Model, rows: Any) -> None:
    def update(updates: Any, state: Any, params: Any = None, *, value: Any = None, **_: Any) -> Any:
        return jax.tree.map(jnp.zeros_like, updates), value

    initial: Any = lambda params: jnp.float32(0)  # noqa: E731
    tx = optax.GradientTransformationExtraArgs(initial, update)
    state, metrics = one_step(staged, rows, tx=tx)
    assert state.opt_state == metrics["loss"] > 0


def test_the_new_state_keeps_its_layout(staged: Model, rows: Any) -> None:
    class Layouts:
        mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

        def constrain(self, tree: Any) -> Any:
            spread = jax.sharding.PartitionSpec("data")

            def one(leaf: jax.Array) -> jax.Array:
                spec = spread if leaf.ndim == 2 else jax.sharding.PartitionSpec()
                layout = jax.sharding.NamedSharding(self.mesh, spec)
                return jax.lax.with_sharding_constraint(leaf, layout)

            return jax.tree.map(one, tree)

        def gather(self, params: Any) -> Any:
            return params

    state, _ = one_step(staged, rows, sharding=Layouts(), regularisers=(Distance(staged.params),))
    assert state.trainable["stem"]["dense"]["kernel"].sharding.spec == jax.sharding.PartitionSpec(
        "data"
    )
    assert state.trainable["stem"]["dense"]["bias"].is_fully_replicated


def test_arguments_out_of_range_are_said_at_once(staged: Model) -> None:
    with pytest.raises(TrainingError, match=r"ema_decay: .*accumulate: .*found 0; parallel: .*tpu"):
        make_train_step(
            staged.apply,
            cross_entropy(),
            optax.sgd(0.1),
            FULL,
            ema_decay=2.0,
            accumulate=0,
            parallel="tpu",
        )
    with pytest.raises(TrainingError, match="sharding: expected None with parallel='pmap'"):
        make_train_step(
            staged.apply, cross_entropy(), optax.sgd(1.0), FULL, parallel="pmap", sharding=object()
        )
