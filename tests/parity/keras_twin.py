"""Twins from networks of Keras, which TensorFlow runs: its "SAME" poolings leave out padding."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from make_twins import Twin, grid_values

os.environ["KERAS_BACKEND"] = "tensorflow"


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute of a module or a class has another value for a while."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def file_names(network: Any) -> dict[str, Any]:
    """The network's variables by the names that its published HDF5 files have."""
    return {
        f"{layer.name}/{layer.name}/{variable.name}:0": variable
        for layer in network.layers
        for variable in layer.weights
    }


def keras_twin(
    architecture: str,
    source: str,
    network: Any,
    image: np.ndarray,
    stages: dict[str, str],
    *,
    options: dict[str, Any] | None = None,
    rename: Callable[[str], str] = lambda name: name,
    values: Callable[[str, tuple[int, ...]], np.ndarray] = grid_values,
) -> Twin:
    """A twin from a functional network of Keras.

    The running statistics after training are left out: Keras averages biased variances, and with
    another momentum than the zoo has.

    Args:
        architecture: the name in the catalog.
        source: the name of the source.
        network: the network; its weights are replaced.
        image: the input, channels last.
        stages: for each stage, the layer whose output leaves it.
        options: what `build` gets beside those of the source.
        rename: from the names that `file_names` gives to those of the library's files.
        values: as for `torch_twin`.
    """
    import keras

    state = {}
    for name, variable in file_names(network).items():
        state[rename(name)] = values(name, tuple(variable.shape))
        variable.assign(state[rename(name)])
    outputs = [network.get_layer(layer).output for layer in stages.values()]
    cut = keras.Model(network.input, outputs)

    def run(training: bool) -> dict[str, np.ndarray]:
        found = cut(image, training=training)
        return {stage: np.asarray(values) for stage, values in zip(stages, found, strict=True)}

    return Twin(
        architecture,
        source,
        state,
        image,
        run(training=False),
        run(training=True),
        options=options or {},
    )
