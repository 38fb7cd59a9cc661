"""Proof that frozen means frozen: from two states, to the bit, and from the compiled step."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxtransfer.errors import FrozenError, TrainingError
from jaxtransfer.models import Model
from jaxtransfer.partition import Group, Plan
from jaxtransfer.train.losses import Batch
from jaxtransfer.train.state import TrainState
from jaxtransfer.train.step import TrainStep
from jaxtransfer.tree import (
    count_bytes,
    count_parameters,
    diff,
    flatten,
    leaf_names,
    named_leaves,
    split,
)
from jaxtransfer.tree.summary import as_host_array, format_bytes, format_table
from jaxtransfer.types import PyTree

Build: TypeAlias = Callable[[Plan], tuple[optax.GradientTransformation, TrainStep]]
"""From a plan to its optimizer and its step, as a run builds them."""

# How much more a step may cost than the one that is built for its plan: XLA counts what it computes
# twice in fused loops twice, and no two programs are fused alike. A gradient too many costs more.
TOLERANCE = 1.05


@dataclass(frozen=True)
class Cost:
    """What XLA says that a compiled step costs on one device.

    Attributes:
        flops: floating-point operations. XLA counts the body of a loop once, and so one of several
            micro-batches.
        memory: bytes of arguments, results and what lies between them; `None` where the platform
            does not tell.
        optimizer_bytes: bytes of the optimizer's state.
    """

    flops: float
    memory: int | None
    optimizer_bytes: int


@dataclass(frozen=True)
class Proof:
    """What was frozen, what trained, and what that saves.

    Attributes:
        plan: the plan's name.
        frozen_leaves: number of parameter leaves that are the same to the last bit.
        frozen_parameters: how many numbers these are.
        frozen_statistics: number of leaves of running statistics that are the same to the last bit.
        trainable_parameters: how many numbers train.
        step: what a step costs, `None` where none was given.
        unfrozen: what it would cost if nothing was frozen.
    """

    plan: str
    frozen_leaves: int
    frozen_parameters: int
    frozen_statistics: int
    trainable_parameters: int
    step: Cost | None = None
    unfrozen: Cost | None = None

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON can hold them."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"plan {self.plan}: {self.frozen_leaves} leaves with {self.frozen_parameters} "
            f"parameters and {self.frozen_statistics} leaves of statistics are the same to the "
            f"last bit; {self.trainable_parameters} parameters train"
        ]
        if self.step is not None and self.unfrozen is not None:
            rows = [_cost_row("this plan", self.step), _cost_row("nothing frozen", self.unfrozen)]
            lines.append(format_table(["one step", "MFLOP", "memory", "optimizer state"], rows))
        return "\n".join(lines)


def prove_frozen(
    before: TrainState | Model,
    after: TrainState | Model,
    step: TrainStep | None = None,
    batch: Batch | None = None,
    *,
    plan: Plan,
    build: Build | None = None,
) -> Proof:
    """Prove that what a plan freezes was frozen, or raise with all that was not.

    Frozen parameters and statistics have the same bytes before and after. A state's optimizer and
    moving average know the trainable parameters alone. With a step, XLA compiles it, that of the
    same plan anew and one of a plan that freezes nothing: the step must cost no more than the
    second, and the figures of the third show what freezing saves. Nothing is trained.

    Args:
        before: the model that training started from, or a copy of the state: a step donates the
            arrays of the state that it is given.
        after: the state or the model after some steps.
        step: the step that led there; it is given with `batch` and `build`, for a state `after`.
        batch: a batch as the step gets it, or its shapes.
        plan: what trains.
        build: from a plan to its optimizer and its step, for the same network, loss and options.

    Raises:
        FrozenError: something that is frozen has changed, has a share in the optimizer's state or
            the moving average, or costs a gradient; the message lists all of it.
        TrainingError: a step comes without what it is measured by, or `before` was donated.
        PlanError: the plan does not fit the model.

    Source: the figures are `cost_analysis` and `memory_analysis` of
    https://docs.jax.dev/en/latest/aot.html.

    Example:
        `prove_frozen(model, state, step, batch, plan=plan, build=build)`, where `build(plan)` gives
        `(tx, make_train_step(model.apply, loss, tx, plan))`
    """
    if step is not None and (batch is None or build is None or not isinstance(after, TrainState)):
        raise TrainingError(
            "prove_frozen: expected with a step also a batch, a build and the state after it, "
            f"found {type(batch).__name__}, {type(build).__name__} and {type(after).__name__}"
        )
    plan.check(before.params, before.stats)
    params, stats = _frozen_params(before, plan), _frozen_stats(before, plan)
    _check_alive(params | stats)
    problems = _differences(params, _all_params(after), "")
    problems += _differences(stats, flatten(after.stats), ", a statistic")
    found = unfrozen = None
    if isinstance(after, TrainState):
        shares = _shares(after, plan, before.params)
        if step is not None and batch is not None and build is not None:
            tx, honest = build(plan)
            shares += _other_optimizer_state(tx, after)
            if not shares:  # else there is no step that takes such a state
                found, expected = step_cost(step, after, batch), step_cost(honest, after, batch)
                unfrozen = _cost_unfrozen(build, after, batch)
                problems += _too_costly(found, expected, unfrozen)
        problems += shares
    if problems:
        raise FrozenError(
            f"plan {plan.name!r}: expected {len(params)} leaves of parameters and {len(stats)} of "
            "statistics that stay the same to the last bit and cost nothing, found\n"
            + "\n".join(problems)
            + "\nmake the state by init_state and the step by make_train_step, with the same plan"
        )
    return Proof(
        plan=plan.name,
        frozen_leaves=len(params),
        frozen_parameters=count_parameters(params),
        frozen_statistics=len(stats),
        trainable_parameters=count_parameters(split(before.params, plan)[0]),
        step=found,
        unfrozen=unfrozen,
    )


# ---------------------------------------------------------------------------------------------
# What has moved


def _frozen_params(value: TrainState | Model, plan: Plan) -> dict[str, Any]:
    return flatten(split(value.params, plan)[1])


def _frozen_stats(value: TrainState | Model, plan: Plan) -> dict[str, Any]:
    groups = plan.assign_stats(value.params, value.stats)
    return {name: x for name, x in named_leaves(value.stats) if groups[name].freezes_stats}


def _all_params(value: TrainState | Model) -> dict[str, Any]:
    """All parameters by name, of a state whose halves may not fit together, too."""
    if isinstance(value, TrainState):
        return flatten(value.frozen) | flatten(value.trainable)
    return flatten(value.params)


def _check_alive(leaves: Mapping[str, Any]) -> None:
    gone = [n for n, x in leaves.items() if isinstance(x, jax.Array) and x.is_deleted()]
    if gone:
        raise TrainingError(
            f"prove_frozen: expected arrays that are still there, found donated ones: {gone}; give "
            "the model that training started from, or a copy of the state"
        )


def _differences(before: Mapping[str, Any], after: Mapping[str, Any], what: str) -> list[str]:
    """A line for each frozen leaf that is not the same to the last bit."""
    # Flat dicts: the names may contain slashes, which only matters to trees.
    found = diff(before, {name: leaf for name, leaf in after.items() if name in before})
    lines = [f" - {name}{what}: is missing" for name in found.missing]
    for name, old, new in (*found.reshaped, *found.retyped):
        lines.append(f" ~ {name}{what}: was {old}, is {new}")
    for name in found.changed:
        lines.append(f" * {name}{what}: {_movement(before[name], after[name])}")
    return lines


def _movement(old: Any, new: Any) -> str:
    """How many numbers differ in their bytes, and by how much at most."""
    old, new = (np.atleast_1d(as_host_array(leaf)) for leaf in (old, new))
    differ = np.any(_bytes(old) != _bytes(new), axis=1)
    with np.errstate(invalid="ignore", over="ignore"):
        by = np.abs(new.astype(np.float64) - old.astype(np.float64)).ravel()[differ]
    largest = f"up to {by.max():.3g}" if np.isfinite(by).all() else "numbers that are not finite"
    return f"{differ.sum()} of {old.size} numbers moved, by {largest}"


def _bytes(array: np.ndarray) -> np.ndarray:
    """The bytes of each number, a row each."""
    return np.ascontiguousarray(array).view(np.uint8).reshape(array.size, -1)


# ---------------------------------------------------------------------------------------------
# What has a share


def _shares(state: TrainState, plan: Plan, params: PyTree) -> list[str]:
    """A line for each part of a state that knows a frozen leaf, or not a trainable one."""
    names = leaf_names(params)
    trains = {name for name, chosen in zip(names, plan.chooses(names), strict=True) if chosen}
    parts = {"trainable": (set(leaf_names(state.trainable)), trains)}
    parts["frozen"] = (set(leaf_names(state.frozen)), set(names) - trains)
    if state.ema is not None:
        parts["ema"] = (set(leaf_names(state.ema)), trains)
    lines = []
    for part, (found, expected) in parts.items():
        lines += [f" + {name}: is in the state's {part}" for name in sorted(found - expected)]
        lines += [f" - {name}: is not in the state's {part}" for name in sorted(expected - found)]
    for name, leaf in named_leaves(state.opt_state):
        owner = _owner(name, set(names))
        if owner is not None and owner not in trains:
            shape = tuple(np.shape(leaf))
            lines.append(f" + {owner}: has an optimizer state, opt_state/{name} of shape {shape}")
    return lines


def _owner(name: str, params: set[str]) -> str | None:
    """The parameter that a leaf of an optimizer's state belongs to: the longest end of its path."""
    segments = name.split("/")
    ends = ("/".join(segments[start:]) for start in range(len(segments)))
    return next((end for end in ends if end in params), None)


def _other_optimizer_state(tx: optax.GradientTransformation, state: TrainState) -> list[str]:
    """A line for each leaf that the optimizer of this plan does not have, or has otherwise."""
    found = diff(jax.eval_shape(tx.init, state.trainable), _shapes(state.opt_state))
    lines = [f" + opt_state/{name}: is in no optimizer of this plan" for name in found.extra]
    lines += [f" - opt_state/{name}: is missing" for name in found.missing]
    for name, old, new in (*found.reshaped, *found.retyped):
        lines.append(f" ~ opt_state/{name}: expected {old}, found {new}")
    return lines


def _shapes(tree: PyTree) -> PyTree:
    return jax.eval_shape(lambda: tree)


# ---------------------------------------------------------------------------------------------
# What a step costs


def step_cost(step: TrainStep, state: TrainState, batch: Batch) -> Cost:
    """What XLA says that a step costs; one that has run with such arguments is not compiled anew.

    Args:
        step: the step.
        state: as the step takes it; its arrays, or their shapes.
        batch: as the step takes it; its arrays, or their shapes.

    Source: `cost_analysis` and `memory_analysis` of https://docs.jax.dev/en/latest/aot.html.
    """
    compiled = step.lower(state, batch).compile()
    analysis, memory = compiled.cost_analysis(), compiled.memory_analysis()
    used = None
    if memory is not None:
        used = memory.argument_size_in_bytes + memory.output_size_in_bytes
        used += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    return Cost(float(analysis["flops"]), used, count_bytes(state.opt_state))


def _cost_unfrozen(build: Build, state: TrainState, batch: Batch) -> Cost:
    """The cost of the step that trains all that can train, of a state with the same parameters."""
    params = state.params
    others = [n for n, x in named_leaves(params) if not jnp.issubdtype(x.dtype, jnp.floating)]
    groups = (Group("**"),)
    if others:
        groups = (Group(tuple(map(_literal, others)), frozen=True), *groups)
    plan = Plan(groups, name="full")
    tx, step = build(plan)
    trainable, frozen = split(params, plan)
    start = replace(
        state,
        trainable=trainable,
        frozen=frozen,
        opt_state=jax.eval_shape(tx.init, trainable),
        ema=None if state.ema is None else trainable,
    )
    return step_cost(step, start, batch)


def _literal(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name))


def _too_costly(found: Cost, expected: Cost, unfrozen: Cost) -> list[str]:
    if found.flops <= TOLERANCE * expected.flops:
        return []
    return [
        f" + a gradient of what is frozen: a step costs {_mega(found.flops)} MFLOP, where "
        f"{_mega(expected.flops)} are enough for this plan, and {_mega(unfrozen.flops)} if nothing "
        "was frozen"
    ]


def _mega(flops: float) -> str:
    return f"{flops / 1e6:.4g}"


def _cost_row(name: str, cost: Cost) -> list[str]:
    memory = "unknown" if cost.memory is None else format_bytes(cost.memory)
    return [name, _mega(cost.flops), memory, format_bytes(cost.optimizer_bytes)]
