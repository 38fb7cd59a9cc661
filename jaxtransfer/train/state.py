"""Everything that a training run carries from step to step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxtransfer.models import Model
from jaxtransfer.partition import Plan
from jaxtransfer.tree import merge, split
from jaxtransfer.types import PyTree


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a training run carries from step to step.

    Attributes:
        step: number of steps done, int32, shape ().
        trainable: the parameters that train, `None` in the holes.
        frozen: the other parameters, `None` in the holes.
        stats: running statistics.
        opt_state: the optimizer's state, of the trainable parameters alone.
        ema: moving average of the trainable parameters, or `None`.
        rng: a random key; each step folds its number into it.
    """

    step: jax.Array
    trainable: PyTree
    frozen: PyTree
    stats: PyTree
    opt_state: Any
    ema: PyTree | None
    rng: jax.Array

    @property
    def params(self) -> PyTree:
        """All parameters, the trainable and the frozen ones together."""
        return merge(self.trainable, self.frozen)


def init_state(
    model: Model,
    plan: Plan,
    tx: optax.GradientTransformation,
    seed: int = 0,
    *,
    with_ema: bool = False,
) -> TrainState:
    """The state before the first step.

    What the steps will change is copied, since they donate it; frozen parameters are the model's own.

    Args:
        model: where training starts.
        plan: what trains.
        tx: an Optax transformation over the trainable tree, such as `plan.optimizer(1e-3)`.
        seed: for dropout and whatever else is random in the steps.
        with_ema: whether a moving average of the trainable parameters is kept.

    Raises:
        PlanError: the plan does not fit the model, or nothing trains.
    """
    trainable, frozen = split(model.params, plan)
    trainable = jax.tree.map(_copy, trainable)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        trainable=trainable,
        frozen=jax.tree.map(jnp.asarray, frozen),
        stats=jax.tree.map(_copy, model.stats),
        opt_state=tx.init(trainable),
        ema=jax.tree.map(_copy, trainable) if with_ema else None,
        rng=jax.random.key(seed),
    )


def _copy(leaf: Any) -> jax.Array:
    return jnp.array(leaf, copy=True)
