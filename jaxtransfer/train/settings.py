"""How a run is carried out, as numbers and names, and what tells two runs apart."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import jax
import numpy as np

from jaxtransfer.data import Data
from jaxtransfer.errors import TrainingError
from jaxtransfer.models import Model
from jaxtransfer.partition import SCHEDULES, Plan
from jaxtransfer.train.losses import Batch, Loss, cross_entropy, loss_name
from jaxtransfer.train.precision import FLOAT32, Precision
from jaxtransfer.train.regularisers import Regulariser
from jaxtransfer.train.skipping import MAX_SKIPPED
from jaxtransfer.tree import fingerprint

Augment = Callable[[jax.Array, Batch], Batch]
"""From a random key and a batch, whose images are float32 in [0, 1], to another batch."""


@dataclass(frozen=True)
class Settings:
    """How a run is carried out.

    Attributes:
        steps: number of steps of all plans together.
        batch_size: examples a step, over all devices.
        learning_rate: the highest one; each plan warms up to it and decays anew.
        weight_decay: decoupled weight decay of kernels.
        optimizer: a name in `jaxtransfer.partition.optimizer.OPTIMIZERS`.
        schedule: a name in `jaxtransfer.partition.SCHEDULES`, or a function from the number of a
            plan's steps to a factor on the learning rate at each of them.
        clip_norm: upper bound of the norm of all trainable gradients, or `None`.
        carry_moments: whether a plan takes over the optimizer's moments of the plan before it.
        loss: from outputs and batch to a loss for each example.
        augment: what happens to a batch on the device before its images are preprocessed; where
            images are decoded when they are read, a `RandomResizedCrop` at its head happens then.
        regularisers: terms that are added to the loss, or a single one.
        accumulate: parts that a batch is cut into, one after the other, to save memory.
        precision: the dtypes of parameters and of what is computed.
        remat: stages whose activations are computed again for the gradient, to save memory, or
            "all".
        ema_decay: share of the old average in a moving average of the trainable parameters, which
            is then what is evaluated and returned; each plan averages anew; `None` for none.
        metric: the score on the validation examples that a plan's patience looks at.
        max_skipped: a step whose loss or gradient is not finite changes nothing; so many of them
            in a row end the run with an error.
        parallel: "jit", or "pmap".
        seed: of the order of the examples, augmentation and dropout, from 0.

    Raises:
        TrainingError: a setting is out of range; the message lists all that are.
    """

    steps: int
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    optimizer: str = "adamw"
    schedule: str | Callable[[int], Any] = "warmup_cosine"
    clip_norm: float | None = None
    carry_moments: bool = True
    loss: Loss = cross_entropy()
    augment: Augment | None = None
    regularisers: tuple[Regulariser, ...] = ()
    accumulate: int = 1
    precision: Precision = FLOAT32
    remat: Sequence[str] | str = ()
    ema_decay: float | None = None
    metric: str = "loss"
    max_skipped: int = MAX_SKIPPED
    parallel: str = "jit"
    seed: int = 0

    def __post_init__(self) -> None:
        terms: Any = self.regularisers
        object.__setattr__(self, "regularisers", (terms,) if callable(terms) else tuple(terms))
        if not isinstance(self.remat, str):
            object.__setattr__(self, "remat", tuple(self.remat))
        problems = [
            f"{name} whole, of at least {least}, found {getattr(self, name)}"
            for name, least in _LEAST.items()
            if not _is_whole(getattr(self, name), least)
        ]
        problems += [
            f"{name} {text}, found {getattr(self, name)!r}"
            for name, fits, text in self._ranges()
            if not fits
        ]
        if problems:
            raise TrainingError(f"settings: expected {'; '.join(problems)}")

    def _ranges(self) -> tuple[tuple[str, bool, str], ...]:
        """For each other setting whether it is what it should be, and what that is."""
        clip, average, schedule = self.clip_norm, self.ema_decay, self.schedule
        averages = str(self.optimizer).startswith("schedule_free")
        known = callable(schedule) or schedule in SCHEDULES
        return (
            ("learning_rate", 0 < self.learning_rate < math.inf, "above 0"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "of at least 0"),
            ("clip_norm", clip is None or 0 < clip < math.inf, "above 0 or None"),
            ("ema_decay", average is None or 0 <= average < 1, "from 0, below 1, or None"),
            (
                "ema_decay",
                average is None or not averages,
                f"None with {self.optimizer}, which averages by itself",
            ),
            ("optimizer", isinstance(self.optimizer, str), "a name such as 'adamw'"),
            ("schedule", known, f"among {', '.join(SCHEDULES)}, or a function"),
            ("loss", callable(self.loss), "a function such as jt.focal()"),
            ("precision", isinstance(self.precision, Precision), "such as jt.BFLOAT16"),
            ("parallel", self.parallel in ("jit", "pmap"), "'jit' or 'pmap'"),
        )


_LEAST = {"steps": 1, "batch_size": 1, "accumulate": 1, "max_skipped": 1, "seed": 0}
"""Settings that are whole numbers, and what each is at least."""


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, (int, np.integer)) and int(value) >= least


_NO_PART = ("max_skipped",)
"""Settings that do not change what a run computes, so that one may go on with others."""

ORDER = "batch_indices/1"
"""Changes when the order of the examples does, so that no run goes on in another one."""


def share_steps(plans: Sequence[Plan], steps: int) -> tuple[int, ...]:
    """How many of the steps each plan gets: by its share, at least one, in all `steps`.

    Raises:
        TrainingError: there are fewer steps than plans.
    """
    if steps < len(plans):
        raise TrainingError(
            f"expected at least a step for each of {len(plans)} plans, found {steps}"
        )
    whole = sum(plan.share for plan in plans)
    ends = np.cumsum([plan.share for plan in plans]) / whole * steps
    # Each plan ends at least one step after the one before it, and leaves one for each to come.
    bounds = [0]
    for position, end in enumerate(ends, start=1):
        bounds.append(min(max(round(float(end)), bounds[-1] + 1), steps - (len(plans) - position)))
    return tuple(b - a for a, b in zip(bounds, bounds[1:], strict=False))


def run_identity(
    model: Model, data: Data, plans: Sequence[Plan], settings: Settings
) -> dict[str, Any]:
    """What makes two runs the same, as JSON can hold it: start, data, plans and settings.

    How many devices carry it out is no part of it. A function is known by its name, a value of a
    class of its own by how it is printed, and arrays in it by their hash.
    """
    spec = model.spec
    names = [field.name for field in fields(settings) if field.name not in _NO_PART]
    return {
        **{name: _described(getattr(settings, name)) for name in names},
        "plans": [json.loads(plan.to_json()) for plan in plans],
        "loss": loss_name(settings.loss),
        "order": ORDER,
        "network": str((spec.name, spec.options, spec.head_layers)),
        "preprocess": model.preprocess.to_dict(),
        "model": fingerprint({"params": model.params, "stats": model.stats}),
        "data": data.fingerprint(),
    }


def _described(value: Any) -> Any:
    """A setting as JSON can hold it, the same in every process."""
    if value is None or isinstance(value, (bool, int, float, str, np.number)):
        return value
    if isinstance(value, tuple):
        return [_described(part) for part in value]
    if jax.tree_util.all_leaves([value]):
        # A function is printed with its address, which is another in every process.
        return getattr(value, "__qualname__", None) or repr(value)
    static = str(jax.tree.structure(value))
    return f"{type(value).__qualname__} {static} {fingerprint(value)}"
