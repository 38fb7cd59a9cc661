"""MobileNetV2 (Sandler et al. 2018, "Inverted Residuals and Linear Bottlenecks", arXiv 1801.04381).

Table 2 of the paper: a strided 3x3 convolution, seven stages of inverted residual blocks, a 1x1
convolution to 1,280 channels, a global mean and a classifier. A block (section 3.3, table 1)
expands its channels sixfold by a 1x1 convolution, looks at each of them with a depthwise 3x3
convolution, and ends in a linear 1x1 convolution; the input is added where shapes allow it. The
blocks of the first stage do not expand.

Variants differ in the width multiplier of section 6.1, which never makes the last convolution
narrower, and two of timm's have more blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import flax.linen as nn

from jaxtransfer.mapping import Rule
from jaxtransfer.models.family import Family
from jaxtransfer.models.layers import round_channels
from jaxtransfer.models.mobile import (
    BlockSizes,
    Conventions,
    Layers,
    MobileNet,
    block_counts,
    check_options,
    keras_conv_norm,
    numbered_blocks,
    parts_of,
    timm_rules,
    torch_conv_norm,
)
from jaxtransfer.models.naming import keras_layer, torch_layer
from jaxtransfer.models.preprocessing import IMAGENET, IMAGENET_BICUBIC, INCEPTION
from jaxtransfer.models.published import timm_weights, torchvision_weights
from jaxtransfer.models.spec import ModelSpec, Source, Weights
from jaxtransfer.models.stages import check_sizes

PAPER = "https://arxiv.org/abs/1801.04381"


# ---------------------------------------------------------------------------------------------
# Rules: where files keep what


def _torchvision_rules(layers: Layers) -> tuple[Rule, ...]:
    rules = [*torch_conv_norm("features.0.0", "features.0.1", "stem")]
    after = 1
    for number, here, sizes in numbered_blocks(layers):
        block, after = f"features.{number + 1}.conv", number + 2
        *activated, project = parts_of(sizes)
        for position, part in enumerate(activated):
            inner = f"{block}.{position}"
            rules += torch_conv_norm(f"{inner}.0", f"{inner}.1", f"{here}/{part}")
        count = len(activated)
        rules += torch_conv_norm(f"{block}.{count}", f"{block}.{count + 1}", f"{here}/{project}")
    rules += torch_conv_norm(f"features.{after}.0", f"features.{after}.1", "last_conv")
    return (*rules, *torch_layer("classifier.1", "head", "dense", bias=True))


def _transformers_rules(layers: Layers) -> tuple[Rule, ...]:
    def conv_norm(name: str, target: str) -> tuple[Rule, ...]:
        full = f"mobilenet_v2.{name}"
        return torch_conv_norm(f"{full}.convolution", f"{full}.normalization", target)

    names = {"expand": "expand_1x1", "depthwise": "conv_3x3", "project": "reduce_1x1"}
    rules = [*conv_norm("conv_stem.first_conv", "stem")]
    for number, here, sizes in numbered_blocks(layers):
        # Its stem has the first block in it.
        block = f"layer.{number - 1}" if number else "conv_stem"
        for part in parts_of(sizes):
            rules += conv_norm(f"{block}.{names[part]}", f"{here}/{part}")
    rules += conv_norm("conv_1x1", "last_conv")
    return (*rules, *torch_layer("classifier", "head", "dense", bias=True))


def _keras_rules(layers: Layers) -> tuple[Rule, ...]:
    """The published files have the names of the first release, other files those of today.

    Keras does not mind, since it goes by the order of the layers.
    """
    rules = [*keras_conv_norm("Conv1", "bn_Conv1", "stem")]
    for number, here, sizes in numbered_blocks(layers):
        block = f"block_{number}" if number else "expanded_conv"
        for part in parts_of(sizes):
            published = f"mobl{number}_conv_{number}_{part}"
            norm = f"bn{number}_conv_{number}_bn_{part}"
            rules += keras_conv_norm(published, norm, f"{here}/{part}")
            today = f"{block}_{part}"
            rules += keras_conv_norm(today, f"{today}_BN", f"{here}/{part}")
    return (
        *rules,
        *keras_conv_norm("Conv_1", "Conv_1_bn", "last_conv"),
        *keras_layer("Logits", "head", bias=True),
        *keras_layer("predictions", "head", bias=True),
    )


def _sources(layers: Layers) -> tuple[Source, ...]:
    tensorflow = {"padding": "same", "epsilon": 1e-3}
    return (
        Source("torchvision", _torchvision_rules(layers), IMAGENET),
        Source("timm", timm_rules(layers, last=("conv_head", "bn2")), IMAGENET_BICUBIC),
        Source(
            "keras",
            _keras_rules(layers),
            INCEPTION,
            {**tensorflow, "momentum": 0.999},
        ),
        # Its own momentum of 0.997 is the share that TensorFlow leaves and PyTorch replaces: a slip
        # of the port, which trains nothing.
        Source(
            "transformers",
            _transformers_rules(layers),
            replace(INCEPTION, label_offset=1),
            {**tensorflow, "momentum": 0.997},
        ),
    )


# ---------------------------------------------------------------------------------------------
# Variants


@dataclass(frozen=True)
class Row:
    """A row of table 2 of the paper: a stage.

    Attributes:
        expansion: by what a block multiplies its channels, t in the paper.
        features: channels that leave each block, c.
        blocks: how many there are, n.
        stride: of the first one, s.
    """

    expansion: int
    features: int
    blocks: int
    stride: int


TABLE = (
    Row(1, 16, 1, 1),
    Row(6, 24, 2, 2),
    Row(6, 32, 3, 2),
    Row(6, 64, 4, 2),
    Row(6, 96, 3, 1),
    Row(6, 160, 3, 2),
    Row(6, 320, 1, 1),
)


@dataclass(frozen=True)
class Variant:
    """A scaled network.

    Attributes:
        width: what the channels are multiplied by.
        blocks: how many each stage has.
        scales_ends: whether the width scales stem and last convolution too.
    """

    width: float
    blocks: tuple[int, ...] = tuple(row.blocks for row in TABLE)
    scales_ends: bool = True


# The widths of https://github.com/tensorflow/models/tree/master/research/slim/nets/mobilenet, and
# two of timm's with more blocks, `mobilenetv2_110d` and `mobilenetv2_120d`.
VARIANTS = {
    "mobilenet_v2_035": Variant(0.35),
    "mobilenet_v2_050": Variant(0.5),
    "mobilenet_v2_075": Variant(0.75),
    "mobilenet_v2": Variant(1.0),
    "mobilenet_v2_110d": Variant(1.1, (1, 3, 4, 5, 4, 4, 1), scales_ends=False),
    "mobilenet_v2_130": Variant(1.3),
    "mobilenet_v2_120d": Variant(1.2, (1, 3, 5, 6, 5, 5, 1), scales_ends=False),
    "mobilenet_v2_140": Variant(1.4),
}


def mobilenet_v2(
    name: str,
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    input_size: tuple[int, int] = (224, 224),
    width: float | None = None,
    blocks: Sequence[int] | None = None,
    last_width: int | None = None,
    dropout: float = 0.2,
    padding: str = "symmetric",
    epsilon: float = 1e-5,
    momentum: float = 0.9,
) -> tuple[ModelSpec, nn.Module]:
    """MobileNetV2 of any width.

    Args:
        name: a key of `VARIANTS`.
        num_classes: outputs of the head.
        in_channels: input channels.
        input_size: (height, width) of the images.
        width: what the channels are multiplied by, rounded to multiples of 8; `None` for the
            variant's.
        blocks: how many blocks each of the seven stages has; `None` for the variant's.
        last_width: channels of the last convolution; `None` for 1,280 or, in wide networks, more.
        dropout: the rate at which features before the head are left out in training.
        padding: "symmetric" or "same"; see `Conventions`, as for the next two.
        epsilon: of the normalisation.
        momentum: of the normalisation.

    Raises:
        ModelError: an option is not one that it can be.
    """
    variant = VARIANTS[name]
    conventions = Conventions(padding, epsilon, momentum)
    width = variant.width if width is None else width
    check_options(name, conventions, ("symmetric", "same"), width=width, dropout=dropout)
    ends = width if variant.scales_ends else 1.0
    last_width = round_channels(1280 * max(ends, 1.0)) if last_width is None else last_width
    check_sizes(name, num_classes=num_classes, in_channels=in_channels, last_width=last_width)
    stem_width = round_channels(32 * ends)
    module = MobileNet(
        stem_width=stem_width,
        layers=_layers(width, stem_width, block_counts(name, blocks, variant.blocks)),
        num_classes=num_classes,
        last_width=last_width,
        dropout=dropout,
        conventions=conventions,
    )
    spec = ModelSpec(
        name=name,
        stages=module.stages,
        head="head",
        stem="stem/conv",
        input_size=input_size,
        in_channels=in_channels,
        sources=_sources(module.layers),
        paper=PAPER,
    )
    return spec, module


def _layers(width: float, channels: int, blocks: tuple[int, ...]) -> Layers:
    layers = []
    for row, count in zip(TABLE, blocks, strict=True):
        stage = []
        for position in range(count):
            expanded = channels * row.expansion if row.expansion > 1 else 0
            channels = round_channels(row.features * width)
            stride = row.stride if position == 0 else 1
            stage.append(BlockSizes(channels, stride, expanded=expanded))
        layers.append(tuple(stage))
    return tuple(layers)


def _keras_file(width: str) -> str:
    folder = "https://storage.googleapis.com/tensorflow/keras-applications/mobilenet_v2"
    return f"{folder}/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{width}_224.h5"


def _google(reference: str, size: int) -> Weights:
    """Weights on the hub of Hugging Face, which resizes images to 32 pixels more than it keeps."""
    how = replace(INCEPTION, size=(size, size), crop_fraction=size / (size + 32), label_offset=1)
    return Weights(f"hf://google/{reference}", "transformers", preprocess=how)


MOBILENETS_V2 = Family(
    name="mobilenet_v2",
    build=mobilenet_v2,
    # torchvision states 3,504,872 for the usual one, timm 1.97, 3.50, 4.52, 5.83 and 6.11 million
    # for its own, TF-slim the others; these are the exact numbers.
    parameters={
        "mobilenet_v2_035": 1_677_128,
        "mobilenet_v2_050": 1_968_680,
        "mobilenet_v2_075": 2_636_424,
        "mobilenet_v2": 3_504_872,
        "mobilenet_v2_110d": 4_516_520,
        "mobilenet_v2_130": 5_386_792,
        "mobilenet_v2_120d": 5_831_144,
        "mobilenet_v2_140": 6_108_776,
    },
    aliases={
        "mobilenetv2_035": ("mobilenet_v2_035", {}),
        "mobilenetv2_050": ("mobilenet_v2_050", {}),
        "mobilenetv2_075": ("mobilenet_v2_075", {}),
        "mobilenetv2_100": ("mobilenet_v2", {}),
        "mobilenetv2_110d": ("mobilenet_v2_110d", {}),
        "mobilenetv2_120d": ("mobilenet_v2_120d", {}),
        "mobilenetv2_140": ("mobilenet_v2_140", {}),
        "mobilenet_v2_0.35_96": ("mobilenet_v2_035", {"input_size": (96, 96)}),
        "mobilenet_v2_0.75_160": ("mobilenet_v2_075", {"input_size": (160, 160)}),
        "mobilenet_v2_1.0_224": ("mobilenet_v2", {}),
        "mobilenet_v2_1.4_224": ("mobilenet_v2_140", {}),
    },
    # Accuracy: torchvision's `MobileNet_V2_Weights`; results-imagenet.csv of
    # https://github.com/huggingface/pytorch-image-models; https://keras.io/api/applications.
    weights={
        "mobilenet_v2_035": (
            Weights(_keras_file("0.35"), "keras", "Apache-2.0"),
            _google("mobilenet_v2_0.35_96", 96),
        ),
        "mobilenet_v2_050": (
            timm_weights("mobilenetv2_050.lamb_in1k", 65.95),
            Weights(_keras_file("0.5"), "keras", "Apache-2.0"),
        ),
        "mobilenet_v2_075": (
            Weights(_keras_file("0.75"), "keras", "Apache-2.0"),
            _google("mobilenet_v2_0.75_160", 160),
        ),
        "mobilenet_v2": (
            torchvision_weights(
                "mobilenet_v2-7ebf99e0", 72.154, replace(IMAGENET, crop_fraction=224 / 232)
            ),
            torchvision_weights("mobilenet_v2-b0353104", 71.878),
            timm_weights("mobilenetv2_100.ra_in1k", 72.976),
            Weights(_keras_file("1.0"), "keras", "Apache-2.0", 71.3),
            _google("mobilenet_v2_1.0_224", 224),
        ),
        "mobilenet_v2_110d": (timm_weights("mobilenetv2_110d.ra_in1k", 75.056),),
        "mobilenet_v2_120d": (timm_weights("mobilenetv2_120d.ra_in1k", 77.302),),
        "mobilenet_v2_130": (Weights(_keras_file("1.3"), "keras", "Apache-2.0"),),
        "mobilenet_v2_140": (
            timm_weights("mobilenetv2_140.ra_in1k", 76.52),
            Weights(_keras_file("1.4"), "keras", "Apache-2.0"),
            _google("mobilenet_v2_1.4_224", 224),
        ),
    },
)

FAMILIES = (MOBILENETS_V2,)
