"""A network and examples that train in a blink."""

from __future__ import annotations

import numpy as np
import pytest

from jaxtransfer.data import ArrayData
from jaxtransfer.models import Model, init


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
