"""Does transfer help? The comparison of arms, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jaxtransfer.data import ArrayData, load_digits
from jaxtransfer.evaluate.comparison import (
    NAIVE,
    SCRATCH,
    TRANSFER_ARMS,
    Budget,
    Comparison,
    OnProgress,
    compare_arms,
)
from jaxtransfer.models import Model
from jaxtransfer.transfer.loading import EMBEDDED_SOURCE, load

DIGITS = "handwritten digits"


def compare(
    source: str | Path | Model = EMBEDDED_SOURCE,
    data: ArrayData | None = None,
    *,
    target: str = DIGITS,
    arms: Sequence[str] = (NAIVE, SCRATCH, *TRANSFER_ARMS),
    budget: Budget | None = None,
    seeds: int | Sequence[int] = 3,
    on_progress: OnProgress | None = None,
) -> Comparison:
    """Does transfer help? Train arms with and without it under one budget, over several seeds.

    See `jaxtransfer.evaluate.comparison.compare_arms` for the arms and the method, and
    `jaxtransfer.evaluate.curves` for what start, slope and asymptote are.

    Args:
        source: a model, or a reference to one.
        data: all labelled images of the target, with names of classes; by default scikit-learn's
            handwritten digits.
        target: what the data is called in reports.
        arms: which arms to run.
        budget: what every arm gets; by default `Budget()`.
        seeds: how many seeds, or which.
        on_progress: called after each training step.

    Example:
        `print(jt.compare(seeds=5).verdict)`
    """
    model = source if isinstance(source, Model) else load(source)
    return compare_arms(
        model,
        load_digits() if data is None else data,
        names=(model.spec.name if isinstance(source, Model) else str(source), target),
        arms=arms,
        budget=budget or Budget(),
        seeds=range(seeds) if isinstance(seeds, int) else seeds,
        on_progress=on_progress,
    )
