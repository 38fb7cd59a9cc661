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
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxtransfer.errors import ModelError
from jaxtransfer.mapping import Rule
from jaxtransfer.models.spec import ModelSpec, Preprocess

PAPER = "https://arxiv.org/abs/1512.03385"


# ---------------------------------------------------------------------------------------------
# Modules


def _conv(features: int, size: int, stride: int, name: str) -> nn.Conv:
    pad = (size - 1) // 2
    return nn.Conv(
        features,
        (size, size),
        (stride, stride),
        padding=[(pad, pad)] * 2,
        use_bias=False,
        name=name,
    )


def _norm(train: bool, name: str) -> nn.BatchNorm:
    # torchvision's momentum of 0.1 is the share of the new batch, Flax's 0.9 that of the average.
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, name=name)


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
            x = _conv(features, size, stride, f"conv{number}")(x)
            x = _norm(train, f"bn{number}")(x)
            if number < len(layers):
                x = nn.relu(x)
        return nn.relu(x + self._shortcut(inputs, train))

    def _shortcut(self, inputs: jax.Array, train: bool) -> jax.Array:
        if self.stride == 1 and inputs.shape[-1] == self.features:
            return inputs
        if self.shortcut == "pad":
            return _pad_shortcut(inputs, self.features, self.stride)
        projected = _conv(self.features, 1, self.stride, "shortcut_conv")(inputs)
        return _norm(train, "shortcut_bn")(projected)


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
        x = _conv(self.features, self.size, self.stride, "conv")(images)
        x = nn.relu(_norm(train, "bn")(x))
        padding: Any = ((1, 1), (1, 1))  # Flax takes numbers too, and says that it takes text
        return nn.max_pool(x, (3, 3), (2, 2), padding) if self.pools else x


class ResNet(nn.Module):
    """A residual network.

    Attributes:
        blocks: number of blocks in each stage.
        widths: channels that leave each stage.
        strides: of the first block of each stage.
        stem_width: channels that leave the stem.
        num_classes: outputs of the head.
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
        for stage in self.stages[slice(*_bounds(self.stages, start, stop))]:
            x = self._run(stage, x, train)
        return x

    def _run(self, stage: str, x: jax.Array, train: bool) -> jax.Array:
        if stage == "stem":
            sizes = (self.stem_size, self.stem_stride, self.stem_pools)
            return Stem(self.stem_width, *sizes, name=stage)(x, train=train)
        if stage == "pool":
            return jnp.mean(x, axis=(1, 2))
        if stage == "head":
            return nn.Dense(self.num_classes, name=stage)(x)
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


def _bounds(stages: tuple[str, ...], start: str | None, stop: str | None) -> tuple[int, int]:
    unknown = [stage for stage in (start, stop) if stage is not None and stage not in stages]
    if unknown:
        raise ModelError(f"resnet: expected stages among {', '.join(stages)}, found {unknown}")
    first = 0 if start is None else stages.index(start)
    last = len(stages) if stop is None else stages.index(stop)
    if first > last:
        raise ModelError(f"resnet: expected start before stop, found {start!r} after {stop!r}")
    return first, last


# ---------------------------------------------------------------------------------------------
# Rules: where files of PyTorch keep what


def _norm_rules(source: str, target: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{source}.weight", f"params/{target}/scale"),
        Rule(f"{source}.bias", f"params/{target}/bias"),
        Rule(f"{source}.running_mean", f"stats/{target}/mean"),
        Rule(f"{source}.running_var", f"stats/{target}/var"),
    )


def _rules(shortcut: str, head: str) -> tuple[Rule, ...]:
    return (
        Rule("conv1.weight", "params/stem/conv/kernel", "conv"),
        *_norm_rules("bn1", "stem/bn"),
        Rule("layer{i}.{j}.conv{k}.weight", "params/layer{i}/{j}/conv{k}/kernel", "conv"),
        *_norm_rules("layer{i}.{j}.bn{k}", "layer{i}/{j}/bn{k}"),
        Rule(
            f"layer{{i}}.{{j}}.{shortcut}.0.weight",
            "params/layer{i}/{j}/shortcut_conv/kernel",
            "conv",
        ),
        *_norm_rules(f"layer{{i}}.{{j}}.{shortcut}.1", "layer{i}/{j}/shortcut_bn"),
        Rule(f"{head}.weight", "params/head/kernel", "dense"),
        Rule(f"{head}.bias", "params/head/bias"),
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
    name: str, *, num_classes: int = 1000, channels: int = 3, width: int = 64
) -> tuple[ModelSpec, nn.Module, Preprocess]:
    """ResNet-18, -34, -50, -101 or -152.

    Args:
        name: a key of `IMAGENET_VARIANTS`.
        num_classes: outputs of the head.
        channels: input channels.
        width: channels that leave the stem; 64 in the paper. Smaller ones make test networks.

    Raises:
        ModelError: a number is below 1.
    """
    _check_sizes(name, num_classes=num_classes, channels=channels, width=width)
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
        stem="stem",
        input_size=(224, 224),
        channels=channels,
        options=(("num_classes", num_classes), ("channels", channels), ("width", width)),
        rules=(("torchvision", TORCHVISION_RULES),),
        paper=PAPER,
    )
    preprocess = IMAGENET_PREPROCESS if channels == 3 else Preprocess((224, 224), channels)
    return spec, module, preprocess


def cifar_resnet(
    name: str,
    *,
    num_classes: int = 10,
    channels: int = 3,
    width: int = 16,
    input_size: tuple[int, int] = (32, 32),
    shortcut: str = "pad",
) -> tuple[ModelSpec, nn.Module, Preprocess]:
    """A residual network for small images, of depth 8, 14, 20, 32, 44, 56 or 110.

    Args:
        name: a key of `SMALL_VARIANTS`.
        num_classes: outputs of the head.
        channels: input channels.
        width: channels of the stem and the first stage; 16 in the paper.
        input_size: (height, width) of the images.
        shortcut: "pad" for the paper's option A, "projection" for option B.

    Raises:
        ModelError: `shortcut` is neither, or a number is below 1.
    """
    variant = SMALL_VARIANTS[name]
    height, breadth = input_size
    sizes = {"num_classes": num_classes, "channels": channels, "width": width}
    _check_sizes(name, **sizes, height=height, breadth=breadth)
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
        stem="stem",
        input_size=(height, breadth),
        channels=channels,
        options=(
            ("num_classes", num_classes),
            ("channels", channels),
            ("width", width),
            ("input_size", (height, breadth)),
            ("shortcut", shortcut),
        ),
        rules=(("pytorch_resnet_cifar10", PYTORCH_RESNET_CIFAR10_RULES),),
        paper=PAPER,
    )
    if channels != 3:
        return spec, module, Preprocess(spec.input_size, channels)
    # The published weights were trained with the normalisation of ImageNet.
    return spec, module, replace(IMAGENET_PREPROCESS, size=spec.input_size, crop_fraction=1.0)


def _check_sizes(name: str, **sizes: int) -> None:
    wrong = {key: size for key, size in sizes.items() if not isinstance(size, int) or size < 1}
    if wrong:
        raise ModelError(f"{name}: expected integers of at least 1, found {wrong}")


BUILDERS: dict[str, Callable[..., tuple[ModelSpec, nn.Module, Preprocess]]] = {
    **dict.fromkeys(IMAGENET_VARIANTS, imagenet_resnet),
    **dict.fromkeys(CIFAR_VARIANTS, cifar_resnet),
    "glyph_resnet8": functools.partial(
        cifar_resnet, channels=1, width=32, input_size=(16, 16), shortcut="projection"
    ),
}
