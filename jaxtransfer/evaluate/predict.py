"""A model's answers to images as they come."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxtransfer.data import as_examples, check_images
from jaxtransfer.models import Model
from jaxtransfer.train.evaluation import forward_pass, run_batches
from jaxtransfer.types import PyTree


def predict(model: Model, images: Any, *, batch_size: int = 256) -> Any:
    """The logits of a model in evaluation mode, after the model's own preprocessing.

    Args:
        model: a `Model`.
        images: shape (batch, height, width, channel), integers or floats in [0, 1], of any size
            where the model's preprocessing resizes; or a `Data` such as `image_folder` gives, whose
            labels are not looked at.
        batch_size: images that are computed at a time; the last ones are padded, not recompiled
            for.

    Returns:
        float32 logits of shape (batch, classes), as a NumPy array; for a network with heads for
        several tasks, a dict of them.

    Raises:
        DataError: the images cannot be read, or preprocessed for the model.

    Example:
        `jt.predict(model, images).argmax(axis=-1)`
    """
    return predict_with(model, model.params, model.stats, images, batch_size=batch_size)


def predict_with(
    model: Model, params: PyTree, stats: PyTree, images: Any, *, batch_size: int = 256
) -> Any:
    """`predict` with other leaves than the model's own, such as those of a run in progress."""
    data = as_examples(images).ready(model.preprocess)
    forward = forward_pass(model.apply, model.preprocess)
    if not len(data):
        return _no_outputs(forward, params, stats, check_images(images, model.preprocess))
    return run_batches(forward, params, stats, data, batch_size=batch_size)


def _no_outputs(forward: Any, params: PyTree, stats: PyTree, images: np.ndarray) -> Any:
    one = np.zeros((1, *images.shape[1:]), images.dtype)
    example = jax.eval_shape(forward, params, stats, one)
    return jax.tree.map(lambda x: np.zeros((0, *x.shape[1:]), x.dtype), example)
