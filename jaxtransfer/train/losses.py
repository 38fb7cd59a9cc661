"""Losses, one value an example."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
import optax

from jaxtransfer.errors import TrainingError

Batch: TypeAlias = Mapping[str, jax.Array]
Loss: TypeAlias = Callable[[jax.Array, Batch], jax.Array]
"""From a network's outputs and the batch that they belong to, a loss for each example."""


@functools.cache  # one loss for one argument, so that compiled steps can be shared
def cross_entropy(label_smoothing: float = 0.0) -> Loss:
    """Softmax cross-entropy against integer labels.

    With `label_smoothing` s over K classes the target is 1 - s + s / K for the label and s / K for
    each other class (Szegedy et al. 2016, "Rethinking the Inception Architecture for Computer
    Vision", arXiv 1512.00567, section 7).

    Args:
        label_smoothing: share s of the target that is spread over all classes, from 0, below 1.

    Returns:
        A loss from logits of shape (batch, classes) and `batch["label"]` of shape (batch,),
        integers, to shape (batch,), in nats; NaN for a label that is none of the classes.

    Raises:
        TrainingError: `label_smoothing` is out of range.

    >>> loss = cross_entropy()
    >>> print(loss(jax.numpy.zeros((1, 4)), {"label": jax.numpy.array([2])}).round(4))
    [1.3863]
    """
    if not 0 <= label_smoothing < 1:
        raise TrainingError(
            f"cross_entropy: expected a label_smoothing from 0, below 1, found {label_smoothing}"
        )

    def loss(logits: jax.Array, batch: Batch) -> jax.Array:
        labels, count = batch["label"], logits.shape[-1]
        targets = jax.nn.one_hot(labels, count, dtype=logits.dtype)
        losses = optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, label_smoothing))
        # Such a label has no 1 among its targets: without this its loss would be a silent 0.
        return jnp.where((labels >= 0) & (labels < count), losses, jnp.nan)

    # By its name a run that is resumed knows its loss again.
    loss.__qualname__ = f"cross_entropy({label_smoothing:g})"
    return loss
