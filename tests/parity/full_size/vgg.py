"""VGG, AlexNet and SqueezeNet of other libraries in their full size, with random weights.

Each case gives what is compared: the architecture's name in the catalog, the source, the options of
`build` beside those of the source, the tensors by name, an image (batch, height, width, channels)
and the logits. Neither jaxtransfer nor JAX is imported, so that a case can run in a process of its
own with the other library.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from opencv_network import CaffeNetwork
from twins import alexnet, squeezenet, vgg

Case: TypeAlias = tuple[str, str, dict[str, Any], dict[str, np.ndarray], np.ndarray, np.ndarray]


def random_image(side: int, scale: float = 1.0) -> np.ndarray:
    """An image of the magnitude of normalised ones, or with a scale of bytes."""
    values = np.random.RandomState(0).normal(size=(1, side, side, 3))
    return (scale * values).astype(np.float32)


def torch_case(architecture: str, library: str, side: int = 224) -> Case:
    """A network of torchvision or timm as the library initialises it, BatchNorm's values random."""
    import torch

    torch.manual_seed(0)
    if library == "torchvision":
        import torchvision

        network = torchvision.models.get_model(architecture)
    else:
        import timm

        network = timm.create_model(architecture)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.running_mean, std=0.3)
            torch.nn.init.normal_(module.bias, std=0.3)
    image = random_image(side)
    network.eval()
    with torch.no_grad():
        logits = network(torch.from_numpy(image.transpose(0, 3, 1, 2).copy())).numpy()
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    return architecture, library, {}, state, image, logits


def keras_case(layers: int) -> Case:
    """VGG of Keras as the library initialises it, with the names of the published files."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras

    keras.utils.set_random_seed(0)
    build = {16: keras.applications.VGG16, 19: keras.applications.VGG19}[layers]
    network = build(weights=None, classifier_activation=None)
    state = {
        f"{layer.name}/{layer.name}_{kind}_1:0": values
        for layer in network.layers
        for kind, values in zip("Wb", layer.get_weights(), strict=False)
    }
    image = random_image(224)
    return f"vgg{layers}", "keras", {}, state, image, network.predict(image, verbose=0)


def caffe_case(
    architecture: str, make: Callable[[], tuple[CaffeNetwork, dict[str, str]]], side: int
) -> Case:
    """A network of Caffe in OpenCV, with the weights of the twins."""
    network, stages = make()
    image = random_image(side, scale=64)
    logits = network.run(image, {"head": stages["head"]})["head"].reshape(1, -1)
    return architecture, "caffe", {}, network.tensors, image, logits


def caffe_vgg(layers: int) -> Case:
    """VGG of its authors."""
    deep = {16: 3, 19: 4}[layers]
    depths = (2, 2, deep, deep, deep)
    make = functools.partial(vgg.caffe_network, depths, 64, 4096, 1000)
    return caffe_case(f"vgg{layers}", make, 224)


def caffe_alexnet(architecture: str) -> Case:
    """CaffeNet, or AlexNet with two towers."""
    make = functools.partial(
        alexnet.caffe_network,
        (96, 256, 384, 384, 256),
        4096,
        1000,
        normalises_first=architecture == "bvlc_alexnet",
    )
    return caffe_case(architecture, make, 227)


def caffe_squeezenet(version: str) -> Case:
    """SqueezeNet of its authors."""
    make = functools.partial(squeezenet.caffe_network, version, 16, 1000)
    return caffe_case(f"squeezenet{version}", make, 227)


_TORCHVISION = (
    *(f"vgg{layers}{norm}" for layers in (11, 13, 16, 19) for norm in ("", "_bn")),
    "alexnet",
    "squeezenet1_0",
    "squeezenet1_1",
)

CASES: dict[str, Callable[[], Case]] = {
    **{
        f"torchvision_{name}": functools.partial(torch_case, name, "torchvision")
        for name in _TORCHVISION
    },
    # The dense layers slide over a map of 9x9.
    "timm_vgg16": functools.partial(torch_case, "vgg16", "timm", 288),
    "timm_vgg19_bn": functools.partial(torch_case, "vgg19_bn", "timm", 288),
    "keras_vgg16": functools.partial(keras_case, 16),
    "keras_vgg19": functools.partial(keras_case, 19),
    "caffe_vgg16": functools.partial(caffe_vgg, 16),
    "caffe_vgg19": functools.partial(caffe_vgg, 19),
    "caffe_bvlc_alexnet": functools.partial(caffe_alexnet, "bvlc_alexnet"),
    "caffe_caffenet": functools.partial(caffe_alexnet, "caffenet"),
    "caffe_squeezenet1_0": functools.partial(caffe_squeezenet, "1_0"),
    "caffe_squeezenet1_1": functools.partial(caffe_squeezenet, "1_1"),
}
