"""An Optax transformation from per-leaf settings: optimizer, weight decay, learning-rate scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxtransfer.errors import PlanError
from jaxtransfer.tree import leaf_names, map_with_names
from jaxtransfer.types import PyTree

OPTIMIZERS: Mapping[str, Callable[[], optax.GradientTransformation]] = MappingProxyType(
    {
        "adamw": optax.scale_by_adam,
        "sgd": lambda: optax.trace(decay=0.9),
        "lion": optax.scale_by_lion,
        "rmsprop": optax.scale_by_rms,
    }
)
"""By name, what turns gradients into directions. Weight decay and learning rate come after it.

`adamw` is Loshchilov & Hutter 2019 (arXiv 1711.05101), `sgd` has a momentum of 0.9, `lion` is Chen
et al. 2023 (arXiv 2302.06675), `rmsprop` is Tieleman & Hinton 2012; constants are Optax's defaults.
"""

DEFAULT_OPTIMIZER = "adamw"


@dataclass(frozen=True)
class Settings:
    """How one leaf is trained."""

    optimizer: str
    weight_decay: float
    lr_scale: float


def build_optimizer(
    settings: Callable[[Sequence[str]], Mapping[str, Settings]],
    used: Sequence[str],
    learning_rate: float | optax.Schedule,
    schedule: optax.Schedule | None,
    clip_norm: float | None,
) -> optax.GradientTransformation:
    """Clip by the common norm, then each leaf's direction, decay and scale, then the learning rate.

    Args:
        settings: the settings of the leaves of these names; raises where it has none for them.
        used: the names of the optimizers in use.
        learning_rate: a number, or a schedule from the step to one.
        schedule: a factor on the learning rate, from the step.
        clip_norm: upper bound of the norm of all gradients together, or `None`.

    Raises:
        PlanError: an optimizer's name is not in `OPTIMIZERS`, or `clip_norm` is not above 0.
    """
    unknown = [name for name in used if name not in OPTIMIZERS]
    if unknown:
        raise PlanError(f"optimizer: expected one of {', '.join(OPTIMIZERS)}, found {unknown}")
    if clip_norm is not None and not (math.isfinite(clip_norm) and clip_norm > 0):
        raise PlanError(f"clip_norm: expected a number above 0 or None, found {clip_norm}")

    def labels(tree: PyTree) -> PyTree:
        by_name = settings(leaf_names(tree))
        return map_with_names(lambda name, _: by_name[name].optimizer, tree)

    if len(used) == 1:
        direction = OPTIMIZERS[used[0]]()
    else:
        direction = optax.partition({name: OPTIMIZERS[name]() for name in used}, labels)
    return optax.chain(
        optax.clip_by_global_norm(clip_norm) if clip_norm is not None else optax.identity(),
        direction,
        _decay_and_scale(settings),
        optax.scale_by_schedule(schedule) if schedule is not None else optax.identity(),
        optax.inject_hyperparams(optax.scale_by_learning_rate)(learning_rate=learning_rate),
    )


def _decay_and_scale(
    settings: Callable[[Sequence[str]], Mapping[str, Settings]],
) -> optax.GradientTransformation:
    """Add each leaf's weight decay to its direction, and multiply by its scale."""

    def init(params: PyTree) -> optax.EmptyState:
        settings(leaf_names(params))  # a tree that the plan does not fit is refused at once
        return optax.EmptyState()

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, Any]:
        by_name = settings(leaf_names(updates))

        def one(name: str, update: jax.Array, value: jax.Array) -> jax.Array:
            mine = by_name[name]
            if mine.weight_decay and value.ndim > 1:
                update = update + jnp.asarray(mine.weight_decay, value.dtype) * value
            return update * jnp.asarray(mine.lr_scale, update.dtype)

        return map_with_names(one, updates, params), state

    return optax.GradientTransformation(init, update)
