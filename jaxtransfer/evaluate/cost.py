"""What a run costs: operations, memory, and the numbers that it trains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from jaxtransfer.data import Data
from jaxtransfer.models import Model
from jaxtransfer.partition import Plan
from jaxtransfer.train import Settings, init_state
from jaxtransfer.train.program import largest_integer, make_program
from jaxtransfer.train.proof import step_cost
from jaxtransfer.train.settings import share_steps
from jaxtransfer.tree import count_bytes, count_parameters


@dataclass(frozen=True)
class RunCost:
    """What one run of an arm costs.

    Attributes:
        flops: floating-point operations of all its training steps, as the compiler counts them.
        seconds: wall time of its training on this machine, the median over the seeds; what is
            compiled counts in the first of them; evaluation does not.
        memory: bytes that its largest step takes on a device, arguments, results and what lies
            between; `None` where the platform does not tell.
        optimizer_bytes: bytes of the optimizer's state, of the plan with the most.
        trainable_bytes: bytes of the parameters that train, of the plan with the most.
        trainable_parameters: how many numbers these are.
    """

    flops: float
    seconds: float
    memory: int | None
    optimizer_bytes: int
    trainable_bytes: int
    trainable_parameters: int

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON can hold them; a time that nobody measured is `None`."""
        return {**asdict(self), "seconds": None if math.isnan(self.seconds) else self.seconds}


def run_cost(
    model: Model,
    data: Data,
    plans: Sequence[Plan],
    settings: Settings,
    seconds: float = math.nan,
) -> RunCost:
    """What training a model by plans costs, from the steps that `train` compiles for it.

    After such a run nothing is compiled anew.

    Args:
        model: where training starts.
        data: what it is trained on.
        plans: what trains.
        settings: how the run is carried out.
        seconds: how long it took.

    Source: `jax.stages.Compiled.cost_analysis` and `memory_analysis`,
    https://docs.jax.dev/en/latest/aot.html.
    """
    ready = data.ready(model.preprocess)
    batch = ready.read(np.arange(settings.batch_size) % len(ready))
    largest, flops, steps, trained = largest_integer(ready), 0.0, [], []
    for plan, length in zip(plans, share_steps(plans, settings.steps), strict=True):
        tx, step = make_program(model, plan, settings, length, largest, None)
        has_average = settings.ema_decay is not None
        state = init_state(
            model, plan, tx, settings.seed, with_ema=has_average, precision=settings.precision
        )
        cost = step_cost(step, state, batch)
        flops += length * cost.flops
        steps.append(cost)
        trained.append((count_bytes(state.trainable), count_parameters(state.trainable)))
    memory = [cost.memory for cost in steps if cost.memory is not None]
    return RunCost(
        flops=flops,
        seconds=seconds,
        memory=max(memory) if memory else None,
        optimizer_bytes=max(cost.optimizer_bytes for cost in steps),
        trainable_bytes=max(size for size, _ in trained),
        trainable_parameters=max(count for _, count in trained),
    )
