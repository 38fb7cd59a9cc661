"""Twins of densely connected networks with few layers that add few maps each."""

from __future__ import annotations

import importlib
import re

from keras_twin import keras_twin, replaced
from make_twins import Twin, image_of, torch_twin

BLOCKS = (2, 3, 2, 2)
GROWTH = 4
OPTIONS = {"blocks": BLOCKS, "growth": GROWTH, "num_classes": 5}


# ---------------------------------------------------------------------------------------------
# torchvision and timm


def _torch_stages(network) -> dict:
    """The stages of torchvision's or timm's network; ReLU is a part of timm's BatchNorm."""
    import torch

    layers = dict(network.features.named_children())

    def stem(x):
        for name in ("conv0", "norm0", "relu0", "pool0"):
            x = layers[name](x) if name in layers else x
        return x

    return {
        "stem": stem,
        "block1": layers["denseblock1"],
        "transition1": layers["transition1"],
        "block2": layers["denseblock2"],
        "transition2": layers["transition2"],
        "block3": layers["denseblock3"],
        "transition3": layers["transition3"],
        "block4": layers["denseblock4"],
        "norm": lambda x: torch.relu(layers["norm5"](x)),
        "pool": lambda x: x.mean((2, 3)),
        "head": network.classifier,
    }


def published_name(name: str) -> str:
    """The name in torchvision's published files of what its code calls `denselayer1.norm1`."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", name)


def torchvision() -> Twin:
    """torchvision's network with the names of its published files."""
    from torchvision.models.densenet import DenseNet

    network = DenseNet(GROWTH, BLOCKS, 2 * GROWTH, num_classes=5)
    twin = torch_twin(
        "densenet121",
        "torchvision",
        network,
        image_of(67, 75),
        _torch_stages(network),
        options=OPTIONS,
    )
    # What is written back has the names that torchvision's code has.
    twin.state = {published_name(name): values for name, values in twin.state.items()}
    return twin


def timm() -> Twin:
    """timm's network, which has the names of torchvision's code; of training, only statistics."""
    from timm.models.densenet import DenseNet

    network = DenseNet(GROWTH, BLOCKS, num_classes=5)
    twin = torch_twin(
        "densenet161",
        "timm",
        network,
        image_of(67, 67),
        _torch_stages(network),
        options=OPTIONS,
    )
    twin.trained_stages = {"head": twin.trained_stages["head"]}
    return twin


# ---------------------------------------------------------------------------------------------
# Keras


def keras_network(size: tuple[int, int], blocks: tuple[int, ...], growth: int, classes: int):
    """Keras's network, whose widths are numbers in its code, with another growth."""
    from keras import layers

    module = importlib.import_module("keras.src.applications.densenet")
    make_conv, make_block = layers.Conv2D, module.conv_block

    def conv(filters, *args, name, **kwargs):
        filters = 2 * growth if name == "conv1_conv" else filters
        return make_conv(filters, *args, name=name, **kwargs)

    def block(x, growth_rate, name):
        return make_block(x, growth, name=name)

    with replaced(module.layers, "Conv2D", conv), replaced(module, "conv_block", block):
        return module.DenseNet(
            list(blocks),
            weights=None,
            input_shape=(*size, 3),
            classes=classes,
            classifier_activation=None,
        )


def keras_name(name: str) -> str:
    """The name in the published files, which call two layers with a slash."""
    return re.sub("conv1_(conv|bn)/", r"conv1/\1/", name) if name.startswith("conv1_") else name


def keras() -> Twin:
    """Keras's network, whose BatchNorm has an epsilon of 1.001e-5."""
    network = keras_network((67, 67), BLOCKS, GROWTH, classes=5)
    stages = {
        "stem": "pool1",
        **{f"block{i}": f"conv{i + 1}_block{count}_concat" for i, count in enumerate(BLOCKS, 1)},
        **{f"transition{i}": f"pool{i + 1}_pool" for i in (1, 2, 3)},
        "norm": "relu",
        "pool": "avg_pool",
        "head": "predictions",
    }
    return keras_twin(
        "densenet121",
        "keras",
        network,
        image_of(67, 67),
        stages,
        options=OPTIONS,
        rename=keras_name,
    )


TWINS = {
    "densenet_torchvision": torchvision,
    "densenet_timm": timm,
    "densenet_keras": keras,
}
