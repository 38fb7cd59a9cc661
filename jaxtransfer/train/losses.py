"""Losses, one value an example."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax
import optax

Batch: TypeAlias = Mapping[str, jax.Array]
Loss: TypeAlias = Callable[[jax.Array, Batch], jax.Array]
"""From a network's outputs and the batch that they belong to, a loss for each example."""


@functools.cache  # one loss for one argument, so that compiled steps can be shared
def cross_entropy(label_smoothing: float = 0.0) -> Loss:
    """Softmax cross-entropy against integer labels.

    With `label_smoothing` s over K classes the target is 1 - s + s / K for the label and s / K for each
    other class (Szegedy et al. 2016, "Rethinking the Inception Architecture", arXiv 1512.00567, section 7).

    Args:
        label_smoothing: share s of the target that is spread over all classes, from 0, below 1.

    Returns:
        A loss from logits of shape (batch, classes) and `batch["label"]` of shape (batch,), integers, to
        shape (batch,), in nats.

    >>> loss = cross_entropy()
    >>> loss(jnp.zeros((1, 4)), {"label": jnp.array([2])}).round(4).tolist()
    [1.3863]
    """

    def loss(logits: jax.Array, batch: Batch) -> jax.Array:
        labels = jax.nn.one_hot(batch["label"], logits.shape[-1], dtype=logits.dtype)
        return optax.softmax_cross_entropy(logits, optax.smooth_labels(labels, label_smoothing))

    return loss
