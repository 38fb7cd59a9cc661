"""Factors on the learning rate over the steps of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

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
    warmup = _warmup_steps("warmup_cosine", steps, warmup_fraction)
    return optax.warmup_cosine_decay_schedule(0.0, 1.0, warmup, steps)


def linear(steps: int, warmup_fraction: float = 0.1) -> optax.Schedule:
    """A linear rise from 0 to 1 over the first steps, then a linear fall to 0.

    Args:
        steps: length of the run.
        warmup_fraction: as for `warmup_cosine`.

    Source: Howard & Ruder 2018, "ULMFiT" (arXiv 1801.06146), section 3.2, the slanted triangular
    rates, from and to 0; Devlin et al. 2019, "BERT" (arXiv 1810.04805), appendix A.2, with a
    fraction of 0.1.

    Raises:
        PlanError: as for `warmup_cosine`.

    >>> factor = linear(100)
    >>> [round(float(factor(step)), 2) for step in (0, 5, 10, 55, 100)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    warmup = _warmup_steps("linear", steps, warmup_fraction)
    rise = optax.linear_schedule(0.0, 1.0, warmup)
    return optax.join_schedules([rise, optax.linear_schedule(1.0, 0.0, steps - warmup)], [warmup])


def one_cycle(steps: int, rise_fraction: float = 0.3) -> optax.Schedule:
    """A rise from 1/25 to 1 over half a cosine, then a fall to 1/250,000 over another.

    Args:
        steps: length of the run.
        rise_fraction: share of the steps that the rise takes; a run of one step has none.

    Source: Smith & Topin 2017, "Super-Convergence" (arXiv 1708.07120), section 3; with the cosines
    and numbers of `optax.cosine_onecycle_schedule`, fastai and PyTorch.

    Raises:
        PlanError: there is no step, or the share is not from 0 to 1.

    >>> factor = one_cycle(100)
    >>> [round(float(factor(step)), 2) for step in (0, 15, 30, 65, 100)]
    [0.04, 0.52, 1.0, 0.5, 0.0]
    """
    rise = _warmup_steps("one_cycle", steps, rise_fraction)
    up = optax.cosine_decay_schedule(1 / 25, max(rise, 1), alpha=25.0)
    return optax.join_schedules(
        [up, optax.cosine_decay_schedule(1.0, steps - rise, alpha=1 / 250_000)], [rise]
    )


def constant(steps: int, warmup_fraction: float = 0.1) -> optax.Schedule:
    """A linear rise from 0 to 1 over the first steps, then 1; what schedule-free optimizers take.

    Args:
        steps: length of the run.
        warmup_fraction: as for `warmup_cosine`; 0 for no rise.

    Source: Defazio et al. 2024, "The Road Less Scheduled" (arXiv 2405.15682), section 4.

    Raises:
        PlanError: as for `warmup_cosine`.

    >>> factor = constant(100)
    >>> [round(float(factor(step)), 2) for step in (0, 5, 10, 55, 100)]
    [0.0, 0.5, 1.0, 1.0, 1.0]
    """
    warmup = _warmup_steps("constant", steps, warmup_fraction)
    if not warmup or not warmup_fraction:
        return optax.constant_schedule(1.0)
    return optax.linear_schedule(0.0, 1.0, warmup)


SCHEDULES: Mapping[str, Callable[[int], optax.Schedule]] = MappingProxyType(
    {
        "warmup_cosine": warmup_cosine,
        "linear": linear,
        "one_cycle": one_cycle,
        "constant": constant,
    }
)
"""By name, what makes a schedule of factors for a number of steps.

Each plan of a sequence gets a schedule of its own steps, so each warms up again.
"""


def _warmup_steps(where: str, steps: int, fraction: float) -> int:
    if steps < 1 or not 0 <= fraction <= 1:
        share = "rise_fraction" if where == "one_cycle" else "warmup_fraction"
        raise PlanError(
            f"{where}: expected at least 1 step and a {share} from 0 to 1, found "
            f"{steps} and {fraction}"
        )
    return min(max(1, round(steps * fraction)), steps - 1)
