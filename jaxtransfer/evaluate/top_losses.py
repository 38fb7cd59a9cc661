"""The examples that a classifier is most wrong about."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from jaxtransfer.errors import DataError
from jaxtransfer.evaluate.answers import check_answers, log_softmax


class TopLosses(NamedTuple):
    """Examples in order of falling loss.

    Attributes:
        indices: positions of the examples, int64.
        losses: cross-entropies in nats, float64.
        predictions: the classes of the highest logits, int64.
        probabilities: what the predictions' classes were given, float64; the labels' classes were
            given `exp(-losses)`.
    """

    indices: np.ndarray
    losses: np.ndarray
    predictions: np.ndarray
    probabilities: np.ndarray


def top_losses(logits: Any, labels: Any, count: int = 9) -> TopLosses:
    """The examples with the highest cross-entropy: hard ones, and ones with a wrong label.

    Args:
        logits: shape (count, classes).
        labels: shape (count,), integers from 0.
        count: how many examples, at most all.

    Returns:
        Arrays of one length, highest loss first, of equal ones that of the earlier example.

    Raises:
        DataError: the lengths differ, there is no example, a logit is not finite, a label is no
            class, or `count` is below 1.

    >>> top_losses([[2.0, 0.0], [0.0, 2.0]], [0, 0], count=1).indices.tolist()
    [1]
    """
    if count < 1:
        raise DataError(f"top_losses: expected a count of at least 1, found {count}")
    scores, truth = check_answers("top_losses", logits, labels)
    logs = log_softmax(scores)
    losses = -logs[np.arange(len(truth)), truth]
    first = np.argsort(-losses, kind="stable")[:count]
    predicted = scores[first].argmax(axis=1)
    return TopLosses(first, losses[first], predicted, np.exp(logs[first, predicted]))
