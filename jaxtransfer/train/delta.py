"""DELTA: features stay where the source has them, most of all in the channels that matter."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtransfer.compiling import jit
from jaxtransfer.data.arrays import batch_indices
from jaxtransfer.data.preprocess import preprocess_images
from jaxtransfer.data.source import Data
from jaxtransfer.errors import DataError, TrainingError
from jaxtransfer.models import Model
from jaxtransfer.train.losses import Batch, Loss, cross_entropy
from jaxtransfer.train.regularisers import Forward, check_weights, squared_norm
from jaxtransfer.tree import is_below, leaf_names, named_leaves
from jaxtransfer.types import PyTree

# How many networks that lack a channel are computed side by side.
CHANNELS_AT_A_TIME = 16


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DELTA:
    """The distance of feature maps to the source network's, by channel, and the head's norm.

    Over the stages: alpha/2 * channels/positions * sum of weight * (features - source features)^2;
    for the head: beta/2 |w|^2. The source network runs in evaluation. The value has shape (batch,).
    It takes the place of weight decay, so train with a `weight_decay` of 0.

    Source: Li et al. 2019, "DELTA: DEep Learning Transfer using Feature Map with Attention for
    Convolutional Networks" (arXiv 1901.09229), section 3; the factors channels/positions and
    1/2 are those of https://github.com/lixingjian/DELTA (train.py).

    Attributes:
        params: the source network's parameters.
        stats: its running statistics.
        weights: by stage, a weight for each channel that enters it, shape (channels,), of sum 1;
            where a stage has none, all its channels have the same.
        apply: the source network's forward pass.
        stages: the stages whose entering features are compared.
        head: path of the parameters whose norm is taken.
        alpha: weight of the features.
        beta: weight of the norm.
    """

    params: PyTree
    stats: PyTree
    weights: dict[str, jax.Array]
    apply: Callable[..., Any] = field(metadata={"static": True})
    stages: tuple[str, ...] = field(metadata={"static": True})
    head: str = field(metadata={"static": True})
    alpha: float = field(default=0.64, metadata={"static": True})
    beta: float = field(default=0.01, metadata={"static": True})

    def __call__(self, forward: Forward) -> jax.Array:
        """The term for a forward pass, shape (batch,)."""
        head = [leaf for n, leaf in named_leaves(forward.trainable) if is_below(n, {self.head})]
        total = 0.5 * self.beta * sum(map(squared_norm, head), jnp.zeros((), jnp.float32))
        for stage in self.stages:
            source, _ = self.apply(self.params, self.stats, forward.inputs, train=False, stop=stage)
            distance = _channel_distances(forward.features[stage], source)
            channels = distance.shape[-1]
            weights = self.weights.get(stage, jnp.full((channels,), 1 / channels, jnp.float32))
            total = total + 0.5 * self.alpha * channels * (distance @ weights)
        return total


def _channel_distances(features: jax.Array, source: jax.Array) -> jax.Array:
    """The mean over positions of the squared difference, shape (batch, channels)."""
    difference = features.astype(jnp.float32) - source.astype(jnp.float32)
    return jnp.square(difference).mean(axis=tuple(range(1, difference.ndim - 1)))


def delta(
    model: Model,
    weights: Mapping[str, Any] | None = None,
    *,
    stages: Sequence[str] | None = None,
    alpha: float = 0.64,
    beta: float = 0.01,
) -> DELTA:
    """DELTA towards the features that a model starts with.

    Args:
        model: where training starts; a head that is new does not matter.
        weights: what `channel_attention` gives; `None` for channels of equal weight.
        stages: whose entering features are compared; by default those of `weights`, or all stages
            with parameters but the first.
        alpha: weight of the features. The default is the 0.01 of the paper's code, where it weighs
            a sum over batches of 64 and here a mean over examples.
        beta: weight of the head's norm, 0.01 in the paper's code.

    Raises:
        TrainingError: a weight is not a number from 0, or there are weights for other stages.
    """
    check_weights("delta", alpha=alpha, beta=beta)
    weights = dict(weights or {})
    chosen = tuple(stages or weights) or default_stages(model)
    others = [stage for stage in (*chosen, *weights) if stage not in model.spec.stages]
    if others or not set(weights) <= set(chosen):
        raise TrainingError(
            f"delta: expected stages among {', '.join(model.spec.stages)} and weights for those, "
            f"found stages {chosen} and weights for {tuple(weights)}"
        )
    return DELTA(
        params=jax.tree.map(jnp.asarray, model.params),
        stats=jax.tree.map(jnp.asarray, model.stats),
        weights={stage: jnp.asarray(values, jnp.float32) for stage, values in weights.items()},
        apply=model.apply,
        stages=chosen,
        head=model.spec.head,
        alpha=float(alpha),
        beta=float(beta),
    )


def channel_attention(
    model: Model,
    data: Data,
    stages: Sequence[str] | None = None,
    *,
    loss: Loss | None = None,
    batch_size: int = 64,
    batches: int = 4,
    temperature: float = 5.0,
    seed: int = 0,
) -> dict[str, jax.Array]:
    """How much each channel matters for labelled examples: by how much the loss rises without it.

    Each channel in turn is zero where it enters a stage, the network running in evaluation. The
    rises of the mean loss, standardised over the channels of a stage and divided by the
    temperature, go through a softmax.

    Args:
        model: the source network with a head that was trained on the data, as a probe is: with a
            random head the rises mean nothing.
        data: the target task's examples.
        stages: as for `delta`; the network must take `start`.
        loss: from outputs and batch to a loss for each example; by default the cross-entropy.
        batch_size: examples a batch.
        batches: how many batches the rises are the mean of; 4 of 64 examples in the paper's code.
        temperature: 5 in the paper's code.
        seed: of the order of the examples.

    Returns:
        By stage, float32 weights of shape (channels,), of sum 1.

    Raises:
        TrainingError: a number is below what it can be.
        DataError: the examples cannot be preprocessed for the model, or there are none.

    Source: arXiv 1901.09229, section 3, and channel_eval.py and train.py of
    https://github.com/lixingjian/DELTA, which sets the filter of a convolution to zero instead.
    """
    if batch_size < 1 or batches < 1 or not temperature > 0:
        raise TrainingError(
            "channel_attention: expected batch_size and batches of at least 1 and a temperature "
            f"above 0, found {batch_size}, {batches} and {temperature}"
        )
    data = data.ready(model.preprocess)
    if not len(data):
        raise DataError("channel_attention: expected at least one example, found none")
    stages = tuple(stages or default_stages(model))
    rises = {
        stage: jit(functools.partial(_rises, model.apply, stage, loss or cross_entropy()))
        for stage in stages
    }
    found: dict[str, list[np.ndarray]] = {stage: [] for stage in stages}
    for number in range(batches):
        batch = data.read(batch_indices(len(data), min(batch_size, len(data)), number, seed))
        inputs = preprocess_images(jnp.asarray(batch["image"]), model.preprocess)
        for stage in stages:
            one = rises[stage](model.params, model.stats, inputs, batch)
            found[stage].append(np.asarray(one))
    return {stage: _attention(np.mean(rows, axis=0), temperature) for stage, rows in found.items()}


def default_stages(model: Model) -> tuple[str, ...]:
    """All stages with parameters but the first: what enters them, the stages before have made."""
    top_level = {name.split("/")[0] for name in leaf_names(model.params)}
    return tuple(stage for stage in model.spec.stages if stage in top_level)[1:]


def _rises(
    apply: Callable[..., Any],
    stage: str,
    loss: Loss,
    params: PyTree,
    stats: PyTree,
    inputs: jax.Array,
    batch: Batch,
) -> jax.Array:
    """By how much the mean loss rises without each channel that enters a stage."""
    features, _ = apply(params, stats, inputs, train=False, stop=stage)

    def loss_with(kept: jax.Array) -> jax.Array:
        entering = features * kept.astype(features.dtype)
        outputs, _ = apply(params, stats, entering, train=False, start=stage)
        return jnp.mean(loss(outputs, batch))

    positions = jnp.arange(features.shape[-1])
    without = jax.lax.map(
        lambda channel: loss_with(positions != channel), positions, batch_size=CHANNELS_AT_A_TIME
    )
    return without - loss_with(jnp.ones_like(positions))


def _attention(rises: np.ndarray, temperature: float) -> jax.Array:
    """A softmax over standardised rises; equal weights where all rises are equal."""
    spread = np.std(rises)
    standard = (rises - np.mean(rises)) / spread if spread > 0 else np.zeros_like(rises)
    return jax.nn.softmax(jnp.asarray(standard / temperature, jnp.float32))
