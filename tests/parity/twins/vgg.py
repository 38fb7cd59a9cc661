"""Twins of VGG.

Images are 290 pixels high where the library takes all sizes, so that the map before the dense
layers is 9 high and 2 wide: averaged to 7x7, one axis shrinks and the other one grows.
"""

from __future__ import annotations

import os

import numpy as np
from make_twins import Twin, grid_values, image_of, torch_twin
from opencv_network import CaffeNetwork

WIDTH, HIDDEN, CLASSES = 4, 12, 5
OPTIONS = {"width": WIDTH, "hidden": HIDDEN, "num_classes": CLASSES, "dropout": 0.0}


def _scaled(layers):
    return [size if size == "M" else size * WIDTH // 64 for size in layers]


def _torch_stages(features):
    """The stages of a list of layers, each up to its pooling."""
    stages, first = {}, 0
    for index, layer in enumerate(features, start=1):
        if type(layer).__name__ == "MaxPool2d":
            stages[f"stage{len(stages) + 1}"] = features[first:index]
            first = index
    return stages


def _torchvision(architecture, letter, batch_norm):
    import torch
    from torchvision.models.vgg import VGG, cfgs, make_layers

    with torch.device("meta"):  # The dense layers of the full size are not wanted.
        network = VGG(torch.nn.Sequential(), CLASSES, init_weights=False)
    linear = torch.nn.Linear
    network.features = make_layers(_scaled(cfgs[letter]), batch_norm)
    network.classifier[0] = linear(8 * WIDTH * 49, HIDDEN)
    network.classifier[3] = linear(HIDDEN, HIDDEN)
    network.classifier[6] = linear(HIDDEN, CLASSES)
    return torch_twin(
        architecture,
        "torchvision",
        network,
        image_of(70, 67) if batch_norm else image_of(290, 70, batch=1),
        {
            **_torch_stages(network.features),
            "pool": lambda x: _flattened(network.avgpool(x)),
            "fc6": lambda x: network.classifier[:3](_channels_first(x)),
            "fc7": network.classifier[3:6],
            "head": network.classifier[6],
        },
        options=OPTIONS,
    )


def _flattened(maps):
    """(batch, channels, 7, 7) with the channels last, flattened."""
    return maps.permute(0, 2, 3, 1).flatten(1)


def _channels_first(flat):
    """What torchvision's dense layers take, from what `_flattened` gave."""
    return flat.reshape(len(flat), 7, 7, -1).permute(0, 3, 1, 2).flatten(1)


def torchvision_vgg11() -> Twin:
    """Without BatchNorm."""
    return _torchvision("vgg11", "A", False)


def torchvision_vgg13_bn() -> Twin:
    """With BatchNorm."""
    return _torchvision("vgg13_bn", "B", True)


def timm_vgg11() -> Twin:
    """Dense layers that are convolutions, and slide."""
    import torch
    from timm.layers import ClassifierHead
    from timm.models.vgg import VGG, ConvMlp, cfgs

    network = VGG(_scaled(cfgs["vgg11"]), num_classes=CLASSES)
    network.pre_logits = ConvMlp(8 * WIDTH, HIDDEN, 7, drop_rate=0.0)
    network.head = ClassifierHead(HIDDEN, CLASSES)
    dense = network.pre_logits

    def pool(x):
        x = torch.nn.functional.adaptive_avg_pool2d(x, [max(7, side) for side in x.shape[-2:]])
        windows = x.unfold(2, 7, 1).unfold(3, 7, 1)  # (batch, channels, rows, columns, 7, 7)
        return windows.permute(0, 4, 5, 1, 2, 3).flatten(1, 3)

    def fc6(windows):
        # The map again: the windows' first pixels, and what the last ones have beyond them.
        batch, _, rows, columns = windows.shape
        parts = windows.reshape(batch, 7, 7, -1, rows, columns)
        maps = torch.zeros(batch, parts.shape[3], rows + 6, columns + 6)
        for row in range(7):
            for column in range(7):
                maps[:, :, row : row + rows, column : column + columns] = parts[:, row, column]
        return dense.act1(dense.fc1(maps))

    return torch_twin(
        "vgg11",
        "timm",
        network,
        image_of(290, 70, batch=1),
        {
            **_torch_stages(network.features),
            "pool": pool,
            "fc6": fc6,
            "fc7": lambda x: network.head(dense.act2(dense.fc2(x)), pre_logits=True),
            "head": network.head.fc,
        },
        options=OPTIONS,
    )


class _NarrowLayers:
    """Keras' layers, with the sizes of VGG's cut down."""

    def __init__(self, layers):
        self._layers = layers

    def __getattr__(self, name):
        return getattr(self._layers, name)

    def Conv2D(self, filters, *args, **kwargs):
        return self._layers.Conv2D(filters * WIDTH // 64, *args, **kwargs)

    def Dense(self, units, *args, **kwargs):
        return self._layers.Dense(HIDDEN if units == 4096 else units, *args, **kwargs)


def _keras(layers, image, names, stages, **options):
    """Keras' VGG with narrow layers, and what leaves the layers that end the stages."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import importlib

    import keras

    module = importlib.import_module(f"keras.src.applications.vgg{layers}")
    wide = module.layers
    module.layers = _NarrowLayers(wide)
    try:
        build = getattr(module, f"VGG{layers}")
        network = build(weights=None, input_shape=image.shape[1:], **options)
    finally:
        module.layers = wide
    state = {}
    for layer in network.layers:
        if layer.weights:
            keys = [f"{layer.name}/{layer.name}{ending}" for ending in names]
            shapes = [weight.shape[::-1] for weight in layer.weights]
            values = [grid_values(k, tuple(s)).T for k, s in zip(keys, shapes, strict=True)]
            layer.set_weights(values)
            state |= dict(zip(keys, values, strict=True))
    outputs = [network.get_layer(name).output for name in stages.values()]
    found = keras.Model(network.input, outputs).predict(image, verbose=0)
    return state, dict(zip(stages, map(np.asarray, found), strict=True))


def keras_vgg16() -> Twin:
    """All of it, with the names of the published file, on an image that gives a map of 7x7."""
    image = np.sign(image_of(224, 224, batch=1))
    stages = {
        "stage4": "block4_pool",
        "stage5": "block5_pool",
        "pool": "flatten",
        "fc6": "fc1",
        "fc7": "fc2",
        "head": "predictions",
    }
    names = ("_W_1:0", "_b_1:0")
    state, found = _keras(16, image, names, stages, classes=CLASSES, classifier_activation=None)
    return Twin("vgg16", "keras", state, image, found, options=OPTIONS)


def keras_vgg19_notop() -> Twin:
    """Without the dense layers, with the names that newer versions of Keras write."""
    image = image_of(67, 70)
    stages = {f"stage{i}": f"block{i}_pool" for i in range(1, 6)}
    stages["pool"] = "global_average_pooling2d"
    names = ("/kernel:0", "/bias:0")
    state, found = _keras(19, image, names, stages, include_top=False, pooling="avg")
    options = {"width": WIDTH, "hidden": 0, "num_classes": 0}
    return Twin("vgg19", "keras", state, image, found, options=options)


def caffe_network(
    depths: tuple[int, ...], width: int, hidden: int, classes: int
) -> tuple[CaffeNetwork, dict[str, str]]:
    """VGG in Caffe, and the layers that end its stages."""
    network, stages = CaffeNetwork(), {}
    for stage, depth in enumerate(depths, start=1):
        for number in range(1, depth + 1):
            features = width * min(2 ** (stage - 1), 8)
            network.convolution(f"conv{stage}_{number}", features, 3, "pad: 1")
        network.max_pool(f"pool{stage}", 2)
        stages[f"stage{stage}"] = f"pool{stage}"
    network.dense("fc6", hidden, 8 * width * 49)
    network.add("relu6", "ReLU")
    network.dense("fc7", hidden, hidden)
    network.add("relu7", "ReLU")
    network.dense("fc8", classes, hidden)
    return network, {**stages, "fc6": "relu6", "fc7": "relu7", "head": "fc8"}


def caffe_vgg16() -> Twin:
    """In Caffe as OpenCV has it, on an image all of whose halvings are rounded up."""
    width = 2
    network, stages = caffe_network((2, 2, 3, 3, 3), width, HIDDEN, CLASSES)
    image = np.sign(image_of(193, 193, batch=1)) * 16
    found = network.run(image, stages)
    options = {**OPTIONS, "width": width}
    return Twin("vgg16", "caffe", network.tensors, image, found, options=options)


TWINS = {
    "vgg_torchvision": torchvision_vgg11,
    "vgg_torchvision_bn": torchvision_vgg13_bn,
    "vgg_timm": timm_vgg11,
    "vgg_keras": keras_vgg16,
    "vgg_keras_notop": keras_vgg19_notop,
    "vgg_caffe": caffe_vgg16,
}
