"""One training step: pure, jitted, and differentiated with respect to what trains, no more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxtransfer.errors import TrainingError
from jaxtransfer.partition import Plan
from jaxtransfer.train.losses import Batch, Loss
from jaxtransfer.train.sharding import Sharding
from jaxtransfer.train.state import TrainState
from jaxtransfer.tree import map_with_names, merge
from jaxtransfer.types import PyTree

Metrics = dict[str, jax.Array]


@dataclass(frozen=True)
class TrainStep:
    """`step(state, batch) -> (state, metrics)`, jitted; it donates what it changes of `state`.

    Frozen parameters are neither donated nor copied: they are the same arrays before and after.
    Metrics are `loss`, the mean over the batch, and `gradient_norm`, over the trainable parameters
    and before any clipping.
    """

    jitted: Any

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """The state after one step on a batch, and the step's metrics."""
        moved, metrics = self.jitted(replace(state, frozen=None), state.frozen, batch)
        return replace(moved, frozen=state.frozen), metrics

    def lower(self, state: TrainState, batch: Batch) -> Any:
        """The step lowered for these arguments, as by `jax.jit(…).lower`: for costs and memory."""
        return self.jitted.lower(replace(state, frozen=None), state.frozen, batch)


def make_train_step(
    apply: Callable[..., tuple[jax.Array, PyTree]],
    loss: Loss,
    tx: optax.GradientTransformation,
    plan: Plan,
    *,
    prepare: Callable[[jax.Array], jax.Array] | None = None,
    ema_decay: float | None = None,
    sharding: Sharding | None = None,
) -> TrainStep:
    """A jitted training step for a plan.

    The gradient is taken with respect to the trainable tree alone, so frozen parameters cost no
    gradient, no optimizer state and no share in the norm. Modules that the plan freezes run as in
    evaluation.

    Args:
        apply: a model's forward pass.
        loss: from outputs and batch to a loss for each example.
        tx: an Optax transformation over the trainable tree.
        plan: what trains; its policy for statistics is carried out here.
        prepare: what happens to `batch["image"]` on the device before it enters the network.
        ema_decay: share of the old average in the moving average of the state's `ema`, below 1;
            `None` for states without one.
        sharding: the layouts of the state, which `sharding.place` has put there.

    Raises:
        TrainingError: `ema_decay` is out of range; at the first step, the state has a moving
            average and there is no decay, or the other way round.

    Example:
        `step = make_train_step(model.apply, cross_entropy(), plan.optimizer(1e-3), plan)`
    """
    if ema_decay is not None and not 0 <= ema_decay < 1:
        raise TrainingError(f"ema_decay: expected a number from 0, below 1, found {ema_decay}")

    def step(state: TrainState, frozen: PyTree, batch: Batch) -> tuple[TrainState, Metrics]:
        params = merge(state.trainable, frozen)
        frozen_modules = plan.frozen_modules(params, state.stats)
        inputs = batch["image"] if prepare is None else prepare(batch["image"])
        rngs = {"dropout": jax.random.fold_in(state.rng, state.step)}

        def mean_loss(trainable: PyTree) -> tuple[jax.Array, PyTree]:
            whole = merge(trainable, frozen)
            outputs, stats = apply(
                whole if sharding is None else sharding.gather(whole),
                state.stats,
                inputs,
                train=True,
                rngs=rngs,
                frozen_modules=frozen_modules,
            )
            weight = batch.get("weight", jnp.ones(len(batch["label"])))
            return jnp.sum(loss(outputs, batch) * weight) / jnp.sum(weight), stats

        (value, stats), gradients = jax.value_and_grad(mean_loss, has_aux=True)(state.trainable)
        # Optax raises floats to integer powers, which strict promotion, where it is set, forbids.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = tx.update(gradients, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        moved = replace(
            state,
            step=state.step + 1,
            trainable=trainable,
            stats=_keep_frozen_stats(plan, params, state.stats, stats),
            opt_state=opt_state,
            ema=_average(state.ema, trainable, ema_decay),
        )
        moved = moved if sharding is None else sharding.constrain(moved)
        return moved, {"loss": value, "gradient_norm": optax.tree.norm(gradients)}

    return TrainStep(jax.jit(step, donate_argnums=0))


def _keep_frozen_stats(plan: Plan, params: PyTree, old: PyTree, new: PyTree) -> PyTree:
    groups = plan.assign_stats(params, old)
    return map_with_names(
        lambda name, before, after: before if groups[name].freezes_stats else after, old, new
    )


def _average(ema: PyTree | None, trainable: PyTree, decay: float | None) -> PyTree | None:
    if (ema is None) != (decay is None):
        raise TrainingError(
            "ema: expected a moving average in the state and an ema_decay of the step, found "
            f"{'no average' if ema is None else 'no decay'}; give init_state with_ema=True and "
            "make_train_step an ema_decay, or neither"
        )
    if ema is None or decay is None:
        return None
    return optax.incremental_update(trainable, ema, 1.0 - decay)
