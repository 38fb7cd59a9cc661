"""Twins of SqueezeNet, on images of which poolings round sizes up."""

from __future__ import annotations

import os

import numpy as np
from make_twins import Twin, grid_values, image_of, torch_twin
from opencv_network import CaffeNetwork

WIDTH, CLASSES = 4, 5
OPTIONS = {"width": WIDTH, "num_classes": CLASSES}
MULTIPLES = (1, 1, 2, 2, 3, 3, 4, 4)


def _torchvision(version: str) -> Twin:
    import torch
    from torchvision.models import squeezenet

    class NarrowFire(squeezenet.Fire):
        def __init__(self, inplanes, *planes):
            super().__init__(*(size * WIDTH // 16 for size in (inplanes, *planes)))

    wide, squeezenet.Fire = squeezenet.Fire, NarrowFire
    try:
        network = squeezenet.SqueezeNet(version, num_classes=CLASSES)
    finally:
        squeezenet.Fire = wide
    stem = network.features[0]
    network.features[0] = torch.nn.Conv2d(
        3, stem.out_channels * WIDTH // 16, stem.kernel_size, stem.stride
    )
    network.classifier[1] = torch.nn.Conv2d(512 * WIDTH // 16, CLASSES, 1)

    stages = {"stem": network.features[:3]}
    for layer in network.features[3:]:
        if isinstance(layer, wide):
            stages[f"fire{len(stages) + 1}"] = torch.nn.Sequential(layer)
        else:
            stages[list(stages)[-1]].append(layer)
    stages["head"] = lambda x: network.classifier(x).flatten(1)
    name = f"squeezenet{version}"
    return torch_twin(name, "torchvision", network, image_of(45, 57), stages, options=OPTIONS)


def torchvision_1_0() -> Twin:
    """Version 1.0."""
    return _torchvision("1_0")


def torchvision_1_1() -> Twin:
    """Version 1.1."""
    return _torchvision("1_1")


# What Caffe's convolutions of a fire module are called, and the last one.
AUTHORS_NAMES = ("squeeze1x1", "expand1x1", "expand3x3", "conv10")
COMPRESSED_NAMES = ("conv1x1_1", "conv1x1_2", "conv3x3_2", "conv_final")


def caffe_network(
    version: str, width: int, classes: int, names: tuple[str, ...] = AUTHORS_NAMES
) -> tuple[CaffeNetwork, dict[str, str]]:
    """SqueezeNet in Caffe, and the layers that end its stages; version 1.0 pads its last layer."""
    factor, size, pooled = {"1_0": (6, 7, (4, 8)), "1_1": (4, 3, (3, 5))}[version]
    network = CaffeNetwork()
    network.convolution("conv1", factor * width, size, "stride: 2")
    network.max_pool("pool1", 3)
    stages = {"stem": "pool1"}
    for number, multiple in enumerate(MULTIPLES, start=2):
        squeezed = width * multiple
        squeeze, one, three = (f"fire{number}/{name}" for name in names[:3])
        network.convolution(squeeze, squeezed, 1)
        network.convolution(one, 4 * squeezed, 1)
        network.convolution(three, 4 * squeezed, 3, "pad: 1", after=f"{squeeze}_relu")
        network.add(f"fire{number}/concat", "Concat", after=[f"{one}_relu", f"{three}_relu"])
        if number in pooled:
            network.max_pool(f"pool{number}", 3)
        stages[f"fire{number}"] = network.last
    network.convolution(names[3], classes, 1, "pad: 1" if version == "1_0" else "")
    network.add("pool10", "Pooling", "pooling_param { pool: AVE global_pooling: true }")
    return network, {**stages, "head": "pool10"}


def _caffe(source: str, names: tuple[str, ...], endings: tuple[str, str]) -> Twin:
    """Version 1.0; `endings` stand behind a layer's name for its weights and for its bias."""
    network, stages = caffe_network("1_0", WIDTH, CLASSES, names)
    image = image_of(45, 57)
    found = network.run(image, stages)
    found["head"] = found["head"].reshape(len(image), -1)
    state = {
        name.removesuffix(f"/{index}") + ending: array
        for name, array in network.tensors.items()
        for index, ending in enumerate(endings)
        if name.endswith(f"/{index}")
    }
    return Twin("squeezenet1_0", source, state, image, found, options=OPTIONS)


def caffe_1_0() -> Twin:
    """The names of the authors."""
    return _caffe("caffe", AUTHORS_NAMES, ("/0", "/1"))


def deep_compression_1_0() -> Twin:
    """The names of the compressed network."""
    return _caffe("deep_compression", COMPRESSED_NAMES, ("/w", "/b"))


def keras_1_1() -> Twin:
    """Version 1.1 put together from Keras' layers, with the names of the files of Keras 1.

    That version is out of use; what names the kernels is how they were initialised.
    """
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras
    from keras import layers

    state: dict[str, np.ndarray] = {}
    made: list[tuple[keras.Layer, str]] = []

    def conv(x, name, features, size, **options):
        layer = layers.Conv2D(features, size, activation="relu", **options)
        made.append((layer, name))
        return layer(x)

    image = image_of(45, 57)
    inputs = layers.Input(image.shape[1:])
    x = conv(inputs, "conv1", 4 * WIDTH, 3, strides=2)
    stages = {"stem": layers.MaxPooling2D(3, 2)(x)}
    x = stages["stem"]
    for number, multiple in enumerate(MULTIPLES, start=2):
        squeezed = WIDTH * multiple
        fire = f"fire{number}"
        x = conv(x, f"{fire}/squeeze1x1", squeezed, 1)
        one = conv(x, f"{fire}/expand1x1", 4 * squeezed, 1)
        three = conv(x, f"{fire}/expand3x3", 4 * squeezed, 3, padding="same")
        x = layers.Concatenate()([one, three])
        x = layers.MaxPooling2D(3, 2)(x) if number in (3, 5) else x
        stages[fire] = x
    stages["head"] = layers.GlobalAveragePooling2D()(conv(x, "conv10", CLASSES, 1))
    network = keras.Model(inputs, list(stages.values()))
    for position, (layer, name) in enumerate(made, start=1):
        names = (f"{name}/uniform{position}", f"{name}/{name}_b")
        shapes = [tuple(weight.shape[::-1]) for weight in layer.weights]
        values = [grid_values(key, shape).T for key, shape in zip(names, shapes, strict=True)]
        layer.set_weights(values)
        state |= dict(zip(names, values, strict=True))
    found = dict(zip(stages, map(np.asarray, network.predict(image, verbose=0)), strict=True))
    return Twin("squeezenet1_1", "keras", state, image, found, options=OPTIONS)


TWINS = {
    "squeezenet_torchvision_1_0": torchvision_1_0,
    "squeezenet_torchvision_1_1": torchvision_1_1,
    "squeezenet_caffe": caffe_1_0,
    "squeezenet_deep_compression": deep_compression_1_0,
    "squeezenet_keras": keras_1_1,
}
