from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtransfer.errors import TrainingError
from jaxtransfer.train.losses import (
    absolute_error,
    binary_cross_entropy,
    cross_entropy,
    focal,
    huber,
    loss_name,
    multi_task,
    smoothed_cross_entropy,
    squared_error,
)

LOGITS = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32) * 5
LABELS = np.array([0, 1, 2, 3, 1, 0], np.int32)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_the_loss_is_the_formula(smoothing: float) -> None:
    logits = LOGITS.astype(np.float64)
    log_softmax = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    target = np.full((6, 4), smoothing / 4)
    target[np.arange(6), LABELS] += 1 - smoothing
    loss = cross_entropy(smoothing)(jnp.asarray(LOGITS), {"label": jnp.asarray(LABELS)})
    assert loss.shape == (6,) and loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, -(target * log_softmax).sum(axis=1), rtol=1e-5, atol=1e-5)


def test_a_label_that_is_no_class_has_no_loss_that_passes_for_one() -> None:
    labels = jnp.array([0, 4, -1, 2, 3, 1], jnp.int32)
    loss = cross_entropy(0.1)(jnp.asarray(LOGITS), {"label": labels})
    assert np.isnan(loss).tolist() == [False, True, True, False, False, False]


def test_the_gradient_is_softmax_minus_target() -> None:
    def total(logits: jax.Array) -> jax.Array:
        return cross_entropy()(logits, {"label": jnp.asarray(LABELS)}).sum()

    expected = jax.nn.softmax(jnp.asarray(LOGITS)) - jax.nn.one_hot(LABELS, 4)
    np.testing.assert_allclose(jax.grad(total)(jnp.asarray(LOGITS)), expected, atol=1e-6)


def test_one_argument_gives_one_loss_so_that_compiled_steps_are_shared() -> None:
    assert cross_entropy(0.1) is cross_entropy(0.1)
    assert cross_entropy(0.1) is not cross_entropy(0.2)
    assert cross_entropy(0.1).__qualname__ != cross_entropy(0.2).__qualname__


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_smoothing_out_of_range_is_an_error(smoothing: float) -> None:
    with pytest.raises(TrainingError, match=f"from 0, below 1, found {smoothing}"):
        cross_entropy(smoothing)


# ---------------------------------------------------------------------------------------------
# Values of PyTorch 2.13 and torchvision's sigmoid_focal_loss, in float64

WEIGHTS = (0.5, 2.0, 1.0, 0.25)
SOFT = np.array(
    [
        [0.7, 0.3, 0.0, 0.0],
        [0.0, 1.0, 0.0, 0.0],
        [0.25, 0.25, 0.25, 0.25],
        [0.0, 0.0, 0.1, 0.9],
        [0.0, 0.5, 0.5, 0.0],
        [1.0, 0.0, 0.0, 0.0],
    ],
    np.float32,
)
SEVERAL = np.array(
    [[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0], [1, 0, 0, 1], [0, 0, 1, 0.5]],
    np.float32,
)
BY_TORCH = {
    "class weights": (
        cross_entropy(class_weights=WEIGHTS),
        LABELS,
        [1.363525, 9.749907, 3.382783, 0.661697, 13.674527, 3.740913],
    ),
    "class weights, smoothed": (
        cross_entropy(0.1, class_weights=WEIGHTS),
        LABELS,
        [1.483607, 9.151925, 3.506437, 0.879048, 12.828861, 3.746574],
    ),
    "soft labels, class weights": (
        cross_entropy(class_weights=WEIGHTS),
        SOFT,
        [3.364203, 9.749907, 4.619327, 1.117028, 8.436068, 3.740913],
    ),
    "soft labels, class weights, smoothed": (
        cross_entropy(0.1, class_weights=WEIGHTS),
        SOFT,
        [3.284217, 9.151925, 4.619327, 1.288845, 8.114248, 3.746574],
    ),
    "several labels": (
        binary_cross_entropy(),
        SEVERAL,
        [0.468289, 3.322966, 3.407918, 0.352539, 1.28895, 2.913784],
    ),
    "several labels, positive weights": (
        binary_cross_entropy((3.0, 1.0, 0.5, 2.0)),
        SEVERAL,
        [0.67702, 3.322966, 4.935683, 0.352539, 2.682814, 2.513512],
    ),
    "several labels, focal": (
        binary_cross_entropy(focal_gamma=2.0, focal_alpha=0.25),
        (SEVERAL > 0.6).astype(np.int32),
        [0.085505, 2.364565, 0.791867, 0.048504, 0.475435, 1.745095],
    ),
    "squared": (
        squared_error(),
        SEVERAL,
        [1.42465, 18.84419, 22.91972, 47.93541, 9.58272, 16.84727],
    ),
    "absolute": (absolute_error(), SEVERAL, [0.93962, 3.93543, 4.18888, 5.9025, 2.89338, 3.26463]),
    "huber": (huber(1.5), SEVERAL, [0.6507, 4.77815, 5.22074, 7.72875, 3.21507, 3.87117]),
}


@pytest.mark.parametrize("case", BY_TORCH)
def test_losses_are_those_of_torch(case: str) -> None:
    loss, labels, expected = BY_TORCH[case]
    found = loss(jnp.asarray(LOGITS), {"label": jnp.asarray(labels)})
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=2e-5)


@pytest.mark.parametrize(
    ("smoothing", "labels", "expected"),
    [
        (0.0, LABELS, 5.211736143931143),
        (0.1, LABELS, 5.055432216468337),
        (0.0, SOFT, 5.171240893851151),
        (0.1, SOFT, 5.0341893950184415),
    ],
)
def test_class_weights_are_divided_by_as_torch_divides(
    smoothing: float, labels: np.ndarray, expected: float
) -> None:
    loss = cross_entropy(smoothing, class_weights=WEIGHTS)
    batch = {"label": jnp.asarray(labels)}
    total = loss(jnp.asarray(LOGITS), batch).sum()
    np.testing.assert_allclose(total / loss.example_weights(batch).sum(), expected, rtol=2e-6)


def test_soft_labels_of_one_class_are_that_class() -> None:
    soft = jax.nn.one_hot(LABELS, 4)
    for loss in (cross_entropy(0.1), focal(2.0)):
        np.testing.assert_allclose(
            loss(jnp.asarray(LOGITS), {"label": soft}),
            loss(jnp.asarray(LOGITS), {"label": jnp.asarray(LABELS)}),
            rtol=1e-6,
        )


def test_the_focal_loss_is_its_formula_and_without_gamma_the_cross_entropy() -> None:
    logits, batch = jnp.asarray(LOGITS), {"label": jnp.asarray(LABELS)}
    wide = LOGITS.astype(np.float64)
    p = (np.exp(wide) / np.exp(wide).sum(axis=1, keepdims=True))[np.arange(6), LABELS]
    np.testing.assert_allclose(
        focal(3.0)(logits, batch), -((1 - p) ** 3) * np.log(p), rtol=1e-4, atol=1e-7
    )
    weighted = cross_entropy(class_weights=WEIGHTS)
    np.testing.assert_array_equal(focal(0.0, WEIGHTS)(logits, batch), weighted(logits, batch))
    np.testing.assert_array_equal(
        focal(0.0, WEIGHTS).example_weights(batch), weighted.example_weights(batch)
    )


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize(
    ("loss", "labels"),
    [
        (focal(0.5), LABELS),
        (binary_cross_entropy(focal_gamma=0.5), SEVERAL),
        (cross_entropy(0.1, WEIGHTS), LABELS),
        (huber(), SEVERAL),
    ],
    ids=loss_name,
)
def test_gradients_are_finite_even_where_the_network_is_sure(
    loss: Any, labels: np.ndarray, scale: float
) -> None:
    def total(logits: jax.Array) -> jax.Array:
        return loss(logits, {"label": jnp.asarray(labels)}).sum()

    assert np.isfinite(jax.grad(total)(jnp.asarray(LOGITS) * jnp.float32(scale))).all()


def test_a_class_that_is_ruled_out_is_no_target() -> None:
    logits = jnp.asarray(LOGITS).at[:, 3].set(-jnp.inf)[:3]
    losses = cross_entropy()(logits, {"label": jnp.asarray(LABELS[:3])})
    expected = cross_entropy()(logits[:, :3], {"label": jnp.asarray(LABELS[:3])})
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


def test_a_label_without_an_axis_goes_with_a_single_output() -> None:
    labels = jnp.arange(6, dtype=jnp.float32)
    found = absolute_error()(jnp.asarray(LOGITS[:, :1]), {"label": labels})
    np.testing.assert_allclose(found, np.abs(LOGITS[:, 0] - np.arange(6)), rtol=1e-6)
    with pytest.raises(TrainingError, match=r"shape of the outputs, \(6, 4\), found \(6,\)"):
        absolute_error()(jnp.asarray(LOGITS), {"label": labels})


def test_tasks_are_weighted_and_summed() -> None:
    loss = multi_task({"kind": cross_entropy(), "size": squared_error()}, weights={"size": 0.1})
    outputs = {"kind": jnp.asarray(LOGITS), "size": jnp.asarray(LOGITS[:, :1])}
    labels = {"kind": jnp.asarray(LABELS), "size": jnp.zeros(6)}
    expected = cross_entropy()(outputs["kind"], {"label": labels["kind"]}) + 0.1 * jnp.square(
        LOGITS[:, 0]
    )
    np.testing.assert_allclose(loss(outputs, {"label": labels}), expected, rtol=1e-6)
    assert loss_name(loss) == "multi_task(kind: 1 cross_entropy(0), size: 0.1 squared_error())"
    with pytest.raises(TrainingError, match=r"outputs as a dict with \['size'\]"):
        loss({"kind": outputs["kind"]}, {"label": labels})
    with pytest.raises(TrainingError, match="labels as a dict .* found ArrayImpl"):
        loss(outputs, {"label": labels["kind"]})


@pytest.mark.parametrize(
    ("one", "other", "name"),
    [
        (focal(), focal(gamma=2), "focal(2)"),
        (cross_entropy(0.1, [1, 2]), cross_entropy(0.1, (1.0, 2.0)), "cross_entropy(0.1, [1, 2])"),
        (huber(), huber(delta=1), "huber(1)"),
        (
            binary_cross_entropy(focal_alpha=0.5),
            binary_cross_entropy(None, focal_alpha=0.5),
            "binary_cross_entropy(None, None, 0.5)",
        ),
        (
            multi_task({"a": focal()}),
            multi_task({"a": focal()}, {"a": 1}),
            "multi_task(a: 1 focal(2))",
        ),
    ],
)
def test_losses_are_known_by_their_arguments(one: Any, other: Any, name: str) -> None:
    assert one is other and loss_name(one) == name


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: focal(-1.0), "gamma from 0, found -1"),
        (lambda: huber(0.0), "delta above 0, found 0"),
        (lambda: binary_cross_entropy(focal_alpha=1.5), "focal_alpha from 0 to 1, found 1.5"),
        (lambda: cross_entropy(class_weights=(1, -2)), r"at least 0.* found \[-2.0\]"),
        (lambda: cross_entropy(class_weights=(0, 0)), "not all of them 0"),
        (lambda: multi_task({}), "at least one task"),
        (lambda: multi_task({"a": focal()}, {"b": 1}), r"weights for \['b'\]"),
        (lambda: multi_task({"a": focal()}, {"a": float("nan")}), "weight of a from 0, found nan"),
        (
            lambda: cross_entropy(class_weights=(1, 2))(jnp.ones((6, 4)), {"label": LABELS}),
            "each of 4 outputs, found 2",
        ),
    ],
)
def test_arguments_out_of_range_are_errors(make: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        make()


@pytest.mark.parametrize("loss", [cross_entropy(), focal()])
def test_numbers_are_no_distribution_over_the_classes(loss: Any) -> None:
    with pytest.raises(TrainingError, match="labels of the shape of the outputs"):
        loss(jnp.zeros((2, 1)), {"label": jnp.array([0.5, 7.0])})


def test_smoothings_that_are_traced_are_those_of_numbers() -> None:
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)), jnp.float32)
    batch = {"label": jnp.array([0, 3, 1, 2, 7])}
    smoothings = (0.0, 0.1, 0.9)
    together = jax.vmap(lambda one: smoothed_cross_entropy(one)(logits, batch))(
        jnp.asarray(smoothings)
    )
    for smoothing, losses in zip(smoothings, together, strict=True):
        np.testing.assert_allclose(losses, cross_entropy(smoothing)(logits, batch), rtol=1e-6)
