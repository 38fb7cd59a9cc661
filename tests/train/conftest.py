"""A network and examples that train in a blink."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxtransfer.data import ArrayData, preprocess_images
from jaxtransfer.models import Model, init
from jaxtransfer.partition import Plan
from jaxtransfer.train.regularisers import Forward
from jaxtransfer.tree import merge, split


@pytest.fixture(scope="session")
def network() -> Model:
    """A residual network for three classes, four channels wide."""
    return init("cifar_resnet8", width=4, input_size=(8, 8), in_channels=1, num_classes=3)


@pytest.fixture(scope="session")
def examples() -> ArrayData:
    """Twenty noisy images whose brightness tells their class."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 20).astype(np.int32)
    noise = rng.random((20, 8, 8, 1))
    images = (0.4 * noise + 0.3 * labels[:, None, None, None]).astype(np.float32)
    return ArrayData(images, labels)


def _forward(model: Model, plan: Plan, batch: Any, stages: Sequence[str] = ()) -> Any:
    """The forward pass of a training step in evaluation, and its loss, for trainable leaves."""
    _, frozen = split(model.params, plan)

    def run(trainable: Any) -> Forward:
        params = merge(trainable, frozen)
        inputs = preprocess_images(jnp.asarray(batch["image"]), model.preprocess)
        call = functools.partial(model.apply, params, model.stats, inputs, train=False)
        features = {stage: call(stop=stage)[0] for stage in stages}
        return Forward(trainable, params, inputs, call()[0], features, batch)

    return run


@pytest.fixture(scope="session")
def forward_of() -> Any:
    """`forward_of(model, plan, batch, stages)` gives a function of the trainable leaves."""
    return _forward
