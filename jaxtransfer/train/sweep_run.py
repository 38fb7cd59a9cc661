"""A sweep: many configurations of a small trainable part over features that are computed once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxtransfer.data import Data, batch_indices
from jaxtransfer.errors import NonFiniteLossError
from jaxtransfer.models import Model
from jaxtransfer.partition import Plan, evaluation_params
from jaxtransfer.train.grid import Configuration, arrange, halving_rungs, survivors
from jaxtransfer.train.scores import KINDS
from jaxtransfer.train.settings import Settings
from jaxtransfer.train.state import TrainState
from jaxtransfer.train.sweep import Rung, Sweep
from jaxtransfer.train.sweep_program import (
    Examples,
    Varied,
    scan_program,
    score_program,
    start_program,
    step_program,
)
from jaxtransfer.train.sweep_start import AXIS, Shared, check_sweep, prepare_sweep
from jaxtransfer.tree import merge, split
from jaxtransfer.types import PyTree

SCORES = {"classes": "accuracy", "multi_label": "accuracy", "values": "r_squared"}
"""By what labels are, the score that configurations are compared by; higher is better."""


def train_sweep(
    starts: Mapping[int, Model],
    data: Data,
    validation: Data,
    plan: Plan,
    configurations: Sequence[Configuration],
    settings: Settings,
    *,
    halving: int | None = None,
    devices: Sequence[Any] | None = None,
    memory: int = 2**31,
) -> Sweep:
    """Train all configurations of a plan side by side, and keep the best by validation examples.

    Args:
        starts: by seed, where its configurations begin; they differ in what trains alone.
        data: labelled examples.
        validation: others of them.
        plan: what trains.
        configurations: at least one.
        settings: `steps`, `batch_size`, `optimizer`, `schedule` and `clip_norm` count.
        halving: as for `jt.sweep`.
        devices: as for `jt.sweep`.
        memory: as for `jt.sweep`.

    Raises:
        TrainingError, DataError, PlanError: what is given does not fit together.
        NonFiniteLossError: all configurations have diverged.
    """
    used = tuple(jax.local_devices() if devices is None else devices)
    tried = tuple(configurations)
    check_sweep(starts, data, validation, plan, tried, settings, halving, used)
    shared = prepare_sweep(starts, data, validation, plan, tried, settings, used, memory)
    return _Run(shared).carry_out(halving)


@dataclass
class _Run:
    """A sweep in progress.

    Attributes:
        shared: what all configurations have in common.
        states: of each configuration that has begun, on the host.
        losses: of each, one a step.
        diverged: those that had a step that was not finite.
    """

    shared: Shared
    states: dict[int, TrainState] = field(default_factory=dict)
    losses: dict[int, list[float]] = field(default_factory=dict)
    diverged: set[int] = field(default_factory=set)

    def carry_out(self, halving: int | None) -> Sweep:
        """All rungs, one after the other."""
        shared, rungs, done = self.shared, [], 0
        left = list(range(len(shared.configurations)))
        for steps in halving_rungs(len(left), shared.recipe.steps, halving):
            rungs.append(self._rung(left, done, steps))
            done = steps
            if halving is not None:
                left = sorted(rungs[-1].order()[: survivors(len(left), halving)])
        scores: dict[int, float] = {}
        for rung in rungs:
            scores |= dict(zip(rung.configurations, rung.scores, strict=True))
        best = rungs[-1].order()[0]
        if math.isnan(scores[best]):
            raise NonFiniteLossError(
                f"sweep: expected a configuration whose losses are finite, found that all of "
                f"{len(rungs[-1].configurations)} have diverged; lower the learning rates, set "
                "clip_norm, or look for extreme values in the images"
            )
        return Sweep(
            configurations=shared.configurations,
            validation=tuple(scores[i] for i in range(len(scores))),
            losses=tuple(tuple(self.losses[i]) for i in range(len(scores))),
            rungs=tuple(rungs),
            model=self._model(best),
            score=SCORES[shared.recipe.target],
            plan=shared.recipe.plan.name,
        )

    def _rung(self, left: Sequence[int], first: int, last: int) -> Rung:
        """The steps from `first` to `last` of those that are left, as many at a time as fit."""
        found: dict[int, tuple[float, float]] = {}
        by_seed = sorted(left, key=lambda i: self.shared.configurations[i].seed)
        count = math.ceil(len(left) / self.shared.together)
        for chunk in np.array_split(np.asarray(by_seed), count):
            found |= self._chunk(chunk, first, last)
        scores, losses = zip(*(found[i] for i in left), strict=True)
        return Rung(last, tuple(left), scores, losses)

    def _chunk(self, chunk: np.ndarray, first: int, last: int) -> dict[int, tuple[float, float]]:
        """These configurations' steps; for each its validation score and loss."""
        shared = self.shared
        seeds = [shared.configurations[i].seed for i in chunk]
        places = arrange(seeds, min(shared.mesh.size, len(chunk)))
        mesh = Mesh(shared.mesh.devices.ravel()[: len(places)], (AXIS,))
        chosen, everywhere = chunk[places], NamedSharding(mesh, PartitionSpec())
        frozen, examples, held_out = jax.device_put(
            (shared.frozen, shared.examples, shared.held_out), everywhere
        )
        varied = _varied(shared.configurations, chosen, mesh)
        states = self._states(chosen, mesh) if first else _start(shared, chosen, mesh)
        positions = _positions(shared, chosen, first, last, mesh)
        states, (losses, skipped) = _steps(shared, states, frozen, varied, examples, positions)
        order = _in_order(len(held_out.weights), shared.settings.batch_size)
        order, centre = jax.device_put((order, shared.centre), everywhere)
        sums = score_program(shared.recipe)(states, frozen, held_out, order, centre)
        # Where a configuration fills up, its first place counts.
        _, own = np.unique(places, return_index=True)
        states, sums = jax.tree.map(
            lambda leaf: leaf.reshape(-1, *leaf.shape[3:])[own], jax.device_get((states, sums))
        )
        losses, skipped = (leaf.reshape(len(leaf), -1)[:, own] for leaf in (losses, skipped))
        for place, i in enumerate(map(int, chunk)):
            self.states[i] = jax.tree.map(lambda leaf, place=place: leaf[place], states)
            self.losses.setdefault(i, []).extend(losses[:, place].tolist())
            if skipped[:, place].any():
                self.diverged.add(i)
        return {
            int(i): self._scored(i, {name: value[place] for name, value in sums.items()})
            for place, i in enumerate(chunk)
        }

    def _scored(self, i: int, sums: Mapping[str, np.ndarray]) -> tuple[float, float]:
        """The validation score and loss of a configuration; NaN where it has diverged."""
        target, weight = self.shared.recipe.target, self.shared.held_out.weights.sum()
        means = {name: value / np.float64(weight) for name, value in sums.items()}
        loss = float(means["loss"])
        if i in self.diverged or not math.isfinite(loss):
            return math.nan, loss
        return KINDS[target].scores(means)[SCORES[target]], loss

    def _states(self, chosen: np.ndarray, mesh: Mesh) -> TrainState:
        """The states of configurations that have begun, on the devices."""
        return _stacked([self.states[int(i)] for i in chosen.ravel()], chosen.shape, mesh)

    def _model(self, best: int) -> Model:
        """The whole network with what a configuration trained."""
        shared, state = self.shared, self.states[best]
        state = jax.tree.map(jnp.asarray, state)
        model = shared.starts[shared.configurations[best].seed]
        _, frozen = split(model.params, shared.recipe.plan)
        params = merge(evaluation_params(state.opt_state, state.trainable), frozen)
        return replace(model, params=params, stats=state.stats)


# ---------------------------------------------------------------------------------------------
# What goes onto the devices


def _spread(mesh: Mesh, *before: None) -> NamedSharding:
    """A layout that spreads configurations, with other axes before theirs."""
    return NamedSharding(mesh, PartitionSpec(*before, AXIS))


def _stacked(trees: Sequence[PyTree], shape: tuple[int, ...], mesh: Mesh) -> PyTree:
    """Trees of single configurations as one tree, of this shape in front."""
    host = jax.device_get(list(trees))
    stacked = jax.tree.map(lambda *ls: np.stack(ls).reshape(*shape, *np.shape(ls[0])), *host)
    return jax.device_put(stacked, _spread(mesh))


def _start(shared: Shared, chosen: np.ndarray, mesh: Mesh) -> TrainState:
    """The states of configurations before their first step."""
    trainable = {
        seed: jax.device_get(split(model.params, shared.recipe.plan)[0])
        for seed, model in shared.starts.items()
    }
    rows = [trainable[shared.configurations[i].seed] for i in chosen.ravel()]
    rates = jax.device_put(_values(shared.configurations, "learning_rate", chosen), _spread(mesh))
    stats = next(iter(shared.starts.values())).stats
    stats = jax.device_put(stats, NamedSharding(mesh, PartitionSpec()))
    return start_program(shared.recipe)(_stacked(rows, chosen.shape, mesh), stats, rates)


def _varied(configurations: Sequence[Configuration], chosen: np.ndarray, mesh: Mesh) -> Varied:
    seeds = [configurations[i].seed for i in chosen[..., 0].ravel()]
    # As a run of its own begins, whose first plan has the number 0.
    keys = jnp.stack([jax.random.fold_in(jax.random.key(seed), 0) for seed in seeds])
    varied = Varied(
        _values(configurations, "weight_decay", chosen),
        _values(configurations, "label_smoothing", chosen),
        keys.reshape(chosen.shape[:2]),
    )
    return jax.device_put(varied, _spread(mesh))


def _values(configurations: Sequence[Configuration], name: str, chosen: np.ndarray) -> Any:
    found = [getattr(configurations[i], name) for i in chosen.ravel()]
    return np.asarray(found, np.float32).reshape(chosen.shape)


def _positions(shared: Shared, chosen: np.ndarray, first: int, last: int, mesh: Mesh) -> jax.Array:
    """The examples of each row's batches, shape (steps, devices, rows, batch)."""
    count, size = len(shared.examples.weights), shared.settings.batch_size
    seeds = [shared.configurations[i].seed for i in chosen[..., 0].ravel()]
    # One long batch is the same stream of examples as many short ones.
    streams = {seed: batch_indices(count, size * last, 0, seed) for seed in set(seeds)}
    rows = np.stack([streams[seed].reshape(last, size)[first:] for seed in seeds], axis=1)
    rows = rows.astype(np.int32).reshape(last - first, *chosen.shape[:2], size)
    return jax.device_put(rows, _spread(mesh, None))


def _in_order(count: int, size: int) -> np.ndarray:
    """All examples once, in batches of one size; -1 fills the last."""
    size = min(size, count)
    rows = -(-count // size)
    positions = np.arange(rows * size, dtype=np.int32).reshape(rows, size)
    return np.where(positions < count, positions, -1).astype(np.int32)


def _steps(
    shared: Shared,
    states: TrainState,
    frozen: PyTree,
    varied: Varied,
    examples: Examples,
    positions: jax.Array,
) -> tuple[TrainState, tuple[np.ndarray, np.ndarray]]:
    """The states after these steps, and of each step the losses and whether it was left out."""
    if shared.scans:
        states, found = scan_program(shared.recipe)(states, frozen, varied, examples, positions)
        return states, jax.device_get(found)
    step, measured = step_program(shared.recipe), []
    for some in positions:
        states, found = step(states, frozen, varied, examples, some)
        measured.append(found)
    losses, skipped = zip(*jax.device_get(measured), strict=True)
    return states, (np.stack(losses), np.stack(skipped))
