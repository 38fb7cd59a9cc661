"""GoogLeNet, or Inception v1 (Szegedy et al. 2015, "Going Deeper with Convolutions", 1409.4842).

A stem of three convolutions and two poolings, nine Inception modules of four branches each (figure
2b: 1x1; 1x1 and 3x3; 1x1 and 5x5; pooling and 1x1), a global mean and a dense head (table 1). The
paper's two auxiliary classifiers serve training only: here they are not built, and left out by name
where a file has them.

Three published networks bear the name:

*   Caffe's is the paper's: local response normalisation in the stem, convolutions with biases;
*   torchvision's has BatchNorm behind every convolution instead (Ioffe & Szegedy 2015, arXiv
    1502.03167), a 3x3 kernel in the "5x5" branches and a 2x2 window in the last max pooling. Its
    weights are a port of TF-Slim's;
*   TF-Slim's is the same, but for BatchNorm without scales and TensorFlow's "SAME" padding, which
    lies on other sides of strided convolutions and poolings.

Sources: https://github.com/pytorch/vision/blob/main/torchvision/models/googlenet.py,
https://github.com/BVLC/caffe/tree/master/models/bvlc_googlenet and
https://github.com/tensorflow/models/blob/master/research/slim/nets/inception_v1.py
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxtransfer.errors import ModelError
from jaxtransfer.mapping import Rule
from jaxtransfer.models.family import Family
from jaxtransfer.models.layers import (
    BatchNorm,
    classify,
    conv,
    global_mean,
    local_response_norm,
    max_pool,
)
from jaxtransfer.models.naming import (
    SLIM_TRAINING_STATE,
    caffe_layer,
    slim_batch_norm,
    slim_layer,
    torch_batch_norm,
    torch_layer,
)
from jaxtransfer.models.preprocessing import INCEPTION
from jaxtransfer.models.published import torchvision_weights
from jaxtransfer.models.spec import ModelSpec, Preprocess, Source
from jaxtransfer.models.stages import StagedNetwork, check_rates, check_sizes

PAPER = "https://arxiv.org/abs/1409.4842"

# The channels of table 1, in its columns' order, for a network whose stem starts with 64.
COLUMNS: tuple[str, ...] = ("1x1", "3x3_reduce", "3x3", "5x5_reduce", "5x5", "pool_proj")
INCEPTIONS: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "inception_3a": (64, 96, 128, 16, 32, 32),
        "inception_3b": (128, 128, 192, 32, 96, 64),
        "inception_4a": (192, 96, 208, 16, 48, 64),
        "inception_4b": (160, 112, 224, 24, 64, 64),
        "inception_4c": (128, 128, 256, 24, 64, 64),
        "inception_4d": (112, 144, 288, 32, 64, 64),
        "inception_4e": (256, 160, 320, 32, 128, 128),
        "inception_5a": (256, 160, 320, 32, 128, 128),
        "inception_5b": (384, 192, 384, 48, 128, 128),
    }
)
_TABLE_WIDTH = 64


# ---------------------------------------------------------------------------------------------
# Modules


class ConvBlock(nn.Module):
    """A convolution and ReLU, with BatchNorm between the two, or else with biases.

    Attributes:
        features: channels that leave it.
        size: of the kernel, one number for a square.
        stride: in both directions.
        padding: as `conv` has it.
        batch_norm: whether there is BatchNorm; its epsilon is 0.001 in all Inceptions.
        bn_scale: whether it has a scale.
    """

    features: int
    size: int | tuple[int, int]
    stride: int = 1
    padding: int | str | None = None
    batch_norm: bool = True
    bn_scale: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """From (batch, height, width, channels) to (batch, h/stride, w/stride, features)."""
        layer = conv(
            self.features,
            self.size,
            self.stride,
            padding=self.padding,
            use_bias=not self.batch_norm,
            name="conv",
        )
        x = layer(x)
        if self.batch_norm:
            x = BatchNorm(not train, epsilon=1e-3, use_scale=self.bn_scale, name="bn")(x)
        return nn.relu(x)


def _halve(x: jax.Array, size: int, same_padding: bool) -> jax.Array:
    """Max pooling with stride 2, whose last windows need not be full."""
    if same_padding:
        return max_pool(x, size, 2, "SAME")
    return max_pool(x, size, 2, ceil=True)


class Stem(nn.Module):
    """What comes before the first Inception module: a 7x7, a 1x1 and a 3x3 convolution.

    Without BatchNorm, local responses are normalised behind the first pooling and before the last.
    """

    width: int
    batch_norm: bool
    bn_scale: bool
    same_padding: bool

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """From (batch, height, width, channels) to (batch, h/8, w/8, 3 * width)."""
        norm = (self.batch_norm, self.bn_scale)
        padding = "SAME" if self.same_padding else 3
        x = ConvBlock(self.width, 7, 2, padding, *norm, name="conv1")(images, train=train)
        x = _halve(x, 3, self.same_padding)
        x = x if self.batch_norm else local_response_norm(x)
        x = ConvBlock(self.width, 1, 1, None, *norm, name="conv2")(x, train=train)
        x = ConvBlock(3 * self.width, 3, 1, None, *norm, name="conv3")(x, train=train)
        x = x if self.batch_norm else local_response_norm(x)
        return _halve(x, 3, self.same_padding)


class Inception(nn.Module):
    """The Inception module of figure 2b: four branches side by side.

    Attributes:
        widths: channels of its convolutions in the order of `COLUMNS`.
        large_kernel: side of the kernel in the "5x5" branch.
        batch_norm: as in `ConvBlock`.
        bn_scale: as in `ConvBlock`.
    """

    widths: tuple[int, ...]
    large_kernel: int
    batch_norm: bool
    bn_scale: bool

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
        """From (batch, height, width, channels) to maps of the same size."""
        widths = dict(zip(COLUMNS, self.widths, strict=True))

        def layer(name: str, size: int, x: jax.Array) -> jax.Array:
            norm = (self.batch_norm, self.bn_scale)
            return ConvBlock(widths[name], size, 1, None, *norm, name=name)(x, train=train)

        branches = [
            layer("1x1", 1, inputs),
            layer("3x3", 3, layer("3x3_reduce", 1, inputs)),
            layer("5x5", self.large_kernel, layer("5x5_reduce", 1, inputs)),
            layer("pool_proj", 1, max_pool(inputs, 3, 1, padding=1)),
        ]
        return jnp.concatenate(branches, axis=-1)


class GoogLeNet(StagedNetwork):
    """GoogLeNet.

    Attributes:
        width: channels of the first convolution; those of all others grow in proportion.
        num_classes: outputs of the head, 0 for features without a head.
        batch_norm: whether there is BatchNorm, or else biases and local response normalisation.
        bn_scale: whether BatchNorm has a scale.
        large_kernel: side of the kernel in the "5x5" branches.
        last_pool: side of the window of the last max pooling.
        same_padding: whether strided layers are padded as TensorFlow does it.
        dropout: rate before the head.
    """

    width: int
    num_classes: int
    batch_norm: bool = True
    bn_scale: bool = True
    large_kernel: int = 3
    last_pool: int = 2
    same_padding: bool = False
    dropout: float = 0.0

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages from input to head."""
        modules = list(INCEPTIONS)
        third, fourth, fifth = modules[:2], modules[2:7], modules[7:]
        return ("stem", *third, "pool_3", *fourth, "pool_4", *fifth, "pool", "head")

    def _run(self, stage: str, x: jax.Array, train: bool) -> jax.Array:
        norm = (self.batch_norm, self.bn_scale)
        if stage == "stem":
            return Stem(self.width, *norm, self.same_padding, name=stage)(x, train=train)
        if stage == "pool_3":
            return _halve(x, 3, self.same_padding)
        if stage == "pool_4":
            return _halve(x, self.last_pool, self.same_padding)
        if stage == "pool":
            return global_mean(x)
        if stage == "head":
            if self.num_classes:
                x = nn.Dropout(self.dropout, name="dropout")(x, deterministic=not train)
            return classify(x, self.num_classes)
        widths = tuple(max(1, size * self.width // _TABLE_WIDTH) for size in INCEPTIONS[stage])
        return Inception(widths, self.large_kernel, *norm, name=stage)(x, train=train)


# ---------------------------------------------------------------------------------------------
# Rules: where files of other libraries keep what


def _torchvision_rules() -> tuple[Rule, ...]:
    places = ("branch1", "branch2.0", "branch2.1", "branch3.0", "branch3.1", "branch4.1")
    pairs = [("conv{i}", "stem/conv{i}")]
    for module in INCEPTIONS:
        group = module.replace("_", "")
        pairs += [(f"{group}.{p}", f"{module}/{c}") for p, c in zip(places, COLUMNS, strict=True)]
    return (
        *(rule for s, t in pairs for rule in torch_layer(f"{s}.conv", f"{t}/conv")),
        *(rule for s, t in pairs for rule in torch_batch_norm(f"{s}.bn", f"{t}/bn")),
        *torch_layer("fc", "head", "dense", bias=True),
    )


def _caffe_rules() -> tuple[Rule, ...]:
    pairs = [
        ("conv1/7x7_s2", "stem/conv1"),
        ("conv2/3x3_reduce", "stem/conv2"),
        ("conv2/3x3", "stem/conv3"),
        *((f"{module}/{c}", f"{module}/{c}") for module in INCEPTIONS for c in COLUMNS),
    ]
    return (
        *(rule for s, t in pairs for rule in caffe_layer(s, f"{t}/conv")),
        *caffe_layer("loss3/classifier", "head", "dense"),
    )


def _slim_rules() -> tuple[Rule, ...]:
    pairs = [
        ("Conv2d_1a_7x7", "stem/conv1"),
        ("Conv2d_2b_1x1", "stem/conv2"),
        ("Conv2d_2c_3x3", "stem/conv3"),
    ]
    places = (
        "Branch_0/Conv2d_0a_1x1",
        "Branch_1/Conv2d_0a_1x1",
        "Branch_1/Conv2d_0b_3x3",
        "Branch_2/Conv2d_0a_1x1",
        "Branch_2/Conv2d_0b_3x3",
        "Branch_3/Conv2d_0b_1x1",
    )
    for module in INCEPTIONS:
        # TF-Slim starts to count at "b": 3a of the paper is Mixed_3b there.
        group = f"Mixed_{module[-2]}{chr(ord(module[-1]) + 1)}"
        pairs += [(f"{group}/{p}", f"{module}/{c}") for p, c in zip(places, COLUMNS, strict=True)]
    # The one layer that is not named as its like.
    irregular = {"Mixed_5b/Branch_2/Conv2d_0b_3x3": "Mixed_5b/Branch_2/Conv2d_0a_3x3"}
    named = [(f"InceptionV1/{irregular.get(s, s)}", t) for s, t in pairs]
    logits = "InceptionV1/Logits/Conv2d_0c_1x1"
    return (
        *(rule for s, t in named for rule in slim_layer(s, f"{t}/conv")),
        *(rule for s, t in named for rule in slim_batch_norm(s, f"{t}/bn")),
        *slim_layer(logits, "head", "pointwise_keras", bias=True),
    )


# ---------------------------------------------------------------------------------------------
# Sources

# torchvision normalises images by ImageNet's means and deviations, and its network, where it was
# ported with weights (`transform_input`), turns that into what TF-Slim expects. Both together take
# 0.5 away and divide by 0.5: all but Caffe's have `INCEPTION`.

# Means of the bytes of blue, green and red: `mean_value` in train_val.prototxt, nothing is divided.
CAFFE_PREPROCESS = Preprocess(
    size=(224, 224),
    channels=3,
    mean=(104 / 255, 117 / 255, 123 / 255),
    std=(1 / 255,),
    crop_fraction=0.875,
    channel_order="bgr",
)

SOURCES = (
    Source(
        "torchvision",
        _torchvision_rules(),
        INCEPTION,
        ignore=(re.compile(r"(.*\.)?aux[12]\..*"),),
    ),
    Source(
        "caffe",
        _caffe_rules(),
        CAFFE_PREPROCESS,
        options={"batch_norm": False, "large_kernel": 5, "last_pool": 3},
        ignore=(re.compile(r"loss[12]/.*"),),
    ),
    Source(
        "tf_slim",
        _slim_rules(),
        # Class 0 of 1001 is a background.
        replace(INCEPTION, label_offset=1),
        options={"bn_scale": False, "same_padding": True},
        ignore=(SLIM_TRAINING_STATE,),
    ),
)


# ---------------------------------------------------------------------------------------------
# Variants


def googlenet(
    name: str,
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    input_size: tuple[int, int] = (224, 224),
    width: int = _TABLE_WIDTH,
    batch_norm: bool = True,
    bn_scale: bool = True,
    large_kernel: int = 3,
    last_pool: int = 2,
    same_padding: bool = False,
    dropout: float = 0.4,
) -> tuple[ModelSpec, nn.Module]:
    """GoogLeNet, by default as torchvision has it.

    Args:
        name: "googlenet".
        num_classes: outputs of the head.
        in_channels: input channels.
        input_size: (height, width) of the images.
        width: channels of the first convolution; 64 in the paper. Smaller ones make test networks.
        batch_norm: whether BatchNorm stands behind each convolution; if not, there are biases and
            local response normalisation, as in the paper.
        bn_scale: whether BatchNorm has a scale.
        large_kernel: side of the kernel in the "5x5" branches: 5 in the paper.
        last_pool: side of the window of the last max pooling: 3 in the paper.
        same_padding: whether strided layers are padded as TensorFlow's "SAME".
        dropout: rate before the head; 0.4 in the paper, 0.2 in torchvision and TF-Slim.

    Raises:
        ModelError: a number is below 1, `large_kernel` is even, or `dropout` is not in [0, 1).
    """
    height, breadth = input_size
    check_sizes(
        name,
        num_classes,
        in_channels=in_channels,
        width=width,
        last_pool=last_pool,
        large_kernel=large_kernel,
        height=height,
        breadth=breadth,
    )
    if large_kernel % 2 == 0:
        raise ModelError(f"{name}: expected an odd large_kernel, found {large_kernel}")
    check_rates(name, dropout=dropout)
    module = GoogLeNet(
        width=width,
        num_classes=num_classes,
        batch_norm=batch_norm,
        bn_scale=bn_scale,
        large_kernel=large_kernel,
        last_pool=last_pool,
        same_padding=same_padding,
        dropout=dropout,
    )
    spec = ModelSpec(
        name=name,
        stages=module.stages,
        head="head",
        stem="stem/conv1/conv",
        input_size=(height, breadth),
        in_channels=in_channels,
        sources=SOURCES,
        paper=PAPER,
    )
    return spec, module


GOOGLENET = Family(
    name="googlenet",
    build=googlenet,
    # torchvision's `GoogLeNet_Weights`, which counts no auxiliary classifiers here.
    parameters={"googlenet": 6_624_904},
    aliases={
        "inception_v1": ("googlenet", {}),
        "bvlc_googlenet": ("googlenet", dict[str, Any](SOURCES[1].options)),
    },
    weights={"googlenet": (torchvision_weights("googlenet-1378be20", 69.778),)},
)

FAMILIES = (GOOGLENET,)
