from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from sklearn import metrics

from jaxtransfer.data import ArrayData
from jaxtransfer.errors import DataError, TrainingError
from jaxtransfer.evaluate.predict import predict
from jaxtransfer.models import Model
from jaxtransfer.train import cross_entropy, evaluate
from jaxtransfer.train.evaluation import _step as cached_step

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(11, 4)).astype(np.float32)
KERNEL = RNG.normal(size=(4, 3)).astype(np.float32)
OUTPUTS = FEATURES @ KERNEL


@dataclass(frozen=True)
class Weighted:
    """Examples with labels of any kind, and perhaps a weight for each."""

    images: np.ndarray
    labels: Any
    weights: np.ndarray | None = None
    classes: None = None
    in_memory: bool = True

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: np.ndarray) -> Weighted:
        raise AssertionError("an evaluation reads, it takes nothing")

    def ready(self, preprocess: object) -> Weighted:
        return self

    def read(self, indices: np.ndarray) -> dict[str, Any]:
        labels = jax.tree.map(lambda rows: rows[indices], self.labels)
        batch = {"image": self.images[indices], "label": labels}
        return batch if self.weights is None else {**batch, "weight": self.weights[indices]}

    def fingerprint(self) -> str:
        raise AssertionError("an evaluation needs no fingerprint")


def linear(params: Any, stats: Any, inputs: jax.Array, *, train: bool) -> tuple[jax.Array, Any]:
    assert not train
    return inputs @ params, stats


def squared_error(outputs: jax.Array, batch: Any) -> jax.Array:
    return jnp.mean(jnp.square(outputs - batch["label"]), axis=-1)


def binary_cross_entropy(outputs: jax.Array, batch: Any) -> jax.Array:
    wanted = batch["label"].astype(jnp.float32)
    return jnp.mean(optax.sigmoid_binary_cross_entropy(outputs, wanted), axis=-1)


def soft_cross_entropy(outputs: jax.Array, batch: Any) -> jax.Array:
    return optax.softmax_cross_entropy(outputs, batch["label"])


def scores(labels: Any, weights: np.ndarray | None = None, **how: Any) -> dict[str, float]:
    return evaluate(linear, KERNEL, {}, Weighted(FEATURES, labels, weights), **how)


# ---------------------------------------------------------------------------------------------
# What the scores are


def test_classes_of_a_network_are_scored_as_its_predictions_are(
    network: Model, examples: ArrayData
) -> None:
    found = evaluate(network, network.params, network.stats, examples, batch_size=8)
    logits = predict(network, examples.images)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, examples.labels)
    assert found == {
        "loss": pytest.approx(float(np.mean(losses)), rel=1e-5),
        "accuracy": pytest.approx(float(np.mean(logits.argmax(-1) == examples.labels))),
    }


def test_soft_labels_are_classes() -> None:
    soft = np.asarray(jax.nn.softmax(RNG.normal(size=(11, 3))), np.float32)
    found = scores(soft, loss=soft_cross_entropy, batch_size=4)
    logs = OUTPUTS - np.log(np.exp(OUTPUTS).sum(-1, keepdims=True))
    assert found["loss"] == pytest.approx(-(soft * logs).sum(-1).mean(), rel=1e-5)
    assert found["accuracy"] == pytest.approx(np.mean(soft.argmax(-1) == OUTPUTS.argmax(-1)))
    assert found.keys() == {"loss", "accuracy"}


@pytest.mark.parametrize("dtype", [np.int32, bool, np.float32])
def test_several_labels_are_scored_as_scikit_learn_does(dtype: Any) -> None:
    labels = (RNG.random((11, 3)) < 0.4).astype(dtype)
    weights = RNG.random(11).astype(np.float32)
    found = scores(labels, weights, loss=binary_cross_entropy, batch_size=4)
    answers, wanted = OUTPUTS > 0, labels.astype(bool)
    assert found == {
        "loss": pytest.approx(
            np.mean(
                [
                    metrics.log_loss(
                        wanted[:, k],
                        1 / (1 + np.exp(-OUTPUTS[:, k])),
                        labels=[0, 1],
                        sample_weight=weights,
                    )
                    for k in range(3)
                ]
            ),
            rel=1e-4,
        ),
        "accuracy": pytest.approx(np.average((answers == wanted).mean(-1), weights=weights)),
        "f1": pytest.approx(
            metrics.f1_score(wanted, answers, average="micro", sample_weight=weights), rel=1e-5
        ),
    }


def test_what_labels_are_can_be_said() -> None:
    hot = np.eye(3, dtype=np.float32)[np.arange(11) % 3]
    assert scores(hot, loss=soft_cross_entropy).keys() == {"loss", "accuracy", "f1"}
    found = scores(hot, loss=soft_cross_entropy, targets="classes")
    assert found == pytest.approx(scores(np.arange(11) % 3))
    likely = (0.5 + 0.4 * RNG.choice([-1, 1], (11, 3))).astype(np.float32)
    found = scores(likely, loss=binary_cross_entropy, targets="multi_label")
    expected = metrics.f1_score(likely > 0.5, OUTPUTS > 0, average="micro")
    assert found["f1"] == pytest.approx(expected)
    for wrong in ("labels", {"colour": "classes"}):
        with pytest.raises(TrainingError, match="targets among classes, multi_label, values"):
            scores(hot, targets=wrong)


def test_a_loss_with_class_weights_is_a_mean_over_these() -> None:
    by_class = np.float32([1, 2, 5])

    def loss(outputs: jax.Array, batch: Any) -> jax.Array:
        return jnp.asarray(by_class)[batch["label"]] * cross_entropy()(outputs, batch)

    loss.example_weights = lambda batch: jnp.asarray(by_class)[batch["label"]]
    labels, weights = np.arange(11) % 3, RNG.random(11).astype(np.float32)
    expected = metrics.log_loss(
        labels, jax.nn.softmax(OUTPUTS), sample_weight=weights * by_class[labels]
    )
    found = scores(labels, weights, loss=loss, batch_size=4)
    assert found["loss"] == pytest.approx(expected, rel=1e-5)
    assert found["accuracy"] == pytest.approx(scores(labels, weights)["accuracy"])


def test_f1_without_a_true_positive_is_zero() -> None:
    assert scores((OUTPUTS <= 0).astype(np.int32), loss=binary_cross_entropy)["f1"] == 0
    assert scores((OUTPUTS > 0).astype(np.int32), loss=binary_cross_entropy)["f1"] == 1


def test_values_are_scored_as_scikit_learn_does() -> None:
    # Far from 0 next to their spread, where a plain sum of squares would cancel to noise.
    values = (OUTPUTS + RNG.normal(size=(11, 3)) + 3000).astype(np.float32)
    weights = RNG.random(11).astype(np.float32)
    found = evaluate(
        lambda params, stats, inputs, *, train: (inputs @ params + 3000, stats),
        KERNEL,
        {},
        Weighted(FEATURES, values, weights),
        loss=squared_error,
        batch_size=4,
    )
    answers = (OUTPUTS + 3000).astype(np.float64)
    wanted = values.astype(np.float64)
    assert found == {
        "loss": pytest.approx(
            metrics.mean_squared_error(wanted, answers, sample_weight=weights), rel=1e-3
        ),
        "mean_absolute_error": pytest.approx(
            metrics.mean_absolute_error(wanted, answers, sample_weight=weights), rel=1e-3
        ),
        "r_squared": pytest.approx(
            metrics.r2_score(wanted, answers, sample_weight=weights), rel=1e-3
        ),
    }


def test_one_value_an_example_may_have_labels_without_an_axis() -> None:
    def loss(outputs: jax.Array, batch: Any) -> jax.Array:
        return jnp.square(outputs[:, 0] - batch["label"])

    values = (OUTPUTS[:, 0] + 0.5).astype(np.float32)
    found = evaluate(linear, KERNEL[:, :1], {}, Weighted(FEATURES, values), loss=loss)
    assert found["mean_absolute_error"] == pytest.approx(0.5, rel=1e-5)
    assert found["r_squared"] == pytest.approx(metrics.r2_score(values, OUTPUTS[:, 0]), rel=1e-5)


def test_of_labels_that_are_all_the_same_nothing_is_explained_but_by_a_perfect_answer() -> None:
    images, labels = np.ones((5, 4), np.float32), np.tile(np.float32([2.5, 2.5]), (5, 1))
    kernel = np.zeros((4, 2), np.float32)
    kernel[0] = 2.5, 1.0
    found = evaluate(linear, kernel, {}, Weighted(images, labels), loss=squared_error)
    assert found["r_squared"] == 0.5 == np.mean([1, 0])


def test_each_of_several_tasks_has_its_scores() -> None:
    labels = {"colour": RNG.integers(0, 3, 11), "size": OUTPUTS[:, :2] + np.float32(1)}

    def two_heads(params: Any, stats: Any, inputs: jax.Array, *, train: bool) -> Any:
        outputs = inputs @ params
        return {"colour": outputs, "size": outputs[:, :2]}, stats

    def loss(outputs: Any, batch: Any) -> jax.Array:
        return cross_entropy()(outputs["colour"], {"label": batch["label"]["colour"]})

    data = Weighted(FEATURES, labels)
    found = evaluate(two_heads, KERNEL, {}, data, loss=loss, batch_size=4)
    assert found == {
        "loss": pytest.approx(scores(labels["colour"])["loss"], rel=1e-5),
        "colour/accuracy": scores(labels["colour"])["accuracy"],
        "size/mean_absolute_error": pytest.approx(1.0, rel=1e-5),
        "size/r_squared": pytest.approx(metrics.r2_score(labels["size"], OUTPUTS[:, :2]), rel=1e-4),
    }
    with pytest.raises(TrainingError, match=r"tasks of the labels, \['colour', 'shape'\]"):
        others = Weighted(FEATURES, {"colour": labels["colour"], "shape": labels["size"]})
        evaluate(two_heads, KERNEL, {}, others, loss=loss)


# ---------------------------------------------------------------------------------------------
# Batches, weights and devices


@settings(deadline=None, max_examples=20)
@given(st.sampled_from([1, 4, 14]), st.lists(st.floats(0, 4, width=16), min_size=11, max_size=11))
def test_batches_do_not_change_weighted_means(batch_size: int, weights: list[float]) -> None:
    labels = np.arange(11) % 3
    given_weights = np.float32(weights)
    data = Weighted(FEATURES, labels, given_weights)
    if given_weights.sum() == 0:
        with pytest.raises(DataError, match="weights with a sum above 0, found 0"):
            evaluate(linear, KERNEL, {}, data, batch_size=batch_size)
        return
    found = evaluate(linear, KERNEL, {}, data, batch_size=batch_size)
    losses = optax.softmax_cross_entropy_with_integer_labels(OUTPUTS, labels)
    right = OUTPUTS.argmax(-1) == labels
    assert found["loss"] == pytest.approx(np.average(losses, weights=weights), rel=1e-4)
    assert found["accuracy"] == pytest.approx(np.average(right, weights=weights), abs=1e-6)


def test_padding_counts_for_nothing_even_where_its_loss_is_not_finite() -> None:
    labels = np.arange(11) % 3

    def loss(outputs: jax.Array, batch: Any) -> jax.Array:
        losses = cross_entropy()(outputs, batch)
        return jnp.where(jnp.any(batch["image"] != 0, axis=-1), losses, jnp.nan)

    assert scores(labels, loss=loss, batch_size=4)["loss"] == scores(labels, batch_size=4)["loss"]


def test_a_loss_that_is_not_finite_is_told() -> None:
    labels = np.arange(11) % 3
    labels[5] = 3
    assert np.isnan(scores(labels)["loss"])


def test_all_batches_and_all_evaluations_share_one_program(
    network: Model, examples: ArrayData
) -> None:
    traces = []

    def apply(*arguments: Any, **how: Any) -> Any:
        traces.append(how)
        return network.apply(*arguments, **how)

    counted = replace(network, apply=apply)
    for scale in (1.0, 2.0):
        params = jax.tree.map(lambda leaf, by=scale: leaf * by, network.params)
        evaluate(counted, params, network.stats, examples, batch_size=8)
    assert traces == [{"train": False}]


@dataclass(frozen=True)
class OverDevices:
    """Batches over some devices; of two processes it plays the first or the second."""

    batch: NamedSharding

    def local_rows(self, batch_size: int) -> slice:
        return slice(0, batch_size)

    def put_batch(self, batch: Any) -> Any:
        return jax.device_put(batch, self.batch)


@pytest.mark.parametrize("devices", [1, 4, 8])
def test_scores_are_the_same_on_any_number_of_devices(
    network: Model, examples: ArrayData, devices: int
) -> None:
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))
    over = OverDevices(NamedSharding(mesh, PartitionSpec("data")))
    arguments = (network, network.params, network.stats, examples)
    found = evaluate(*arguments, batch_size=16, sharding=over)
    alone = evaluate(*arguments, batch_size=16)
    assert found == {name: pytest.approx(value, rel=1e-6) for name, value in alone.items()}


def test_what_cannot_be_evaluated_is_told() -> None:
    with pytest.raises(DataError, match="at least one example, found none"):
        evaluate(linear, KERNEL, {}, Weighted(FEATURES[:0], np.zeros(0, np.int32)))
    with pytest.raises(TrainingError, match="batch_size: expected at least 1, found 0"):
        scores(np.arange(11) % 3, batch_size=0)


def test_losses_that_are_equal_share_a_program() -> None:
    scores(np.arange(11) % 3)
    before = cached_step.cache_info().currsize
    scores(np.arange(11) % 3, loss=cross_entropy())
    assert cached_step.cache_info().currsize == before
