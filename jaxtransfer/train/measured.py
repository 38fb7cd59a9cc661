"""What a run measures of itself: its speed, and the scores in its history."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxtransfer.data.prefetch import Prefetched

# How many steps may run before their losses are looked at: the host must not wait for each of them.
CHECK_EVERY = 10
VALIDATION = "validation/"
"""What stands before the names of scores on the validation examples in a history."""

Record = dict[str, Any]


@dataclass
class Stopwatch:
    """How fast the steps are, and how long they waited for data."""

    batch_size: int
    batches: Prefetched
    _begun: float = field(default_factory=time.perf_counter)
    _waited: float = 0.0

    def lap(self, steps: int) -> tuple[float, float]:
        """Examples a second and the share of time spent waiting, since the last restart."""
        seconds = max(time.perf_counter() - self._begun, 1e-9)
        waited = self.batches.waiting_seconds - self._waited
        return steps * self.batch_size / seconds, min(waited / seconds, 1.0)

    def restart(self) -> None:
        """Begin anew: what was done since the lap was no training."""
        self._begun, self._waited = time.perf_counter(), self.batches.waiting_seconds


def evaluations_in(history: Sequence[Record]) -> list[dict[str, Any]]:
    """Step, plan and scores of each evaluation."""
    return [
        {"step": record["step"], "plan": record["plan"], **scores}
        for record in history
        if (scores := scores_of(record))
    ]


def scores_of(record: Record) -> dict[str, float]:
    """What an evaluation after a step found; nothing where there was none."""
    return {
        name.removeprefix(VALIDATION): value
        for name, value in record.items()
        if name.startswith(VALIDATION)
    }
