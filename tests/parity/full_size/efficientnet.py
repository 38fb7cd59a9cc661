"""EfficientNets of other libraries in full size, with random weights.

Each case is a function of no arguments that builds the network there and runs it once: it gives the
architecture, the source and the options here, the state dict with the names of the library's files,
an image (batch, height, width, channels), and the logits. JAX is not imported.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np

Case = tuple[str, str, dict[str, Any], dict[str, np.ndarray], np.ndarray, np.ndarray]

SIZES = {
    "efficientnet_b0": 224,
    "efficientnet_b1": 240,
    "efficientnet_b2": 260,
    "efficientnet_b3": 300,
    "efficientnet_b4": 380,
    "efficientnet_b5": 456,
    "efficientnet_b6": 528,
    "efficientnet_b7": 600,
    "efficientnet_v2_s": 384,
    "efficientnet_v2_m": 480,
    "efficientnet_v2_l": 480,
}

# Width, depth, and the indices of the blocks whose input has an odd size at the native size, as
# the published configurations of transformers have them.
TRANSFORMERS = {
    "efficientnet_b0": (1.0, 1.0, []),
    "efficientnet_b1": (1.0, 1.1, [16]),
    "efficientnet_b2": (1.1, 1.2, [5, 8, 16]),
    "efficientnet_b3": (1.2, 1.4, [5, 18]),
    "efficientnet_b4": (1.4, 1.8, [6]),
    "efficientnet_b5": (1.6, 2.2, [13, 27]),
    "efficientnet_b6": (1.8, 2.6, [31]),
    "efficientnet_b7": (2.0, 3.1, [18]),
}


def image_of(size: int) -> np.ndarray:
    """One random image."""
    return np.random.RandomState(0).normal(size=(1, size, size, 3)).astype(np.float32)


def torch_case(source: str, name: str, make: Callable[[], Any]) -> Case:
    """A network of PyTorch whose running statistics are those of its input, as after training."""
    import torch

    torch.manual_seed(0)
    network, image = make(), image_of(SIZES[name])
    values = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.1)
        elif isinstance(module, torch.nn.Dropout):
            module.p = 0.0

    def run() -> Any:
        with torch.no_grad():
            outputs = network(values)
        return getattr(outputs, "logits", outputs).numpy()

    network.train()
    run()
    network.eval()
    logits = run()
    state = {key: tensor.numpy() for key, tensor in network.state_dict().items()}
    return name, source, {}, state, image, logits


def torchvision_case(name: str) -> Case:
    """A network of torchvision's."""
    import torchvision

    return torch_case(
        "torchvision",
        name,
        lambda: getattr(torchvision.models, name)(dropout=0.0, stochastic_depth_prob=0.0),
    )


def timm_case(source: str, name: str) -> Case:
    """A network of timm's, its own or one for TensorFlow's weights."""
    import timm

    there = ("tf_" if source == "timm_tf" else "") + name.replace("net_v2", "netv2")
    return torch_case(source, name, lambda: timm.create_model(there))


def transformers_case(name: str) -> Case:
    """A network of transformers' with the published configuration."""
    import torch
    from transformers import EfficientNetConfig, EfficientNetForImageClassification

    width, depth, odd = TRANSFORMERS[name]
    last = {1.1: 1408, 1.2: 1536, 1.4: 1792, 1.6: 2048, 1.8: 2304, 2.0: 2560}.get(width, 1280)

    def make() -> Any:
        config = EfficientNetConfig(
            width_coefficient=width,
            depth_coefficient=depth,
            depthwise_padding=odd,
            hidden_dim=last,
            num_labels=1000,
        )
        network = EfficientNetForImageClassification(config)
        for module in network.modules():  # its own initial weights are all but zero
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight)
        return network

    return torch_case("transformers", name, make)


def keras_case(name: str) -> Case:
    """A network of Keras', fed behind its layers of preprocessing."""
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    import keras

    keras.utils.set_random_seed(0)
    there = name.replace("efficientnet_", "EfficientNet").upper().replace("EFFICIENTNET", "")
    network = getattr(keras.applications, f"EfficientNet{there.replace('_', '')}")(
        weights=None, classifier_activation=None
    )
    rng, image = np.random.RandomState(0), image_of(SIZES[name])
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
            layer.gamma.assign(rng.uniform(0.5, 1.5, layer.gamma.shape))
            layer.beta.assign(rng.normal(0, 0.1, layer.beta.shape))
        elif isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
    # What the layers of preprocessing make of this is the image.
    fed = (image + 1) * 128 if "v2" in name else image * 255
    for layer in network.layers:
        if layer.name.startswith("normalization"):
            layer.mean, layer.variance = np.zeros((1, 1, 1, 3)), np.ones((1, 1, 1, 3))
    network(fed, training=True)
    logits = np.asarray(network(fed, training=False))
    state = {
        _keras_name(layer, weight): np.asarray(weight)
        for layer in network.layers
        for weight in layer.weights
    }
    return name, "keras", {}, state, image, logits


def _keras_name(layer: Any, weight: Any) -> str:
    """As files of Keras 2 have it."""
    is_depthwise = type(layer).__name__ == "DepthwiseConv2D" and weight.name == "kernel"
    name = "depthwise_kernel" if is_depthwise else weight.name
    return f"{layer.name}/{layer.name}/{name}:0"


CASES: dict[str, Callable[[], Case]] = {
    **{f"{name}_torchvision": functools.partial(torchvision_case, name) for name in SIZES},
    **{f"{name}_timm": functools.partial(timm_case, "timm", name) for name in SIZES},
    **{f"{name}_timm_tf": functools.partial(timm_case, "timm_tf", name) for name in SIZES},
    **{f"{name}_keras": functools.partial(keras_case, name) for name in SIZES},
    **{f"{name}_transformers": functools.partial(transformers_case, name) for name in TRANSFORMERS},
}
