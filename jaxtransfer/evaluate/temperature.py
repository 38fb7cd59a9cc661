"""One temperature for all logits, so that probabilities are as often right as they say."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxtransfer.errors import DataError
from jaxtransfer.evaluate.answers import check_answers, log_softmax

# A slope that is smaller in proportion to the logits is one that rounding made.
ROUNDING = 1e-12


def temperature_scaling(logits: Any, labels: Any) -> float:
    """The temperature by which to divide logits so that the likelihood of the labels is highest.

    The classes' order, and with it the accuracy, stays. Use examples that were not trained on.

    Args:
        logits: shape (count, classes).
        labels: shape (count,), integers from 0.

    Returns:
        A number above 0; above 1 where the classifier is too confident.

    Raises:
        DataError: the lengths differ, there is no example, a logit is not finite, a label is no
            class, or no temperature is best: the likelihood rises for ever towards 0 where every
            prediction is right, or towards infinity where the logits are no better than chance.

    Source: Guo et al. 2017, arXiv 1706.04599, section 4.2, equation 9. The negative log-likelihood
    is convex in 1/T, so where it is lowest its slope is 0, and there alone.

    Example:
        `with_temperature(model, temperature_scaling(jt.predict(model, images), labels))`
    """
    scores, truth = check_answers("temperature_scaling", logits, labels)
    found = best_temperature(scores, truth)
    if found is None:
        raise DataError(
            "temperature_scaling: expected answers of which some are wrong and that are better "
            "than chance, found the others, for which no temperature is best; give more examples"
        )
    return found


def best_temperature(scores: np.ndarray, truth: np.ndarray) -> float | None:
    """The temperature of the highest likelihood of checked answers; `None` where there is none."""
    from scipy import optimize

    scores = scores - scores.max(axis=1, keepdims=True)
    own = scores[np.arange(len(truth)), truth].mean()
    size = -scores.min()
    # The slopes of the negative log-likelihood in 1/T, which rise: at 1/T = 0, and at infinity.
    if scores.mean() - own >= -ROUNDING * size or own >= 0:
        return None
    scores, own = scores / size, own / size

    def slope(log_inverse: float) -> float:
        shares = np.exp(log_softmax(np.exp(log_inverse) * scores))
        return float((shares * scores).sum(axis=1).mean() - own)

    low, high = 0.0, 1.0
    while slope(low) > 0:
        low -= 1
    while slope(high) < 0:
        high += 1
    root: Any = optimize.brentq(slope, low, high, xtol=1e-12)
    return float(size * np.exp(-root))
