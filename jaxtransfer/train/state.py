"""Everything that a training run carries from step to step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxtransfer.errors import PlanError, TrainingError
from jaxtransfer.models import Model
from jaxtransfer.partition import Plan, evaluation_params
from jaxtransfer.surgery.network import working_dtype
from jaxtransfer.train.precision import FLOAT32, LossScale, Precision, init_loss_scale
from jaxtransfer.tree import merge, named_leaves, split
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
        ema: moving average of the trainable parameters, in float32 at least, or `None`.
        rng: a random key; each step folds its number into it.
        loss_scale: the factor on the loss and how long it has been so, or `None`.
    """

    step: jax.Array
    trainable: PyTree
    frozen: PyTree
    stats: PyTree
    opt_state: Any
    ema: PyTree | None
    rng: jax.Array
    loss_scale: LossScale | None = None

    @property
    def params(self) -> PyTree:
        """All parameters, the trainable and the frozen ones together."""
        return merge(self.trainable, self.frozen)

    @property
    def ema_params(self) -> PyTree:
        """All parameters, with the moving averages of the trainable ones: often the better model.

        An average starts as a copy of the parameters, so that it has no bias towards zero that
        would have to be divided out.

        Raises:
            TrainingError: the state has no moving average.
        """
        if self.ema is None:
            raise TrainingError(
                "ema_params: expected a state with a moving average, found none; give init_state "
                "with_ema=True"
            )
        return merge(self.ema, self.frozen)

    @property
    def evaluated_params(self) -> PyTree:
        """All parameters as they answer: the moving averages, or what the optimizer says."""
        if self.ema is not None:
            return self.ema_params
        return merge(evaluation_params(self.opt_state, self.trainable), self.frozen)


def init_state(
    model: Model,
    plan: Plan,
    tx: optax.GradientTransformation,
    seed: int = 0,
    *,
    with_ema: bool = False,
    precision: Precision = FLOAT32,
) -> TrainState:
    """The state before the first step.

    What the steps will change is copied, since they donate it; frozen parameters are the model's
    own.

    Args:
        model: where training starts.
        plan: what trains.
        tx: an Optax transformation over the trainable tree, such as `plan.optimizer(1e-3)`.
        seed: for dropout and whatever else is random in the steps.
        with_ema: whether a moving average of the trainable parameters is kept.
        precision: in which dtype the trainable parameters are kept, and whether the loss is scaled;
            that of the step.

    Raises:
        PlanError: as `check_plan` says.
    """
    check_plan(plan, model)
    trainable, frozen = split(model.params, plan)
    trainable = jax.tree.map(lambda leaf: _copy(leaf, precision.parameters), trainable)
    # Optax mixes dtypes in its states, which strict promotion, where it is set, forbids.
    with jax.numpy_dtype_promotion("standard"):
        opt_state = jax.jit(tx.init)(trainable)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        trainable=trainable,
        frozen=jax.tree.map(jnp.asarray, frozen),
        stats=jax.tree.map(_copy, model.stats),
        opt_state=opt_state,
        ema=jax.tree.map(_average, trainable) if with_ema else None,
        rng=jax.random.key(seed),
        loss_scale=init_loss_scale(precision),
    )


def check_plan(plan: Plan, model: Model) -> None:
    """Raise unless a model can be trained by a plan.

    Raises:
        PlanError: the plan does not fit the model, nothing trains, or what trains are not floats.
    """
    plan.check(model.params, model.stats)
    trainable, _ = split(model.params, plan)
    leaves = named_leaves(trainable)
    others = [
        f"{name} ({leaf.dtype})"
        for name, leaf in leaves
        if not jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    if not leaves or others:
        raise PlanError(
            f"plan {plan.name!r}: expected leaves of floats that train, found "
            f"{', '.join(others) or 'that every group is frozen'}; "
            f"{'put these into a frozen group' if others else 'let a group train'}"
        )


def _copy(leaf: Any, dtype: Any = None) -> jax.Array:
    return jnp.array(leaf, dtype, copy=True)


def _average(leaf: jax.Array) -> jax.Array:
    """The start of a moving average; in half precision its small changes would be rounded away."""
    return _copy(leaf, working_dtype(leaf.dtype))
