from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from jaxtransfer.errors import DataError
from jaxtransfer.evaluate.top_losses import top_losses


def test_losses_predictions_and_probabilities_are_those_of_a_softmax():
    rng = np.random.default_rng(0)
    logits, labels = 4 * rng.normal(size=(20, 3)).astype(np.float32), rng.integers(0, 3, 20)
    shares = np.exp(logits.astype(np.float64))
    shares /= shares.sum(axis=1, keepdims=True)
    losses = np.array(
        [
            metrics.log_loss([y], [row], labels=range(3))
            for y, row in zip(labels, shares, strict=True)
        ]
    )
    found = top_losses(logits, labels, count=6)
    np.testing.assert_array_equal(found.indices, np.argsort(-losses)[:6])
    np.testing.assert_allclose(found.losses, losses[found.indices], rtol=1e-9)
    np.testing.assert_array_equal(found.predictions, logits.argmax(axis=1)[found.indices])
    np.testing.assert_allclose(found.probabilities, shares.max(axis=1)[found.indices], rtol=1e-9)


def test_equal_losses_stand_in_their_order_and_more_than_all_is_all():
    found = top_losses(np.zeros((3, 2)), [1, 0, 1], count=9)
    np.testing.assert_array_equal(found.indices, [0, 1, 2])
    np.testing.assert_allclose(found.losses, np.log(2))


def test_large_logits_do_not_overflow():
    found = top_losses([[1e5, 0.0]], [1])
    assert (found.losses[0], found.probabilities[0]) == (1e5, 1.0)


def test_no_example_asked_for_is_an_error():
    with pytest.raises(DataError, match="count of at least 1, found 0"):
        top_losses(np.zeros((1, 2)), [0], count=0)
    with pytest.raises(DataError, match="top_losses: expected finite numbers"):
        top_losses([[np.inf, 0.0]], [0])
