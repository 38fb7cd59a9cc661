"""Residual networks, and what was made of them.

*   ResNet for ImageNet (He et al. 2016, "Deep Residual Learning", arXiv 1512.03385, section 3.3,
    table 1): a 7x7 stem with max pooling and four stages, ResNet-18/34 of basic blocks,
    ResNet-50/101/152 of bottlenecks;
*   ResNet for CIFAR (section 4.2): a 3x3 stem and three stages of n basic blocks, depth 6n + 2,
    whose shortcuts are either parameter-free ("option A": subsample, and pad the new channels with
    zeros) or projections;
*   ResNeXt (Xie et al. 2017, "Aggregated Residual Transformations", arXiv 1611.05431, table 1): the
    3x3 convolution of a bottleneck in groups, 32x4d for 32 groups of 4 channels;
*   Wide ResNet for ImageNet (Zagoruyko & Komodakis 2016, arXiv 1605.07146, section 3 and table 8):
    the 3x3 convolution of a bottleneck with twice the channels.

RegNet, in `regnet.py`, is built of the same blocks.

The sources of weights differ in more than names. Torch puts a bottleneck's stride on its 3x3
convolution ("ResNet v1.5"); the authors, in Caffe, on the first 1x1, and so does Keras, whose
weights are theirs. Caffe's max pooling has no padding, but counts a last window that is not full;
Keras has biases in its convolutions, and another epsilon. The builders have options for all of it.

All networks end in a global mean, the parameter-free stage `pool`, and a dense `head`. Convolutions
are padded by explicit numbers, since "SAME" pads strided ones on other sides than the published
weights were trained with.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxtransfer.errors import ModelError
from jaxtransfer.mapping import Rule
from jaxtransfer.models.family import Family
from jaxtransfer.models.layers import (
    BatchNorm,
    StochasticDepth,
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
from jaxtransfer.models.spec import ModelSpec, Preprocess, Source, Weights
from jaxtransfer.models.stages import check_choice, check_rates, check_sizes, stages_between

PAPER = "https://arxiv.org/abs/1512.03385"
RESNEXT_PAPER = "https://arxiv.org/abs/1611.05431"
WIDE_PAPER = "https://arxiv.org/abs/1605.07146"


# ---------------------------------------------------------------------------------------------
# Modules


@dataclass(frozen=True)
class Design:
    """What all blocks of a network have in common.

    Attributes:
        bottleneck: whether they are bottlenecks, 1x1, 3x3 and 1x1, or basic, two times 3x3.
        stride_on: "3x3" or "1x1", the first convolution of a bottleneck that may have a stride.
        shortcut: what stands where the shape changes: "projection", a 1x1 convolution with
            BatchNorm, "convolution", the same without BatchNorm, or "pad", option A of the paper.
        squeeze: channels of squeeze-and-excitation as a share of those that enter the block; 0 for
            none.
        use_bias: whether convolutions have biases.
        padding: "SAME" for that of TensorFlow, `None` for that of PyTorch.
        epsilon: of BatchNorm.
        momentum: of BatchNorm, as Flax counts it.
    """

    bottleneck: bool = False
    stride_on: str = "3x3"
    shortcut: str = "projection"
    squeeze: float = 0.0
    use_bias: bool = False
    padding: str | None = None
    epsilon: float = 1e-5
    momentum: float = 0.9

    def conv(
        self, features: int, size: int, stride: int = 1, *, groups: int = 1, name: str
    ) -> nn.Conv:
        """A convolution of the network."""
        return conv(
            features,
            size,
            stride,
            padding=self.padding,
            groups=groups,
            use_bias=self.use_bias,
            name=name,
        )

    def norm(self, train: bool, name: str) -> BatchNorm:
        """A BatchNorm of the network."""
        return BatchNorm(not train, self.momentum, self.epsilon, name=name)


@dataclass(frozen=True)
class StageSizes:
    """The sizes of a stage.

    Attributes:
        blocks: number of blocks.
        features: channels that leave each block.
        inner: channels between its convolutions.
        groups: of its 3x3 convolution.
        stride: of the first block.
    """

    blocks: int
    features: int
    inner: int
    groups: int = 1
    stride: int = 2


class SqueezeExcite(nn.Module):
    """Channels weighted by what all pixels have in them (Hu et al. 2018, arXiv 1709.01507)."""

    reduced: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """From (batch, height, width, channels) to the same shape."""
        weights = nn.relu(nn.Dense(self.reduced, name="reduce")(global_mean(x)))
        weights = nn.sigmoid(nn.Dense(x.shape[-1], name="expand")(weights))
        return x * weights[:, None, None, :]


def _pad_shortcut(inputs: jax.Array, features: int, stride: int) -> jax.Array:
    """The paper's option A: every `stride`-th pixel, and zeros on both sides of the channels."""
    inputs = inputs[:, ::stride, ::stride, :]
    missing = features - inputs.shape[-1]
    return jnp.pad(inputs, ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))


class Block(nn.Module):
    """A residual block.

    Attributes:
        sizes: of its stage.
        stride: of the block.
        drop_path: share of the examples that its residual branch is left out of in training.
        design: of the network.
    """

    sizes: StageSizes
    stride: int
    drop_path: float
    design: Design

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
        """From (batch, height, width, channels) to (batch, h/stride, w/stride, features).

        Sizes that the stride does not divide are rounded up.
        """
        design, x = self.design, inputs
        layers = self._layers()
        for number, (features, size, stride, groups) in enumerate(layers, start=1):
            x = design.conv(features, size, stride, groups=groups, name=f"conv{number}")(x)
            x = design.norm(train, name=f"bn{number}")(x)
            if number < len(layers):
                x = nn.relu(x)
            if number == 2 and design.squeeze:
                reduced = round(design.squeeze * inputs.shape[-1])
                x = SqueezeExcite(reduced, name="squeeze_excite")(x)
        x = StochasticDepth(self.drop_path)(x, train=train)
        return nn.relu(x + self._shortcut(inputs, train))

    def _layers(self) -> list[tuple[int, int, int, int]]:
        """Channels, size, stride and groups of each convolution."""
        sizes, stride = self.sizes, self.stride
        if not self.design.bottleneck:
            return [(sizes.inner, 3, stride, sizes.groups), (sizes.features, 3, 1, sizes.groups)]
        first, second = (stride, 1) if self.design.stride_on == "1x1" else (1, stride)
        return [
            (sizes.inner, 1, first, 1),
            (sizes.inner, 3, second, sizes.groups),
            (sizes.features, 1, 1, 1),
        ]

    def _shortcut(self, inputs: jax.Array, train: bool) -> jax.Array:
        features, kind = self.sizes.features, self.design.shortcut
        if self.stride == 1 and inputs.shape[-1] == features:
            return inputs
        if kind == "pad":
            return _pad_shortcut(inputs, features, self.stride)
        projected = self.design.conv(features, 1, self.stride, name="shortcut_conv")(inputs)
        if kind == "convolution":
            return projected
        return self.design.norm(train, name="shortcut_bn")(projected)


class Stage(nn.Module):
    """Blocks one after the other, named by their position; the first one may have a stride.

    Attributes:
        sizes: of the stage.
        drop_paths: for each block, the rate of stochastic depth.
        design: of the network.
    """

    sizes: StageSizes
    drop_paths: tuple[float, ...]
    design: Design

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """From (batch, height, width, channels) to (batch, h/stride, w/stride, features).

        Sizes that the stride does not divide are rounded up.
        """
        for position, drop_path in enumerate(self.drop_paths):
            stride = self.sizes.stride if position == 0 else 1
            block = Block(self.sizes, stride, drop_path, self.design, name=str(position))
            x = block(x, train=train)
        return x


@dataclass(frozen=True)
class StemSizes:
    """The sizes of a stem.

    Attributes:
        features: channels that leave it.
        size: side of its convolution.
        stride: of its convolution.
        pool: the 3x3 max pooling with stride 2 at its end: "padded" by one pixel, "ceil" for none
            but a last window that need not be full, or "none".
        use_bias: whether its convolution has a bias.
    """

    features: int
    size: int = 3
    stride: int = 1
    pool: str = "none"
    use_bias: bool = False


class Stem(nn.Module):
    """The first convolution, and for large images a 3x3 max pooling with stride 2."""

    sizes: StemSizes
    design: Design

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """From (batch, height, width, channels) to (batch, smaller height, width, features)."""
        sizes, design = self.sizes, replace(self.design, use_bias=self.sizes.use_bias)
        x = design.conv(sizes.features, sizes.size, sizes.stride, name="conv")(images)
        x = nn.relu(design.norm(train, name="bn")(x))
        if sizes.pool == "padded":
            return max_pool(x, 3, 2, padding=1)
        return max_pool(x, 3, 2, ceil=True) if sizes.pool == "ceil" else x


class ResNet(nn.Module):
    """A residual network.

    Attributes:
        stem: sizes of the stem.
        body: sizes of the stages.
        design: of the blocks.
        num_classes: outputs of the head, 0 for features without a head.
        drop_path: rate of stochastic depth of the last block; from the first one, which has none,
            it rises evenly (arXiv 1603.09382, section 3).
    """

    stem: StemSizes
    body: tuple[StageSizes, ...]
    design: Design
    num_classes: int
    drop_path: float = 0.0

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages from input to head."""
        return ("stem", *(f"layer{i + 1}" for i in range(len(self.body))), "pool", "head")

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, start: str | None = None, stop: str | None = None
    ) -> jax.Array:
        """Images (batch, height, width, channels) to logits (batch, num_classes).

        With `start`, `x` is what enters that stage; with `stop`, what would enter it comes out.
        """
        for stage in stages_between(self.stages, start, stop):
            x = self._run(stage, x, train)
        return x

    def _run(self, stage: str, x: jax.Array, train: bool) -> jax.Array:
        if stage == "stem":
            return Stem(self.stem, self.design, name=stage)(x, train=train)
        if stage == "pool":
            return global_mean(x)
        if stage == "head":
            return classify(x, self.num_classes)
        position = int(stage.removeprefix("layer")) - 1
        sizes = self.body[position]
        before = sum(stage.blocks for stage in self.body[:position])
        last = max(sum(stage.blocks for stage in self.body) - 1, 1)
        drop_paths = tuple(self.drop_path * (before + i) / last for i in range(sizes.blocks))
        return Stage(sizes, drop_paths, self.design, name=stage)(x, train=train)


# ---------------------------------------------------------------------------------------------
# Rules: where files of each source keep what


def _torch_rules(shortcut: str, head: str) -> tuple[Rule, ...]:
    block, here = "layer{i}.{j}", "layer{i}/{j}"
    return (
        *torch_layer("conv1", "stem/conv"),
        *torch_batch_norm("bn1", "stem/bn"),
        *torch_layer(f"{block}.conv{{k}}", f"{here}/conv{{k}}"),
        *torch_batch_norm(f"{block}.bn{{k}}", f"{here}/bn{{k}}"),
        *torch_layer(f"{block}.{shortcut}.0", f"{here}/shortcut_conv"),
        *torch_batch_norm(f"{block}.{shortcut}.1", f"{here}/shortcut_bn"),
        *torch_layer(head, "head", "dense", bias=True),
    )


# timm has the same names.
TORCHVISION_RULES = _torch_rules("downsample", "fc")

# https://github.com/akamaster/pytorch_resnet_cifar10, whose files hold `nn.DataParallel` modules:
# each name has `module.` before it.
PYTORCH_RESNET_CIFAR10_RULES = _torch_rules("shortcut", "linear")


def transformers_rules(network: str, positions: tuple[int, ...]) -> tuple[Rule, ...]:
    """The rules for ResNets and RegNets of Hugging Face's transformers.

    Args:
        network: what stands before all names but those of the head, "resnet" or "regnet".
        positions: where the convolutions stand among the layers of a block.

    Source: https://github.com/huggingface/transformers, models/resnet and models/regnet.
    """

    def convolution(source: str, conv: str, norm: str) -> tuple[Rule, ...]:
        return (
            *torch_layer(f"{network}.{source}.convolution", conv),
            *torch_batch_norm(f"{network}.{source}.normalization", norm),
        )

    rules = [*convolution("embedder.embedder", "stem/conv", "stem/bn")]
    for stage in range(4):
        block, here = f"encoder.stages.{stage}.layers.{{j}}", f"layer{stage + 1}/{{j}}"
        for k, position in enumerate(positions, start=1):
            rules += convolution(f"{block}.layer.{position}", f"{here}/conv{k}", f"{here}/bn{k}")
        shortcut = (f"{here}/shortcut_conv", f"{here}/shortcut_bn")
        rules += convolution(f"{block}.shortcut", *shortcut)
    return (*rules, *torch_layer("classifier.1", "head", "dense", bias=True))


def _keras_rules(blocks: tuple[int, ...]) -> tuple[Rule, ...]:
    """Keras counts the stem as the first stage, and blocks from 1 on.

    Source: https://github.com/keras-team/keras, keras/src/applications/resnet.py. The head of the
    published files is called `probs`, that of networks which Keras builds today `predictions`.
    """
    layers = [("conv1_conv", "stem/conv", "conv1_bn", "stem/bn")]
    for stage, count in enumerate(blocks):
        for j in range(count):
            block, here = f"conv{stage + 2}_block{j + 1}", f"layer{stage + 1}/{j}"
            layers += [
                (f"{block}_{k}_conv", f"{here}/conv{k}", f"{block}_{k}_bn", f"{here}/bn{k}")
                for k in (1, 2, 3)
            ]
            if j == 0:
                shortcut = (f"{here}/shortcut_conv", f"{block}_0_bn", f"{here}/shortcut_bn")
                layers.append((f"{block}_0_conv", *shortcut))
    heads = (rule for name in ("probs", "predictions") for rule in _keras_head(name))
    return (*_keras_pairs(layers), *heads)


def _keras_pairs(layers: list[tuple[str, str, str, str]]) -> tuple[Rule, ...]:
    """Rules for convolutions with biases, each with its BatchNorm; empty names for none."""
    rules: list[Rule] = []
    for conv_source, conv_target, norm_source, norm_target in layers:
        rules += keras_layer(conv_source, conv_target, bias=True)
        if norm_source:
            rules += keras_batch_norm(norm_source, norm_target)
    return tuple(rules)


def _keras_head(name: str) -> tuple[Rule, ...]:
    return keras_layer(name, "head", bias=True)


def _caffe_rules(blocks: tuple[int, ...], numbered: bool) -> tuple[Rule, ...]:
    """The authors' names: a letter for each block, or `a`, `b1`, `b2` and so on in long stages.

    Caffe's BatchNorm has neither scale nor bias, which a Scale layer behind it adds.

    Args:
        blocks: number of blocks in each stage.
        numbered: whether the third and fourth stage, with the stem as the first, are long ones.

    Source: https://github.com/KaimingHe/deep-residual-networks, folder `prototxt`.
    """
    rules = [*_caffe_layer("conv1", "_conv1", "stem/conv", "stem/bn")]
    rules.append(Rule("conv1/1", "params/stem/conv/bias"))
    for stage, count in enumerate(blocks):
        names = {str(j): chr(ord("a") + j) for j in range(count)}
        if numbered and stage in (1, 2):
            names = {"0": "a", "{j}": "b{j}"}
        for j, letter in names.items():
            block, here = f"{stage + 2}{letter}_branch", f"layer{stage + 1}/{j}"
            for k, branch in enumerate("abc", start=1):
                targets = (f"{here}/conv{k}", f"{here}/bn{k}")
                rules += _caffe_layer(f"res{block}2{branch}", f"{block}2{branch}", *targets)
            if j == "0":
                targets = (f"{here}/shortcut_conv", f"{here}/shortcut_bn")
                rules += _caffe_layer(f"res{block}1", f"{block}1", *targets)
    head = (Rule("fc1000/0", "params/head/kernel", "dense"), Rule("fc1000/1", "params/head/bias"))
    return (*rules, *head)


def _caffe_layer(layer: str, norm: str, conv: str, bn: str) -> tuple[Rule, ...]:
    """A convolution with the BatchNorm and the Scale behind it."""
    return (
        Rule(f"{layer}/0", f"params/{conv}/kernel", "conv"),
        Rule(f"bn{norm}/0", f"stats/{bn}/mean"),
        Rule(f"bn{norm}/1", f"stats/{bn}/var"),
        Rule(f"scale{norm}/0", f"params/{bn}/scale"),
        Rule(f"scale{norm}/1", f"params/{bn}/bias"),
    )


# The ResNet-8 of MLPerf Tiny (Banbury et al. 2021, arXiv 2106.07597) has Keras's own names, which
# count the layers in the order in which they were made. The convolutions of its shortcuts have no
# BatchNorm. https://github.com/mlcommons/tiny, benchmark/training/image_classification
MLPERF_TINY_RULES = (
    *_keras_pairs(
        [
            ("conv2d", "stem/conv", "batch_normalization", "stem/bn"),
            ("conv2d_1", "layer1/0/conv1", "batch_normalization_1", "layer1/0/bn1"),
            ("conv2d_2", "layer1/0/conv2", "batch_normalization_2", "layer1/0/bn2"),
            ("conv2d_3", "layer2/0/conv1", "batch_normalization_3", "layer2/0/bn1"),
            ("conv2d_4", "layer2/0/conv2", "batch_normalization_4", "layer2/0/bn2"),
            ("conv2d_5", "layer2/0/shortcut_conv", "", ""),
            ("conv2d_6", "layer3/0/conv1", "batch_normalization_5", "layer3/0/bn1"),
            ("conv2d_7", "layer3/0/conv2", "batch_normalization_6", "layer3/0/bn2"),
            ("conv2d_8", "layer3/0/shortcut_conv", "", ""),
        ]
    ),
    *_keras_head("dense"),
)


# ---------------------------------------------------------------------------------------------
# Variants


@dataclass(frozen=True)
class Variant:
    """A row of the papers' tables.

    Attributes:
        blocks: number of blocks in each stage.
        bottleneck: whether they are bottlenecks.
        widths: channels of each stage as multiples of the stem's, a quarter of a bottleneck's.
        strides: of each stage.
        stem_stride: of the stem of networks for small images.
        groups: of a bottleneck's 3x3 convolution, the cardinality.
        group_width: channels of each group in the first stage.
        paper: where the network is published.
    """

    blocks: tuple[int, ...]
    bottleneck: bool = False
    widths: tuple[int, ...] = (1, 2, 4, 8)
    strides: tuple[int, ...] = (1, 2, 2, 2)
    stem_stride: int = 1
    groups: int = 1
    group_width: int = 64
    paper: str = PAPER


# Table 1 of the paper.
_PLAIN_VARIANTS = {
    "resnet18": Variant((2, 2, 2, 2)),
    "resnet34": Variant((3, 4, 6, 3)),
    "resnet50": Variant((3, 4, 6, 3), bottleneck=True),
    "resnet101": Variant((3, 4, 23, 3), bottleneck=True),
    "resnet152": Variant((3, 8, 36, 3), bottleneck=True),
}

_RESNET50, _RESNET101 = _PLAIN_VARIANTS["resnet50"], _PLAIN_VARIANTS["resnet101"]

IMAGENET_VARIANTS = {
    **_PLAIN_VARIANTS,
    # Tables 1 and 4 of the ResNeXt paper; 32x8d is of Mahajan et al. 2018 (arXiv 1805.00932).
    "resnext50_32x4d": replace(_RESNET50, groups=32, group_width=4, paper=RESNEXT_PAPER),
    "resnext101_32x8d": replace(_RESNET101, groups=32, group_width=8, paper=RESNEXT_PAPER),
    "resnext101_64x4d": replace(_RESNET101, groups=64, group_width=4, paper=RESNEXT_PAPER),
    # Table 8 of the Wide ResNet paper; one group, twice as wide as elsewhere.
    "wide_resnet50_2": replace(_RESNET50, group_width=128, paper=WIDE_PAPER),
    "wide_resnet101_2": replace(_RESNET101, group_width=128, paper=WIDE_PAPER),
}

# Section 4.2 and table 6 of the paper: n blocks a stage give depth 6n + 2. Depths 8 and 14 are the
# same design, smaller.
CIFAR_VARIANTS = {
    f"cifar_resnet{6 * n + 2}": Variant((n, n, n), widths=(1, 2, 4), strides=(1, 2, 2))
    for n in (1, 2, 3, 5, 7, 9, 18)
}

SMALL_VARIANTS = {
    **CIFAR_VARIANTS,
    # Our own, for images of 16x16: most channels work at 8x8 and 4x4, where they cost little.
    "glyph_resnet8": Variant((1, 1, 1), widths=(1, 2, 2), strides=(1, 2, 1), stem_stride=2),
}


# ---------------------------------------------------------------------------------------------
# Sources

# ImageNet's usual channel means and deviations, as torchvision documents them for its weights:
# https://docs.pytorch.org/vision/stable/models.html
IMAGENET_PREPROCESS = Preprocess(
    size=(224, 224),
    channels=3,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    crop_fraction=0.875,
)

# https://github.com/huggingface/pytorch-image-models, timm/models/resnet.py, recipes A1 to A3.
TIMM_PREPROCESS = replace(IMAGENET_PREPROCESS, interpolation="bicubic", crop_fraction=0.95)

# The `preprocessor_config.json` of microsoft/resnet-50 and facebook/regnet-y-040.
TRANSFORMERS_PREPROCESS = replace(IMAGENET_PREPROCESS, interpolation="bicubic")

# The channel means of the authors' `ResNet_mean.binaryproto`, an image, which Keras takes too (mode
# "caffe" of keras/src/applications/imagenet_utils.py); bytes as they are, in the order of OpenCV.
CAFFE_PREPROCESS = Preprocess(
    size=(224, 224),
    channels=3,
    scale=None,
    mean=(103.939, 116.779, 123.68),
    crop_fraction=0.875,
    channel_order="bgr",
)

_KERAS_OPTIONS = {"stride_on": "1x1", "biases": "all", "epsilon": 1.001e-5, "momentum": 0.99}
_CAFFE_OPTIONS = {"stride_on": "1x1", "stem_pool": "ceil"}


def _imagenet_sources(name: str, blocks: tuple[int, ...]) -> tuple[Source, ...]:
    """The sources of a network with as many blocks in each stage, the usual one first."""
    torch = (
        Source("torchvision", TORCHVISION_RULES, IMAGENET_PREPROCESS),
        Source("timm", TORCHVISION_RULES, TIMM_PREPROCESS),
    )
    if name not in _PLAIN_VARIANTS:
        return torch
    bottleneck = _PLAIN_VARIANTS[name].bottleneck
    rules = transformers_rules("resnet", (0, 1, 2) if bottleneck else (0, 1))
    sources = (*torch, Source("transformers", rules, TRANSFORMERS_PREPROCESS))
    if not bottleneck:
        return sources
    # Of the authors' networks, only ResNet-50 has a bias in its first convolution.
    is_50 = name == "resnet50"
    caffe = {**_CAFFE_OPTIONS, "biases": "stem"} if is_50 else _CAFFE_OPTIONS
    return (
        *sources,
        Source("keras", _keras_rules(blocks), CAFFE_PREPROCESS, _KERAS_OPTIONS),
        Source("caffe", _caffe_rules(blocks, not is_50), CAFFE_PREPROCESS, caffe),
    )


def _cifar_sources(name: str, size: tuple[int, int]) -> tuple[Source, ...]:
    # The published weights were trained with the normalisation of ImageNet.
    how = replace(IMAGENET_PREPROCESS, size=size, crop_fraction=1.0)
    akamaster = Source("pytorch_resnet_cifar10", PYTORCH_RESNET_CIFAR10_RULES, how)
    if name != "cifar_resnet8":
        return (akamaster,)
    mlperf_tiny = Source(
        "mlperf_tiny",
        MLPERF_TINY_RULES,
        Preprocess(size, channels=3, scale=None),
        options={
            "shortcut": "convolution",
            "biases": "all",
            "padding": "SAME",
            "epsilon": 1e-3,
            "momentum": 0.99,
        },
        ignore=(re.compile("optimizer_weights/.*"),),
    )
    return (akamaster, mlperf_tiny)


# ---------------------------------------------------------------------------------------------
# Builders


def imagenet_resnet(
    name: str,
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    input_size: tuple[int, int] = (224, 224),
    width: int = 64,
    blocks: tuple[int, ...] | None = None,
    groups: int | None = None,
    drop_path: float = 0.0,
    stride_on: str = "3x3",
    stem_pool: str = "padded",
    biases: str = "none",
    epsilon: float = 1e-5,
    momentum: float = 0.9,
) -> tuple[ModelSpec, nn.Module]:
    """A ResNet, ResNeXt or Wide ResNet for images as large as those of ImageNet.

    Args:
        name: a key of `IMAGENET_VARIANTS`.
        num_classes: outputs of the head, 0 for none.
        in_channels: input channels.
        input_size: (height, width) of the images.
        width: channels that leave the stem; 64 in the papers. Smaller ones make test networks.
        blocks: number of blocks in each of the four stages, by default the variant's.
        groups: of the 3x3 convolutions of bottlenecks, by default the variant's.
        drop_path: rate of stochastic depth of the last block.
        stride_on: "3x3" or "1x1", the convolution of a bottleneck that has the stride.
        stem_pool: "padded" for the max pooling of PyTorch, "ceil" for that of Caffe.
        biases: "none", "stem" or "all", the convolutions that have one.
        epsilon: of BatchNorm.
        momentum: of BatchNorm, the share of the old statistics that stays in each step.

    Raises:
        ModelError: a number is out of its range, or an option is not among those named.
    """
    variant = IMAGENET_VARIANTS[name]
    blocks = variant.blocks if blocks is None else tuple(blocks)
    groups = variant.groups if groups is None else groups
    height, breadth = input_size
    counts = {f"blocks[{i}]": count for i, count in enumerate(blocks)}
    sizes = {"in_channels": in_channels, "width": width, "groups": groups, **counts}
    check_sizes(name, num_classes, **sizes, height=height, breadth=breadth)
    check_rates(name, drop_path=drop_path)
    check_choice(name, "stride_on", stride_on, ("3x3", "1x1"))
    check_choice(name, "stem_pool", stem_pool, ("padded", "ceil"))
    check_choice(name, "biases", biases, ("none", "stem", "all"))
    if len(blocks) != 4:
        raise ModelError(f"{name}: expected blocks for 4 stages, found {blocks}")
    if groups > 1 and not variant.bottleneck:
        raise ModelError(f"{name}: expected groups 1 in a network of basic blocks, found {groups}")
    expansion = 4 if variant.bottleneck else 1
    inner = [width * factor * variant.group_width // 64 * groups for factor in variant.widths]
    if not inner[0]:
        least = 64 // variant.group_width
        raise ModelError(f"{name}: expected width {least} at least, found {width}")
    module = ResNet(
        stem=StemSizes(width, 7, 2, stem_pool, biases != "none"),
        body=tuple(
            StageSizes(count, width * factor * expansion, channels, groups, stride)
            for count, factor, channels, stride in zip(
                blocks, variant.widths, inner, variant.strides, strict=True
            )
        ),
        design=Design(
            bottleneck=variant.bottleneck,
            stride_on=stride_on,
            use_bias=biases == "all",
            epsilon=epsilon,
            momentum=momentum,
        ),
        num_classes=num_classes,
        drop_path=drop_path,
    )
    spec = ModelSpec(
        name=name,
        stages=module.stages,
        head="head",
        stem="stem/conv",
        input_size=(height, breadth),
        in_channels=in_channels,
        sources=_imagenet_sources(name, blocks),
        paper=variant.paper,
    )
    return spec, module


def cifar_resnet(
    name: str,
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    input_size: tuple[int, int] = (32, 32),
    width: int = 16,
    shortcut: str = "pad",
    biases: str = "none",
    padding: str | None = None,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
) -> tuple[ModelSpec, nn.Module]:
    """A residual network for small images, of depth 8, 14, 20, 32, 44, 56 or 110.

    Args:
        name: a key of `SMALL_VARIANTS`.
        num_classes: outputs of the head, 0 for none.
        in_channels: input channels.
        input_size: (height, width) of the images.
        width: channels of the stem and the first stage; 16 in the paper.
        shortcut: "pad" for the paper's option A, "projection" for option B, "convolution" for one
            without BatchNorm.
        biases: "none" or "all", the convolutions that have one.
        padding: `None` for that of PyTorch, "SAME" for that of TensorFlow.
        epsilon: of BatchNorm.
        momentum: of BatchNorm, the share of the old statistics that stays in each step.

    Raises:
        ModelError: an option is not among those named, or a number is below 1.
    """
    variant = SMALL_VARIANTS[name]
    height, breadth = input_size
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "width": width}
    check_sizes(name, **sizes, height=height, breadth=breadth)
    check_choice(name, "shortcut", shortcut, ("pad", "projection", "convolution"))
    check_choice(name, "biases", biases, ("none", "all"))
    check_choice(name, "padding", padding, (None, "SAME"))
    module = ResNet(
        stem=StemSizes(width, stride=variant.stem_stride, use_bias=biases == "all"),
        body=tuple(
            StageSizes(count, width * factor, width * factor, stride=stride)
            for count, factor, stride in zip(
                variant.blocks, variant.widths, variant.strides, strict=True
            )
        ),
        design=Design(
            shortcut=shortcut,
            use_bias=biases == "all",
            padding=padding,
            epsilon=epsilon,
            momentum=momentum,
        ),
        num_classes=num_classes,
    )
    spec = ModelSpec(
        name=name,
        stages=module.stages,
        head="head",
        stem="stem/conv",
        input_size=(height, breadth),
        in_channels=in_channels,
        sources=_cifar_sources(name, (height, breadth)),
        paper=PAPER,
    )
    return spec, module


# ---------------------------------------------------------------------------------------------
# Published weights


def torchvision_weights(
    file: str, top1: float, resized: int = 256, licence: str = "BSD-3-Clause"
) -> Weights:
    """Weights of torchvision for images of 224x224.

    Args:
        file: the file's name without its ending, whose last part begins its SHA-256.
        top1: accuracy as torchvision states it.
        resized: the shorter side of images before the central crop.
        licence: of the weights.

    Source: the `Weights` in https://github.com/pytorch/vision, torchvision/models.
    """
    sha256 = file.rpartition("-")[2]
    return Weights(
        f"https://download.pytorch.org/models/{file}.pth#sha256={sha256}",
        "torchvision",
        licence,
        top1,
        preprocess=None
        if resized == 256
        else replace(IMAGENET_PREPROCESS, crop_fraction=224 / resized),
    )


def timm_weights(
    name: str,
    licence: str = "Apache-2.0",
    top1: float | None = None,
    data: str = "ImageNet-1k",
    preprocess: Preprocess | None = None,
) -> Weights:
    """Weights of timm by their name on the Hugging Face Hub.

    Source: the `default_cfgs` in https://github.com/huggingface/pytorch-image-models, timm/models.
    """
    return Weights(f"hf://timm/{name}", "timm", licence, top1, data, preprocess)


def _semi_supervised(name: str, top1: float) -> Weights:
    """Weights of https://github.com/facebookresearch/semi-supervised-ImageNet1K-models."""
    data = "a billion images of Instagram with hashtags, then ImageNet-1k"
    return timm_weights(name, "CC-BY-NC-4.0", top1, data, IMAGENET_PREPROCESS)


def _transformers(name: str) -> Weights:
    return Weights(f"hf://microsoft/{name}", "transformers", "Apache-2.0")


def _keras(name: str, top1: float) -> Weights:
    """Weights of https://keras.io/api/applications, which are those of the authors."""
    folder = "https://storage.googleapis.com/tensorflow/keras-applications/resnet"
    file = f"{name}_weights_tf_dim_ordering_tf_kernels.h5"
    return Weights(f"{folder}/{file}", "keras", "MIT", top1)


IMAGENET_WEIGHTS: Mapping[str, tuple[Weights, ...]] = {
    "resnet18": (
        torchvision_weights("resnet18-f37072fd", 69.758),
        timm_weights("resnet18.a1_in1k"),
        _semi_supervised("resnet18.fb_swsl_ig1b_ft_in1k", 73.4),
        _transformers("resnet-18"),
    ),
    "resnet34": (
        torchvision_weights("resnet34-b627a593", 73.314),
        timm_weights("resnet34.a1_in1k"),
        _transformers("resnet-34"),
    ),
    "resnet50": (
        torchvision_weights("resnet50-11ad3fa6", 80.858, 232),
        torchvision_weights("resnet50-0676ba61", 76.13),
        # Wightman et al. 2021, "ResNet strikes back", arXiv 2110.00476, abstract.
        timm_weights("resnet50.a1_in1k", top1=80.4),
        _semi_supervised("resnet50.fb_swsl_ig1b_ft_in1k", 81.2),
        _transformers("resnet-50"),
        _keras("resnet50", 74.9),
    ),
    "resnet101": (
        torchvision_weights("resnet101-cd907fc2", 81.886, 232),
        torchvision_weights("resnet101-63fe2227", 77.374),
        timm_weights("resnet101.a1h_in1k"),
        _transformers("resnet-101"),
        _keras("resnet101", 76.4),
    ),
    "resnet152": (
        torchvision_weights("resnet152-f82ba261", 82.284, 232),
        torchvision_weights("resnet152-394f9c45", 78.312),
        timm_weights("resnet152.a1h_in1k"),
        _transformers("resnet-152"),
        _keras("resnet152", 76.6),
    ),
    "resnext50_32x4d": (
        torchvision_weights("resnext50_32x4d-1a0047aa", 81.198, 232),
        torchvision_weights("resnext50_32x4d-7cdf4587", 77.618),
        timm_weights("resnext50_32x4d.a1h_in1k"),
        _semi_supervised("resnext50_32x4d.fb_swsl_ig1b_ft_in1k", 82.2),
    ),
    "resnext101_32x8d": (
        torchvision_weights("resnext101_32x8d-110c445d", 82.834, 232),
        torchvision_weights("resnext101_32x8d-8ba56ff5", 79.312),
        _semi_supervised("resnext101_32x8d.fb_swsl_ig1b_ft_in1k", 84.3),
    ),
    "resnext101_64x4d": (
        torchvision_weights("resnext101_64x4d-173b62eb", 83.246, 232),
        timm_weights("resnext101_64x4d.c1_in1k"),
    ),
    "wide_resnet50_2": (
        torchvision_weights("wide_resnet50_2-9ba9bcbe", 81.602, 232),
        torchvision_weights("wide_resnet50_2-95faca4d", 78.468),
        timm_weights(
            "wide_resnet50_2.racm_in1k", preprocess=replace(TIMM_PREPROCESS, crop_fraction=0.875)
        ),
    ),
    "wide_resnet101_2": (
        torchvision_weights("wide_resnet101_2-d733dc28", 82.51, 232),
        torchvision_weights("wide_resnet101_2-32ee1156", 78.848),
    ),
}


def _akamaster(file: str) -> Weights:
    folder = "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models"
    reference = f"{folder}/{file}.th#sha256={file.rpartition('-')[2]}"
    return Weights(reference, "pytorch_resnet_cifar10", "BSD-2-Clause", data="CIFAR-10")


CIFAR_WEIGHTS: Mapping[str, tuple[Weights, ...]] = {
    "cifar_resnet8": (
        Weights(
            "https://github.com/mlcommons/tiny/raw/master/benchmark/training/image_classification/"
            "trained_models/pretrainedResnet.h5#sha256="
            "5f938a8eea605438cc7360aa13c987bc6d7bd0c8d931b2917361ae7ae4eeda2f",
            "mlperf_tiny",
            "Apache-2.0",
            data="CIFAR-10",
        ),
    ),
    "cifar_resnet20": (_akamaster("resnet20-12fca82f"),),
    "cifar_resnet32": (_akamaster("resnet32-d509ac18"),),
    "cifar_resnet44": (_akamaster("resnet44-014dd654"),),
    "cifar_resnet56": (_akamaster("resnet56-4bfd9763"),),
    "cifar_resnet110": (_akamaster("resnet110-1d1ed7c2"),),
}


# ---------------------------------------------------------------------------------------------
# Families

IMAGENET_RESNETS = Family(
    name="resnet",
    build=imagenet_resnet,
    # https://docs.pytorch.org/vision/stable/models.html
    parameters={
        "resnet18": 11_689_512,
        "resnet34": 21_797_672,
        "resnet50": 25_557_032,
        "resnet101": 44_549_160,
        "resnet152": 60_192_808,
        "resnext50_32x4d": 25_028_904,
        "resnext101_32x8d": 88_791_336,
        "resnext101_64x4d": 83_455_272,
        "wide_resnet50_2": 68_883_240,
        "wide_resnet101_2": 126_886_696,
    },
    aliases={f"resnet-{depth}": (f"resnet{depth}", {}) for depth in (18, 34, 50, 101, 152)},
    weights=IMAGENET_WEIGHTS,
)

CIFAR_RESNETS = Family(
    name="cifar_resnet",
    build=cifar_resnet,
    # Table 6 of the paper gives 0.27, 0.46, 0.66, 0.85 and 1.7 million for depths 20 to 110; these
    # are the exact numbers.
    parameters={
        "cifar_resnet8": 75_290,
        "cifar_resnet14": 172_506,
        "cifar_resnet20": 269_722,
        "cifar_resnet32": 464_154,
        "cifar_resnet44": 658_586,
        "cifar_resnet56": 853_018,
        "cifar_resnet110": 1_727_962,
    },
    weights=CIFAR_WEIGHTS,
)

GLYPH_RESNETS = Family(
    name="glyph_resnet",
    build=functools.partial(
        cifar_resnet, in_channels=1, width=32, input_size=(16, 16), shortcut="projection"
    ),
    parameters={"glyph_resnet8": 151_274},
)

FAMILIES = (IMAGENET_RESNETS, CIFAR_RESNETS, GLYPH_RESNETS)
