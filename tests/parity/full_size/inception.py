"""Inception v3 in full size with random weights, as other libraries compute it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from full_size_weights import keras_case, torch_case
from twins import inception

NAME = "inception_v3"


def torchvision() -> tuple:
    """torchvision's network."""
    return torch_case(NAME, "torchvision", inception.torchvision_network(1000, 32), 299)


def timm() -> tuple:
    """timm's network."""
    return torch_case(NAME, "timm", inception.timm_network(1000, 32), 299)


def keras() -> tuple:
    """Keras's network."""
    return keras_case(
        NAME,
        "keras",
        lambda: inception.keras_network(299, 1000, 32),
        299,
        rename=inception.counted_from_one,
    )


def tf_slim() -> tuple:
    """Keras's network with TF-Slim's names and classes."""
    case = keras_case(
        NAME,
        "tf_slim",
        lambda: inception.keras_network(299, 1001, 32),
        299,
        rename=inception.slim_name,
    )
    return (*case[:2], {"num_classes": 1001}, inception.slim_state(case[3]), *case[4:])


CASES: dict[str, Callable[[], tuple[str, str, dict[str, Any], dict[str, np.ndarray], Any, Any]]] = {
    "inception_v3_torchvision": torchvision,
    "inception_v3_timm": timm,
    "inception_v3_keras": keras,
    "inception_v3_tf_slim": tf_slim,
}
