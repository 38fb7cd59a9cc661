"""What is added to a loss so that training does not forget, or learns from, the source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax

from jaxtransfer.train.losses import Batch
from jaxtransfer.types import PyTree


@dataclass(frozen=True)
class Forward:
    """One forward pass of a training step, as a regulariser sees it.

    Attributes:
        trainable: the parameters that train, `None` in the holes.
        params: all parameters.
        inputs: what entered the network.
        outputs: what came out.
        features: by the name of a stage, what entered it; for the stages that were asked for.
        batch: the batch that the inputs were made from.
    """

    trainable: PyTree
    params: PyTree
    inputs: Any
    outputs: Any
    features: Mapping[str, jax.Array]
    batch: Batch


class Regulariser(Protocol):
    """A term of the loss; a registered pytree, so that arrays of its own enter the step as inputs.

    Attributes:
        stages: the stages whose entering features it looks at.
    """

    stages: tuple[str, ...]

    def __call__(self, forward: Forward) -> jax.Array:
        """The term: one value for the batch, shape (), or one for each example, shape (batch,)."""
        ...
