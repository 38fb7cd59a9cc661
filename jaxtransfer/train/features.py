"""What a network makes of images before its head, as arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxtransfer.data import as_examples
from jaxtransfer.errors import DataError
from jaxtransfer.models import Model
from jaxtransfer.train.evaluation import forward_pass, run_batches


def features(
    model: Model,
    images: Any,
    *,
    stage: str | None = None,
    pool: bool = True,
    batch_size: int = 64,
) -> np.ndarray:
    """What enters a stage of a network in evaluation mode, after the model's own preprocessing.

    Args:
        model: a `Model`.
        images: as for `predict`: shape (batch, height, width, channel), or a `Data`, whose labels
            are not looked at.
        stage: one of `model.spec.stages`; by default that of the head, so that the features are
            what the classifier sees.
        pool: whether maps are averaged over height and width, and sequences over their tokens;
            otherwise they come as they are.
        batch_size: images that are computed at a time; the last ones are padded.

    Returns:
        Shape (batch, channels) where they are pooled, in the dtype that the network computes in.

    Raises:
        DataError: there are no images, or they cannot be read or preprocessed.
        ModelError: there is no such stage, or the network cannot stop at it.

    Example:
        `jt.linear_probe(jt.features(model, images), labels)`
    """
    stage = model.spec.stages[-1] if stage is None else stage
    data = as_examples(images).ready(model.preprocess)
    if not len(data):
        raise DataError("features: expected at least one image, found none")
    forward = forward_pass(model.apply, model.preprocess, stage, pool)
    return run_batches(forward, model.params, model.stats, data, batch_size=batch_size)
