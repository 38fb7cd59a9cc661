"""Twins of GoogLeNet, a sixteenth of the width."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from keras_twin import keras_twin, replaced
from make_twins import Twin, calm_values, grid_values, image_of, torch_twin

WIDTH = 4

# Table 1 of the paper.
MODULES = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


def narrow(channels: int, width: int = WIDTH) -> int:
    """As many channels as in a network whose first convolution has `width` of them."""
    return max(1, channels * width // 64)


# ---------------------------------------------------------------------------------------------
# torchvision


def torchvision_network(classes: int, width: int = WIDTH):
    """torchvision's network, narrowed, without its auxiliary classifiers."""
    import torch

    # The module's name in its package is that of a function.
    module = importlib.import_module("torchvision.models.googlenet")
    start = module.BasicConv2d.__init__

    def narrowed(self, inputs, outputs, **kwargs):
        inputs = narrow(inputs, width) if inputs > 3 else inputs
        start(self, inputs, narrow(outputs, width), **kwargs)

    with replaced(module.BasicConv2d, "__init__", narrowed):
        network = module.GoogLeNet(classes, aux_logits=False, init_weights=False)
    network.fc = torch.nn.Linear(narrow(1024, width), classes)
    return network


def torchvision_stages(network) -> dict:
    """The stages of torchvision's network."""

    def stem(x):
        x = network.maxpool1(network.conv1(x))
        return network.maxpool2(network.conv3(network.conv2(x)))

    modules = {f"inception_{name}": getattr(network, f"inception{name}") for name in MODULES}
    names = list(modules)
    return {
        "stem": stem,
        **{name: modules[name] for name in names[:2]},
        "pool_3": network.maxpool3,
        **{name: modules[name] for name in names[2:7]},
        "pool_4": network.maxpool4,
        **{name: modules[name] for name in names[7:]},
        "pool": lambda x: x.mean((2, 3)),
        "head": network.fc,
    }


def torchvision() -> Twin:
    """BatchNorm, a 3x3 kernel in the third branch, windows at the rim that are not full."""
    network = torchvision_network(classes=5)
    twin = torch_twin(
        "googlenet",
        "torchvision",
        network,
        image_of(63, 47),
        torchvision_stages(network),
        options={"width": WIDTH, "num_classes": 5, "dropout": 0.0},
        values=calm_values,
    )
    twin.state["aux1.fc2.weight"] = np.zeros((1, 1), np.float32)
    return twin


# ---------------------------------------------------------------------------------------------
# TF-Slim


def slim_network(size: tuple[int, int], classes: int, width: int = WIDTH):
    """TF-Slim's network out of layers of Keras, and its names by those of the layers.

    TF-Slim needs TensorFlow 1. Its own layers are a convolution without bias with "SAME" padding,
    batch normalization with an epsilon of 0.001 and without scale, and ReLU; see `inception_utils`
    and `inception_v1` in https://github.com/tensorflow/models/tree/master/research/slim/nets
    """
    from keras import Model, layers

    names: dict[str, str] = {}

    def conv(x, scope, features, side, stride=1):
        flat = scope.replace("/", "-")
        names[flat], names[f"{flat}-norm"] = scope, f"{scope}/BatchNorm"
        kind = {"strides": stride, "padding": "same", "use_bias": False}
        x = layers.Conv2D(narrow(features, width), side, **kind, name=flat)(x)
        x = layers.BatchNormalization(epsilon=1e-3, scale=False, name=f"{flat}-norm")(x)
        return layers.ReLU()(x)

    def pool(x, side, stride, name=None):
        return layers.MaxPooling2D(side, stride, padding="same", name=name)(x)

    x = images = layers.Input((*size, 3))
    x = pool(conv(x, "Conv2d_1a_7x7", 64, 7, 2), 3, 2)
    x = pool(conv(conv(x, "Conv2d_2b_1x1", 64, 1), "Conv2d_2c_3x3", 192, 3), 3, 2, "stem")
    for name, (ones, reduce3, threes, reduce5, fives, pooled) in MODULES.items():
        at = f"Mixed_{name[0]}{'abcdef'['abcde'.index(name[1]) + 1]}"
        odd = "a" if at == "Mixed_5b" else "b"
        three = conv(x, f"{at}/Branch_1/Conv2d_0a_1x1", reduce3, 1)
        five = conv(x, f"{at}/Branch_2/Conv2d_0a_1x1", reduce5, 1)
        branches = [
            conv(x, f"{at}/Branch_0/Conv2d_0a_1x1", ones, 1),
            conv(three, f"{at}/Branch_1/Conv2d_0b_3x3", threes, 3),
            conv(five, f"{at}/Branch_2/Conv2d_0{odd}_3x3", fives, 3),
            conv(pool(x, 3, 1), f"{at}/Branch_3/Conv2d_0b_1x1", pooled, 1),
        ]
        x = layers.Concatenate(name=f"inception_{name}")(branches)
        if name == "3b":
            x = pool(x, 3, 2, "pool_3")
        if name == "4e":
            x = pool(x, 2, 2, "pool_4")
    x = layers.GlobalAveragePooling2D(keepdims=True)(x)
    names["Logits-Conv2d_0c_1x1"] = "Logits/Conv2d_0c_1x1"
    x = layers.Conv2D(classes, 1, name="Logits-Conv2d_0c_1x1")(x)
    return Model(images, layers.Flatten(name="head")(x)), names


def slim_name(names: dict[str, str], name: str) -> str:
    """The name in TF-Slim's checkpoint of what Keras calls `LAYER/LAYER/VARIABLE:0`."""
    layer, _, variable = name.removesuffix(":0").split("/")
    kinds = {"kernel": "weights", "bias": "biases"}
    return f"InceptionV1/{names[layer]}/{kinds.get(variable, variable)}"


def tf_slim() -> Twin:
    """BatchNorm without scales; sides that "SAME" pads more at their end."""
    network, names = slim_network((62, 46), classes=6)
    stages = ["stem", *(f"inception_{name}" for name in MODULES), "pool_3", "pool_4", "head"]
    return keras_twin(
        "googlenet",
        "tf_slim",
        network,
        image_of(62, 46),
        {stage: stage for stage in stages},
        options={"width": WIDTH, "num_classes": 6, "dropout": 0.0},
        rename=lambda name: slim_name(names, name),
        values=calm_values,
    )


# ---------------------------------------------------------------------------------------------
# Caffe


def caffe_network(
    size: tuple[int, int], classes: int, width: int = WIDTH
) -> tuple[str, dict[str, np.ndarray]]:
    """BVLC GoogLeNet as text for Caffe, and random weights by layer and number.

    The layers, their names and their numbers are those of models/bvlc_googlenet/deploy.prototxt in
    https://github.com/BVLC/caffe
    """
    text = [f'input: "data" input_shape {{ dim: 1 dim: 3 dim: {size[0]} dim: {size[1]} }}']
    weights: dict[str, np.ndarray] = {}

    def layer(name, kind, below, body="", top=None):
        bottoms = " ".join(f'bottom: "{b}"' for b in below)
        text.append(
            f'layer {{ name: "{name}" type: "{kind}" {bottoms} top: "{top or name}" {body} }}'
        )
        return top or name

    def conv(name, below, inputs, outputs, side, stride=1):
        body = f"num_output: {outputs} pad: {side // 2} kernel_size: {side} stride: {stride}"
        layer(name, "Convolution", [below], f"convolution_param {{ {body} }}")
        for number, shape in enumerate([(outputs, inputs, side, side), (outputs,)]):
            weights[f"{name}/{number}"] = grid_values(f"{name}/{number}", shape)
        return layer(f"{name}/relu", "ReLU", [name], top=name)

    def pool(name, below, side, stride, kind="MAX", pad=0):
        body = f"pool: {kind} kernel_size: {side} stride: {stride} pad: {pad}"
        return layer(name, "Pooling", [below], f"pooling_param {{ {body} }}")

    def norm(name, below):
        return layer(name, "LRN", [below], "lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 }")

    x = norm(
        "pool1/norm1", pool("pool1/3x3_s2", conv("conv1/7x7_s2", "data", 3, width, 7, 2), 3, 2)
    )
    x = conv("conv2/3x3_reduce", x, width, width, 1)
    x = norm("conv2/norm2", conv("conv2/3x3", x, width, 3 * width, 3))
    x, channels = pool("pool2/3x3_s2", x, 3, 2), 3 * width
    for module, widths in MODULES.items():
        at = f"inception_{module}"
        ones, reduce3, threes, reduce5, fives, pooled = (narrow(w, width) for w in widths)
        three = conv(f"{at}/3x3_reduce", x, channels, reduce3, 1)
        five = conv(f"{at}/5x5_reduce", x, channels, reduce5, 1)
        branches = [
            conv(f"{at}/1x1", x, channels, ones, 1),
            conv(f"{at}/3x3", three, reduce3, threes, 3),
            conv(f"{at}/5x5", five, reduce5, fives, 5),
            conv(f"{at}/pool_proj", pool(f"{at}/pool", x, 3, 1, pad=1), channels, pooled, 1),
        ]
        x, channels = layer(f"{at}/output", "Concat", branches), ones + threes + fives + pooled
        if module in ("3b", "4e"):
            x = pool(f"pool{module[0]}/3x3_s2", x, 3, 2)
    layer("pool5/7x7_s1", "Pooling", [x], "pooling_param { pool: AVE global_pooling: true }")
    body = f"inner_product_param {{ num_output: {classes} }}"
    layer("loss3/classifier", "InnerProduct", ["pool5/7x7_s1"], body)
    for number, shape in enumerate([(classes, channels), (classes,)]):
        name = f"loss3/classifier/{number}"
        weights[name] = grid_values(name, shape)
    return "\n".join(text), weights


def _field(number: int, content: bytes) -> bytes:
    """A field of a protocol buffer whose content has a length."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    low, rest = number & 127, number >> 7
    return bytes([low | 128]) + _varint(rest) if rest else bytes([low])


def caffemodel(weights: dict[str, np.ndarray]) -> bytes:
    """The bytes of a .caffemodel; the numbers of fields are those of caffe.proto."""

    def blob(values: np.ndarray) -> bytes:
        dims = b"".join(_varint(1 << 3) + _varint(size) for size in values.shape)
        return _field(7, dims) + _field(5, values.astype("<f4").tobytes())

    layers: dict[str, bytes] = {}
    for name, values in weights.items():
        layer = name.rpartition("/")[0]
        kind = b"InnerProduct" if layer == "loss3/classifier" else b"Convolution"
        head = _field(1, layer.encode()) + _field(2, kind)
        layers[layer] = layers.get(layer, head) + _field(7, blob(values))
    return b"".join(_field(100, layer) for layer in layers.values())


def opencv_outputs(
    text: str, weights: dict[str, np.ndarray], image: np.ndarray, layers: list[str]
) -> Iterator[np.ndarray]:
    """What OpenCV, which reads Caffe's files by itself, computes in some layers, channels last."""
    import cv2

    with tempfile.TemporaryDirectory() as folder:
        prototxt, model = Path(folder) / "deploy.prototxt", Path(folder) / "net.caffemodel"
        prototxt.write_text(text)
        model.write_bytes(caffemodel(weights))
        network = cv2.dnn.readNetFromCaffe(str(prototxt), str(model))
    network.enableFusion(False)
    network.enableWinograd(False)
    batch = [np.ascontiguousarray(one.transpose(2, 0, 1)[None]) for one in image]
    found = []
    for one in batch:  # the text says a batch of one
        network.setInput(one)
        found.append([np.array(values) for values in network.forward(layers)])
    for values in zip(*found, strict=True):
        joined = np.concatenate(values)
        yield joined.transpose(0, 2, 3, 1) if joined.ndim == 4 else joined


def caffe() -> Twin:
    """Biases, local response normalisation, 5x5 kernels, poolings that round up; run by OpenCV."""
    text, weights = caffe_network((63, 47), classes=5)
    image = image_of(63, 47)
    stages = {
        "stem": "pool2/3x3_s2",
        **{f"inception_{name}": f"inception_{name}/output" for name in MODULES},
        "pool_3": "pool3/3x3_s2",
        "pool_4": "pool4/3x3_s2",
        "head": "loss3/classifier",
    }
    outputs = opencv_outputs(text, weights, image, list(stages.values()))
    return Twin(
        "googlenet",
        "caffe",
        {**weights, "loss1/classifier/0": np.zeros((1, 1), np.float32)},
        image,
        dict(zip(stages, outputs, strict=True)),
        options={"width": WIDTH, "num_classes": 5, "dropout": 0.0},
    )


TWINS = {
    "googlenet_torchvision": torchvision,
    "googlenet_tf_slim": tf_slim,
    "googlenet_caffe": caffe,
}
