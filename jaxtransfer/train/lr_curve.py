"""What a curve of losses over learning rates suggests, as fastai reads it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from jaxtransfer.errors import TrainingError

# Constants of https://github.com/fastai/fastai, fastai/callback/schedule.py: `LRFinder` stops where
# the smoothed loss is four times the best one; `slide` compares slopes fifteen points apart.
DIVERGED = 4.0
SLIDE_WIDTH = 15
SLIDE_THRESHOLD = 0.005

# Share of the whole fall of a curve that counts as none.
FLAT = 0.01


@dataclass(frozen=True)
class Suggestions:
    """Four readings of a curve of losses over learning rates.

    Attributes:
        valley: at about half of the longest valley, the longest row of falling losses.
        steep: where the loss falls fastest over the logarithm of the rate.
        minimum: a tenth of the rate with the lowest loss.
        slide: the rate to the left of the rise at the end, found by sliding an interval down from
            the end until the slopes at both of its ends agree.
    """

    valley: float
    steep: float
    minimum: float
    slide: float


def suggest(rates: ArrayLike, losses: ArrayLike) -> Suggestions:
    """Four learning rates from a curve, as fastai reads it.

    What comes after the first loss that is not finite is left out. Curves that are too short for an
    interval of 15 points, fewer than 75, have a narrower one.

    Args:
        rates: the learning rates, rising.
        losses: the loss at each, smooth.

    Raises:
        TrainingError: fewer than two losses are finite, before the first that is not.

    Source: `valley`, `steep`, `minimum` and `slide` of
    https://github.com/fastai/fastai/blob/main/nbs/14_callback.schedule.ipynb; the first is due to
    ESRI, the last to A. Chang
    (https://forums.fast.ai/t/automated-learning-rate-suggester/44199).

    >>> suggest([1e-4, 1e-3, 1e-2, 1e-1, 1.0], [2.0, 1.9, 1.0, 0.8, 3.0]).steep
    0.001
    """
    x, y = np.asarray(rates, np.float64), np.asarray(losses, np.float64)
    count = _count_finite(y)
    if count < 2:
        raise TrainingError(
            f"find_lr: expected at least two finite losses at the lowest rates, found {count} of "
            f"{len(y)}; lower lo, raise steps, or look for extreme values in images and labels"
        )
    x, y = x[:count], y[:count]
    return Suggestions(
        valley=float(x[_valley(y)]),
        steep=float(x[np.argmin(np.diff(y) / np.diff(np.log(x)))]),
        minimum=float(x[np.argmin(y)] / 10),
        slide=float(x[_slide(y)]),
    )


def suggest_from(rates: np.ndarray, losses: np.ndarray, kept: slice) -> Suggestions:
    """The suggestions from the part of a curve that is kept; from all of it where that is short."""
    if _count_finite(losses[kept]) < 2:
        return suggest(rates, losses)
    return suggest(rates[kept], losses[kept])


def _count_finite(losses: np.ndarray) -> int:
    """How many losses there are before the first that is not finite."""
    finite = np.isfinite(losses)
    return len(losses) if finite.all() else int(np.argmin(finite))


def falling_part(losses: np.ndarray) -> slice:
    """The part of a curve without noise that tells something.

    Before it, less than a hundredth of the whole fall has happened: that the loss falls there at
    all would be the longest valley. After it, the loss is far above the best one before.
    """
    diverged = ~(losses <= DIVERGED * np.fmin.accumulate(losses))
    stop = int(np.argmax(diverged)) if diverged.any() else len(losses)
    if stop < 2:
        return slice(0, stop)
    fallen = losses[0] - losses[:stop]
    return slice(int(np.argmax(fallen >= FLAT * fallen.max())), stop)


def _valley(losses: np.ndarray) -> int:
    """Half along the longest falling subsequence, by its end and its number of points."""
    lengths = np.ones(len(losses), np.int64)
    for i in range(1, len(losses)):
        higher = losses[:i] > losses[i]
        if higher.any():
            lengths[i] = lengths[:i][higher].max() + 1
    end = int(np.argmax(lengths))
    start = end - int(lengths[end])  # as in fastai, one point before the first if that is falling
    third = (end - start) / 3
    return max(start + int(third) + int(third / 2), 0)


def _slide(losses: np.ndarray) -> int:
    """The left end of an interval that slides down from the end until its slopes agree."""
    slopes = np.gradient(losses)
    right = len(losses) - 1
    left = found = right - max(1, min(SLIDE_WIDTH, len(losses) // 5))
    while left >= 0 and abs(slopes[right] - slopes[left]) > SLIDE_THRESHOLD:
        found = left
        left, right = left - 1, right - 1
    return found
