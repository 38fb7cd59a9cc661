"""Factors on the learning rate over the steps of a run."""

from __future__ import annotations

import optax

from jaxtransfer.errors import PlanError


def warmup_cosine(steps: int, warmup_fraction: float = 0.1) -> optax.Schedule:
    """A linear rise from 0 to 1 over the first steps, then half a cosine down to 0.

    Args:
        steps: length of the run.
        warmup_fraction: share of the steps that the rise takes; it takes at least one. A run of one
            step has no rise, or else it would change nothing.

    Source: Loshchilov & Hutter 2017, "SGDR" (arXiv 1608.03983), equation 5 without restarts; the
    warm-up is Goyal et al. 2017 (arXiv 1706.02677), section 2.2.

    Raises:
        PlanError: there is no step, or the share is not from 0 to 1.

    >>> factor = warmup_cosine(100)
    >>> [round(float(factor(step)), 2) for step in (0, 5, 10, 55, 100)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if steps < 1 or not 0 <= warmup_fraction <= 1:
        raise PlanError(
            "warmup_cosine: expected at least 1 step and a warmup_fraction from 0 to 1, found "
            f"{steps} and {warmup_fraction}"
        )
    warmup = min(max(1, round(steps * warmup_fraction)), steps - 1)
    return optax.warmup_cosine_decay_schedule(0.0, 1.0, warmup, steps)
