"""ConvNeXt, convolutional networks with the design choices of transformers.

*   ConvNeXt-T/S/B/L/XL (Liu et al. 2022, "A ConvNet for the 2020s", arXiv 2201.03545, section 3 and
    appendix A.1): patches of 4x4, then four stages of residual blocks, each a 7x7 depthwise
    convolution, a LayerNorm and a perceptron over the channels with four times the width. The
    branch is multiplied by a learned scale that starts near zero.
*   ConvNeXt V2, atto to huge (Woo et al. 2023, arXiv 2301.00808, section 3 and appendix A.1): the
    same blocks with a global response normalisation inside the perceptron and no scale.

Stages 2 to 4 begin with a LayerNorm and a 2x2 convolution that halves the image. After the stages
come a global mean, the parameter-free stage `pool`, a LayerNorm, the stage `norm`, and a dense
`head`. Rows and columns that strides do not divide are left out, as in all the sources.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxtransfer.errors import ModelError
from jaxtransfer.mapping import Rule
from jaxtransfer.models.family import Family
from jaxtransfer.models.layers import (
    ACTIVATIONS,
    StochasticDepth,
    classify,
    conv,
    global_mean,
    stage_rates,
)
from jaxtransfer.models.naming import torch_layer, torch_layer_norm
from jaxtransfer.models.preprocessing import IMAGENET, IMAGENET_BICUBIC
from jaxtransfer.models.products import dense
from jaxtransfer.models.published import timm_weights, torchvision_weights
from jaxtransfer.models.spec import ModelSpec, Source, Weights
from jaxtransfer.models.stages import StagedNetwork, check_rates, check_sizes
from jaxtransfer.models.transformer import LayerScale

PAPER = "https://arxiv.org/abs/2201.03545"
PAPER_V2 = "https://arxiv.org/abs/2301.00808"
EPSILON = 1e-6

# Section 3.1 of the paper: what the scales of the residual branches start from.
FIRST_LAYER_SCALE = 1e-6


# ---------------------------------------------------------------------------------------------
# Modules


class GlobalResponseNorm(nn.Module):
    """Each channel times its share of all activity, added to the input.

    Source: arXiv 2301.00808, section 3.2 and algorithm 1. With scale and bias at zero, where they
    start, it is the identity.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """From (batch, height, width, channels) to the same shape and dtype."""
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.zeros, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        squares = jnp.sum(lax.square(x.astype(jnp.float32)), axis=(1, 2), keepdims=True)
        # The root has no finite slope at zero, where a channel is that is off everywhere.
        active = squares > 0
        norms = jnp.where(active, jnp.sqrt(jnp.where(active, squares, 1.0)), 0.0)
        shares = norms / (jnp.mean(norms, axis=-1, keepdims=True) + 1e-6)
        return (scale * (x * shares.astype(x.dtype)) + bias + x).astype(x.dtype)


class Mlp(nn.Module):
    """A perceptron over the channels, with four times the channels inside.

    That of transformers, but for what V2 has between its layers.
    """

    response_norm: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """From (batch, height, width, channels) to the same shape."""
        inner = dense(4 * x.shape[-1], name="dense1")(x)
        if not self.response_norm:
            return dense(x.shape[-1], activation=ACTIVATIONS["gelu"], name="dense2")(inner)
        inner = GlobalResponseNorm(name="grn")(ACTIVATIONS["gelu"](inner))
        return dense(x.shape[-1], name="dense2")(inner)


class Block(nn.Module):
    """A residual block: depthwise convolution, LayerNorm, perceptron.

    Attributes:
        drop_path: share of the examples that training leaves the branch out for.
        response_norm: whether it is the block of V2.
    """

    drop_path: float
    response_norm: bool

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
        """From (batch, height, width, channels) to the same shape."""
        channels = inputs.shape[-1]
        x = conv(channels, 7, groups=channels, use_bias=True, name="conv")(inputs)
        x = nn.LayerNorm(epsilon=EPSILON, name="norm")(x)
        x = Mlp(self.response_norm, name="mlp")(x)
        if not self.response_norm:
            x = LayerScale(FIRST_LAYER_SCALE, name="layer_scale")(x)
        return inputs + StochasticDepth(self.drop_path)(x, train=train)


class Downsample(nn.Module):
    """A LayerNorm and a 2x2 convolution with stride 2."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """From (batch, height, width, channels) to (batch, height//2, width//2, features)."""
        x = nn.LayerNorm(epsilon=EPSILON, name="norm")(x)
        return conv(self.features, 2, 2, padding=0, use_bias=True, name="conv")(x)


class Stem(nn.Module):
    """Patches of 4x4 pixels as a convolution, and a LayerNorm."""

    features: int

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """From (batch, height, width, channels) to (batch, height//4, width//4, features)."""
        x = conv(self.features, 4, 4, padding=0, use_bias=True, name="conv")(images)
        return nn.LayerNorm(epsilon=EPSILON, name="norm")(x)


class Stage(nn.Module):
    """Blocks one after the other, named by their position, after a change of the width if any.

    Attributes:
        features: channels that leave the stage.
        drop_path: for each block, the share of examples that training leaves its branch out for.
        response_norm: whether the blocks are those of V2.
    """

    features: int
    drop_path: tuple[float, ...]
    response_norm: bool

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """From (batch, height, width, channels) to (batch, …, features).

        Where there are other channels than `features`, height and width are halved.
        """
        if x.shape[-1] != self.features:
            x = Downsample(self.features, name="downsample")(x)
        for position, rate in enumerate(self.drop_path):
            x = Block(rate, self.response_norm, name=str(position))(x, train=train)
        return x


class ConvNeXt(StagedNetwork):
    """A ConvNeXt of either version.

    Attributes:
        blocks: number of blocks in each stage.
        width: channels of the first stage; each further one has twice as many.
        num_classes: outputs of the head, 0 for features without a head.
        response_norm: whether it is V2.
        drop_path: share of the examples that training leaves the last block's branch out for; it
            grows from 0 at the first block in equal steps.
        norm_epsilon: of the LayerNorm after the pooling.
    """

    blocks: tuple[int, ...]
    width: int
    num_classes: int
    response_norm: bool
    drop_path: float
    norm_epsilon: float = EPSILON

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages from input to head."""
        return ("stem", *(f"stage{i + 1}" for i in range(len(self.blocks))), "pool", "norm", "head")

    def _run(self, stage: str, x: jax.Array, train: bool) -> jax.Array:
        if stage == "stem":
            return Stem(self.width, name=stage)(x)
        if stage == "pool":
            return global_mean(x)
        if stage == "norm":
            return nn.LayerNorm(epsilon=self.norm_epsilon, name=stage)(x)
        if stage == "head":
            return classify(x, self.num_classes)
        position = int(stage.removeprefix("stage")) - 1
        module = Stage(
            self.width * 2**position,
            stage_rates(self.drop_path, self.blocks, position),
            self.response_norm,
            name=stage,
        )
        return module(x, train=train)


# ---------------------------------------------------------------------------------------------
# Rules: where files of PyTorch keep what


@dataclass(frozen=True)
class _Names:
    """How one source names its layers.

    Attributes:
        stem: the convolution and the LayerNorm of the stem.
        downsample: from a stage's number, from 1, to its container of LayerNorm and convolution.
        block: from a stage's number to what its blocks are called, with `{j}` for their position.
        layers: within a block, the convolution, the LayerNorm and the two layers of the perceptron.
        vectors: within a block, the tensors of the scale or of the response norm: the name, the
            leaf and the layout.
        end: the LayerNorm after the pooling, and the head.
    """

    stem: tuple[str, str]
    downsample: Callable[[int], str]
    block: Callable[[int], str]
    layers: tuple[str, str, str, str]
    vectors: tuple[tuple[str, str, str], ...]
    end: tuple[str, str]


def _rules(names: _Names, perceptron: str = "dense") -> tuple[Rule, ...]:
    rules = (
        *torch_layer(names.stem[0], "stem/conv", bias=True),
        *torch_layer_norm(names.stem[1], "stem/norm"),
        *torch_layer_norm(names.end[0], "norm"),
        *torch_layer(names.end[1], "head", "dense", bias=True),
    )
    for stage in (1, 2, 3, 4):
        if stage > 1:
            before, here = names.downsample(stage), f"stage{stage}/downsample"
            rules += torch_layer_norm(f"{before}.0", f"{here}/norm")
            rules += torch_layer(f"{before}.1", f"{here}/conv", bias=True)
        block, here = names.block(stage), f"stage{stage}/{{j}}"
        convolution, norm, dense1, dense2 = (f"{block}.{layer}" for layer in names.layers)
        rules += torch_layer(convolution, f"{here}/conv", "depthwise", bias=True)
        rules += torch_layer_norm(norm, f"{here}/norm")
        rules += torch_layer(dense1, f"{here}/mlp/dense1", perceptron, bias=True)
        rules += torch_layer(dense2, f"{here}/mlp/dense2", perceptron, bias=True)
        for vector, leaf, layout in names.vectors:
            rules += (Rule(f"{block}.{vector}", f"params/{here}/{leaf}", layout),)
    return rules


TORCHVISION = _Names(
    stem=("features.0.0", "features.0.1"),
    downsample=lambda stage: f"features.{2 * stage - 2}",
    block=lambda stage: f"features.{2 * stage - 1}.{{j}}",
    layers=("block.0", "block.2", "block.3", "block.5"),
    vectors=(("layer_scale", "layer_scale/scale", "channels_first"),),
    end=("classifier.0", "classifier.2"),
)

TIMM = _Names(
    stem=("stem.0", "stem.1"),
    downsample=lambda stage: f"stages.{stage - 1}.downsample",
    block=lambda stage: f"stages.{stage - 1}.blocks.{{j}}",
    layers=("conv_dw", "norm", "mlp.fc1", "mlp.fc2"),
    vectors=(
        ("gamma", "layer_scale/scale", "identity"),
        ("mlp.grn.weight", "mlp/grn/scale", "identity"),
        ("mlp.grn.bias", "mlp/grn/bias", "identity"),
    ),
    end=("head.norm", "head.fc"),
)

# https://github.com/facebookresearch/ConvNeXt and https://github.com/facebookresearch/ConvNeXt-V2.
# Files of V2 before its fine-tuning hold sparse layers and neither last norm nor head: not these.
FACEBOOK = _Names(
    stem=("downsample_layers.0.0", "downsample_layers.0.1"),
    downsample=lambda stage: f"downsample_layers.{stage - 1}",
    block=lambda stage: f"stages.{stage - 1}.{{j}}",
    layers=("dwconv", "norm", "pwconv1", "pwconv2"),
    vectors=(
        ("gamma", "layer_scale/scale", "identity"),
        ("grn.gamma", "mlp/grn/scale", "channels_last"),
        ("grn.beta", "mlp/grn/bias", "channels_last"),
    ),
    end=("norm", "head"),
)


def _transformers(body: str) -> _Names:
    return _Names(
        stem=(f"{body}.embeddings.patch_embeddings", f"{body}.embeddings.layernorm"),
        downsample=lambda stage: f"{body}.encoder.stages.{stage - 1}.downsampling_layer",
        block=lambda stage: f"{body}.encoder.stages.{stage - 1}.layers.{{j}}",
        layers=("dwconv", "layernorm", "pwconv1", "pwconv2"),
        vectors=(
            ("layer_scale_parameter", "layer_scale/scale", "identity"),
            ("grn.weight", "mlp/grn/scale", "channels_last"),
            ("grn.bias", "mlp/grn/bias", "channels_last"),
        ),
        end=(f"{body}.layernorm", "classifier"),
    )


# The configurations of its published networks have this epsilon after the pooling, other than the
# code that the weights were trained by.
TRANSFORMERS_OPTIONS = {"norm_epsilon": 1e-12}


# ---------------------------------------------------------------------------------------------
# Variants


@dataclass(frozen=True)
class Variant:
    """A network of the papers.

    Attributes:
        width: channels of the first stage.
        blocks: number of blocks in each stage.
        drop_path: the rate that the network was trained with.
        v2: whether it is ConvNeXt V2.
        convolutions: whether timm keeps the perceptrons as 1x1 convolutions.
        resize: side to which torchvision resizes images before the crop of 224, where it has it.
    """

    width: int
    blocks: tuple[int, ...]
    drop_path: float
    v2: bool = False
    convolutions: bool = False
    resize: int | None = None


# Section 3 of the paper for widths and depths; appendix A.1, table 5, for the rates, XL's being
# that of the training on ImageNet-22K.
V1_VARIANTS = {
    "convnext_tiny": Variant(96, (3, 3, 9, 3), 0.1, resize=236),
    "convnext_small": Variant(96, (3, 3, 27, 3), 0.4, resize=230),
    "convnext_base": Variant(128, (3, 3, 27, 3), 0.5, resize=232),
    "convnext_large": Variant(192, (3, 3, 27, 3), 0.5, resize=232),
    "convnext_xlarge": Variant(256, (3, 3, 27, 3), 0.2),
}

# Appendix A.1 of the paper on V2 for widths and depths, and for the rates of fine-tuning.
V2_VARIANTS = {
    "convnextv2_atto": Variant(40, (2, 2, 6, 2), 0.1, v2=True, convolutions=True),
    "convnextv2_femto": Variant(48, (2, 2, 6, 2), 0.1, v2=True, convolutions=True),
    "convnextv2_pico": Variant(64, (2, 2, 6, 2), 0.1, v2=True, convolutions=True),
    "convnextv2_nano": Variant(80, (2, 2, 8, 2), 0.1, v2=True, convolutions=True),
    "convnextv2_tiny": Variant(96, (3, 3, 9, 3), 0.2, v2=True),
    "convnextv2_base": Variant(128, (3, 3, 27, 3), 0.1, v2=True),
    "convnextv2_large": Variant(192, (3, 3, 27, 3), 0.2, v2=True),
    "convnextv2_huge": Variant(352, (3, 3, 27, 3), 0.3, v2=True),
}

VARIANTS = {**V1_VARIANTS, **V2_VARIANTS}


def _sources(variant: Variant) -> tuple[Source, ...]:
    timm = _rules(TIMM, "pointwise" if variant.convolutions else "dense")
    transformers = _rules(_transformers("convnextv2" if variant.v2 else "convnext"))
    sources = (
        Source("timm", timm, IMAGENET_BICUBIC),
        Source("facebook", _rules(FACEBOOK), IMAGENET_BICUBIC),
        Source("transformers", transformers, IMAGENET_BICUBIC, TRANSFORMERS_OPTIONS),
    )
    if variant.resize is None:
        return sources
    how = replace(IMAGENET, crop_fraction=224 / variant.resize)
    return (Source("torchvision", _rules(TORCHVISION), how), *sources)


def convnext(
    name: str,
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    input_size: tuple[int, int] = (224, 224),
    width: int | None = None,
    blocks: tuple[int, ...] | None = None,
    drop_path: float | None = None,
    norm_epsilon: float = EPSILON,
) -> tuple[ModelSpec, nn.Module]:
    """A ConvNeXt or a ConvNeXt V2.

    Args:
        name: a key of `VARIANTS`.
        num_classes: outputs of the head.
        in_channels: input channels.
        input_size: (height, width) of the images, at least 32 each.
        width: channels of the first stage; the variant's own if `None`.
        blocks: number of blocks in each of the four stages; the variant's own if `None`.
        drop_path: share of the examples that training leaves the last block's branch out for; the
            variant's own if `None`.
        norm_epsilon: of the LayerNorm after the pooling.

    Raises:
        ModelError: a number is below 1, an image too small, or a rate not from 0 to below 1.
    """
    variant = VARIANTS[name]
    width = variant.width if width is None else width
    blocks = variant.blocks if blocks is None else tuple(blocks)
    drop_path = variant.drop_path if drop_path is None else drop_path
    numbers = {f"blocks of stage {i}": count for i, count in enumerate(blocks, start=1)}
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "width": width}
    check_sizes(name, **sizes, **numbers)
    if len(blocks) != 4:
        raise ModelError(f"{name}: expected blocks of four stages, found {blocks}")
    if min(input_size) < 32:
        raise ModelError(
            f"{name}: expected an input_size of at least 32, which the stages halve to 1, "
            f"found {input_size}"
        )
    check_rates(name, drop_path=drop_path)
    module = ConvNeXt(blocks, width, num_classes, variant.v2, drop_path, norm_epsilon)
    spec = ModelSpec(
        name=name,
        stages=module.stages,
        head="head",
        stem="stem/conv",
        input_size=input_size,
        in_channels=in_channels,
        sources=_sources(variant),
        paper=PAPER_V2 if variant.v2 else PAPER,
    )
    return spec, module


# ---------------------------------------------------------------------------------------------
# Published weights

FACEBOOK_FILES = "https://dl.fbaipublicfiles.com/convnext"
V2_LICENCE = "CC-BY-NC-4.0"
IN22K = "ImageNet-22K"
IN22K_1K = "ImageNet-22K, then ImageNet-1k"
IN12K_1K = "ImageNet-12k, then ImageNet-1k"
FCMAE_1K = "ImageNet-1k, first without labels"
FCMAE_22K_1K = "ImageNet-1k without labels, then ImageNet-22K, then ImageNet-1k"


def _v1_weights(size: str, top1: float) -> tuple[Weights, ...]:
    """Weights of ImageNet-1k alone, accuracies as in the README of facebookresearch/ConvNeXt."""
    return (
        timm_weights(f"convnext_{size}.fb_in1k", top1),
        Weights(f"{FACEBOOK_FILES}/convnext_{size}_1k_224_ema.pth", "facebook", "MIT", top1),
        Weights(f"hf://facebook/convnext-{size}-224", "transformers", top1=top1),
    )


def _v1_weights_22k(size: str, top1: float, end: str = "") -> tuple[Weights, ...]:
    """Weights of ImageNet-22K, with and without training on ImageNet-1k; from the same README."""
    both, before = f"convnext_{size}_22k_1k_224{end}.pth", f"convnext_{size}_22k_224.pth"
    return (
        timm_weights(f"convnext_{size}.fb_in22k_ft_in1k", top1, data=IN22K_1K),
        timm_weights(f"convnext_{size}.fb_in22k", None, data=IN22K),
        Weights(f"{FACEBOOK_FILES}/{both}", "facebook", "MIT", top1, IN22K_1K),
        Weights(f"{FACEBOOK_FILES}/{before}", "facebook", "MIT", None, IN22K),
    )


def _v2_weights(size: str, top1: float) -> tuple[Weights, ...]:
    """Weights of ImageNet-1k, accuracies as in the README of facebookresearch/ConvNeXt-V2."""
    file, hub = f"im1k/convnextv2_{size}_1k_224_ema.pt", f"convnextv2-{size}-1k-224"
    return (
        timm_weights(f"convnextv2_{size}.fcmae_ft_in1k", top1, licence=V2_LICENCE, data=FCMAE_1K),
        Weights(f"{FACEBOOK_FILES}/convnextv2/{file}", "facebook", V2_LICENCE, top1, FCMAE_1K),
        Weights(f"hf://facebook/{hub}", "transformers", None, top1, FCMAE_1K),
    )


def _v2_weights_22k(size: str, top1: float) -> tuple[Weights, ...]:
    """Weights of ImageNet-22K and then ImageNet-1k, from the same README."""
    file = f"im22k/convnextv2_{size}_22k_224_ema.pt"
    return (
        timm_weights(
            f"convnextv2_{size}.fcmae_ft_in22k_in1k", top1, licence=V2_LICENCE, data=FCMAE_22K_1K
        ),
        Weights(f"{FACEBOOK_FILES}/convnextv2/{file}", "facebook", V2_LICENCE, top1, FCMAE_22K_1K),
    )


def _timm_in12k(size: str) -> Weights:
    how = replace(IMAGENET_BICUBIC, crop_fraction=0.95)
    return timm_weights(f"convnext_{size}.in12k_ft_in1k", preprocess=how, data=IN12K_1K)


WEIGHTS = {
    "convnext_tiny": (
        torchvision_weights("convnext_tiny-983f1562", 82.520),
        *_v1_weights("tiny", 82.1),
        *_v1_weights_22k("tiny", 82.9),
        _timm_in12k("tiny"),
    ),
    "convnext_small": (
        torchvision_weights("convnext_small-0c510722", 83.616),
        *_v1_weights("small", 83.1),
        *_v1_weights_22k("small", 84.6),
        _timm_in12k("small"),
    ),
    "convnext_base": (
        torchvision_weights("convnext_base-6075fbad", 84.062),
        *_v1_weights("base", 83.8),
        *_v1_weights_22k("base", 85.8),
    ),
    "convnext_large": (
        torchvision_weights("convnext_large-ea097f82", 84.414),
        *_v1_weights("large", 84.3),
        *_v1_weights_22k("large", 86.6),
    ),
    "convnext_xlarge": _v1_weights_22k("xlarge", 87.0, "_ema"),
    "convnextv2_atto": _v2_weights("atto", 76.7),
    "convnextv2_femto": _v2_weights("femto", 78.5),
    "convnextv2_pico": _v2_weights("pico", 80.3),
    "convnextv2_nano": (*_v2_weights("nano", 81.9), *_v2_weights_22k("nano", 82.1)),
    "convnextv2_tiny": (*_v2_weights("tiny", 83.0), *_v2_weights_22k("tiny", 83.9)),
    "convnextv2_base": (*_v2_weights("base", 84.9), *_v2_weights_22k("base", 86.8)),
    "convnextv2_large": (*_v2_weights("large", 85.8), *_v2_weights_22k("large", 87.3)),
    "convnextv2_huge": _v2_weights("huge", 86.3),
}

# Names of its repositories, such as facebook/convnext-tiny-224.
V1_SIZES_OF_TRANSFORMERS = ("tiny", "small", "base", "large")

CONVNEXTS = Family(
    name="convnext",
    build=convnext,
    # The first four are torchvision's numbers, the others those of timm's networks; the papers and
    # the READMEs of the authors round them.
    parameters={
        "convnext_tiny": 28_589_128,
        "convnext_small": 50_223_688,
        "convnext_base": 88_591_464,
        "convnext_large": 197_767_336,
        "convnext_xlarge": 350_196_968,
        "convnextv2_atto": 3_708_400,
        "convnextv2_femto": 5_233_240,
        "convnextv2_pico": 9_066_280,
        "convnextv2_nano": 15_623_800,
        "convnextv2_tiny": 28_635_496,
        "convnextv2_base": 88_717_800,
        "convnextv2_large": 197_956_840,
        "convnextv2_huge": 660_289_640,
    },
    aliases={
        **{f"convnext-{size}-224": (f"convnext_{size}", {}) for size in V1_SIZES_OF_TRANSFORMERS},
        **{f"{n.replace('_', '-')}-1k-224": (n, {}) for n in V2_VARIANTS},
    },
    weights=WEIGHTS,
)

FAMILIES = (CONVNEXTS,)
