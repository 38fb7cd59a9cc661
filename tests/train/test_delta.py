from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtransfer.data import ArrayData
from jaxtransfer.errors import DataError, TrainingError
from jaxtransfer.models import Model
from jaxtransfer.partition import full, last
from jaxtransfer.train.delta import DELTA, channel_attention, default_stages, delta
from jaxtransfer.train.losses import cross_entropy
from jaxtransfer.tree import flatten, named_leaves, split

STAGES = ("layer2", "layer3", "head")


def batch_of(examples: ArrayData, size: int = 6) -> dict[str, Any]:
    return {
        "image": jnp.asarray(examples.images[:size]),
        "label": jnp.asarray(examples.labels[:size]),
    }


def features_of(model: Model, params: Any, images: Any, stage: str) -> np.ndarray:
    return np.asarray(
        model.apply(params, model.stats, images, train=False, stop=stage)[0], np.float64
    )


def moved(model: Model) -> Any:
    return jax.tree.map(lambda x: x * jnp.float32(1.2) + jnp.float32(0.01), model.params)


@pytest.mark.parametrize("weighted", [True, False])
def test_delta_is_the_formula_of_the_papers_code(
    weighted: bool, network: Model, examples: ArrayData, forward_of: Any
) -> None:
    rng = np.random.default_rng(0)
    batch, params = batch_of(examples), moved(network)
    sizes = {"layer2": 4, "layer3": 8, "head": 16}
    weights = {stage: rng.dirichlet(np.ones(size)) for stage, size in sizes.items()}
    term = delta(network, weights if weighted else None, stages=STAGES, alpha=0.3, beta=0.05)
    assert term.stages == STAGES
    head = [np.asarray(x, np.float64) for n, x in named_leaves(params) if n.startswith("head/")]
    expected = np.full(6, 0.05 / 2 * sum(np.sum(x**2) for x in head))
    for stage, size in sizes.items():
        distance = features_of(network, params, batch["image"], stage) - features_of(
            network, network.params, batch["image"], stage
        )
        maps = distance.reshape(6, -1, size)  # examples, positions, channels
        weight = weights[stage] if weighted else np.full(size, 1 / size)
        expected += 0.3 / 2 * size / maps.shape[1] * np.sum(weight * np.sum(maps**2, 1), axis=-1)
    run = jax.jit(lambda leaves: term(forward_of(network, full(network), batch, STAGES)(leaves)))
    found = run(params)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_delta_leads_back_to_the_sources_features(
    network: Model, examples: ArrayData, forward_of: Any
) -> None:
    plan = last(network, 2)
    run = forward_of(network, plan, batch_of(examples), ("layer3", "head"))
    term = delta(network, stages=("layer3", "head"), beta=0.0)
    total = jax.jit(jax.value_and_grad(lambda leaves: jnp.sum(term(run(leaves)))))
    at_the_source, _ = total(split(network.params, plan)[0])
    assert float(at_the_source) < 1e-10  # two programs of XLA, the same but for rounding
    start, _ = split(moved(network), plan)
    value, gradient = total(start)
    closer, _ = total(jax.tree.map(lambda x, g: x - jnp.float32(1e-2) * g, start, gradient))
    assert float(closer) < float(value)
    # What is behind the last stage that is compared has no share in it.
    assert np.any(gradient["layer3"]["0"]["conv1"]["kernel"])
    assert not np.any(gradient["head"]["kernel"])


def test_training_with_delta_moves_features_less(
    network: Model, examples: ArrayData, forward_of: Any
) -> None:
    plan, batch = last(network, 2), batch_of(examples)
    run = forward_of(network, plan, batch, ("head",))
    start, _ = split(network.params, plan)

    @jax.jit
    def step(leaves: Any, term: DELTA) -> Any:
        def total(leaves: Any) -> jax.Array:
            forward = run(leaves)
            return jnp.mean(cross_entropy()(forward.outputs, batch) + term(forward))

        return jax.tree.map(lambda x, g: x - jnp.float32(0.1) * g, leaves, jax.grad(total)(leaves))

    before, distances = run(start).features["head"], []
    for alpha in (0.0, 1.0):
        leaves, term = start, delta(network, stages=("head",), alpha=alpha)
        for _ in range(20):
            leaves = step(leaves, term)
        distances.append(float(jnp.sum((run(leaves).features["head"] - before) ** 2)))
    assert distances[1] < 0.5 * distances[0]


def test_the_stages_are_all_with_parameters_but_the_first(network: Model) -> None:
    assert default_stages(network) == ("layer1", "layer2", "layer3", "head")
    assert delta(network).stages == default_stages(network)
    assert delta(network, {"layer3": np.ones(8) / 8}).stages == ("layer3",)


def test_stages_and_weights_that_do_not_fit_are_refused(network: Model) -> None:
    with pytest.raises(TrainingError, match=r"expected stages among stem, .*'nowhere'"):
        delta(network, stages=("nowhere",))
    with pytest.raises(TrainingError, match=r"found stages \('head',\) and weights for .'layer2'"):
        delta(network, {"layer2": np.ones(4) / 4}, stages=("head",))
    with pytest.raises(TrainingError, match="delta: expected finite numbers from 0"):
        delta(network, alpha=-1.0)


# ---------------------------------------------------------------------------------------------
# Attention


def test_attention_is_the_softmax_of_how_much_the_loss_rises(
    network: Model, examples: ArrayData
) -> None:
    found = channel_attention(network, examples, ("head",), batch_size=20, batches=1)["head"]
    features = features_of(network, network.params, examples.images, "head")
    kernel, bias = (
        np.asarray(network.params["head"][name], np.float64) for name in ("kernel", "bias")
    )

    def loss(features: np.ndarray) -> float:
        logits = features @ kernel + bias
        log_softmax = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return -log_softmax[np.arange(20), examples.labels].mean()

    rises = np.array([loss(features * (np.arange(16) != j)) - loss(features) for j in range(16)])
    standard = np.exp((rises - rises.mean()) / rises.std() / 5)
    np.testing.assert_allclose(found, standard / standard.sum(), rtol=1e-3)


def test_attention_goes_to_the_channel_that_decides(examples: ArrayData) -> None:
    def decides(params: Any, x: Any, *, start: Any = None, stop: Any = None) -> Any:
        features = x if start == "head" else jnp.repeat(x.mean(axis=(1, 2)), 3, axis=-1)
        return features if stop == "head" else features @ params["head"]["kernel"]

    kernel = jnp.array([[0.0, 0.0, 0.0], [-30.0, 0.0, 30.0], [0.0, 0.0, 0.0]])
    model = Model.from_function(
        decides, {"body": {"scale": jnp.ones(1)}, "head": {"kernel": kernel}}, head="head"
    )
    bright = replace(examples, labels=np.where(examples.labels == 0, 0, 2).astype(np.int32))
    bright = replace(bright, images=np.where(bright.labels == 0, -1.0, 1.0)[:, None, None, None])
    bright = replace(bright, images=bright.images.astype(np.float32) * np.ones((1, 4, 4, 1), "f4"))
    found = channel_attention(model, bright, batches=2)
    assert set(found) == {"head"}
    np.testing.assert_allclose(np.sum(found["head"]), 1, rtol=1e-6)
    assert np.argmax(found["head"]) == 1 and found["head"][1] > 1.3 * found["head"][0]


def test_channels_that_do_not_matter_have_equal_weights(examples: ArrayData) -> None:
    def constant(params: Any, x: Any, *, start: Any = None, stop: Any = None) -> Any:
        features = x if start == "head" else x.reshape(len(x), -1)[:, :5]
        return features if stop == "head" else 0 * features[:, :3] + params["head"]["bias"]

    params = {"body": {"scale": jnp.ones(1)}, "head": {"bias": jnp.zeros(3)}}
    found = channel_attention(Model.from_function(constant, params, head="head"), examples)
    np.testing.assert_allclose(found["head"], np.full(5, 0.2), rtol=1e-6)


def test_attention_needs_examples_and_numbers_in_range(network: Model, examples: ArrayData) -> None:
    with pytest.raises(DataError, match="at least one example"):
        channel_attention(network, examples.take(np.arange(0)))
    with pytest.raises(TrainingError, match="temperature above 0, found 64, 4 and 0"):
        channel_attention(network, examples, temperature=0)


def test_the_sources_arrays_are_leaves(network: Model) -> None:
    term = delta(network, {"head": np.ones(16) / 16})
    held = {id(leaf) for leaf in jax.tree.leaves(term)}
    assert {id(leaf) for leaf in flatten(network.params).values()} <= held
