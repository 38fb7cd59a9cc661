"""Residual networks, and what was made of them.

*   ResNet for ImageNet (He et al. 2016, "Deep Residual Learning", arXiv 1512.03385, section 3.3,
    table 1): a 7x7 stem with max pooling and four stages, ResNet-18/34 of basic blocks,
    ResNet-50/101/152 of bottlenecks;
*   ResNeXt (Xie et al. 2017, "Aggregated Residual Transformations", arXiv 1611.05431, table 1): the
    3x3 convolution of a bottleneck in groups, 32x4d for 32 groups of 4 channels;
*   Wide ResNet for ImageNet (Zagoruyko & Komodakis 2016, arXiv 1605.07146, section 3 and table 8):
    the 3x3 convolution of a bottleneck with twice the channels.

ResNets for small images, in `cifar_resnet.py`, and RegNet, in `regnet.py`, are built of the same
blocks.

The sources of weights differ in more than names. Torch puts a bottleneck's stride on its 3x3
convolution ("ResNet v1.5"); the authors, in Caffe, on the first 1x1, and so does Keras, whose
weights are theirs. Caffe's max pooling has no padding, but counts a last window that is not full;
Keras has biases in its convolutions, and another epsilon. The builders have options for all of it.

All networks end in a global mean, the parameter-free stage `pool`, and a dense `head`. Convolutions
are padded by explicit numbers, since "SAME" pads strided ones on other sides than the published
weights were trained with.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxtransfer.errors import ModelError
from jaxtransfer.mapping import Rule
from jaxtransfer.models.family import Family
from jaxtransfer.models.layers import (
    BatchNorm,
    SqueezeExcitation,
    StochasticDepth,
    classify,
    conv,
    global_mean,
    max_pool,
    stage_rates,
)
from jaxtransfer.models.naming import (
    keras_batch_norm,
    keras_layer,
    torch_batch_norm,
    torch_layer,
)
from jaxtransfer.models.preprocessing import CAFFE, IMAGENET, IMAGENET_BICUBIC
from jaxtransfer.models.resnet_weights import WEIGHTS
from jaxtransfer.models.spec import ModelSpec, Source
from jaxtransfer.models.stages import StagedNetwork, check_choice, check_rates, check_sizes

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
                x = SqueezeExcitation(reduced, name="squeeze_excitation")(x)
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


class ResNet(StagedNetwork):
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

    def _run(self, stage: str, x: jax.Array, train: bool) -> jax.Array:
        if stage == "stem":
            return Stem(self.stem, self.design, name=stage)(x, train=train)
        if stage == "pool":
            return global_mean(x)
        if stage == "head":
            return classify(x, self.num_classes)
        position = int(stage.removeprefix("layer")) - 1
        sizes = self.body[position]
        blocks = [stage.blocks for stage in self.body]
        drop_paths = stage_rates(self.drop_path, blocks, position)
        return Stage(sizes, drop_paths, self.design, name=stage)(x, train=train)


# ---------------------------------------------------------------------------------------------
# Rules: where files of each source keep what


def torch_rules(shortcut: str, head: str) -> tuple[Rule, ...]:
    """The rules for files of PyTorch, by what they call shortcuts and head."""
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
TORCHVISION_RULES = torch_rules("downsample", "fc")


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
    return (
        *keras_pairs(layers),
        *keras_layer("probs", "head", bias=True),
        *keras_layer("predictions", "head", bias=True),
    )


def keras_pairs(layers: list[tuple[str, str, str, str]]) -> tuple[Rule, ...]:
    """Rules for convolutions with biases, each with its BatchNorm; empty names for none."""
    rules: list[Rule] = []
    for conv_source, conv_target, norm_source, norm_target in layers:
        rules += keras_layer(conv_source, conv_target, bias=True)
        if norm_source:
            rules += keras_batch_norm(norm_source, norm_target)
    return tuple(rules)


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


# ---------------------------------------------------------------------------------------------
# Variants


@dataclass(frozen=True)
class Variant:
    """A row of the papers' tables.

    Attributes:
        blocks: number of blocks in each of the four stages.
        bottleneck: whether they are bottlenecks.
        groups: of a bottleneck's 3x3 convolution, the cardinality.
        group_width: channels of each group in the first stage.
        paper: where the network is published.
    """

    blocks: tuple[int, ...]
    bottleneck: bool = False
    groups: int = 1
    group_width: int = 64
    paper: str = PAPER


# In all tables: channels of each stage as multiples of the stem's, a quarter of a bottleneck's; and
# strides of each stage.
WIDTHS = (1, 2, 4, 8)
STRIDES = (1, 2, 2, 2)

# Table 1 of the paper.
_PLAIN_VARIANTS = {
    "resnet18": Variant((2, 2, 2, 2)),
    "resnet34": Variant((3, 4, 6, 3)),
    "resnet50": Variant((3, 4, 6, 3), bottleneck=True),
    "resnet101": Variant((3, 4, 23, 3), bottleneck=True),
    "resnet152": Variant((3, 8, 36, 3), bottleneck=True),
}

_RESNET50, _RESNET101 = _PLAIN_VARIANTS["resnet50"], _PLAIN_VARIANTS["resnet101"]

VARIANTS = {
    **_PLAIN_VARIANTS,
    # Tables 1 and 4 of the ResNeXt paper; 32x8d is of Mahajan et al. 2018 (arXiv 1805.00932).
    "resnext50_32x4d": replace(_RESNET50, groups=32, group_width=4, paper=RESNEXT_PAPER),
    "resnext101_32x8d": replace(_RESNET101, groups=32, group_width=8, paper=RESNEXT_PAPER),
    "resnext101_64x4d": replace(_RESNET101, groups=64, group_width=4, paper=RESNEXT_PAPER),
    # Table 8 of the Wide ResNet paper; one group, twice as wide as elsewhere.
    "wide_resnet50_2": replace(_RESNET50, group_width=128, paper=WIDE_PAPER),
    "wide_resnet101_2": replace(_RESNET101, group_width=128, paper=WIDE_PAPER),
}

# ---------------------------------------------------------------------------------------------
# Sources

# https://github.com/huggingface/pytorch-image-models, timm/models/resnet.py, recipes A1 to A3.
TIMM_PREPROCESS = replace(IMAGENET_BICUBIC, crop_fraction=0.95)

_KERAS_OPTIONS = {"stride_on": "1x1", "biases": "all", "epsilon": 1.001e-5, "momentum": 0.99}
_CAFFE_OPTIONS = {"stride_on": "1x1", "stem_pool": "ceil"}


def _sources(name: str, blocks: tuple[int, ...]) -> tuple[Source, ...]:
    """The sources of a network with as many blocks in each stage, the usual one first."""
    torch = (
        Source("torchvision", TORCHVISION_RULES, IMAGENET),
        Source("timm", TORCHVISION_RULES, TIMM_PREPROCESS),
    )
    if name not in _PLAIN_VARIANTS:
        return torch
    bottleneck = _PLAIN_VARIANTS[name].bottleneck
    rules = transformers_rules("resnet", (0, 1, 2) if bottleneck else (0, 1))
    sources = (*torch, Source("transformers", rules, IMAGENET_BICUBIC))
    if not bottleneck:
        return sources
    # Of the authors' networks, only ResNet-50 has a bias in its first convolution.
    is_50 = name == "resnet50"
    caffe = {**_CAFFE_OPTIONS, "biases": "stem"} if is_50 else _CAFFE_OPTIONS
    return (
        *sources,
        Source("keras", _keras_rules(blocks), CAFFE, _KERAS_OPTIONS),
        Source("caffe", _caffe_rules(blocks, not is_50), CAFFE, caffe),
    )


# ---------------------------------------------------------------------------------------------
# Builder


def resnet(
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
        name: a key of `VARIANTS`.
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
    variant = VARIANTS[name]
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
    inner = [width * factor * variant.group_width // 64 * groups for factor in WIDTHS]
    if not inner[0]:
        least = 64 // variant.group_width
        raise ModelError(f"{name}: expected width {least} at least, found {width}")
    module = ResNet(
        stem=StemSizes(width, 7, 2, stem_pool, biases != "none"),
        body=tuple(
            StageSizes(count, width * factor * expansion, channels, groups, stride)
            for count, factor, channels, stride in zip(blocks, WIDTHS, inner, STRIDES, strict=True)
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
        sources=_sources(name, blocks),
        paper=variant.paper,
    )
    return spec, module


# ---------------------------------------------------------------------------------------------
# Family

RESNETS = Family(
    name="resnet",
    build=resnet,
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
    weights=WEIGHTS,
)

FAMILIES = (RESNETS,)
