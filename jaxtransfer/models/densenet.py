"""Densely connected networks (Huang et al. 2017, "Densely Connected Convolutional Networks").

arXiv 1608.06993. Within a block, each layer gets the maps of all layers before it and adds `growth`
maps of its own (section 3). The networks for ImageNet are DenseNet-BC (table 1): layers are
bottlenecks, BatchNorm, ReLU and a 1x1 convolution to 4 `growth` maps before BatchNorm, ReLU and a
3x3 convolution, and a transition between blocks halves the number of maps and their size. BatchNorm
and ReLU, the stage `norm`, a global mean and a dense head follow the last block.

DenseNet-121, -169 and -201 have a growth of 32 and differ in the layers of the last two blocks.
DenseNet-161, from the authors' repository, has a growth of 48.

Sources: https://github.com/liuzhuang13/DenseNet,
https://github.com/pytorch/vision/blob/main/torchvision/models/densenet.py and
https://github.com/keras-team/keras/blob/master/keras/src/applications/densenet.py
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxtransfer.errors import ModelError
from jaxtransfer.mapping import Rule
from jaxtransfer.models.family import Family
from jaxtransfer.models.layers import (
    BatchNorm,
    average_pool,
    classify,
    conv,
    global_mean,
    max_pool,
)
from jaxtransfer.models.naming import (
    keras_batch_norm,
    keras_layer,
    torch_batch_norm,
    torch_layer,
)
from jaxtransfer.models.preprocessing import IMAGENET, IMAGENET_BICUBIC
from jaxtransfer.models.published import timm_weights, torchvision_weights
from jaxtransfer.models.spec import ModelSpec, Source, Weights
from jaxtransfer.models.stages import StagedNetwork, check_rates, check_sizes

PAPER = "https://arxiv.org/abs/1608.06993"

_BOTTLENECK = 4
"""Maps between a layer's two convolutions, as multiples of the growth (section 3)."""


# ---------------------------------------------------------------------------------------------
# Modules


class DenseLayer(nn.Module):
    """BatchNorm, ReLU, 1x1 convolution, BatchNorm, ReLU, 3x3 convolution.

    Attributes:
        growth: maps that it adds.
        epsilon: of BatchNorm.
        dropout: rate behind the last convolution.
    """

    growth: int
    epsilon: float
    dropout: float

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
        """From (batch, height, width, channels) to `growth` more channels, behind the others."""
        x = nn.relu(BatchNorm(not train, epsilon=self.epsilon, name="bn1")(inputs))
        x = conv(_BOTTLENECK * self.growth, 1, name="conv1")(x)
        x = nn.relu(BatchNorm(not train, epsilon=self.epsilon, name="bn2")(x))
        x = conv(self.growth, 3, name="conv2")(x)
        x = nn.Dropout(self.dropout, name="dropout")(x, deterministic=not train)
        return jnp.concatenate([inputs, x], axis=-1)


class DenseBlock(nn.Module):
    """Dense layers one after the other, named by their position."""

    layers: int
    growth: int
    epsilon: float
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """From (batch, height, width, channels) to `layers * growth` more channels."""
        for position in range(self.layers):
            layer = DenseLayer(self.growth, self.epsilon, self.dropout, name=str(position))
            x = layer(x, train=train)
        return x


class Transition(nn.Module):
    """BatchNorm, ReLU, a 1x1 convolution to half as many maps, and average pooling."""

    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """From (batch, height, width, channels) to half of each but the first, rounded down."""
        x = nn.relu(BatchNorm(not train, epsilon=self.epsilon, name="bn")(x))
        x = conv(x.shape[-1] // 2, 1, name="conv")(x)
        return average_pool(x, 2, 2)


class Stem(nn.Module):
    """A 7x7 convolution with stride 2, BatchNorm, ReLU, and a 3x3 max pooling with stride 2."""

    features: int
    epsilon: float

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """From (batch, height, width, channels) to (batch, h/4, w/4, features), rounded up."""
        x = conv(self.features, 7, 2, name="conv")(images)
        x = nn.relu(BatchNorm(not train, epsilon=self.epsilon, name="bn")(x))
        return max_pool(x, 3, 2, padding=1)


class Norm(nn.Module):
    """BatchNorm and ReLU."""

    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """From (batch, height, width, channels) to the same."""
        return nn.relu(BatchNorm(not train, epsilon=self.epsilon, name="bn")(x))


class DenseNet(StagedNetwork):
    """A DenseNet-BC.

    Attributes:
        blocks: number of layers in each block.
        growth: maps that each layer adds.
        width: channels that leave the stem.
        num_classes: outputs of the head, 0 for features without a head.
        epsilon: of BatchNorm.
        dropout: rate behind each 3x3 convolution of the blocks.
    """

    blocks: tuple[int, ...]
    growth: int
    width: int
    num_classes: int
    epsilon: float = 1e-5
    dropout: float = 0.0

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages from input to head."""
        count = len(self.blocks)
        pairs = [(f"block{i}", f"transition{i}") for i in range(1, count)]
        body = [stage for pair in pairs for stage in pair]
        return ("stem", *body, f"block{count}", "norm", "pool", "head")

    def _run(self, stage: str, x: jax.Array, train: bool) -> jax.Array:
        if stage == "stem":
            return Stem(self.width, self.epsilon, name=stage)(x, train=train)
        if stage == "norm":
            return Norm(self.epsilon, name=stage)(x, train=train)
        if stage == "pool":
            return global_mean(x)
        if stage == "head":
            return classify(x, self.num_classes)
        if stage.startswith("transition"):
            return Transition(self.epsilon, name=stage)(x, train=train)
        layers = self.blocks[int(stage.removeprefix("block")) - 1]
        options = (layers, self.growth, self.epsilon, self.dropout)
        return DenseBlock(*options, name=stage)(x, train=train)


# ---------------------------------------------------------------------------------------------
# Rules: where files of other libraries keep what


@functools.cache
def _torch_rules(blocks: tuple[int, ...]) -> tuple[Rule, ...]:
    rules = [
        *torch_layer("features.conv0", "stem/conv"),
        *torch_batch_norm("features.norm0", "stem/bn"),
        *torch_layer("features.transition{i}.conv", "transition{i}/conv"),
        *torch_batch_norm("features.transition{i}.norm", "transition{i}/bn"),
        *torch_batch_norm("features.norm5", "norm/bn"),
        *torch_layer("classifier", "head", "dense", bias=True),
    ]
    for position in range(max(blocks)):
        layer = f"features.denseblock{{i}}.denselayer{position + 1}"
        place = f"block{{i}}/{position}"
        # torchvision's published files have `norm.1` where its code has `norm1` since 2018.
        for dot in ("", "."):
            rules += torch_layer(f"{layer}.conv{dot}{{k}}", f"{place}/conv{{k}}")
            rules += torch_batch_norm(f"{layer}.norm{dot}{{k}}", f"{place}/bn{{k}}")
    return tuple(rules)


@functools.cache
def _keras_rules(blocks: tuple[int, ...]) -> tuple[Rule, ...]:
    """Keras calls the stem and its pooling 1, so that the blocks start with 2."""
    rules = [
        # The files were written when a layer's name could have a slash.
        *keras_layer("conv1/conv", "stem/conv"),
        *keras_batch_norm("conv1/bn", "stem/bn"),
        *keras_layer("conv1_conv", "stem/conv"),
        *keras_batch_norm("conv1_bn", "stem/bn"),
        *keras_batch_norm("bn", "norm/bn"),
        *keras_layer("predictions", "head", bias=True),
    ]
    for block, layers in enumerate(blocks, start=1):
        pool, transition = f"pool{block + 1}", f"transition{block}"
        if block < len(blocks):
            rules += keras_layer(f"{pool}_conv", f"{transition}/conv")
            rules += keras_batch_norm(f"{pool}_bn", f"{transition}/bn")
        for position in range(layers):
            layer, place = f"conv{block + 1}_block{position + 1}", f"block{block}/{position}"
            rules += keras_batch_norm(f"{layer}_0_bn", f"{place}/bn1")
            rules += keras_layer(f"{layer}_1_conv", f"{place}/conv1")
            rules += keras_batch_norm(f"{layer}_1_bn", f"{place}/bn2")
            rules += keras_layer(f"{layer}_2_conv", f"{place}/conv2")
    return tuple(rules)


# ---------------------------------------------------------------------------------------------
# Variants


@dataclass(frozen=True)
class Variant:
    """A column of table 1, or a network of the authors' repository.

    Attributes:
        blocks: number of layers in each block.
        growth: maps that each layer adds; the stem gives twice as many.
    """

    blocks: tuple[int, ...]
    growth: int = 32


VARIANTS = {
    "densenet121": Variant((6, 12, 24, 16)),
    "densenet169": Variant((6, 12, 32, 32)),
    "densenet201": Variant((6, 12, 48, 32)),
    "densenet161": Variant((6, 12, 36, 24), growth=48),
}


def _sources(blocks: tuple[int, ...]) -> tuple[Source, ...]:
    torch_rules = _torch_rules(blocks)
    return (
        Source("torchvision", torch_rules, IMAGENET),
        Source("timm", torch_rules, IMAGENET_BICUBIC),
        Source("keras", _keras_rules(blocks), IMAGENET, {"epsilon": 1.001e-5}),
    )


def densenet(
    name: str,
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    input_size: tuple[int, int] = (224, 224),
    blocks: tuple[int, ...] | None = None,
    growth: int | None = None,
    epsilon: float = 1e-5,
    dropout: float = 0.0,
) -> tuple[ModelSpec, nn.Module]:
    """DenseNet-121, -161, -169 or -201.

    Args:
        name: a key of `VARIANTS`.
        num_classes: outputs of the head.
        in_channels: input channels.
        input_size: (height, width) of the images.
        blocks: number of layers in each block; the variant's own if `None`.
        growth: maps that each layer adds, and half of what leaves the stem; the variant's own if
            `None`. Smaller ones make test networks.
        epsilon: of BatchNorm: 1e-5 in torch, 1.001e-5 in Keras.
        dropout: rate behind each 3x3 convolution of the blocks; 0.2 in the paper for small data
            without augmentation (section 4.2), 0 for ImageNet.

    Raises:
        ModelError: a number is below 1, there are no blocks, or `dropout` is not in [0, 1).
    """
    variant = VARIANTS[name]
    blocks = variant.blocks if blocks is None else tuple(blocks)
    growth = variant.growth if growth is None else growth
    height, breadth = input_size
    layers = {f"blocks[{i}]": count for i, count in enumerate(blocks)}
    sizes = {"in_channels": in_channels, "growth": growth, "height": height, "breadth": breadth}
    check_sizes(name, num_classes, **sizes, **layers)
    if not blocks:
        raise ModelError(f"{name}: expected at least one block, found blocks=()")
    check_rates(name, dropout=dropout)
    module = DenseNet(
        blocks=blocks,
        growth=growth,
        width=2 * growth,
        num_classes=num_classes,
        epsilon=epsilon,
        dropout=dropout,
    )
    spec = ModelSpec(
        name=name,
        stages=module.stages,
        head="head",
        stem="stem/conv",
        input_size=(height, breadth),
        in_channels=in_channels,
        sources=_sources(blocks),
        paper=PAPER,
    )
    return spec, module


def _keras(name: str, top1: float) -> Weights:
    folder = "https://storage.googleapis.com/tensorflow/keras-applications/densenet"
    return Weights(f"{folder}/{name}_weights_tf_dim_ordering_tf_kernels.h5", "keras", top1=top1)


DENSENETS = Family(
    name="densenet",
    build=densenet,
    # torchvision's `DenseNet121_Weights` and the like.
    parameters={
        "densenet121": 7_978_856,
        "densenet169": 14_149_480,
        "densenet201": 20_013_928,
        "densenet161": 28_681_000,
    },
    aliases={"tv_densenet121": ("densenet121", {})},
    # Accuracies as torchvision and https://keras.io/api/applications state them.
    weights={
        "densenet121": (
            torchvision_weights("densenet121-a639ec97", 74.434),
            timm_weights("densenet121.ra_in1k"),
            timm_weights("densenet121.tv_in1k"),
            _keras("densenet121", 75.0),
        ),
        "densenet169": (
            torchvision_weights("densenet169-b2777c0a", 75.600),
            timm_weights("densenet169.tv_in1k"),
            _keras("densenet169", 76.2),
        ),
        "densenet201": (
            torchvision_weights("densenet201-c1103571", 76.896),
            timm_weights("densenet201.tv_in1k"),
            _keras("densenet201", 77.3),
        ),
        "densenet161": (
            torchvision_weights("densenet161-8d451a50", 77.138),
            timm_weights("densenet161.tv_in1k"),
        ),
    },
)

FAMILIES = (DENSENETS,)
