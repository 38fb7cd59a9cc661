"""The compiled step of a plan, shared by all runs that compute the same."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxtransfer.data import Data, preprocess_images
from jaxtransfer.models import Model, Preprocess
from jaxtransfer.partition import SCHEDULES, Plan
from jaxtransfer.train.settings import Settings
from jaxtransfer.train.sharding import Sharding
from jaxtransfer.train.skipping import MAX_SKIPPED
from jaxtransfer.train.step import TrainStep, make_train_step


def make_program(
    model: Model,
    plan: Plan,
    settings: Settings,
    steps: int,
    largest: int | None,
    sharding: Sharding | None,
) -> tuple[optax.GradientTransformation, TrainStep]:
    """The optimizer and the jitted step of a plan.

    Runs share one step where they differ in nothing that is compiled: the learning rate, which is
    set in the optimizer's state, the seed, the arrays of regularisers, and what the loop alone
    looks at.

    Args:
        model: whose forward pass, stages and preprocessing count, not its arrays.
        plan: what trains.
        settings: how the run is carried out.
        steps: number of steps of this plan, over which its schedule goes.
        largest: what `largest_integer` says of the data.
        sharding: the devices and who holds what, or `None`.
    """
    shared = replace(
        settings,
        steps=1,
        learning_rate=1.0,
        seed=0,
        regularisers=(),
        carry_moments=True,
        metric="loss",
        max_skipped=MAX_SKIPPED,
    )
    tx, step = cached_program(
        model.apply, model.spec.stages, plan, model.preprocess, shared, steps, largest, sharding
    )
    return tx, step.with_regularisers(settings.regularisers)


def largest_integer(data: Data) -> int | None:
    """The largest value of the dtype of images of integers; `None` for other inputs."""
    images = data.read(np.arange(1))["image"]
    is_integer = isinstance(images, np.ndarray) and images.dtype.kind in "iu"
    return int(np.iinfo(images.dtype).max) if is_integer else None


@functools.lru_cache(maxsize=16)
def cached_program(
    apply: Callable[..., Any],
    stages: tuple[str, ...],
    plan: Plan,
    preprocess: Preprocess,
    settings: Settings,
    steps: int,
    largest: int | None,
    sharding: Sharding | None,
) -> tuple[optax.GradientTransformation, TrainStep]:
    """`make_program` by what is compiled alone."""
    schedule = settings.schedule
    build = SCHEDULES[schedule] if isinstance(schedule, str) else schedule
    tx = plan.optimizer(
        1.0,
        optimizer=settings.optimizer,
        weight_decay=settings.weight_decay,
        clip_norm=settings.clip_norm,
        schedule=build(steps),
    )
    prepare = preparation(preprocess, largest, augments=settings.augment is not None)
    step = make_train_step(
        apply,
        settings.loss,
        tx,
        plan,
        prepare=prepare,
        augment=settings.augment,
        stages=stages,
        accumulate=settings.accumulate,
        precision=settings.precision,
        remat=settings.remat,
        ema_decay=settings.ema_decay,
        sharding=sharding,
        parallel=settings.parallel,
    )
    return tx, step


def preparation(
    how: Preprocess, largest: int | None, *, augments: bool
) -> Callable[[jax.Array], jax.Array]:
    """What happens to the images of a batch before they enter the network.

    Args:
        how: what the network expects.
        largest: what `largest_integer` says of the data.
        augments: whether an augmentation has been at them before.
    """
    if not augments:
        return functools.partial(preprocess_images, how=how)
    return functools.partial(_prepare_augmented, how=how, largest=largest)


def _prepare_augmented(images: jax.Array, how: Preprocess, largest: int | None) -> jax.Array:
    """Preprocess what an augmentation has made of images, of integers up to `largest` or floats."""
    # Integers were divided by their largest value, whatever the network wants them divided by.
    if largest is not None and how.scale != largest:
        images = images * jnp.float32(largest / (how.scale or 1))
    # What was brought to the network's size is not cut again.
    if images.shape[1:3] == how.size:
        how = replace(how, crop_fraction=1.0)
    return preprocess_images(images, how)
