"""Densely connected networks in full size with random weights, as other libraries compute them."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
from full_size_weights import keras_case, torch_case
from twins import densenet


def torchvision(name: str) -> tuple:
    """torchvision's network with the names of its published files."""
    import torchvision

    network = getattr(torchvision.models, name)()
    return torch_case(name, "torchvision", network, 224, rename=densenet.published_name)


def timm(name: str) -> tuple:
    """timm's network."""
    import timm

    return torch_case(name, "timm", timm.create_model(name), 224)


def keras(name: str) -> tuple:
    """Keras's network with the names of its published files."""
    module = importlib.import_module("keras.applications.densenet")
    make = getattr(module, name.replace("densenet", "DenseNet"))

    def build():
        return make(weights=None, classifier_activation=None)

    return keras_case(name, "keras", build, 224, rename=densenet.keras_name)


CASES: dict[str, Callable[[], tuple[str, str, dict[str, Any], dict[str, np.ndarray], Any, Any]]] = {
    f"{name}_{make.__name__}": functools.partial(make, name)
    for name in ("densenet121", "densenet161", "densenet169", "densenet201")
    for make in (torchvision, timm, keras)
    if not (name == "densenet161" and make is keras)  # which Keras has not
}
