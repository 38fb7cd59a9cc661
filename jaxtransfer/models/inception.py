"""Inception v3 (Szegedy et al. 2016, "Rethinking the Inception Architecture", arXiv 1512.00567).

A stem of five convolutions and two poolings, eleven blocks of parallel branches on maps of 35x35,
17x17 and 8x8 (figures 5, 6, 7 and 10 of the paper; sizes for images of 299x299), a global mean and
a dense head. BatchNorm with an epsilon of 0.001 and ReLU follow every convolution. The paper's
auxiliary classifier serves training only: here it is not built, and left out by name where a file
has it. Stages are named as in TF-Slim and torchvision.

All published weights go back to one architecture, and differ in two things:

*   BatchNorm has scales in torchvision and timm, and none in TF-Slim and Keras;
*   the 3x3 average poolings count the zeros of their padding in torchvision and timm, and do not
    in TensorFlow. timm's and torchvision's ports of TensorFlow's weights count them too, although
    these were trained without: `count_padding=False` computes with them what TensorFlow does.

Sources: https://github.com/tensorflow/models/blob/master/research/slim/nets/inception_v3.py,
https://github.com/pytorch/vision/blob/main/torchvision/models/inception.py and
https://github.com/keras-team/keras/blob/master/keras/src/applications/inception_v3.py
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxtransfer.errors import ModelError
from jaxtransfer.mapping import Rule
from jaxtransfer.models.family import Family
from jaxtransfer.models.googlenet import ConvBlock
from jaxtransfer.models.layers import average_pool, classify, global_mean, max_pool
from jaxtransfer.models.naming import (
    SLIM_TRAINING_STATE,
    keras_batch_norm,
    keras_layer,
    slim_batch_norm,
    slim_layer,
    torch_batch_norm,
    torch_layer,
)
from jaxtransfer.models.preprocessing import IMAGENET_BICUBIC, INCEPTION
from jaxtransfer.models.published import timm_weights, torchvision_weights
from jaxtransfer.models.spec import ModelSpec, Source, Weights
from jaxtransfer.models.stages import StagedNetwork, check_rates, check_sizes

PAPER = "https://arxiv.org/abs/1512.00567"


# ---------------------------------------------------------------------------------------------
# The network as data


@dataclass(frozen=True)
class Layer:
    """A convolution.

    Attributes:
        features: channels that leave it, in a network whose stem starts with 32.
        size: of the kernel, one number for a square.
        stride: in both directions.
        pads: whether zeros keep the size of the map.
    """

    features: int
    size: int | tuple[int, int]
    stride: int = 1
    pads: bool = True


@dataclass(frozen=True)
class Branch:
    """A branch of a block.

    Attributes:
        name: of the branch, after its kernels.
        layers: its convolutions, one after the other.
        pool: what comes before them: "average" (stride 1), "max" (stride 2) or nothing.
        forks: whether the last two stand side by side, both behind the one before.
    """

    name: str
    layers: tuple[Layer, ...]
    pool: str = ""
    forks: bool = False


def _block_35(pooled: int) -> tuple[Branch, ...]:
    """Figure 5, but for a branch with one 5x5 kernel in place of two 3x3 kernels."""
    return (
        Branch("1x1", (Layer(64, 1),)),
        Branch("5x5", (Layer(48, 1), Layer(64, 5))),
        Branch("3x3_double", (Layer(64, 1), Layer(96, 3), Layer(96, 3))),
        Branch("pool", (Layer(pooled, 1),), pool="average"),
    )


def _block_35_to_17() -> tuple[Branch, ...]:
    """Figure 10."""
    return (
        Branch("3x3", (Layer(384, 3, 2, pads=False),)),
        Branch("3x3_double", (Layer(64, 1), Layer(96, 3), Layer(96, 3, 2, pads=False))),
        Branch("pool", (), pool="max"),
    )


def _block_17(inner: int) -> tuple[Branch, ...]:
    """Figure 6 with n = 7: 7x7 kernels as products of 1x7 and 7x1 ones."""
    wide, tall = Layer(inner, (1, 7)), Layer(inner, (7, 1))
    return (
        Branch("1x1", (Layer(192, 1),)),
        Branch("7x7", (Layer(inner, 1), wide, Layer(192, (7, 1)))),
        Branch("7x7_double", (Layer(inner, 1), tall, wide, tall, Layer(192, (1, 7)))),
        Branch("pool", (Layer(192, 1),), pool="average"),
    )


def _block_17_to_8() -> tuple[Branch, ...]:
    """Figure 10 with 7x7 kernels as products."""
    products = (Layer(192, (1, 7)), Layer(192, (7, 1)))
    return (
        Branch("3x3", (Layer(192, 1), Layer(320, 3, 2, pads=False))),
        Branch("7x7_3x3", (Layer(192, 1), *products, Layer(192, 3, 2, pads=False))),
        Branch("pool", (), pool="max"),
    )


def _block_8() -> tuple[Branch, ...]:
    """Figure 7: wide and tall kernels side by side."""
    fork = (Layer(384, (1, 3)), Layer(384, (3, 1)))
    return (
        Branch("1x1", (Layer(320, 1),)),
        Branch("3x3", (Layer(384, 1), *fork), forks=True),
        Branch("3x3_double", (Layer(448, 1), Layer(384, 3), *fork), forks=True),
        Branch("pool", (Layer(192, 1),), pool="average"),
    )


STEM: Mapping[str, Layer] = MappingProxyType(
    {
        "conv_1a": Layer(32, 3, 2, pads=False),
        "conv_2a": Layer(32, 3, pads=False),
        "conv_2b": Layer(64, 3),
        "conv_3b": Layer(80, 1),
        "conv_4a": Layer(192, 3, pads=False),
    }
)
_POOLS_AFTER = ("conv_2b", "conv_4a")

BLOCKS: Mapping[str, tuple[Branch, ...]] = MappingProxyType(
    {
        "mixed_5b": _block_35(32),
        "mixed_5c": _block_35(64),
        "mixed_5d": _block_35(64),
        "mixed_6a": _block_35_to_17(),
        "mixed_6b": _block_17(128),
        "mixed_6c": _block_17(160),
        "mixed_6d": _block_17(160),
        "mixed_6e": _block_17(192),
        "mixed_7a": _block_17_to_8(),
        "mixed_7b": _block_8(),
        "mixed_7c": _block_8(),
    }
)

_TABLE_WIDTH = 32
_SMALLEST = 75


# ---------------------------------------------------------------------------------------------
# Modules


def _conv_block(layer: Layer, width: int, bn_scale: bool, name: str) -> ConvBlock:
    return ConvBlock(
        max(1, layer.features * width // _TABLE_WIDTH),
        layer.size,
        layer.stride,
        None if layer.pads else 0,
        bn_scale=bn_scale,
        name=name,
    )


class Stem(nn.Module):
    """The five convolutions and two poolings before the blocks."""

    width: int
    bn_scale: bool

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """From (batch, height, width, channels), such as 299x299, to 6 * width maps of 35x35."""
        for name, layer in STEM.items():
            x = _conv_block(layer, self.width, self.bn_scale, name)(x, train=train)
            if name in _POOLS_AFTER:
                x = max_pool(x, 3, 2)
        return x


class Mixed(nn.Module):
    """A block of branches whose channels follow each other.

    Attributes:
        branches: the branches.
        width: channels of the network's first convolution, 32 in the paper.
        bn_scale: whether BatchNorm has scales.
        count_padding: whether average pooling counts the zeros of its padding.
    """

    branches: tuple[Branch, ...]
    width: int
    bn_scale: bool
    count_padding: bool

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
        """From (batch, height, width, channels) to the same size, or half of it rounded down."""
        outputs = []
        for branch in self.branches:
            layers = _Branch(branch, self.width, self.bn_scale, name=branch.name)
            outputs.append(layers(self._pooled(branch.pool, inputs), train=train))
        return jnp.concatenate(outputs, axis=-1)

    def _pooled(self, pool: str, x: jax.Array) -> jax.Array:
        if pool == "max":
            return max_pool(x, 3, 2)
        if pool == "average":
            return average_pool(x, 3, 1, padding=1, count_padding=self.count_padding)
        return x


class _Branch(nn.Module):
    """The convolutions of a branch, named by their position."""

    branch: Branch
    width: int
    bn_scale: bool

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        blocks = [
            _conv_block(layer, self.width, self.bn_scale, str(position))
            for position, layer in enumerate(self.branch.layers)
        ]
        fork = blocks[-2:] if self.branch.forks else []
        for block in blocks[: len(blocks) - len(fork)]:
            x = block(x, train=train)
        return jnp.concatenate([block(x, train=train) for block in fork], axis=-1) if fork else x


class InceptionV3(StagedNetwork):
    """Inception v3.

    Attributes:
        width: channels of the first convolution; those of all others grow in proportion.
        num_classes: outputs of the head, 0 for features without a head.
        bn_scale: whether BatchNorm has scales.
        count_padding: whether average pooling counts the zeros of its padding.
        dropout: rate before the head.
    """

    width: int
    num_classes: int
    bn_scale: bool = True
    count_padding: bool = True
    dropout: float = 0.0

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages from input to head."""
        return ("stem", *BLOCKS, "pool", "head")

    def _run(self, stage: str, x: jax.Array, train: bool) -> jax.Array:
        if stage == "stem":
            return Stem(self.width, self.bn_scale, name=stage)(x, train=train)
        if stage == "pool":
            return global_mean(x)
        if stage == "head":
            if self.num_classes:
                x = nn.Dropout(self.dropout, name="dropout")(x, deterministic=not train)
            return classify(x, self.num_classes)
        options = (self.width, self.bn_scale, self.count_padding)
        return Mixed(BLOCKS[stage], *options, name=stage)(x, train=train)


# ---------------------------------------------------------------------------------------------
# Rules: where files of other libraries keep what


def _places() -> Iterator[tuple[str, int, Branch, int]]:
    """Each convolution of the blocks: its block, its branch with number, and its position there.

    Keras and TF-Slim create them in this order.
    """
    for block, branches in BLOCKS.items():
        for number, branch in enumerate(branches):
            for position in range(len(branch.layers)):
                yield block, number, branch, position


_STEM_NAMES = {
    name: f"Conv2d_{name[-2:]}_{layer.size}x{layer.size}" for name, layer in STEM.items()
}
_STEM_PLACES = tuple(f"stem/{name}" for name in STEM)
_BLOCK_PLACES = tuple(f"{block}/{branch.name}/{i}" for block, _, branch, i in _places())


def _torch_name(block: str, branch: Branch, position: int) -> str:
    stem = {
        "3x3_double": "branch3x3dbl",
        "7x7_double": "branch7x7dbl",
        "7x7_3x3": "branch7x7x3",
        "pool": "branch_pool",
    }.get(branch.name, f"branch{branch.name}")
    count = len(branch.layers)
    number = f"_{position + 1}" if count > 1 else ""
    if branch.forks and position >= count - 2:
        number = f"_{count - 1}{'ab'[position - count + 2]}"
    return f"{block.capitalize()}.{stem}{number}"


def _slim_name(block: str, number: int, branch: Branch, position: int) -> str:
    size = branch.layers[position].size
    height, width = (size, size) if isinstance(size, int) else size
    # Poolings count: their layer is "0a". What halves the maps starts to count anew at "1a".
    letter = "abcde"[position + (branch.pool == "average")]
    order = "1a" if branch.layers[position].stride == 2 else f"0{letter}"
    name = f"{block.capitalize()}/Branch_{number}/Conv2d_{order}_{height}x{width}"
    return _SLIM_IRREGULAR.get(name, name)


# The layers of TF-Slim that are not named as their like.
_SLIM_IRREGULAR = {
    "Mixed_5c/Branch_1/Conv2d_0a_1x1": "Mixed_5c/Branch_1/Conv2d_0b_1x1",
    "Mixed_5c/Branch_1/Conv2d_0b_5x5": "Mixed_5c/Branch_1/Conv_1_0c_5x5",
    "Mixed_6a/Branch_0/Conv2d_1a_3x3": "Mixed_6a/Branch_0/Conv2d_1a_1x1",
    "Mixed_6a/Branch_1/Conv2d_1a_3x3": "Mixed_6a/Branch_1/Conv2d_1a_1x1",
    "Mixed_7b/Branch_1/Conv2d_0c_3x1": "Mixed_7b/Branch_1/Conv2d_0b_3x1",
}


def _torch_rules() -> tuple[Rule, ...]:
    names = [*_STEM_NAMES.values(), *(_torch_name(block, br, i) for block, _, br, i in _places())]
    pairs = list(zip(names, (*_STEM_PLACES, *_BLOCK_PLACES), strict=True))
    return (
        *(rule for s, t in pairs for rule in torch_layer(f"{s}.conv", f"{t}/conv")),
        *(rule for s, t in pairs for rule in torch_batch_norm(f"{s}.bn", f"{t}/bn")),
        *torch_layer("fc", "head", "dense", bias=True),
    )


def _slim_rules() -> tuple[Rule, ...]:
    names = [*_STEM_NAMES.values(), *(_slim_name(*place) for place in _places())]
    scoped = [f"InceptionV3/{name}" for name in names]
    pairs = list(zip(scoped, (*_STEM_PLACES, *_BLOCK_PLACES), strict=True))
    logits = "InceptionV3/Logits/Conv2d_1c_1x1"
    return (
        *(rule for s, t in pairs for rule in slim_layer(s, f"{t}/conv")),
        *(rule for s, t in pairs for rule in slim_batch_norm(s, f"{t}/bn")),
        *slim_layer(logits, "head", "pointwise_keras", bias=True),
    )


def _keras_rules(first: int) -> tuple[Rule, ...]:
    """Keras numbers layers of a kind in the order of their creation, without a number for 0."""
    rules: list[Rule] = []
    for number, place in enumerate((*_STEM_PLACES, *_BLOCK_PLACES), start=first):
        ending = f"_{number}" if number else ""
        rules += keras_layer(f"conv2d{ending}", f"{place}/conv")
        rules += keras_batch_norm(f"batch_normalization{ending}", f"{place}/bn", scale=False)
    return (*rules, *keras_layer("predictions", "head", bias=True))


# ---------------------------------------------------------------------------------------------
# Sources

# TensorFlow's own: images from -1 to 1. `transform_input` of torchvision's network turns what its
# transform normalises by ImageNet's means and deviations into the same.
INCEPTION_299 = replace(INCEPTION, size=(299, 299))

_TENSORFLOW_OPTIONS = {"bn_scale": False, "count_padding": False}
_AUXILIARY = re.compile(r"(.*[./])?AuxLogits[./].*")

SOURCES = (
    Source(
        "torchvision",
        _torch_rules(),
        replace(INCEPTION_299, crop_fraction=299 / 342),
        ignore=(_AUXILIARY,),
    ),
    Source(
        "timm",
        _torch_rules(),
        replace(INCEPTION_299, interpolation="bicubic"),
        ignore=(_AUXILIARY,),
    ),
    # The published files number layers from 1, as Keras 2.0 did; newer versions start at 0.
    Source("keras", _keras_rules(first=1), INCEPTION_299, _TENSORFLOW_OPTIONS),
    Source("tf_keras", _keras_rules(first=0), INCEPTION_299, _TENSORFLOW_OPTIONS),
    Source(
        "tf_slim",
        _slim_rules(),
        # Class 0 of 1001 is a background.
        replace(INCEPTION_299, label_offset=1),
        _TENSORFLOW_OPTIONS,
        ignore=(_AUXILIARY, SLIM_TRAINING_STATE),
    ),
)


# ---------------------------------------------------------------------------------------------
# Variants


def inception_v3(
    name: str,
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    input_size: tuple[int, int] = (299, 299),
    width: int = _TABLE_WIDTH,
    bn_scale: bool = True,
    count_padding: bool = True,
    dropout: float = 0.2,
) -> tuple[ModelSpec, nn.Module]:
    """Inception v3, by default as torchvision has it.

    Args:
        name: "inception_v3".
        num_classes: outputs of the head.
        in_channels: input channels.
        input_size: (height, width) of the images, at least 75, which leave one pixel at the end.
        width: channels of the first convolution; 32 in the paper. Smaller ones make test networks.
        bn_scale: whether BatchNorm has scales.
        count_padding: whether average pooling counts the zeros of its padding.
        dropout: rate before the head; 0.2 in TF-Slim, 0.5 in torchvision.

    Raises:
        ModelError: a number is below 1, `input_size` below 75, or `dropout` is not in [0, 1).
    """
    height, breadth = input_size
    sizes = {"in_channels": in_channels, "width": width, "height": height, "breadth": breadth}
    check_sizes(name, num_classes, **sizes)
    if min(height, breadth) < _SMALLEST:
        raise ModelError(
            f"{name}: expected an input_size of at least {_SMALLEST}, of which one pixel is left "
            f"behind the last block, found {height}x{breadth}"
        )
    check_rates(name, dropout=dropout)
    module = InceptionV3(
        width=width,
        num_classes=num_classes,
        bn_scale=bn_scale,
        count_padding=count_padding,
        dropout=dropout,
    )
    spec = ModelSpec(
        name=name,
        stages=module.stages,
        head="head",
        stem="stem/conv_1a/conv",
        input_size=(height, breadth),
        in_channels=in_channels,
        sources=SOURCES,
        paper=PAPER,
    )
    return spec, module


INCEPTION_V3 = Family(
    name="inception_v3",
    build=inception_v3,
    # 27,161,264 in torchvision's `Inception_V3_Weights`, less the 3,326,696 of its `AuxLogits`.
    parameters={"inception_v3": 23_834_568},
    aliases={
        "tf_inception_v3": ("inception_v3", {}),
        "adv_inception_v3": ("inception_v3", {}),
        "gluon_inception_v3": ("inception_v3", {}),
    },
    weights={
        "inception_v3": (
            torchvision_weights("inception_v3_google-0cc3c7bd", 77.294),
            timm_weights("inception_v3.tv_in1k"),
            timm_weights("inception_v3.tf_in1k"),
            timm_weights("inception_v3.tf_adv_in1k"),
            timm_weights(
                "inception_v3.gluon_in1k", preprocess=replace(IMAGENET_BICUBIC, size=(299, 299))
            ),
            # https://keras.io/api/applications
            Weights(
                "https://storage.googleapis.com/tensorflow/keras-applications/inception_v3/"
                "inception_v3_weights_tf_dim_ordering_tf_kernels.h5",
                "keras",
                top1=77.9,
            ),
        )
    },
)

FAMILIES = (INCEPTION_V3,)
