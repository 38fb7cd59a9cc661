"""What a training step minimises, and its gradient over a batch in one go or in micro-batches."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxtransfer.errors import TrainingError
from jaxtransfer.partition import Plan
from jaxtransfer.train.accumulate import accumulate
from jaxtransfer.train.losses import Batch, Loss
from jaxtransfer.train.ordering import ordered_gradient
from jaxtransfer.train.precision import Precision, cast_floats, promotion
from jaxtransfer.train.regularisers import Forward, Regulariser
from jaxtransfer.train.segments import forward
from jaxtransfer.tree import merge
from jaxtransfer.types import PyTree


@dataclass(frozen=True)
class Gradients:
    """What a batch says of the trainable parameters.

    Attributes:
        value: what is minimised, float32, shape ().
        terms: the share of each regulariser in it, by name.
        gradients: of `value`, in the dtypes of the trainable parameters.
        stats: the running statistics after the batch.
    """

    value: jax.Array
    terms: dict[str, jax.Array]
    gradients: PyTree
    stats: PyTree


@dataclass(frozen=True)
class Objective:
    """The weighted mean of a loss over a batch, and the regularisers.

    Attributes:
        apply: a network's forward pass.
        loss: from outputs and batch to a loss for each example.
        plan: what trains.
        prepare: what happens to `batch["image"]` before it enters the network.
        stages: all stages from input to head, where features or recomputation are asked for.
        accumulate: number of micro-batches.
        precision: the dtypes.
        remat: the stages whose activations are recomputed.
        axis: of the devices that the batch is spread over, `None` where all of it is here.
        gather: brings the parameters into the layout that the network computes with, or `None`.
    """

    apply: Callable[..., tuple[Any, PyTree]]
    loss: Loss
    plan: Plan
    prepare: Callable[[Any], Any] | None
    stages: tuple[str, ...]
    accumulate: int
    precision: Precision
    remat: Sequence[str] | str
    axis: str | None
    gather: Callable[[PyTree], PyTree] | None = None

    def gradients(
        self,
        trainable: PyTree,
        frozen: PyTree,
        stats: PyTree,
        batch: Batch,
        key: jax.Array,
        regularisers: Sequence[Regulariser],
        scale: jax.Array | None,
    ) -> Gradients:
        """The value of a batch and its gradient with respect to the trainable parameters.

        Args:
            trainable: the parameters that train, `None` in the holes.
            frozen: the others.
            stats: running statistics.
            batch: leaves (batch, …), on each device its own.
            key: for dropout.
            regularisers: terms of the loss.
            scale: factor on the loss while it is differentiated, `None` for none.
        """
        weight, counted = _weights(self.loss, batch)
        # Known before the first micro-batch, so that sums of gradients need no division after it.
        totals = jax.tree.map(self._over_devices, (jnp.sum(counted), jnp.sum(weight)))
        modules = self.plan.frozen_modules(merge(trainable, frozen), stats)
        # An order that one device would have to tell the others would cost them communication.
        is_alone = self.axis is None and self.gather is None
        gradient = ordered_gradient if is_alone else functools.partial(jax.grad, has_aux=True)

        def one(stats: PyTree, part: tuple[Batch, jax.Array], position: jax.Array) -> Any:
            micro, weight = part
            own_key = jax.random.fold_in(key, position) if self.accumulate > 1 else key

            def value(trainable: PyTree) -> tuple[jax.Array, Any]:
                seen, new_stats = self._forward(
                    trainable, frozen, stats, micro, own_key, modules, regularisers
                )
                value, terms = _weighted_mean(self.loss, regularisers, seen, weight, totals)
                scaled = value if scale is None else value * scale
                return scaled, (value, terms, new_stats)

            gradients, (value, terms, stats) = gradient(value)(trainable)
            return stats, (gradients, value, terms)

        stats, sums = accumulate(one, stats, (batch, weight), self.accumulate)
        gradients, value, terms = jax.tree.map(self._over_devices, sums)
        if scale is not None:
            gradients = jax.tree.map(lambda g: g / scale.astype(g.dtype), gradients)
        gradients = jax.tree.map(lambda g, p: g.astype(p.dtype), gradients, trainable)
        return Gradients(value, terms, gradients, self._mean_over_devices(stats))

    def _forward(
        self,
        trainable: PyTree,
        frozen: PyTree,
        stats: PyTree,
        batch: Batch,
        key: jax.Array,
        frozen_modules: frozenset[str],
        regularisers: Sequence[Regulariser],
    ) -> tuple[Forward, PyTree]:
        params, how = merge(trainable, frozen), self.precision
        used = cast_floats(params, how.compute)
        used = used if self.gather is None else self.gather(used)
        inputs = batch["image"] if self.prepare is None else self.prepare(batch["image"])
        with promotion(how):
            outputs, stats, features = forward(
                self.apply,
                self.stages,
                tuple(dict.fromkeys(stage for r in regularisers for stage in r.stages)),
                self.remat,
                used,
                stats,
                cast_floats(inputs, how.compute),
                {"dropout": key},
                frozen_modules,
            )
        outputs, features = cast_floats((outputs, features), how.output)
        return Forward(trainable, params, inputs, outputs, features, batch), stats

    def _over_devices(self, share: jax.Array) -> jax.Array:
        return share if self.axis is None else jax.lax.psum(share, self.axis)

    def _mean_over_devices(self, stats: PyTree) -> PyTree:
        """The same on every device, even where a network normalises by what it sees there."""
        if self.axis is None:
            return stats
        floats = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)  # noqa: E731
        return jax.tree.map(
            lambda leaf: jax.lax.pmean(leaf, self.axis) if floats(leaf) else leaf, stats
        )


def _weights(loss: Loss, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """The weight of each example, and what it counts in the divisor of the loss; both (batch,)."""
    size = jnp.shape(jax.tree.leaves(batch["image"])[0])[0]
    weight = jnp.asarray(batch.get("weight", jnp.ones(size, jnp.float32))).astype(jnp.float32)
    counts = getattr(loss, "example_weights", None)
    return weight, weight if counts is None else _weighted(counts(batch), weight)


def _weighted_mean(
    loss: Loss,
    regularisers: Sequence[Regulariser],
    seen: Forward,
    weight: jax.Array,
    totals: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The share of these examples in the value of the whole batch, and in each regulariser's."""
    losses = loss(seen.outputs, seen.batch)
    _check_shape("loss", losses, (weight.shape,))
    value = jnp.sum(_weighted(losses, weight)) / totals[0]
    terms = {}
    for name, regulariser in _named(regularisers).items():
        term = regulariser(seen)
        _check_shape(f"regulariser {name}", term, ((), weight.shape))
        term = jnp.broadcast_to(term, weight.shape)
        terms[name] = jnp.sum(_weighted(term, weight)) / totals[1]
    return sum(terms.values(), value), terms


def _weighted(values: jax.Array, weight: jax.Array) -> jax.Array:
    """Zero where the weight is, whatever the value: what fills up a batch may have none."""
    return jnp.where(weight == 0, 0, weight * values.astype(jnp.float32))


def _check_shape(what: str, found: Any, expected: tuple[tuple[int, ...], ...]) -> None:
    if jnp.shape(found) not in expected:
        raise TrainingError(
            f"{what}: expected an array of shape {' or '.join(map(str, expected))}, one value an "
            f"example, found {jnp.shape(found)}; leave the mean over the batch to the step"
        )


def _named(regularisers: Sequence[Regulariser]) -> Mapping[str, Regulariser]:
    """The regularisers by the names of their classes; further ones of a class are numbered."""
    named: dict[str, Regulariser] = {}
    for regulariser in regularisers:
        name = type(regulariser).__name__
        same = sum(type(other) is type(regulariser) for other in named.values())
        named[f"{name}_{same + 1}" if same else name] = regulariser
    return named
