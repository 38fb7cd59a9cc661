"""Find a learning rate: losses over exponentially rising rates, and four readings of the curve."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxtransfer.compiling import jit
from jaxtransfer.data import Loader, Workers, as_data, crop_when_read, prefetch_to_device
from jaxtransfer.errors import TrainingError
from jaxtransfer.models import Model
from jaxtransfer.partition import Plan, resolve_plans
from jaxtransfer.train.losses import Batch, Loss, cross_entropy
from jaxtransfer.train.lr_curve import DIVERGED, Suggestions, falling_part, suggest_from
from jaxtransfer.train.measured import CHECK_EVERY
from jaxtransfer.train.program import largest_integer, make_program
from jaxtransfer.train.settings import Settings
from jaxtransfer.train.sharding import Sharding
from jaxtransfer.train.state import TrainState, init_state
from jaxtransfer.train.step import TrainStep
from jaxtransfer.tree import count_bytes

FORMS = ("sweep", "independent")

# Constants of https://github.com/fastai/fastai: the smoothing is that of `AvgSmoothLoss` in
# fastai/learner.py; `lr_find` in fastai/callback/schedule.py leaves out a tenth of the points at
# the start and five at the end.
SMOOTHING = 0.98
LEFT_OUT_AT_START = 0.1
LEFT_OUT_AT_END = 5


@dataclass(frozen=True)
class LearningRates:
    """A curve of losses over learning rates, and what it suggests.

    Attributes:
        rates: the learning rates tried, rising; those after the loss diverged are not among them.
        losses: the loss at each rate, NaN or infinite where it is.
        smoothed: what the suggestions are read from: a moving average of the losses of a sweep, the
            losses themselves of independent runs.
        suggestions: the four readings.
        plan: the plan's name.
        form: "sweep" or "independent".
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    suggestions: Suggestions
    plan: str
    form: str

    @property
    def suggestion(self) -> float:
        """The rate to begin with: `valley`, which fastai takes by default."""
        return self.suggestions.valley

    def to_dict(self) -> dict[str, Any]:
        """The curve and its readings as JSON can hold them."""
        return asdict(self)

    def __str__(self) -> str:
        readings = ", ".join(
            f"{name} {rate:.2g}" for name, rate in asdict(self.suggestions).items()
        )
        return (
            f"plan {self.plan}, {len(self.rates)} learning rates from {self.rates[0]:.2g} to "
            f"{self.rates[-1]:.2g}: {readings}"
        )


def find_lr(
    model: Model,
    data: Any,
    plan: str | Plan = "full",
    *,
    lo: float = 1e-7,
    hi: float = 10.0,
    steps: int = 100,
    batch_size: int = 32,
    seed: int = 0,
    optimizer: str = "adamw",
    weight_decay: float = 1e-4,
    loss: Loss | None = None,
    form: str = "sweep",
    steps_each: int = 10,
    memory: int = 2**31,
    sharding: Sharding | None = None,
    workers: Workers | int | None = None,
    **options: Any,
) -> LearningRates:
    """Losses over exponentially rising learning rates, and four rates to begin with.

    The "sweep" is one short run whose rate rises from step to step until the loss diverges; the
    default, since it costs `steps` steps and the four suggestions were made for its curve. In the
    "independent" form each rate has a run of its own from the same start on the same batches, all
    rates one vmapped program, as many at a time as fit into `memory`: `steps_each` times the cost,
    and no point of the curve depends on the rates before it.

    Args:
        model: a `Model` whose head fits the labels; it stays as it is.
        data: labelled examples, or a pair (images, labels).
        plan: what trains: a plan, or the name of a recipe with one.
        lo: the lowest rate.
        hi: the highest rate.
        steps: how many rates there are, from 2.
        batch_size: examples a step.
        seed: of the order of the examples and of dropout.
        optimizer: a name in `jaxtransfer.partition.optimizer.OPTIMIZERS`.
        weight_decay: decoupled weight decay of kernels.
        loss: from outputs and batch to a loss for each example; by default the cross-entropy.
        form: "sweep" or "independent".
        steps_each: steps of each run of the independent form, from 1; the loss is that of the next
            batch.
        memory: bytes that the runs of the independent form may take together; one takes what XLA
            says of it.
        sharding: the devices and who holds what, as for `finetune`.
        workers: who reads examples that are not in memory, as for `finetune`.
        **options: other fields of `jaxtransfer.train.Settings`, such as `augment`, `regularisers`,
            `clip_norm` or `precision`, for the steps to be those of the run to come.

    Raises:
        TrainingError: an argument is out of range, or the losses say nothing: fewer than two are
            finite.
        DataError: the examples cannot be read, or preprocessed for the model, or there are none.
        PlanError: the plan does not fit the model, or is a sequence of plans.

    Source: Smith 2017, "Cyclical Learning Rates for Training Neural Networks" (arXiv 1506.01186),
    section 3.3; exponential as in https://docs.fast.ai/callback.schedule.html#lrfinder, whose
    defaults `lo`, `hi` and `steps` are.

    Example:
        `find_lr(model, data, "probe").suggestion`
    """
    _check(lo, hi, steps, batch_size, form, steps_each, options.get("parallel", "jit"))
    plans = resolve_plans(plan, model)
    if len(plans) != 1:
        raise TrainingError(
            f"find_lr: expected one plan, found {', '.join(p.name for p in plans)}; take each alone"
        )
    examples = as_data(data).ready(model.preprocess)
    settings = Settings(
        steps=steps,
        batch_size=batch_size,
        learning_rate=1.0,
        weight_decay=weight_decay,
        optimizer=optimizer,
        schedule=_steady,
        loss=loss or cross_entropy(),
        seed=seed,
        **options,
    )
    crop, rest = crop_when_read(settings.augment, examples)
    settings = replace(settings, augment=rest)
    largest = largest_integer(examples)
    tx, step = make_program(model, plans[0], settings, steps, largest, sharding)
    state = _start(model, plans[0], tx, settings, sharding)
    rates = np.geomspace(lo, hi, steps)
    rows = slice(None) if sharding is None else sharding.local_rows(batch_size)
    place = jax.device_put if sharding is None else sharding.put_batch
    loader = Loader(examples, batch_size, seed, workers=workers, rows=rows, crop=crop)
    last = steps if form == "sweep" else steps_each + 1
    with prefetch_to_device(loader.batches(0, last), place) as batches:
        if form == "sweep":
            losses = np.array(list(_sweep(step, state, batches, rates)))
            smoothed = _smooth(losses)
            kept = slice(int(LEFT_OUT_AT_START * steps), max(len(losses) - LEFT_OUT_AT_END, 0))
        else:
            smoothed = losses = _independent(step, state, list(batches), rates, memory)
            kept = falling_part(losses)
    rates = rates[: len(losses)]
    return LearningRates(
        rates=tuple(rates.tolist()),
        losses=tuple(losses.tolist()),
        smoothed=tuple(smoothed.tolist()),
        suggestions=suggest_from(rates, smoothed, kept),
        plan=plans[0].name,
        form=form,
    )


def _check(
    lo: float,
    hi: float,
    steps: int,
    batch_size: int,
    form: str,
    steps_each: int,
    parallel: str,
) -> None:
    problems = []
    if not (0 < lo < hi and np.isfinite(hi)):
        problems.append(f"rates with 0 < lo < hi, found {lo} and {hi}")
    if steps < 2:
        problems.append(f"steps of at least 2, found {steps}")
    if batch_size < 1 or steps_each < 1:
        problems.append(
            f"batch_size and steps_each of at least 1, found {batch_size} and {steps_each}"
        )
    if form not in FORMS:
        problems.append(f"form among {', '.join(FORMS)}, found {form!r}")
    if form == "independent" and parallel != "jit":
        problems.append(f"parallel='jit' of independent runs, found {parallel!r}")
    if problems:
        raise TrainingError(f"find_lr: expected {'; '.join(problems)}")


def _steady(steps: int) -> optax.Schedule:
    """No schedule: the rate is set before each step."""
    return optax.constant_schedule(1.0)


def _start(
    model: Model,
    plan: Plan,
    tx: optax.GradientTransformation,
    settings: Settings,
    sharding: Sharding | None,
) -> TrainState:
    has_average = settings.ema_decay is not None
    state = init_state(
        model, plan, tx, settings.seed, with_ema=has_average, precision=settings.precision
    )
    return state if sharding is None else sharding.place(state)


# ---------------------------------------------------------------------------------------------
# One run with a rising rate


def _sweep(
    step: TrainStep, state: TrainState, batches: Iterator[Batch], rates: np.ndarray
) -> Iterator[float]:
    """The loss of each step, the first one that is not finite or diverged the last."""
    best, average = np.inf, 0.0
    for first in range(0, len(rates), CHECK_EVERY):
        waiting = []
        for number in range(first, min(first + CHECK_EVERY, len(rates))):
            state, metrics = step(_with_rate(state, rates[number]), next(batches))
            waiting.append(metrics["loss"])
        for number, value in enumerate(map(float, waiting), start=first):
            yield value
            average = SMOOTHING * average + (1 - SMOOTHING) * value
            smoothed = average / (1 - SMOOTHING ** (number + 1))
            if not np.isfinite(value) or smoothed > DIVERGED * best:
                return
            best = min(best, smoothed)


def _with_rate(state: TrainState, rate: Any) -> TrainState:
    opt_state = optax.tree.set(state.opt_state, learning_rate=jnp.asarray(rate, jnp.float32))
    return replace(state, opt_state=opt_state)


def _smooth(losses: np.ndarray) -> np.ndarray:
    """The exponential moving average, corrected for its start at 0."""
    averages, average = [], 0.0
    for number, value in enumerate(losses, start=1):
        average = SMOOTHING * average + (1 - SMOOTHING) * value
        averages.append(average / (1 - SMOOTHING**number))
    return np.array(averages)


# ---------------------------------------------------------------------------------------------
# A run for each rate


def _independent(
    step: TrainStep,
    state: TrainState,
    batches: Sequence[Mapping[str, Any]],
    rates: np.ndarray,
    memory: int,
) -> np.ndarray:
    """The loss of the last batch after a run over the others at each rate, shape (rates,)."""
    together = _fitting(step, state, batches[0], memory)
    run = _vmapped(step)
    losses = []
    for first in range(0, len(rates), together):
        some = rates[first : first + together]
        # The last ones are filled up, so that there is one program.
        padded = np.pad(some, (0, min(together, len(rates)) - len(some)), mode="edge")
        states = _states(state, jnp.asarray(padded, jnp.float32))
        found = jnp.zeros(len(padded))
        for batch in batches:
            states, found = run(states, state.frozen, batch)
        losses.append(np.asarray(found, np.float64)[: len(some)])
    return np.concatenate(losses)


def _fitting(step: TrainStep, state: TrainState, batch: Batch, memory: int) -> int:
    """How many runs fit into memory side by side, at least one."""
    one = count_bytes(replace(state, frozen=None))
    analysis = step.lower(state, batch).compile().memory_analysis()
    # What a run changes is there before and after a step, since vmapped steps do not donate it.
    needed = 2 * one + (0 if analysis is None else analysis.temp_size_in_bytes)
    return max(1, memory // max(needed, 1))


def _states(state: TrainState, rates: jax.Array) -> TrainState:
    """A state for each rate, stacked; what is frozen is not among it."""

    def one(rate: jax.Array) -> TrainState:
        return _with_rate(replace(state, frozen=None), rate)

    return jax.vmap(one, out_axes=0)(rates)


def _vmapped(step: TrainStep) -> Any:
    """A step of several states on one batch, and their losses before it."""

    def one(state: TrainState, frozen: Any, batch: Batch) -> tuple[TrainState, jax.Array]:
        moved, metrics = step(replace(state, frozen=frozen), batch)
        return replace(moved, frozen=None), metrics["loss"]

    return jit(jax.vmap(one, in_axes=(0, None, None)))
