"""Probes whose accuracies are chosen, for the tests of conditions and advice."""

import numpy as np

from jaxtransfer.evaluate.conditions import ImageFacts, Probes

COUNT = 200
FOLDS = tuple(
    (np.setdiff1d(np.arange(COUNT), held), held) for held in np.split(np.arange(COUNT), 5)
)
FACTS = ImageFacts(((64, 64),) * 3, 3, 0.0, 1.0, 0.45, 0.25)


def right(share: float, seed: int = 0) -> np.ndarray:
    """Which examples a probe of this accuracy answers."""
    correct = np.arange(COUNT) < round(share * COUNT)
    return np.random.default_rng(seed).permutation(correct)


def probes(
    *stages: float, random: tuple[float, ...] = (0.6, 0.55), majority: float = 0.2
) -> Probes:
    return Probes(
        {f"stage{i}": right(share, i) for i, share in enumerate(stages)},
        [{"stage0": right(share, 50), "stage1": right(0.3, 51)} for share in random],
        right(majority, 60),
        FOLDS,
    )
