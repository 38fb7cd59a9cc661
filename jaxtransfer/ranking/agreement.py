"""How well a ranking of sources agrees with what training them gave."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxtransfer.errors import DataError


def kendall(scores: Sequence[float] | np.ndarray, results: Sequence[float] | np.ndarray) -> float:
    """Kendall's correlation: the share of pairs in one order less that of pairs in the other.

    Ties count for neither order and shrink the norm, as in the form b of Kendall 1945, "The
    Treatment of Ties in Ranking Problems".

    Args:
        scores: one score for each source.
        results: what each source reached, such as accuracies, in the same order.

    Returns:
        From -1 to 1; NaN where all scores or all results are equal.

    Raises:
        DataError: the lengths differ, there are fewer than two, or a value is NaN.

    >>> round(kendall([1, 2, 3], [0.7, 0.9, 0.8]), 4)
    0.3333
    """
    first, second = _checked("kendall", scores, results)
    return _weighted(first, second, np.ones((len(first), len(first))))


def weighted_kendall(
    scores: Sequence[float] | np.ndarray, results: Sequence[float] | np.ndarray
) -> float:
    """Kendall's correlation where an exchange among the best counts more than among the last.

    A pair weighs 1/(r + 1) + 1/(s + 1) by the ranks r and s of its two, from 0 for the best. The
    result is the mean of two: with ranks by the scores, ties broken by the results, and the other
    way round.

    Source: Vigna 2015, "A Weighted Correlation Index for Rankings with Ties", arXiv 1404.3325, the
    additive hyperbolic index, as
    https://docs.scipy.org/doc/scipy/reference/generated/scipy.stats.weightedtau.html computes it.

    Args:
        scores: one score for each source.
        results: what each source reached, such as accuracies, in the same order.

    Returns:
        From -1 to 1; NaN where all scores or all results are equal.

    Raises:
        DataError: the lengths differ, there are fewer than two, or a value is NaN.

    >>> round(weighted_kendall([1, 2, 3], [0.7, 0.9, 0.8]), 4)
    0.1818
    """
    first, second = _checked("weighted_kendall", scores, results)
    by_scores = _weighted(first, second, _hyperbolic(first, second))
    by_results = _weighted(first, second, _hyperbolic(second, first))
    return (by_scores + by_results) / 2


def _weighted(first: np.ndarray, second: np.ndarray, weights: np.ndarray) -> float:
    """The weighted cosine between the orders of all pairs (Vigna 2015, section 3)."""
    orders = [np.sign(values[:, None] - values[None, :]) for values in (first, second)]
    norms = [np.sum(weights * order**2) for order in orders]
    if 0 in norms:
        return float("nan")
    return float(np.sum(weights * orders[0] * orders[1]) / np.sqrt(norms[0] * norms[1]))


def _hyperbolic(leading: np.ndarray, breaking: np.ndarray) -> np.ndarray:
    """The weight of each pair by ranks along `leading`, ties broken by `breaking`."""
    ranks = np.empty(len(leading))
    # The last key of lexsort is the leading one. The order of two that are equal in both changes
    # nothing: their pairs with any third one weigh the same together.
    ranks[np.lexsort((breaking, leading))[::-1]] = np.arange(len(leading))
    each = 1 / (ranks + 1)
    return each[:, None] + each[None, :]


def _checked(
    where: str, scores: Sequence[float] | np.ndarray, results: Sequence[float] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(scores, np.float64), np.asarray(results, np.float64)
    if first.ndim != 1 or first.shape != second.shape or len(first) < 2:
        raise DataError(
            f"{where}: expected as many scores as results, two at least, found shapes "
            f"{first.shape} and {second.shape}"
        )
    if np.isnan(first).any() or np.isnan(second).any():
        raise DataError(f"{where}: expected scores and results that are numbers, found NaN")
    return first, second
