"""Data and plans that the tests of a user's own networks share."""

from __future__ import annotations

import numpy as np
import pytest

from jaxtransfer.partition import Group, Plan


@pytest.fixture(scope="session")
def separable() -> tuple[np.ndarray, np.ndarray]:
    """Forty-eight images of 8x8x1 in three classes, told apart by where they are bright."""
    rng = np.random.default_rng(0)
    labels = np.arange(48) % 3
    images = rng.normal(0, 0.3, (48, 8, 8, 1)).astype(np.float32)
    images[labels == 0, :4] += 1
    images[labels == 1, 4:] += 1
    images[labels == 2, :, :4] += 1
    return images, labels


@pytest.fixture(scope="session")
def own_plan() -> Plan:
    """The stem is frozen with its statistics, the body's statistics are, the rest trains."""
    return Plan(
        (
            Group("stem/**", frozen=True, stats="frozen"),
            Group("body/**", lr_scale=0.5, stats="frozen"),
            Group("**"),
        ),
        name="own",
    )
