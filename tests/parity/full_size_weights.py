"""Networks of other libraries in full size: random weights and statistics, and what they compute.

Kernels have the variance of He et al. 2015 (arXiv 1502.01852): with smaller ones nothing of the
images would be left in the logits, and a wrong layer could hide.

Every case is (architecture, source, options, state, images channels last, logits). Nothing here
imports JAX, which may run in another process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def images(side: int) -> np.ndarray:
    """Two random images."""
    return np.random.RandomState(0).normal(0, 1, (2, side, side, 3)).astype(np.float32)


def torch_case(
    architecture: str,
    source: str,
    network: Any,
    side: int,
    *,
    rename: Callable[[str], str] = lambda name: name,
) -> tuple:
    """A case from a torch module with random kernels and statistics."""
    import torch

    image = images(side)
    batch = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("running_mean"):
                tensor.normal_(0, 0.1)
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.ndim == 4:
                torch.nn.init.kaiming_normal_(tensor)
        logits = network.eval()(batch).numpy()
    state = {rename(name): tensor.numpy() for name, tensor in network.state_dict().items()}
    return architecture, source, {}, state, image, logits


def keras_case(
    architecture: str,
    source: str,
    build: Callable[[], Any],
    side: int,
    *,
    rename: Callable[[str], str] = lambda name: name,
) -> tuple:
    """A case from a network of Keras with random kernels and statistics."""
    from keras_twin import file_names

    network, image = build(), images(side)
    random = np.random.RandomState(0)
    state = {}
    for name, variable in file_names(network).items():
        if name.endswith("moving_mean:0"):
            variable.assign(random.normal(0, 0.1, variable.shape))
        elif name.endswith("moving_variance:0"):
            variable.assign(random.uniform(0.5, 1.5, variable.shape))
        elif len(variable.shape) == 4:
            deviation = np.sqrt(2 / np.prod(variable.shape[:3]))
            variable.assign(random.normal(0, deviation, variable.shape))
        state[rename(name)] = np.array(variable)
    return architecture, source, {}, state, image, np.array(network(image, training=False))
