"""Residual networks (He et al. 2016, "Deep Residual Learning", arXiv 1512.03385).

Two kinds:

*   for ImageNet (section 3.3, table 1): a 7x7 stem with max pooling and four stages, ResNet-18/34
    of basic blocks, ResNet-50/101/152 of bottlenecks with the stride on the 3x3 convolution, as
    torchvision has it;
*   for CIFAR (section 4.2): a 3x3 stem and three stages of n basic blocks, depth 6n + 2, whose
    shortcuts are either parameter-free ("option A": subsample, and pad the new channels with zeros)
    or projections.

Both end in a global mean, the parameter-free stage `pool`, and a dense `head`. Convolutions are
padded by explicit numbers, since "SAME" pads strided ones on other sides than the published weights
were trained with.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxtransfer.errors import ModelError
from jaxtransfer.mapping import Rule
from jaxtransfer.models.family import Family
from jaxtransfer.models.layers import BatchNorm, classify, conv, global_mean, max_pool
from jaxtransfer.models.naming import torch_batch_norm, torch_layer
from jaxtransfer.models.spec import ModelSpec, Preprocess, Source
from jaxtransfer.models.stages import check_sizes, stages_between

PAPER = "https://arxiv.org/abs/1512.03385"


# ---------------------------------------------------------------------------------------------
# Modules


def _pad_shortcut(inputs: jax.Array, features: int, stride: int) -> jax.Array:
    """The paper's option A: every `stride`-th pixel, and zeros on both sides of the channels."""
    inputs = inputs[:, ::stride, ::stride, :]
    missing = features - inputs.shape[-1]
    return jnp.pad(inputs, ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))


class Block(nn.Module):
    """A residual block: the basic one, two 3x3 convolutions, or the bottleneck, 1x1, 3x3 and 1x1.

    Attributes:
        features: channels that leave the block.
        stride: of the first 3x3 convolution.
        bottleneck: whether it is a bottleneck, whose inner channels are a quarter of `features`.
        shortcut: "projection" or "pad" where the shape changes.
    """

    features: int
    stride: int = 1
    bottleneck: bool = False
    shortcut: str = "projection"

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
        """From (batch, height, width, channels) to (batch, h/stride, w/stride, features).

        Sizes that the stride does not divide are rounded up.
        """
        inner = self.features // 4 if self.bottleneck else self.features
        layers = (
            [(inner, 1, 1), (inner, 3, self.stride), (self.features, 1, 1)]
            if self.bottleneck
            else [(inner, 3, self.stride), (self.features, 3, 1)]
        )
        x = inputs
        for number, (features, size, stride) in enumerate(layers, start=1):
            x = conv(features, size, stride, name=f"conv{number}")(x)
            x = BatchNorm(not train, name=f"bn{number}")(x)
            if number < len(layers):
                x = nn.relu(x)
        return nn.relu(x + self._shortcut(inputs, train))

    def _shortcut(self, inputs: jax.Array, train: bool) -> jax.Array:
        if self.stride == 1 and inputs.shape[-1] == self.features:
            return inputs
        if self.shortcut == "pad":
            return _pad_shortcut(inputs, self.features, self.stride)
        projected = conv(self.features, 1, self.stride, name="shortcut_conv")(inputs)
        return BatchNorm(not train, name="shortcut_bn")(projected)


class Stage(nn.Module):
    """Blocks one after the other, named by their position; the first one may have a stride."""

    blocks: int
    features: int
    stride: int
    bottleneck: bool
    shortcut: str

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """From (batch, height, width, channels) to (batch, h/stride, w/stride, features).

        Sizes that the stride does not divide are rounded up.
        """
        for position in range(self.blocks):
            stride = self.stride if position == 0 else 1
            block = Block(self.features, stride, self.bottleneck, self.shortcut, name=str(position))
            x = block(x, train=train)
        return x


class Stem(nn.Module):
    """The first convolution, and for large images a 3x3 max pooling with stride 2."""

    features: int
    size: int
    stride: int
    pools: bool

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """From (batch, height, width, channels) to (batch, smaller height, width, features)."""
        x = conv(self.features, self.size, self.stride, name="conv")(images)
        x = nn.relu(BatchNorm(not train, name="bn")(x))
        return max_pool(x, 3, 2, padding=1) if self.pools else x


class ResNet(nn.Module):
    """A residual network.

    Attributes:
        blocks: number of blocks in each stage.
        widths: channels that leave each stage.
        strides: of the first block of each stage.
        stem_width: channels that leave the stem.
        num_classes: outputs of the head, 0 for features without a head.
        bottleneck: whether the blocks are bottlenecks.
        shortcut: "projection" or "pad".
        stem_size: side of the stem's convolution.
        stem_stride: of the stem's convolution.
        stem_pools: whether the stem ends in a max pooling with stride 2.
    """

    blocks: tuple[int, ...]
    widths: tuple[int, ...]
    strides: tuple[int, ...]
    stem_width: int
    num_classes: int
    bottleneck: bool = False
    shortcut: str = "projection"
    stem_size: int = 3
    stem_stride: int = 1
    stem_pools: bool = False

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages from input to head."""
        return ("stem", *(f"layer{i + 1}" for i in range(len(self.blocks))), "pool", "head")

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
            sizes = (self.stem_size, self.stem_stride, self.stem_pools)
            return Stem(self.stem_width, *sizes, name=stage)(x, train=train)
        if stage == "pool":
            return global_mean(x)
        if stage == "head":
            return classify(x, self.num_classes)
        position = int(stage.removeprefix("layer")) - 1
        module = Stage(
            self.blocks[position],
            self.widths[position],
            self.strides[position],
            self.bottleneck,
            self.shortcut,
            name=stage,
        )
        return module(x, train=train)


# ---------------------------------------------------------------------------------------------
# Rules: where files of PyTorch keep what


def _rules(shortcut: str, head: str) -> tuple[Rule, ...]:
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


TORCHVISION_RULES = _rules("downsample", "fc")

# https://github.com/akamaster/pytorch_resnet_cifar10, whose files hold `nn.DataParallel` modules:
# each name has `module.` before it.
PYTORCH_RESNET_CIFAR10_RULES = _rules("shortcut", "linear")


# ---------------------------------------------------------------------------------------------
# Variants


@dataclass(frozen=True)
class Variant:
    """A row of the paper's tables.

    Attributes:
        blocks: number of blocks in each stage.
        bottleneck: whether they are bottlenecks.
        widths: channels of each stage as multiples of the stem's, a quarter of a bottleneck's.
        strides: of each stage.
        stem_stride: of the stem of networks for small images.
    """

    blocks: tuple[int, ...]
    bottleneck: bool = False
    widths: tuple[int, ...] = (1, 2, 4, 8)
    strides: tuple[int, ...] = (1, 2, 2, 2)
    stem_stride: int = 1


# Table 1 of the paper.
IMAGENET_VARIANTS = {
    "resnet18": Variant((2, 2, 2, 2)),
    "resnet34": Variant((3, 4, 6, 3)),
    "resnet50": Variant((3, 4, 6, 3), bottleneck=True),
    "resnet101": Variant((3, 4, 23, 3), bottleneck=True),
    "resnet152": Variant((3, 8, 36, 3), bottleneck=True),
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

# ImageNet's usual channel means and deviations, as torchvision documents them for its weights:
# https://docs.pytorch.org/vision/stable/models.html
IMAGENET_PREPROCESS = Preprocess(
    size=(224, 224),
    channels=3,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    crop_fraction=0.875,
)


def imagenet_resnet(
    name: str,
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    input_size: tuple[int, int] = (224, 224),
    width: int = 64,
) -> tuple[ModelSpec, nn.Module]:
    """ResNet-18, -34, -50, -101 or -152.

    Args:
        name: a key of `IMAGENET_VARIANTS`.
        num_classes: outputs of the head.
        in_channels: input channels.
        input_size: (height, width) of the images.
        width: channels that leave the stem; 64 in the paper. Smaller ones make test networks.

    Raises:
        ModelError: a number is below 1.
    """
    check_sizes(name, num_classes=num_classes, in_channels=in_channels, width=width)
    variant = IMAGENET_VARIANTS[name]
    expansion = 4 if variant.bottleneck else 1
    module = ResNet(
        blocks=variant.blocks,
        widths=tuple(width * factor * expansion for factor in variant.widths),
        strides=variant.strides,
        stem_width=width,
        num_classes=num_classes,
        bottleneck=variant.bottleneck,
        stem_size=7,
        stem_stride=2,
        stem_pools=True,
    )
    spec = ModelSpec(
        name=name,
        stages=module.stages,
        head="head",
        stem="stem/conv",
        input_size=input_size,
        in_channels=in_channels,
        sources=(Source("torchvision", TORCHVISION_RULES, IMAGENET_PREPROCESS),),
        paper=PAPER,
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
) -> tuple[ModelSpec, nn.Module]:
    """A residual network for small images, of depth 8, 14, 20, 32, 44, 56 or 110.

    Args:
        name: a key of `SMALL_VARIANTS`.
        num_classes: outputs of the head.
        in_channels: input channels.
        input_size: (height, width) of the images.
        width: channels of the stem and the first stage; 16 in the paper.
        shortcut: "pad" for the paper's option A, "projection" for option B.

    Raises:
        ModelError: `shortcut` is neither, or a number is below 1.
    """
    variant = SMALL_VARIANTS[name]
    height, breadth = input_size
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "width": width}
    check_sizes(name, **sizes, height=height, breadth=breadth)
    if shortcut not in ("pad", "projection"):
        raise ModelError(f"{name}: expected shortcut 'pad' or 'projection', found {shortcut!r}")
    module = ResNet(
        blocks=variant.blocks,
        widths=tuple(width * factor for factor in variant.widths),
        strides=variant.strides,
        stem_width=width,
        num_classes=num_classes,
        shortcut=shortcut,
        stem_stride=variant.stem_stride,
    )
    spec = ModelSpec(
        name=name,
        stages=module.stages,
        head="head",
        stem="stem/conv",
        input_size=(height, breadth),
        in_channels=in_channels,
        sources=(
            # The published weights were trained with the normalisation of ImageNet.
            Source(
                "pytorch_resnet_cifar10",
                PYTORCH_RESNET_CIFAR10_RULES,
                replace(IMAGENET_PREPROCESS, crop_fraction=1.0),
            ),
        ),
        paper=PAPER,
    )
    return spec, module


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
    },
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
)

GLYPH_RESNETS = Family(
    name="glyph_resnet",
    build=functools.partial(
        cifar_resnet, in_channels=1, width=32, input_size=(16, 16), shortcut="projection"
    ),
    parameters={"glyph_resnet8": 151_274},
)

FAMILIES = (IMAGENET_RESNETS, CIFAR_RESNETS, GLYPH_RESNETS)
