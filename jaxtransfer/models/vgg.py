"""VGG (Simonyan & Zisserman 2015, "Very Deep Convolutional Networks", arXiv 1409.1556).

Five stages of 3x3 convolutions, each ending in a 2x2 max pooling, and three dense layers, which
hold most of the parameters (table 1). The variants differ in the number of convolutions: 11, 13, 16
and 19 layers with weights are the columns A, B, D and E; `_bn` has BatchNorm after each
convolution, which is younger than the paper.

The dense layers see a 7x7 map, flattened with the channels last; published kernels, most of which
were trained with the channels first, are reordered when they are read. Maps of other sizes are
either averaged to 7x7, as torchvision has it, or the dense layers slide over them and their outputs
are averaged, as in section 3.2 of the paper and in timm.

Without the dense layers (`hidden=0`) the network is what Keras calls "notop": the five stages and
their global mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxtransfer.mapping import Rule
from jaxtransfer.models.family import Family
from jaxtransfer.models.layers import (
    BatchNorm,
    HiddenDense,
    adaptive_average_pool,
    classify,
    conv,
    global_mean,
    max_pool,
)
from jaxtransfer.models.naming import caffe_layer, keras_layer, torch_batch_norm, torch_layer
from jaxtransfer.models.preprocessing import CAFFE, IMAGENET
from jaxtransfer.models.published import timm_weights, torchvision_weights
from jaxtransfer.models.spec import ModelSpec, Preprocess, Source, Weights
from jaxtransfer.models.stages import StagedNetwork, check_rates, check_sizes
from jaxtransfer.types import Pattern

PAPER = "https://arxiv.org/abs/1409.1556"

# Rows and columns of the map that the dense layers see.
MAP_SIDE = 7


# ---------------------------------------------------------------------------------------------
# Modules


class Stage(nn.Module):
    """Convolutions with ReLU, and a 2x2 max pooling.

    Attributes:
        depth: number of convolutions.
        features: channels that leave each of them.
        batch_norm: whether BatchNorm follows each of them.
        ceil_pooling: whether odd sizes are rounded up when halved.
    """

    depth: int
    features: int
    batch_norm: bool = False
    ceil_pooling: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """From (batch, height, width, channels) to (batch, height/2, width/2, features)."""
        for number in range(1, self.depth + 1):
            x = conv(self.features, 3, use_bias=True, name=f"conv{number}")(x)
            if self.batch_norm:
                x = BatchNorm(not train, name=f"bn{number}")(x)
            x = nn.relu(x)
        return max_pool(x, 2, 2, ceil=self.ceil_pooling)


def _windows(x: jax.Array, side: int) -> jax.Array:
    """Every square window of a map, flattened: (batch, rows, columns, side * side * channels)."""
    rows, columns = (length - side + 1 for length in x.shape[1:3])
    shifted = [
        x[:, row : row + rows, column : column + columns]
        for row in range(side)
        for column in range(side)
    ]
    return jnp.concatenate(shifted, axis=-1)


class VGG(StagedNetwork):
    """A network of the family.

    Attributes:
        depths: number of convolutions in each stage.
        width: channels of the first stage; the others have 2, 4, 8 and 8 times as many.
        hidden: features of fc6 and fc7; 0 for a network without these layers.
        num_classes: outputs of the head, 0 for features without a head.
        batch_norm: whether BatchNorm follows each convolution.
        dropout: rate after fc6 and fc7.
        sliding: whether the dense layers slide over maps larger than 7x7.
        ceil_pooling: whether stages round odd sizes up.
    """

    depths: tuple[int, ...]
    width: int
    hidden: int
    num_classes: int
    batch_norm: bool = False
    dropout: float = 0.5
    sliding: bool = False
    ceil_pooling: bool = False

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages from input to head."""
        dense = ("fc6", "fc7") if self.hidden else ()
        return (*(f"stage{i + 1}" for i in range(len(self.depths))), "pool", *dense, "head")

    def _run(self, stage: str, x: jax.Array, train: bool) -> jax.Array:
        if stage == "pool":
            return self._pool(x)
        if stage == "fc6":
            return HiddenDense(self.hidden, self.dropout, name=stage)(x, train=train)
        if stage == "fc7":
            x = HiddenDense(self.hidden, self.dropout, name=stage)(x, train=train)
            return global_mean(x) if self.sliding else x
        if stage == "head":
            return classify(x, self.num_classes)
        index = int(stage.removeprefix("stage")) - 1
        features = self.width * min(2**index, 8)
        module = Stage(self.depths[index], features, self.batch_norm, self.ceil_pooling, name=stage)
        return module(x, train=train)

    def _pool(self, x: jax.Array) -> jax.Array:
        """What fc6 takes: the flattened map, or where that slides, all its windows."""
        if not self.hidden:
            return global_mean(x)
        if self.sliding:
            height, width = (max(length, MAP_SIDE) for length in x.shape[1:3])
            return _windows(adaptive_average_pool(x, height, width), MAP_SIDE)
        return adaptive_average_pool(x, MAP_SIDE, MAP_SIDE).reshape(len(x), -1)


# ---------------------------------------------------------------------------------------------
# Rules: where the files of each library keep what


def _places(depths: tuple[int, ...], batch_norm: bool) -> Iterator[tuple[int, int, int]]:
    """For each convolution its index in PyTorch's list of layers, its stage and its number there.

    Convolution, BatchNorm and ReLU count one each, and so does the pooling after each stage.
    """
    index = 0
    for stage, depth in enumerate(depths, start=1):
        for number in range(1, depth + 1):
            yield index, stage, number
            index += 3 if batch_norm else 2
        index += 1


def _torch_body(depths: tuple[int, ...], batch_norm: bool) -> tuple[Rule, ...]:
    """The convolutions, which torchvision and timm name alike."""
    rules: list[Rule] = []
    for index, stage, number in _places(depths, batch_norm):
        rules += torch_layer(f"features.{index}", f"stage{stage}/conv{number}", bias=True)
        if batch_norm:
            rules += torch_batch_norm(f"features.{index + 1}", f"stage{stage}/bn{number}")
    return tuple(rules)


def _flattened(width: int) -> str:
    """The layout of fc6 in files that flatten a map with the channels first."""
    return f"flatten_chw({8 * width},{MAP_SIDE},{MAP_SIDE})"


def _torchvision_dense(width: int) -> tuple[Rule, ...]:
    return (
        *torch_layer("classifier.0", "fc6", _flattened(width), bias=True),
        *torch_layer("classifier.3", "fc7", "dense", bias=True),
        *torch_layer("classifier.6", "head", "dense", bias=True),
    )


# Convolutions in the place of fc6 and fc7.
TIMM_DENSE = (
    *torch_layer("pre_logits.fc1", "fc6", f"conv_to_dense({MAP_SIDE},{MAP_SIDE})", bias=True),
    *torch_layer("pre_logits.fc2", "fc7", "pointwise", bias=True),
    *torch_layer("head.fc", "head", "dense", bias=True),
)


def _keras_layer(source: str, target: str) -> tuple[Rule, ...]:
    """As in the published files, which Keras 1 wrote, and as newer versions write it."""
    group = f"{source}/{source}"
    return (
        Rule(f"{group}_W_1:0", f"params/{target}/kernel"),
        Rule(f"{group}_b_1:0", f"params/{target}/bias"),
        *keras_layer(source, target, bias=True),
    )


KERAS_BODY = _keras_layer("block{i}_conv{j}", "stage{i}/conv{j}")

# Keras flattens with the channels last, as it is done here.
KERAS_DENSE = (
    *_keras_layer("fc1", "fc6"),
    *_keras_layer("fc2", "fc7"),
    *_keras_layer("predictions", "head"),
)

CAFFE_BODY = caffe_layer("conv{i}_{j}", "stage{i}/conv{j}")


def _caffe_dense(width: int) -> tuple[Rule, ...]:
    return (
        *caffe_layer("fc6", "fc6", _flattened(width)),
        *caffe_layer("fc7", "fc7", "dense"),
        *caffe_layer("fc8", "head", "dense"),
    )


# ---------------------------------------------------------------------------------------------
# Variants


# Convolutions in each stage: columns A, B, D and E of table 1.
DEPTHS = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}

# Names of the dense layers in any of the files, which a network without them leaves out.
_DENSE_NAMES = re.compile(
    r"(.*[./])?(classifier\.[036]|pre_logits\.fc[12]|head\.fc|fc[12678]|predictions)[./].*"
)


def _sources(name: str, width: int, hidden: int) -> tuple[Source, ...]:
    """What the files of each library hold, and what of it the network takes."""
    depths, batch_norm = DEPTHS[name.removesuffix("_bn")], name.endswith("_bn")
    ignore: tuple[Pattern, ...] = () if hidden else (_DENSE_NAMES,)

    def source(
        library: str,
        body: tuple[Rule, ...],
        dense: tuple[Rule, ...],
        preprocess: Preprocess,
        **options: Any,
    ) -> Source:
        rules = (*body, *dense) if hidden else body
        return Source(library, rules, preprocess, options, ignore)

    body = _torch_body(depths, batch_norm)
    torch = (
        source("torchvision", body, _torchvision_dense(width), IMAGENET),
        source("timm", body, TIMM_DENSE, IMAGENET, sliding=True),
    )
    if name not in ("vgg16", "vgg19"):
        return torch
    caffe = _caffe_dense(width)
    return (
        *torch,
        source("keras", KERAS_BODY, KERAS_DENSE, CAFFE),
        source("caffe", CAFFE_BODY, caffe, CAFFE, ceil_pooling=True),
    )


def vgg(
    name: str,
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    input_size: tuple[int, int] = (224, 224),
    width: int = 64,
    hidden: int = 4096,
    dropout: float = 0.5,
    sliding: bool = False,
    ceil_pooling: bool = False,
) -> tuple[ModelSpec, nn.Module]:
    """VGG-11, -13, -16 or -19, with or without BatchNorm.

    Args:
        name: a key of `DEPTHS`, with `_bn` for BatchNorm.
        num_classes: outputs of the head.
        in_channels: input channels.
        input_size: (height, width) of the images, at least 32.
        width: channels of the first stage; 64 in the paper. Smaller ones make test networks.
        hidden: features of fc6 and fc7; 0 leaves both out, and the head gets the global mean.
        dropout: rate after fc6 and fc7.
        sliding: whether dense layers slide over larger maps, as in timm; otherwise maps of every
            size are averaged to 7x7, as in torchvision.
        ceil_pooling: whether stages round odd sizes up, as in Caffe.

    Raises:
        ModelError: a number is not one that it can be.
    """
    sizes = {"hidden": hidden} if hidden != 0 else {}
    check_sizes(name, num_classes=num_classes, in_channels=in_channels, width=width, **sizes)
    check_rates(name, dropout=dropout)
    module = VGG(
        depths=DEPTHS[name.removesuffix("_bn")],
        width=width,
        hidden=hidden,
        num_classes=num_classes,
        batch_norm=name.endswith("_bn"),
        dropout=dropout,
        sliding=sliding,
        ceil_pooling=ceil_pooling,
    )
    spec = ModelSpec(
        name=name,
        stages=module.stages,
        head="head",
        stem="stage1/conv1",
        input_size=input_size,
        in_channels=in_channels,
        sources=_sources(name, width, hidden),
        paper=PAPER,
    )
    return spec, module


def _torch_weights(name: str, start: str, top1: float) -> tuple[Weights, ...]:
    """The weights that torchvision trained, and timm's copy of them.

    `start` are the first digits of the SHA-256 of torchvision's file.
    """
    return (
        torchvision_weights(f"{name}-{start}", top1),
        timm_weights(f"{name}.tv_in1k", licence="BSD-3-Clause"),
    )


def _oxford_weights(layers: int, top1: float) -> tuple[Weights, ...]:
    """Keras' copy of the weights of the paper's authors, and these themselves.

    The accuracy is that of https://keras.io/api/applications; the authors publish none for one
    central crop.
    """
    keras = "https://storage.googleapis.com/tensorflow/keras-applications"
    oxford = "https://www.robots.ox.ac.uk/~vgg/software/very_deep/caffe"
    file = f"vgg{layers}_weights_tf_dim_ordering_tf_kernels.h5"
    return (
        Weights(f"{keras}/vgg{layers}/{file}", "keras", top1=top1),
        Weights(f"{oxford}/VGG_ILSVRC_{layers}_layers.caffemodel", "caffe"),
    )


FAMILIES = (
    Family(
        name="vgg",
        build=vgg,
        # Accuracies, too, from https://docs.pytorch.org/vision/stable/models.html
        parameters={
            "vgg11": 132_863_336,
            "vgg11_bn": 132_868_840,
            "vgg13": 133_047_848,
            "vgg13_bn": 133_053_736,
            "vgg16": 138_357_544,
            "vgg16_bn": 138_365_992,
            "vgg19": 143_667_240,
            "vgg19_bn": 143_678_248,
        },
        weights={
            "vgg11": _torch_weights("vgg11", "8a719046", 69.020),
            "vgg11_bn": _torch_weights("vgg11_bn", "6002323d", 70.370),
            "vgg13": _torch_weights("vgg13", "19584684", 69.928),
            "vgg13_bn": _torch_weights("vgg13_bn", "abd245e5", 71.586),
            "vgg16": (*_torch_weights("vgg16", "397923af", 71.592), *_oxford_weights(16, 71.3)),
            "vgg16_bn": _torch_weights("vgg16_bn", "6c64b313", 73.360),
            "vgg19": (*_torch_weights("vgg19", "dcbb9e9d", 72.376), *_oxford_weights(19, 71.3)),
            "vgg19_bn": _torch_weights("vgg19_bn", "c79401a0", 74.218),
        },
    ),
)
