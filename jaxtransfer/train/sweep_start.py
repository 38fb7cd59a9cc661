"""What a sweep computes and checks before its first step."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxtransfer.data import Data, evaluation_batches, preprocess_images
from jaxtransfer.errors import TrainingError
from jaxtransfer.models import Model
from jaxtransfer.partition import Plan
from jaxtransfer.train.checks import check_run
from jaxtransfer.train.evaluation import IN_FLIGHT, READERS, forward_pass
from jaxtransfer.train.grid import Configuration
from jaxtransfer.train.prefix import frozen_prefix
from jaxtransfer.train.scores import Target, rough_mean
from jaxtransfer.train.settings import Settings
from jaxtransfer.train.sweep_program import Cost, Examples, Recipe, cost_of, start_program
from jaxtransfer.train.targets import targets_of
from jaxtransfer.tree import count_bytes, diff, split
from jaxtransfer.tree.summary import format_bytes
from jaxtransfer.types import PyTree

FEATURES_AT_ONCE = 64
"""Images whose features are computed at a time."""

AXIS = "configurations"
"""The axis of devices that configurations are spread over."""


@dataclass(frozen=True)
class Shared:
    """What all configurations of a sweep share, on the host.

    Attributes:
        recipe: what is compiled.
        starts: by seed, where configurations begin.
        configurations: what is tried.
        settings: of the runs.
        mesh: the devices that configurations are spread over.
        together: how many configurations are trained at a time.
        scans: whether many steps are one program.
        frozen: the parameters that do not train.
        examples: to train on.
        held_out: to compare by.
        centre: of the labels of `held_out`, as for `KINDS`.
    """

    recipe: Recipe
    starts: Mapping[int, Model]
    configurations: tuple[Configuration, ...]
    settings: Settings
    mesh: Mesh
    together: int
    scans: bool
    frozen: PyTree
    examples: Examples
    held_out: Examples
    centre: np.ndarray


def prepare_sweep(
    starts: Mapping[int, Model],
    data: Data,
    validation: Data,
    plan: Plan,
    configurations: tuple[Configuration, ...],
    settings: Settings,
    devices: Sequence[Any],
    memory: int,
) -> Shared:
    """Compute the features, and see how many configurations fit side by side."""
    model = next(iter(starts.values()))
    stage = cached_stage(model, plan, data)
    recipe = Recipe(
        apply=model.apply,
        stage=stage,
        plan=plan,
        preprocess=model.preprocess if stage is None else None,
        optimizer=settings.optimizer,
        schedule=settings.schedule,
        steps=settings.steps,
        clip_norm=settings.clip_norm,
        target=cast(Target, targets_of(data.labels)),
    )
    mesh = Mesh(np.array(devices[: len(configurations)]), (AXIS,))
    everywhere = NamedSharding(mesh, PartitionSpec())
    examples, held_out = (compute_examples(model, one, stage) for one in (data, validation))
    cost = _cost(model, recipe, examples, settings.batch_size)
    _, frozen = split(model.params, plan)
    left = memory - count_bytes((examples, held_out))
    if left < cost.memory:
        raise TrainingError(
            f"sweep: expected that the features and one configuration fit into memory, found "
            f"{format_bytes(memory)} for {format_bytes(count_bytes((examples, held_out)))} and "
            f"{format_bytes(cost.memory)}; raise memory, take a plan that trains less, or fewer "
            "examples"
        )
    return Shared(
        recipe=recipe,
        starts=starts,
        configurations=configurations,
        settings=settings,
        mesh=mesh,
        together=left // cost.memory * mesh.size,
        scans=not cost.has_convolutions,
        frozen=jax.device_put(frozen, everywhere),
        examples=jax.device_put(examples, everywhere),
        held_out=jax.device_put(held_out, everywhere),
        centre=rough_mean(validation.labels),
    )


def _cost(model: Model, recipe: Recipe, examples: Examples, batch_size: int) -> Cost:
    trainable, _ = split(model.params, recipe.plan)
    one = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None, None, None], trainable)
    state = jax.eval_shape(start_program(recipe), one, model.stats, jnp.ones((1, 1, 1)))
    shape = (batch_size, *examples.inputs.shape[1:])
    inputs = jax.ShapeDtypeStruct(shape, examples.inputs.dtype)
    return cost_of(recipe, model.params, model.stats, state, inputs)


def cached_stage(model: Model, plan: Plan, data: Data) -> str | None:
    """The stage up to which a plan leaves what the network computes as it is, if there is one."""
    images = data.ready(model.preprocess).read(np.arange(1))["image"]
    inputs = jax.eval_shape(functools.partial(preprocess_images, how=model.preprocess), images)
    return frozen_prefix(model, plan, inputs)


def compute_examples(model: Model, data: Data, stage: str | None) -> Examples:
    """What enters a stage in evaluation mode, with labels and weights; without one the images.

    Args:
        model: the network, whose preprocessing comes first.
        data: at least one labelled example.
        stage: one that the network can begin at.
    """
    ready = data.ready(model.preprocess)
    forward = forward_pass(model.apply, model.preprocess, stage)
    found: list[Any] = []
    with evaluation_batches(ready, min(FEATURES_AT_ONCE, len(ready)), workers=READERS) as batches:
        for batch in batches:
            images = batch["image"]
            inputs = images if stage is None else forward(model.params, model.stats, images)
            found.append((inputs, batch["weight"]))
            if len(found) > IN_FLIGHT:
                found[-1 - IN_FLIGHT] = jax.device_get(found[-1 - IN_FLIGHT])
    inputs, weights = zip(*jax.device_get(found), strict=True)
    whole = (np.concatenate(parts)[: len(data)] for parts in (inputs, weights))
    return Examples(next(whole), np.asarray(data.labels), next(whole))  # pyright: ignore[reportArgumentType]


def check_sweep(
    starts: Mapping[int, Model],
    data: Data,
    validation: Data,
    plan: Plan,
    configurations: Sequence[Configuration],
    settings: Settings,
    halving: int | None,
    devices: Sequence[Any],
) -> None:
    """Raise where a sweep cannot be carried out, before anything is computed."""
    for start in starts.values():
        check_run(start, data, [plan], settings, validation, None, 1)
    problems = []
    target = targets_of(data.labels)
    if isinstance(target, Mapping):
        problems.append(f"examples of one task, found labels for {', '.join(sorted(target))}")
    elif target != "classes" and any(one.label_smoothing for one in configurations):
        problems.append(f"label_smoothing 0 where labels are no classes, found {target}")
    if halving is not None and not (isinstance(halving, int) and halving > 1):
        problems.append(f"halving whole, from 2, or None, found {halving!r}")
    if not configurations or not devices:
        problems.append(
            f"at least one configuration and one device, found {len(configurations)} and "
            f"{len(devices)}"
        )
    first, *others = (split(start.params, plan)[1] for start in starts.values())
    moved = sorted({name for other in others for name in diff(first, other).changed})
    if moved:
        problems.append(
            f"a plan that trains all of a new head, which is another one for each seed, found that "
            f"{plan.name!r} freezes {', '.join(moved)}"
        )
    if problems:
        raise TrainingError(f"sweep: expected {'; '.join(problems)}")
