"""What a comparison says in one sentence, which may be that transfer did harm."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

from jaxtransfer.evaluate.metrics import Interval


class Judged(Protocol):
    """What the verdict looks at in an arm's result."""

    @property
    def kind(self) -> str:
        """Whether it is a "naive", a "scratch" or a "transfer" arm."""
        ...

    @property
    def asymptote(self) -> Interval:
        """The accuracy in the end."""
        ...

    @property
    def curves(self) -> Sequence[Sequence[float]]:
        """A learning curve for each seed."""
        ...

    @property
    def versus_scratch(self) -> Mapping[str, Interval]:
        """Differences to the scratch arm, paired by seed."""
        ...

    @property
    def versus_naive(self) -> Mapping[str, Interval]:
        """Differences to always answering the majority class, paired by seed."""
        ...


def verdict(arms: Mapping[str, Judged]) -> str:
    """Whether transfer helped, from the paired differences to scratch and to the naive answer.

    Transfer helps where the best transfer arm's asymptote lies above that of scratch by more than
    the 95 % interval, and early only where no more than its start or slope does; it is negative
    where the best one's asymptote lies below by more than the interval. Where its asymptote does
    not lie above the naive accuracy by more than the interval, that is said, too.
    """
    transfer = {name: arm for name, arm in arms.items() if arm.kind == "transfer"}
    if not transfer:
        return "No verdict: it takes the scratch arm and at least one transfer arm."
    best = max(transfer, key=lambda name: transfer[name].asymptote.mean)
    return _against_scratch(best, transfer[best]) + _against_naive(best, transfer[best])


def _against_scratch(name: str, arm: Judged) -> str:
    versus = arm.versus_scratch
    if not versus:
        return f"No verdict: it takes the scratch arm; of the transfer arms {name} ends best."
    end = versus["asymptote"]
    if math.isnan(end.low):
        return f"One seed cannot tell: {name} ends {_points(end)} scratch; run more seeds."
    interval = f"95 % interval {100 * end.low:+.1f} to {100 * end.high:+.1f}"
    evidence = f"{_points(end)} scratch ({interval}, {len(arm.curves)} seeds)"
    ahead = " and a higher ".join(key for key in ("start", "slope") if versus[key].low > 0)
    if end.low > 0:
        also = f", with a higher {ahead}" if ahead else ""
        return f"Transfer helped: {name} ends {evidence}{also}."
    if end.high < 0:
        return f"Negative transfer: the best transfer arm, {name}, ends {evidence}."
    if ahead:
        return f"Transfer helped early only: {name} has a higher {ahead}, but ends {evidence}."
    return f"Transfer did not help: the best transfer arm, {name}, ends {evidence}."


def _against_naive(name: str, arm: Judged) -> str:
    end = arm.versus_naive.get("asymptote")
    if end is None or end.low > 0 or (math.isnan(end.low) and end.mean > 0):
        return ""
    found = f"it ends {_points(end)} the majority answer"
    if math.isnan(end.low):
        return f" The arm {name} does not beat the naive answer: {found}."
    how = "is not shown to beat" if end.high > 0 else "is no better than"
    interval = f"95 % interval {100 * end.low:+.1f} to {100 * end.high:+.1f}"
    return f" The arm {name} {how} the naive answer: {found} ({interval})."


def _points(difference: Interval) -> str:
    return f"{abs(100 * difference.mean):.1f} points {'above' if difference.mean >= 0 else 'below'}"
