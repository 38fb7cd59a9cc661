"""Where fine-tuning begins and how its model is measured, for the benchmarks with few steps."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

import jaxtransfer as jt
from jaxtransfer.evaluate.metrics import accuracy


def with_fitted_head(source: jt.Model, train: Any, seed: int) -> jt.Model:
    """The source with a linear classifier of its features as the head."""
    head = jt.linear_probe(jt.features(source, train), train.labels, seed=seed)
    return jt.with_head(source, head, classes=train.classes)


def tested(model: jt.Model, train: Any, test: Any) -> float:
    """The accuracy on `test`, with the statistics of BatchNorm computed anew on `train` first.

    So few steps leave running averages behind the parameters: Keras keeps 99 % in each step.
    """
    if jax.tree.leaves(model.stats):
        model = jt.recalibrate_stats(model, train)
    return accuracy(jt.predict(model, test), np.asarray(test.labels))
