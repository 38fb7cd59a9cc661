"""SqueezeNet (Iandola et al. 2016, arXiv 1602.07360).

Eight fire modules (section 3.1, figure 1): a squeeze of 1x1 convolutions, and an expansion by 1x1
and by 3x3 ones, whose channels stand side by side. The classifier is a 1x1 convolution with ReLU,
whose maps are averaged; it has no dense layer.

*   `squeezenet1_0` is the network of table 1: a stem of 96 channels and 7x7, and poolings after it,
    after fire4 and after fire8;
*   `squeezenet1_1` is its authors' later one, which costs 2.4 times less: a stem of 64 channels and
    3x3, and poolings after it, after fire3 and after fire5
    (https://github.com/forresti/SqueezeNet/tree/master/SqueezeNet_v1.1).

No convolution but the 3x3 ones of the expansions is padded, and poolings round sizes up. What the
sources do otherwise are options: Caffe's SqueezeNet 1.0 pads the 1x1 convolution of the head, so
that a border of biases takes part in the mean, and Keras rounds sizes down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxtransfer.errors import ModelError
from jaxtransfer.mapping import Rule
from jaxtransfer.models.convolution import convolve
from jaxtransfer.models.family import Family
from jaxtransfer.models.layers import conv, global_mean, max_pool
from jaxtransfer.models.naming import caffe_layer, torch_layer
from jaxtransfer.models.preprocessing import CAFFE, IMAGENET
from jaxtransfer.models.published import torchvision_weights
from jaxtransfer.models.spec import ModelSpec, Source, Weights
from jaxtransfer.models.stages import StagedNetwork, check_rates, check_sizes

PAPER = "https://arxiv.org/abs/1602.07360"


# ---------------------------------------------------------------------------------------------
# Modules


class Stem(nn.Module):
    """The first convolution with ReLU, and a 3x3 max pooling with stride 2."""

    features: int
    size: int
    ceil_pooling: bool

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """From (batch, height, width, channels) to (batch, height/4, width/4, features)."""
        x = conv(self.features, self.size, 2, padding=0, use_bias=True, name="conv")(images)
        return max_pool(nn.relu(x), 3, 2, ceil=self.ceil_pooling)


class Fire(nn.Module):
    """A fire module, and where it is the last of its resolution, a 3x3 max pooling with stride 2.

    Attributes:
        squeezed: channels of the squeeze.
        expanded: channels of each of the two expansions.
        pools: whether the pooling follows.
        ceil_pooling: whether that rounds sizes up.
    """

    squeezed: int
    expanded: int
    pools: bool
    ceil_pooling: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """From (batch, height, width, channels) to (batch, height, width, 2 * expanded)."""
        x = nn.relu(conv(self.squeezed, 1, use_bias=True, name="squeeze")(x))
        sizes = {"expand1x1": 1, "expand3x3": 3}
        branches = [
            conv(self.expanded, size, use_bias=True, name=name)(x) for name, size in sizes.items()
        ]
        x = nn.relu(jnp.concatenate(branches, axis=-1))
        return max_pool(x, 3, 2, ceil=self.ceil_pooling) if self.pools else x


class Head(nn.Module):
    """Dropout, a 1x1 convolution with ReLU, and the mean of each map.

    Attributes:
        num_classes: outputs, 0 for the means of the maps that enter.
        dropout: rate before the convolution.
        padding: zeros on each side of the maps that enter the convolution.
    """

    num_classes: int
    dropout: float
    padding: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """From (batch, height, width, channels) to (batch, num_classes or channels)."""
        if not self.num_classes:
            return global_mean(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        layer = nn.Conv(
            self.num_classes, (1, 1), padding=self.padding, conv_general_dilated=convolve
        )
        nn.share_scope(self, layer)
        return global_mean(nn.relu(layer(x)))


class SqueezeNet(StagedNetwork):
    """A network of the family.

    Attributes:
        stem_width: channels that leave the stem.
        stem_size: side of its convolution.
        squeezed: channels of the squeeze of each fire module.
        pooled: the fire modules that a pooling follows.
        num_classes: outputs of the head, 0 for features without a head.
        dropout: rate before the last convolution.
        head_padding: zeros on each side of the maps that enter the last convolution.
        ceil_pooling: whether poolings round sizes up.
    """

    stem_width: int
    stem_size: int
    squeezed: tuple[int, ...]
    pooled: tuple[str, ...]
    num_classes: int
    dropout: float = 0.5
    head_padding: int = 0
    ceil_pooling: bool = True

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages from input to head, with the names of the paper's table 1."""
        return ("stem", *(f"fire{i + 2}" for i in range(len(self.squeezed))), "head")

    def _run(self, stage: str, x: jax.Array, train: bool) -> jax.Array:
        if stage == "stem":
            return Stem(self.stem_width, self.stem_size, self.ceil_pooling, name=stage)(x)
        if stage == "head":
            head = Head(self.num_classes, self.dropout, self.head_padding, name=stage)
            return head(x, train=train)
        squeezed = self.squeezed[int(stage.removeprefix("fire")) - 2]
        pools = stage in self.pooled
        return Fire(squeezed, 4 * squeezed, pools, self.ceil_pooling, name=stage)(x)


# ---------------------------------------------------------------------------------------------
# Rules: where the files of each library keep what


def _torchvision_rules(pooled: tuple[str, ...]) -> tuple[Rule, ...]:
    rules = [*torch_layer("features.0", "stem/conv", bias=True)]
    place = 3  # convolution, ReLU and pooling come before
    for number in range(2, 10):
        fire = f"fire{number}"
        for layer in ("squeeze", "expand1x1", "expand3x3"):
            rules += torch_layer(f"features.{place}.{layer}", f"{fire}/{layer}", bias=True)
        place += 2 if fire in pooled else 1
    return (*rules, *torch_layer("classifier.1", "head", bias=True))


CAFFE_RULES = (
    *caffe_layer("conv1", "stem/conv"),
    *caffe_layer("fire{i}/squeeze1x1", "fire{i}/squeeze"),
    *caffe_layer("fire{i}/expand1x1", "fire{i}/expand1x1"),
    *caffe_layer("fire{i}/expand3x3", "fire{i}/expand3x3"),
    *caffe_layer("conv10", "head"),
)


def _compressed_layer(source: str, target: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{source}/w", f"params/{target}/kernel", "conv"),
        Rule(f"{source}/b", f"params/{target}/bias"),
    )


# The names of the prototxt of https://github.com/songhan/SqueezeNet-Deep-Compression, with `/w` and
# `/b` behind them as its decoder has it.
DEEP_COMPRESSION_RULES = (
    *_compressed_layer("conv1", "stem/conv"),
    *_compressed_layer("fire{i}/conv1x1_1", "fire{i}/squeeze"),
    *_compressed_layer("fire{i}/conv1x1_2", "fire{i}/expand1x1"),
    *_compressed_layer("fire{i}/conv3x3_2", "fire{i}/expand3x3"),
    *_compressed_layer("conv_final", "head"),
)


def _keras_rules() -> tuple[Rule, ...]:
    """Of files in which Keras 1 named kernels by how, and as which one, they had been initialised.

    Biases stand in a group that repeats the name of their layer.
    """
    layers = [("conv1", "stem/conv")]
    for number in range(2, 10):
        fire = f"fire{number}"
        layers.append((f"{fire}/squeeze1x1", f"{fire}/squeeze"))
        layers += [(f"{fire}/{layer}", f"{fire}/{layer}") for layer in ("expand1x1", "expand3x3")]
    layers.append(("conv10", "head"))
    rules = []
    for position, (source, target) in enumerate(layers, start=1):
        rules.append(Rule(f"{source}/uniform{position}", f"params/{target}/kernel"))
        rules.append(Rule(f"{source}/{source}_b", f"params/{target}/bias"))
    return tuple(rules)


# ---------------------------------------------------------------------------------------------
# Variants


@dataclass(frozen=True)
class Variant:
    """What tells the networks apart.

    Attributes:
        stem_width: channels of the stem, as multiples of the first fire module's squeeze.
        stem_size: side of its convolution.
        pooled: the fire modules that a pooling follows.
        sources: whose files hold the network, and the options that it needs there.
    """

    stem_width: int
    stem_size: int
    pooled: tuple[str, ...]
    sources: Mapping[str, Mapping[str, Any]]


# Caffe takes images of 227x227. The 1x1 convolution is padded in the prototxt of version 1.0 alone.
_CAFFE_1_0 = {"input_size": (227, 227), "head_padding": 1}

VARIANTS = {
    "squeezenet1_0": Variant(
        stem_width=6,
        stem_size=7,
        pooled=("fire4", "fire8"),
        sources={"torchvision": {}, "caffe": _CAFFE_1_0, "deep_compression": _CAFFE_1_0},
    ),
    "squeezenet1_1": Variant(
        stem_width=4,
        stem_size=3,
        pooled=("fire3", "fire5"),
        sources={
            "torchvision": {},
            "caffe": {"input_size": (227, 227)},
            "keras": {"input_size": (227, 227), "ceil_pooling": False},
        },
    ),
}

# Channels of the squeezes of fire2 to fire9 as multiples of the first: table 1, column s1x1.
SQUEEZED = (1, 1, 2, 2, 3, 3, 4, 4)

# Source: SqueezeNet_v1.0/train_val.prototxt of https://github.com/forresti/SqueezeNet
CAFFE_PREPROCESS = replace(
    CAFFE, size=(227, 227), mean=(104.0, 117.0, 123.0), crop_fraction=227 / 256
)

# Source: examples/predict.py of https://github.com/rcmalli/keras-squeezenet
KERAS_PREPROCESS = replace(CAFFE_PREPROCESS, mean=CAFFE.mean)


def _source(library: str, variant: Variant) -> Source:
    rules, preprocess = {
        "torchvision": (_torchvision_rules(variant.pooled), IMAGENET),
        "caffe": (CAFFE_RULES, CAFFE_PREPROCESS),
        "deep_compression": (DEEP_COMPRESSION_RULES, CAFFE_PREPROCESS),
        "keras": (_keras_rules(), KERAS_PREPROCESS),
    }[library]
    return Source(library, rules, preprocess, variant.sources[library])


def squeezenet(
    name: str,
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    input_size: tuple[int, int] = (224, 224),
    width: int = 16,
    dropout: float = 0.5,
    head_padding: int = 0,
    ceil_pooling: bool = True,
) -> tuple[ModelSpec, nn.Module]:
    """SqueezeNet 1.0 or 1.1.

    Args:
        name: a key of `VARIANTS`.
        num_classes: outputs of the head.
        in_channels: input channels.
        input_size: (height, width) of the images, at least 21.
        width: channels of the first squeeze; 16 in the paper. Smaller ones make test networks.
        dropout: rate before the last convolution.
        head_padding: zeros on each side of the maps that enter the last convolution.
        ceil_pooling: whether poolings round sizes up.

    Raises:
        ModelError: a number is not one that it can be.
    """
    check_sizes(name, num_classes=num_classes, in_channels=in_channels, width=width)
    check_rates(name, dropout=dropout)
    if not isinstance(head_padding, int) or head_padding < 0:
        raise ModelError(f"{name}: expected head_padding of at least 0, found {head_padding!r}")
    variant = VARIANTS[name]
    module = SqueezeNet(
        stem_width=width * variant.stem_width,
        stem_size=variant.stem_size,
        squeezed=tuple(width * factor for factor in SQUEEZED),
        pooled=variant.pooled,
        num_classes=num_classes,
        dropout=dropout,
        head_padding=head_padding,
        ceil_pooling=ceil_pooling,
    )
    spec = ModelSpec(
        name=name,
        stages=module.stages,
        head="head",
        stem="stem/conv",
        input_size=input_size,
        in_channels=in_channels,
        sources=tuple(_source(library, variant) for library in variant.sources),
        paper=PAPER,
    )
    return spec, module


_AUTHORS = "https://github.com/forresti/SqueezeNet/raw/master"
_KERAS = "https://github.com/rcmalli/keras-squeezenet/releases/download/v1.0"

FAMILIES = (
    Family(
        name="squeezenet",
        build=squeezenet,
        # https://docs.pytorch.org/vision/stable/models.html, as the accuracies of its weights.
        parameters={"squeezenet1_0": 1_248_424, "squeezenet1_1": 1_235_496},
        weights={
            "squeezenet1_0": (
                torchvision_weights("squeezenet1_0-b66bff10", 58.092),
                # The accuracy is that of table 2 of the paper.
                Weights(
                    f"{_AUTHORS}/SqueezeNet_v1.0/squeezenet_v1.0.caffemodel",
                    "caffe",
                    licence="BSD-2-Clause",
                    top1=57.5,
                ),
            ),
            "squeezenet1_1": (
                torchvision_weights("squeezenet1_1-b8a52dc0", 58.178),
                Weights(
                    f"{_AUTHORS}/SqueezeNet_v1.1/squeezenet_v1.1.caffemodel",
                    "caffe",
                    licence="BSD-2-Clause",
                ),
                Weights(
                    f"{_KERAS}/squeezenet_weights_tf_dim_ordering_tf_kernels.h5",
                    "keras",
                    licence="MIT",
                ),
            ),
        },
    ),
)
