"""Learning curves, and what transfer can better in them: start, slope and asymptote.

Torrey & Shavlik 2009, "Transfer Learning", Handbook of Research on Machine Learning Applications,
figure 2, name a higher start, a higher slope and a higher asymptote. Here they are, for the
accuracy a(t) after t steps, measured at t = 0, …, T:

*   start: a(0), before any training on the target;
*   asymptote: the mean of a(t) over the measurements of the last fifth of the steps, t >= 0.8 T;
*   slope: (a(u) - a(0)) / u, the gain a step until u, the first measurement at which nine tenths of
    the way from the start to the asymptote are done; where the asymptote is no higher than the
    start, u = T. An arm that starts high has little left to gain, so its slope is to be read beside
    its start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxtransfer.errors import DataError

ASYMPTOTE_FROM = 0.8
SLOPE_UNTIL = 0.9


@dataclass(frozen=True)
class CurveSummary:
    """A learning curve in three numbers, as the module's description defines them.

    Attributes:
        start: accuracy before the first step, in [0, 1].
        slope: accuracy gained a step.
        asymptote: accuracy over the last fifth of the steps, in [0, 1].
    """

    start: float
    slope: float
    asymptote: float


def summarise_curve(steps: Sequence[int], accuracies: Sequence[float]) -> CurveSummary:
    """Start, slope and asymptote of a learning curve.

    Args:
        steps: numbers of steps done, rising from 0.
        accuracies: the accuracy after each of them.

    Raises:
        DataError: the lengths differ, or the steps do not rise from 0 to at least 1.

    >>> curve = summarise_curve([0, 10, 20, 90, 100], [0.1, 0.5, 0.86, 0.9, 0.9])
    >>> curve.start, round(curve.slope, 3), curve.asymptote
    (0.1, 0.038, 0.9)
    """
    at, values = np.asarray(steps), np.asarray(accuracies, dtype=float)
    if len(at) != len(values) or len(at) < 2 or at[0] != 0 or not (np.diff(at) > 0).all():
        raise DataError(
            "summarise_curve: expected steps that rise from 0 and an accuracy for each, found "
            f"{len(at)} steps {at.tolist()[:4]}… and {len(values)} accuracies"
        )
    start = float(values[0])
    asymptote = float(values[at >= ASYMPTOTE_FROM * at[-1]].mean())
    reached = values >= start + SLOPE_UNTIL * (asymptote - start)
    until = (
        int(np.argmax(reached[1:])) + 1 if asymptote > start and reached[1:].any() else len(at) - 1
    )
    return CurveSummary(start, float((values[until] - start) / at[until]), asymptote)


def evaluation_steps(steps: int, count: int = 10) -> tuple[int, ...]:
    """When to measure a curve: at 0, ever less often, and three times in the last fifth.

    >>> evaluation_steps(100)
    (0, 3, 6, 12, 25, 50, 80, 90, 100)
    """
    doubling = [steps * 2**-power for power in range(1, count - 4)]
    at = {0, *map(round, doubling), *(round(steps * share) for share in (0.8, 0.9, 1.0))}
    return tuple(sorted(at))
