from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtransfer.errors import TrainingError
from jaxtransfer.train import cross_entropy

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
