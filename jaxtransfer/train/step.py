"""One training step: pure, jitted, and differentiated with respect to what trains, no more."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxtransfer.compiling import jit
from jaxtransfer.errors import TrainingError
from jaxtransfer.models.calling import keywords_of
from jaxtransfer.models.synchronised import batch_axis
from jaxtransfer.partition import Plan
from jaxtransfer.train.accumulate import check_divisible
from jaxtransfer.train.losses import Batch, Loss
from jaxtransfer.train.objective import Gradients, Objective
from jaxtransfer.train.precision import FLOAT32, Precision, next_loss_scale, promotion
from jaxtransfer.train.regularisers import Regulariser
from jaxtransfer.train.skipping import keep_unless
from jaxtransfer.train.state import TrainState
from jaxtransfer.tree import map_with_names, merge
from jaxtransfer.types import PyTree

Metrics = dict[str, jax.Array]
Augment = Callable[[jax.Array, Batch], Batch]

PARALLEL = ("jit", "pmap")
AXIS = "batch"
"""The name of the axis of devices in a step by `jax.pmap`."""


@dataclass(frozen=True, eq=False)
class TrainStep:
    """`step(state, batch) -> (state, metrics)`, jitted; it donates what it changes of `state`.

    Frozen parameters are neither donated nor copied: they are the same arrays before and after.
    Metrics are float32 scalars: `loss`, what was minimised, the weighted mean over the batch with
    all regularisers; `gradient_norm`, over the trainable parameters and before any clipping;
    `skipped`, 1 where the loss or the norm of the gradients was not finite, or that of the updates
    of an optimizer that asks for further gradients, and nothing was changed, else 0;
    `regulariser/NAME` for each regulariser; `loss_scale` where there is one.

    Attributes:
        jitted: the compiled function of state, frozen parameters, batch and regularisers.
        regularisers: terms of the loss, with their arrays.
        everywhere: the layout of what all devices hold; `None` for that of the default device.
        splits: whether each call splits its batch over the devices of `everywhere`, as `jax.pmap`
            takes it.
        precision: the dtypes that it computes in.
    """

    jitted: Any
    regularisers: tuple[Regulariser, ...] = ()
    everywhere: NamedSharding | None = None
    splits: bool = False
    precision: Precision = FLOAT32

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """The state after one step on a batch, and the step's metrics."""
        state = self._placed(state)
        with promotion(self.precision):
            moved, metrics = self.jitted(*self._arguments(state, batch))
        return replace(moved, frozen=state.frozen), metrics

    def lower(self, state: TrainState, batch: Batch) -> Any:
        """The step lowered for these arguments, as by `jax.jit(…).lower`: for costs and memory."""
        with promotion(self.precision):
            return self.jitted.lower(*self._arguments(self._placed(state), batch))

    def with_regularisers(self, regularisers: Sequence[Regulariser]) -> TrainStep:
        """The same step with these terms of the loss, which are on the devices from now on.

        Steps that differ in the arrays of their regularisers alone share what is compiled.
        """
        return replace(self, regularisers=jax.device_put(tuple(regularisers), self.everywhere))

    def _placed(self, state: TrainState) -> TrainState:
        """Under pmap the state on all devices: once, since what a step gives is there already."""
        if not self.splits or state.step.sharding == self.everywhere:
            return state
        return jax.device_put(state, self.everywhere)

    def _arguments(self, state: TrainState, batch: Batch) -> tuple[Any, ...]:
        if self.splits and self.everywhere is not None:
            count = self.everywhere.mesh.size
            check_divisible(batch, count, "parallel", "devices")
            batch = jax.tree.map(lambda leaf: leaf.reshape(count, -1, *leaf.shape[1:]), batch)
        return replace(state, frozen=None), state.frozen, batch, self.regularisers


def make_train_step(
    apply: Callable[..., tuple[Any, PyTree]],
    loss: Loss,
    tx: optax.GradientTransformation,
    plan: Plan,
    *,
    prepare: Callable[[Any], Any] | None = None,
    augment: Augment | None = None,
    regularisers: Sequence[Regulariser] = (),
    stages: Sequence[str] = (),
    accumulate: int = 1,
    precision: Precision = FLOAT32,
    remat: Sequence[str] | str = (),
    ema_decay: float | None = None,
    sharding: Any = None,
    parallel: str = "jit",
) -> TrainStep:
    """A jitted training step for a plan.

    The gradient is taken with respect to the trainable tree alone, so frozen parameters cost no
    gradient, no optimizer state and no share in the norm. Modules that the plan freezes run as in
    evaluation. A step whose loss, gradient or update is not finite changes nothing but the number
    of steps.

    What is minimised is the sum of `batch["weight"]` times the loss over the sum of the weights,
    which are 1 where the batch has none. An example of weight 0 has no share in it; in the
    statistics of a BatchNorm that follows the data it has.

    Args:
        apply: a model's forward pass.
        loss: from outputs and batch to a loss for each example.
        tx: an Optax transformation over the trainable tree. It is given `value`, the loss, and
            `grad_fn(params, step)`, the gradients of the same batch at other trainable parameters,
            where it is a `GradientTransformationExtraArgs`.
        plan: what trains; its policy for statistics is carried out here.
        prepare: what happens to `batch["image"]` on the device before it enters the network.
        augment: `(key, batch) -> batch`, before `prepare` and anew in each step. It sees floats:
            images of integers are divided by the largest one of their dtype, 255 for uint8.
        regularisers: terms that are added to the loss. One with a single value for the batch counts
            as if each example had it.
        stages: all stages from input to head, `model.spec.stages`; `remat` needs them, and so do
            regularisers that look at features.
        accumulate: number of micro-batches that a batch is worked through in, one after the other,
            for less memory: the gradient is that of the whole batch. A BatchNorm that follows the
            data normalises by each micro-batch.
        precision: the dtypes, such as `BFLOAT16`; give `init_state` the same.
        remat: the stages whose activations the backward pass computes anew instead of keeping them,
            or "all".
        ema_decay: share of the old average in the moving average of the state's `ema`, below 1;
            `None` for states without one.
        sharding: a `Sharding` whose layouts the new state keeps, or `None`.
        parallel: "jit", where arrays lie on the devices as they were placed, or "pmap", which
            splits each batch over all devices of this process. Both take and give the same state,
            and agree to rounding: BatchNorm averages over all devices. Dropout and augmentation
            draw other numbers on each device.

    Raises:
        TrainingError: an argument is out of range; at the first step, the state does not fit them,
            or the batch cannot be divided as they ask.

    Example:
        `step = make_train_step(model.apply, cross_entropy(), plan.optimizer(1e-3), plan)`
    """
    _check(accumulate, ema_decay, sharding, parallel)
    parallel_axis = AXIS if parallel == "pmap" else None
    objective = Objective(
        apply=apply,
        loss=loss,
        plan=plan,
        prepare=prepare,
        stages=tuple(stages),
        accumulate=accumulate,
        precision=precision,
        remat=remat,
        axis=parallel_axis,
        gather=None if sharding is None else sharding.gather,
    )
    recipe = _Recipe(
        objective, optax.with_extra_args_support(tx), augment, ema_decay, sharding, parallel_axis
    )
    step = functools.partial(_step, recipe)
    if parallel == "pmap":
        devices = jax.local_devices()
        everywhere = NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec())
        mapped = jax.pmap(
            step,
            axis_name=AXIS,
            in_axes=(None, None, 0, None),
            out_axes=None,
            donate_argnums=0,
            devices=devices,
        )
        found = TrainStep(mapped, (), everywhere, splits=True, precision=precision)
    else:
        everywhere = None if sharding is None else NamedSharding(sharding.mesh, PartitionSpec())
        found = TrainStep(jit(step, donate_argnums=0), (), everywhere, precision=precision)
    return found.with_regularisers(regularisers)


@dataclass(frozen=True)
class _Recipe:
    """What a step does, beside the arrays that it does it to."""

    objective: Objective
    tx: optax.GradientTransformationExtraArgs
    augment: Augment | None
    ema_decay: float | None
    sharding: Any
    axis: str | None


def _check(accumulate: int, ema_decay: float | None, sharding: Any, parallel: str) -> None:
    problems = []
    if ema_decay is not None and not 0 <= ema_decay < 1:
        problems.append(f"ema_decay: expected a number from 0, below 1, found {ema_decay}")
    if not isinstance(accumulate, (int, np.integer)) or accumulate < 1:
        problems.append(f"accumulate: expected an integer of at least 1, found {accumulate}")
    if parallel not in PARALLEL:
        problems.append(f"parallel: expected one of {', '.join(PARALLEL)}, found {parallel!r}")
    elif parallel == "pmap" and sharding is not None:
        problems.append("sharding: expected None with parallel='pmap', which keeps all everywhere")
    if problems:
        raise TrainingError("; ".join(problems))


def _step(
    recipe: _Recipe,
    state: TrainState,
    frozen: PyTree,
    batch: Batch,
    regularisers: tuple[Regulariser, ...],
) -> tuple[TrainState, Metrics]:
    _check_state(state, recipe)
    key = jax.random.fold_in(state.rng, state.step)
    if recipe.axis is not None:
        key = jax.random.fold_in(key, jax.lax.axis_index(recipe.axis))
    dropout_key, augment_key = jax.random.split(key)
    if recipe.augment is not None:
        batch = recipe.augment(augment_key, with_float_images(batch))
    scale = None if state.loss_scale is None else state.loss_scale.factor

    def gradients_at(trainable: PyTree) -> Gradients:
        synchronised = batch_axis(recipe.axis) if recipe.axis else contextlib.nullcontext()
        with synchronised:
            return recipe.objective.gradients(
                trainable, frozen, state.stats, batch, dropout_key, regularisers, scale
            )

    found = gradients_at(state.trainable)
    norm, further = _norm(found.gradients), []

    def gradients_elsewhere(trainable: PyTree, _: Any) -> PyTree:
        further.append(True)
        return gradients_at(trainable).gradients

    # Optax raises floats to integer powers, which strict promotion, where it is set, forbids.
    with jax.numpy_dtype_promotion("standard"):
        updates, opt_state = recipe.tx.update(
            found.gradients,
            state.opt_state,
            state.trainable,
            **_taken(
                recipe.tx.update,
                value=found.value,
                grad_fn=gradients_elsewhere,
            ),
        )
        trainable = optax.apply_updates(state.trainable, updates)
    # By norms, whose roots the compiler computes once. What it thinks cheap, as it does a flag of
    # each leaf, it writes out again for each leaf that depends on it: the program would grow with
    # the square of their number.
    finite = jnp.isfinite(found.value) & jnp.isfinite(norm)
    if further:
        # An optimizer may take further gradients, as sharpness-aware ones do: the updates show
        # these. All of them must then be kept until the last is known, which others are spared.
        finite &= jnp.isfinite(_norm(updates))
    stats = _keep_frozen_stats(
        recipe.objective.plan, merge(state.trainable, frozen), state.stats, found.stats
    )
    moved = replace(
        state,
        step=state.step + 1,
        trainable=keep_unless(finite, trainable, state.trainable),
        stats=keep_unless(finite, stats, state.stats),
        opt_state=keep_unless(finite, opt_state, state.opt_state),
        ema=keep_unless(finite, _average(state.ema, trainable, recipe.ema_decay), state.ema),
    )
    metrics = {
        "loss": found.value,
        "gradient_norm": norm,
        "skipped": 1 - finite.astype(jnp.float32),
        **{f"regulariser/{name}": term for name, term in found.terms.items()},
    }
    how = recipe.objective.precision.loss_scale
    if state.loss_scale is not None and how is not None:
        metrics["loss_scale"] = state.loss_scale.factor
        moved = replace(moved, loss_scale=next_loss_scale(state.loss_scale, finite, how))
    if recipe.sharding is not None:
        moved = recipe.sharding.constrain(moved)
    return moved, metrics


def _norm(tree: PyTree) -> jax.Array:
    return optax.tree.norm(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree))


def _check_state(state: TrainState, recipe: _Recipe) -> None:
    problems = []
    if (state.ema is None) != (recipe.ema_decay is None):
        problems.append(
            "ema: expected a moving average in the state and an ema_decay of the step, found "
            f"{'no average' if state.ema is None else 'no decay'}; give init_state with_ema=True "
            "and make_train_step an ema_decay, or neither"
        )
    if (state.loss_scale is None) != (recipe.objective.precision.loss_scale is None):
        problems.append(
            "precision: expected a loss_scale of both state and step, or of neither, found one "
            f"only in the {'step' if state.loss_scale is None else 'state'}; give init_state and "
            "make_train_step the same precision"
        )
    if problems:
        raise TrainingError("; ".join(problems))


def _taken(update: Callable[..., Any], **offered: Any) -> dict[str, Any]:
    """What an optimizer takes of what it is offered."""
    parameters = inspect.signature(update).parameters.values()
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return offered
    return {name: value for name, value in offered.items() if name in keywords_of(update)}


def with_float_images(batch: Batch) -> Batch:
    """The batch with images in [0, 1], as augmentations expect them."""
    image = jnp.asarray(batch["image"])
    if not jnp.issubdtype(image.dtype, jnp.integer):
        return batch
    largest = jnp.float32(jnp.iinfo(image.dtype).max)
    return {**batch, "image": image.astype(jnp.float32) / largest}


def _keep_frozen_stats(plan: Plan, params: PyTree, old: PyTree, new: PyTree) -> PyTree:
    groups = plan.assign_stats(params, old)
    return map_with_names(
        lambda name, before, after: before if groups[name].freezes_stats else after, old, new
    )


def _average(ema: PyTree | None, trainable: PyTree, decay: float | None) -> PyTree | None:
    if ema is None or decay is None:
        return None
    return jax.tree.map(
        lambda old, new: decay * old + (1 - decay) * new.astype(old.dtype), ema, trainable
    )
