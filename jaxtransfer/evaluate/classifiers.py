"""The classifiers on features by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from jaxtransfer.errors import DataError
from jaxtransfer.evaluate.neighbours import nearest_mean, nearest_neighbours
from jaxtransfer.evaluate.probe import linear_probe


class Classifier(Protocol):
    """What all of them give."""

    def logits(self, features: Any) -> np.ndarray:
        """Shape (count, classes)."""
        ...

    def predict(self, features: Any) -> np.ndarray:
        """Shape (count,), integers."""
        ...


CLASSIFIERS: Mapping[str, Callable[..., Classifier]] = MappingProxyType(
    {
        "logistic": lambda *data, seed, **how: linear_probe(*data, seed=seed, **how),
        "ridge": lambda *data, seed, **how: linear_probe(*data, method="ridge", seed=seed, **how),
        "neighbours": lambda *data, seed, **how: nearest_neighbours(*data, **how),
        "mean": lambda *data, seed, **how: nearest_mean(*data, **how),
    }
)
"""`classifier(features, labels, *, num_classes, seed)` by name, with the defaults of each."""


def check_method(where: str, method: str) -> str:
    """The name itself.

    Raises:
        DataError: there is no such classifier.
    """
    if method not in CLASSIFIERS:
        raise DataError(
            f"{where}: expected a method among {', '.join(CLASSIFIERS)}, found {method!r}"
        )
    return method
