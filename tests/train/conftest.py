"""A network and examples that train in a blink."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtransfer.data import ArrayData, preprocess_images
from jaxtransfer.data.augment import RandomResizedCrop
from jaxtransfer.models import Model, init
from jaxtransfer.models.layers import BatchNorm
from jaxtransfer.models.stages import StagedNetwork
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


@pytest.fixture
def boxes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The parts that random resized crops have drawn on the host."""
    drawn: list[tuple[int, ...]] = []
    box = RandomResizedCrop.box

    def noted(*arguments: Any) -> tuple[int, ...]:
        drawn.append(box(*arguments))
        return drawn[-1]

    monkeypatch.setattr(RandomResizedCrop, "box", noted)
    return drawn


class Staged(StagedNetwork):
    """Dense stages with the zoo's BatchNorm, with Flax's, and with dropout; quick to compile."""

    rate: float = 0.0

    @property
    def stages(self) -> tuple[str, ...]:
        return ("stem", "body", "neck", "head")

    def _run(self, stage: str, x: jax.Array, train: bool) -> jax.Array:
        if stage == "head":
            return nn.Dense(3, name="head")(x)
        return Part(stage == "body", self.rate, name=stage)(x, train=train)


class Plain(StagedNetwork):
    """Three dense stages without normalisation; compiled in a moment."""

    @property
    def stages(self) -> tuple[str, ...]:
        return ("stem", "body", "head")

    def _run(self, stage: str, x: jax.Array, train: bool) -> jax.Array:
        x = nn.Dense(3 if stage == "head" else 8, name=stage)(x)
        return x if stage == "head" else nn.tanh(x)


class Part(nn.Module):
    """A dense layer, a normalisation, and dropout."""

    by_flax: bool
    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = nn.Dense(6, name="dense")(x)
        kind = nn.BatchNorm if self.by_flax else BatchNorm
        x = kind(momentum=0.9, name="bn")(x, use_running_average=not train)
        return nn.Dropout(self.rate, name="dropout")(nn.tanh(x), deterministic=not train)


def staged_model(rate: float = 0.0) -> Model:
    """A model of four stages with fixed random weights."""
    module = Staged(rate=rate)
    variables = module.init(jax.random.key(0), jnp.ones((1, 4)), train=False)
    return Model.from_linen(module, variables, stages=module.stages)


@pytest.fixture(scope="session")
def staged() -> Model:
    """Four dense stages with normalisations and no dropout."""
    return staged_model()


@pytest.fixture(scope="session")
def plain() -> Model:
    """Three dense stages."""
    variables = Plain().init(jax.random.key(0), jnp.ones((1, 4)), train=False)
    return Model.from_linen(Plain(), variables, stages=("stem", "body", "head"))


@pytest.fixture(scope="session")
def staged_with_dropout() -> Model:
    """The same with dropout."""
    return staged_model(rate=0.5)


@pytest.fixture(scope="session")
def rows() -> dict[str, np.ndarray]:
    """Sixteen examples of four features, with very unequal weights."""
    rng = np.random.default_rng(3)
    weight = rng.random(16).astype(np.float32) ** 6
    weight[5] = 0
    return {
        "image": rng.normal(size=(16, 4)).astype(np.float32),
        "label": rng.integers(0, 3, 16).astype(np.int32),
        "weight": weight,
    }


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
