"""Residual networks of other libraries in their full size, with random weights.

Each case gives what is compared: the architecture's name in the catalog, the source, the options of
`build` beside those of the source, the state dict, an image (batch, height, width, channels) and
the logits. Nothing of jaxtransfer or JAX is imported, so that a case can run in a process with the
other libraries alone.

Caffe's networks run in OpenCV, from a prototxt and a caffemodel as the authors publish them:
https://github.com/KaimingHe/deep-residual-networks
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np

Case: TypeAlias = tuple[str, str, dict[str, Any], dict[str, np.ndarray], np.ndarray, np.ndarray]


def random_image(size: int = 224) -> np.ndarray:
    return np.random.RandomState(0).normal(size=(1, size, size, 3)).astype(np.float32)


# ---------------------------------------------------------------------------------------------
# PyTorch


def torch_case(architecture: str, source: str, network: Any) -> Case:
    """A case from a module, with random statistics, scales and biases of BatchNorm.

    Scales are below 1: where branches grow what they are added to, the gates of RegNetY saturate,
    and rounding alone makes the logits of PyTorch in float32 and float64 differ by 1e-4.
    """
    import torch

    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor, low in (
                (module.running_var, 0.5),
                (module.weight, 0.0),
                (module.bias, -0.5),
            ):
                torch.nn.init.uniform_(tensor, low, low + 1)
            torch.nn.init.normal_(module.running_mean, std=0.3)
    image = random_image()
    network.eval()
    with torch.no_grad():
        found = network(torch.from_numpy(image.transpose(0, 3, 1, 2).copy()))
    logits = getattr(found, "logits", found).numpy()
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    return architecture, source, {}, state, image, logits


def torchvision_case(architecture: str) -> Case:
    import torchvision

    return torch_case(architecture, "torchvision", torchvision.models.get_model(architecture))


def timm_case(architecture: str, theirs: str) -> Case:
    import timm

    return torch_case(architecture, "timm", timm.create_model(theirs))


def transformers_resnet(architecture: str, kind: str, blocks: list[int], first: int) -> Case:
    from transformers import ResNetConfig, ResNetForImageClassification

    widths = [first * 2**i for i in range(4)]
    config = ResNetConfig(hidden_sizes=widths, depths=blocks, layer_type=kind, num_labels=1000)
    return torch_case(architecture, "transformers", ResNetForImageClassification(config))


# ---------------------------------------------------------------------------------------------
# Keras


def keras_case(architecture: str, theirs: str) -> Case:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras

    options = {"weights": None, "classifier_activation": None}
    network = getattr(keras.applications, theirs)(**options)
    rng = np.random.RandomState(0)
    state = {}
    for layer in network.layers:
        for weight in layer.weights:
            shape = tuple(weight.shape)
            if weight.name in ("gamma", "moving_variance"):
                weight.assign(rng.uniform(0.5, 1.5, shape))
            elif len(shape) == 1:
                weight.assign(rng.normal(0, 0.3, shape))
            name = f"{layer.name}/{layer.name}/{weight.name}:0"
            state[name] = keras.ops.convert_to_numpy(weight).copy()
    image = random_image()
    logits = keras.ops.convert_to_numpy(network(image, training=False))
    return architecture, "keras", {}, state, image, logits


# ---------------------------------------------------------------------------------------------
# Caffe


def _layer(kind: str, name: str, bottoms: list[str], top: str, parameters: str = "") -> str:
    lines = "".join(f' bottom: "{bottom}"' for bottom in bottoms)
    return f'layer {{ name: "{name}" type: "{kind}"{lines} top: "{top}" {parameters} }}\n'


def _convolution(
    name: str,
    norm: str,
    bottom: str,
    sizes: tuple[int, int, int],
    bias: bool = False,
    relu: bool = True,
) -> str:
    """A convolution with BatchNorm and Scale, of `sizes` (channels, kernel, stride)."""
    channels, kernel, stride = sizes
    parameters = (
        f"convolution_param {{ num_output: {channels} kernel_size: {kernel} pad: {kernel // 2} "
        f"stride: {stride} bias_term: {str(bias).lower()} }}"
    )
    text = _layer("Convolution", name, [bottom], name, parameters)
    statistics = "batch_norm_param { use_global_stats: true }"
    text += _layer("BatchNorm", f"bn{norm}", [name], name, statistics)
    text += _layer("Scale", f"scale{norm}", [name], name, "scale_param { bias_term: true }")
    return text + (_layer("ReLU", f"{name}_relu", [name], name) if relu else "")


def _block_names(stage: int, count: int, numbered: bool) -> list[str]:
    if numbered and stage in (3, 4):
        return ["a", *(f"b{j}" for j in range(1, count))]
    return list("abcdef"[:count])


def prototxt(blocks: list[int], numbered: bool) -> str:
    """The network of the authors, with a bias in the stem unless its blocks are numbered."""
    text = 'name: "ResNet"\ninput: "data"\ninput_shape { dim: 1 dim: 3 dim: 224 dim: 224 }\n'
    text += _convolution("conv1", "_conv1", "data", (64, 7, 2), bias=not numbered)
    pooling = "pooling_param { kernel_size: 3 stride: 2 pool: MAX }"
    text += _layer("Pooling", "pool1", ["conv1"], "pool1", pooling)
    bottom = "pool1"
    for stage, count in enumerate(blocks, start=2):
        inner = 64 * 2 ** (stage - 2)
        for position, letter in enumerate(_block_names(stage, count, numbered)):
            block = f"{stage}{letter}"
            stride = 2 if stage > 2 and position == 0 else 1
            branch, shortcut = bottom, bottom
            if position == 0:
                shortcut = f"res{block}_branch1"
                norm, sizes = f"{block}_branch1", (4 * inner, 1, stride)
                text += _convolution(shortcut, norm, bottom, sizes, relu=False)
            convolutions = {"a": (inner, 1, stride), "b": (inner, 3, 1), "c": (4 * inner, 1, 1)}
            for which, sizes in convolutions.items():
                name = f"res{block}_branch2{which}"
                norm = f"{block}_branch2{which}"
                text += _convolution(name, norm, branch, sizes, relu=which != "c")
                branch = name
            bottom = f"res{block}"
            text += _layer("Eltwise", bottom, [shortcut, branch], bottom)
            text += _layer("ReLU", f"{bottom}_relu", [bottom], bottom)
    mean = "pooling_param { kernel_size: 7 stride: 1 pool: AVE }"
    text += _layer("Pooling", "pool5", [bottom], "pool5", mean)
    classes = "inner_product_param { num_output: 1000 }"
    return text + _layer("InnerProduct", "fc1000", ["pool5"], "fc1000", classes)


def _blobs(blocks: list[int], numbered: bool) -> Iterator[tuple[str, list[tuple[int, ...]]]]:
    """Each layer with parameters, and the shapes of its blobs."""

    def convolution(name: str, norm: str, shape: tuple[int, ...], bias: bool = False) -> Iterator:
        yield name, [shape, *([shape[:1]] if bias else [])]
        yield f"bn{norm}", [shape[:1], shape[:1], (1,)]
        yield f"scale{norm}", [shape[:1], shape[:1]]

    yield from convolution("conv1", "_conv1", (64, 3, 7, 7), not numbered)
    before = 64
    for stage, count in enumerate(blocks, start=2):
        inner = 64 * 2 ** (stage - 2)
        for position, letter in enumerate(_block_names(stage, count, numbered)):
            block = f"{stage}{letter}_branch"
            shapes = {
                "1": (4 * inner, before, 1, 1),
                "2a": (inner, before, 1, 1),
                "2b": (inner, inner, 3, 3),
                "2c": (4 * inner, inner, 1, 1),
            }
            for branch, shape in shapes.items():
                if branch != "1" or position == 0:
                    yield from convolution(f"res{block}{branch}", f"{block}{branch}", shape)
            before = 4 * inner
    yield "fc1000", [(1000, before), (1000,)]


def _varint(value: int) -> bytes:
    more = value >> 7
    return bytes([value & 127 | (128 if more else 0)]) + (_varint(more) if more else b"")


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _caffemodel(layers: dict[str, list[np.ndarray]]) -> bytes:
    """The protocol buffer of src/caffe/proto/caffe.proto in https://github.com/BVLC/caffe."""
    net = []
    for name, arrays in layers.items():
        layer = [_field(1, name.encode())]
        for array in arrays:
            shape = b"".join(_varint(length) for length in array.shape)
            values = array.astype("<f4").tobytes()
            layer.append(_field(7, _field(5, values) + _field(7, _field(1, shape))))
        net.append(_field(100, b"".join(layer)))
    return b"".join(net)


def caffe_case(architecture: str, blocks: list[int], numbered: bool) -> Case:
    import cv2

    rng = np.random.RandomState(0)
    layers: dict[str, list[np.ndarray]] = {}
    for name, shapes in _blobs(blocks, numbered):
        arrays = [rng.normal(0, 0.3, shape) for shape in shapes]
        if len(shapes[0]) > 1:
            arrays[0] *= np.sqrt(2 / np.prod(shapes[0][1:])) / 0.3
        elif name.startswith("bn"):
            arrays[1:] = [rng.uniform(0.5, 1.5, shapes[1]), np.ones(1)]
        else:
            arrays[0] = rng.uniform(0.5, 1.5, shapes[0])
        layers[name] = [array.astype(np.float32) for array in arrays]
    files = (prototxt(blocks, numbered).encode(), _caffemodel(layers))
    network = cv2.dnn.readNetFromCaffe(*(np.frombuffer(file, np.uint8) for file in files))
    image = random_image()
    network.setInput(image.transpose(0, 3, 1, 2).copy())
    logits = network.forward("fc1000").reshape(1, 1000)
    # A reader divides the statistics by the third blob, and leaves it out.
    state = {
        f"{name}/{index}": array
        for name, arrays in layers.items()
        for index, array in enumerate(arrays)
        if not (name.startswith("bn") and index == 2)
    }
    return architecture, "caffe", {}, state, image, logits


_TORCHVISION = (
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
    *("wide_resnet50_2", "wide_resnet101_2"),
)

CASES: dict[str, Callable[[], Case]] = {
    **{f"torchvision_{name}": functools.partial(torchvision_case, name) for name in _TORCHVISION},
    **{
        f"timm_{name}": functools.partial(timm_case, name, name)
        for name in ("resnet34", "resnet50", "resnext50_32x4d", "wide_resnet50_2")
    },
    "transformers_resnet18": functools.partial(
        transformers_resnet, "resnet18", "basic", [2, 2, 2, 2], 64
    ),
    "transformers_resnet50": functools.partial(
        transformers_resnet, "resnet50", "bottleneck", [3, 4, 6, 3], 256
    ),
    "keras_resnet50": functools.partial(keras_case, "resnet50", "ResNet50"),
    "keras_resnet152": functools.partial(keras_case, "resnet152", "ResNet152"),
    "caffe_resnet50": functools.partial(caffe_case, "resnet50", [3, 4, 6, 3], False),
    "caffe_resnet101": functools.partial(caffe_case, "resnet101", [3, 4, 23, 3], True),
    "caffe_resnet152": functools.partial(caffe_case, "resnet152", [3, 8, 36, 3], True),
}
