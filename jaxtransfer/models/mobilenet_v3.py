"""MobileNetV3 (Howard et al. 2019, "Searching for MobileNetV3", arXiv 1905.02244).

Tables 1 and 2 of the paper: the inverted residual blocks of MobileNetV2 with kernels, expansions
and activations that a search found, some with squeeze-and-excitation (section 5.3), and hard swish
(section 5.2) in place of swish. The last 1x1 convolution comes before the pooling, and a dense
layer `hidden` after it (section 5.1, figure 5).

"Minimal" variants have the same channels, but 3x3 kernels, ReLU and no squeeze-and-excitation:
https://github.com/tensorflow/models/tree/master/research/slim/nets/mobilenet.

Blocks of one size of output make a stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import flax.linen as nn

from jaxtransfer.errors import ModelError
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
from jaxtransfer.models.naming import keras_layer, torch_layer, torch_squeeze_excitation
from jaxtransfer.models.preprocessing import (
    IMAGENET,
    IMAGENET_BICUBIC,
    INCEPTION,
    INCEPTION_BICUBIC,
)
from jaxtransfer.models.published import timm_weights, torchvision_weights
from jaxtransfer.models.spec import ModelSpec, Source, Weights
from jaxtransfer.models.stages import check_sizes

PAPER = "https://arxiv.org/abs/1905.02244"


# ---------------------------------------------------------------------------------------------
# Rules: where files keep what


def _torchvision_rules(layers: Layers) -> tuple[Rule, ...]:
    rules = [*torch_conv_norm("features.0.0", "features.0.1", "stem")]
    after = 1
    for number, here, sizes in numbered_blocks(layers):
        block, after = f"features.{number + 1}.block", number + 2
        parts = list(parts_of(sizes))
        if sizes.squeezed:
            parts.insert(-1, "squeeze_excitation")
        for position, part in enumerate(parts):
            inner = f"{block}.{position}"
            if part == "squeeze_excitation":
                rules += torch_squeeze_excitation(f"{inner}.fc1", f"{inner}.fc2", f"{here}/{part}")
            else:
                rules += torch_conv_norm(f"{inner}.0", f"{inner}.1", f"{here}/{part}")
    return (
        *rules,
        *torch_conv_norm(f"features.{after}.0", f"features.{after}.1", "last_conv"),
        *torch_layer("classifier.0", "hidden", "dense", bias=True),
        *torch_layer("classifier.3", "head", "dense", bias=True),
    )


def _timm_rules(layers: Layers) -> tuple[Rule, ...]:
    last = f"blocks.{len(layers)}.0"
    return (
        *timm_rules(layers, last=(f"{last}.conv", f"{last}.bn1")),
        *torch_layer("conv_head", "hidden", "pointwise", bias=True),
    )


@dataclass(frozen=True)
class _KerasNames:
    """How a release of Keras names the layers."""

    stem: str
    norm: str
    separator: str
    squeeze: str
    last: str
    hidden: str
    head: str


# The published files have the names of the first release, other files those of today. Keras does
# not mind, since it goes by the order of the layers.
_KERAS_RELEASES = (
    _KerasNames("Conv", "/BatchNorm", "/", "squeeze_excite/Conv", "Conv_1", "Conv_2", "Logits"),
    _KerasNames("conv", "_bn", "_", "squeeze_excite_conv", "conv_1", "conv_2", "logits"),
)


def _keras_rules(layers: Layers, names: _KerasNames) -> tuple[Rule, ...]:
    rules = [*keras_conv_norm(names.stem, f"{names.stem}{names.norm}", "stem")]
    for number, here, sizes in numbered_blocks(layers):
        block = (f"expanded_conv_{number}" if number else "expanded_conv") + names.separator
        for part in parts_of(sizes):
            name = f"{block}{part}"
            rules += keras_conv_norm(name, f"{name}{names.norm}", f"{here}/{part}")
        if sizes.squeezed:
            for name, part in ((names.squeeze, "reduce"), (f"{names.squeeze}_1", "expand")):
                target = f"{here}/squeeze_excitation/{part}"
                rules += keras_layer(f"{block}{name}", target, "pointwise_keras", bias=True)
    return (
        *rules,
        *keras_conv_norm(names.last, f"{names.last}{names.norm}", "last_conv"),
        *keras_layer(names.hidden, "hidden", "pointwise_keras", bias=True),
        *keras_layer(names.head, "head", "pointwise_keras", bias=True),
    )


def _sources(layers: Layers) -> tuple[Source, ...]:
    tensorflow = {"padding": "same", "epsilon": 1e-3}
    return (
        Source(
            "torchvision",
            _torchvision_rules(layers),
            IMAGENET,
            {"epsilon": 1e-3, "momentum": 0.99},
        ),
        Source("timm", _timm_rules(layers), IMAGENET_BICUBIC),
        # The networks of timm whose names begin with `tf_`, with weights of Google: the same names
        # in the file, so that this source must be asked for.
        Source("timm_tf", _timm_rules(layers), INCEPTION, tensorflow),
        # Keras has the scaling in the network, as a layer without weights.
        Source(
            "keras",
            tuple(rule for names in _KERAS_RELEASES for rule in _keras_rules(layers, names)),
            INCEPTION,
            {**tensorflow, "momentum": 0.999},
        ),
    )


# ---------------------------------------------------------------------------------------------
# Variants


@dataclass(frozen=True)
class Row:
    """A row of the paper's tables: a block.

    Attributes:
        size: of the depthwise kernel.
        expanded: channels of the depthwise convolution.
        features: channels that leave the block.
        squeezes: whether there is a squeeze-and-excitation.
        activation: "relu" or "hard_swish".
        stride: of the depthwise convolution.
    """

    size: int
    expanded: int
    features: int
    squeezes: bool
    activation: str
    stride: int


_RE, _HS = "relu", "hard_swish"

# Table 1 of the paper, cut into stages.
LARGE = (
    (Row(3, 16, 16, False, _RE, 1),),
    (Row(3, 64, 24, False, _RE, 2), Row(3, 72, 24, False, _RE, 1)),
    (Row(5, 72, 40, True, _RE, 2), Row(5, 120, 40, True, _RE, 1), Row(5, 120, 40, True, _RE, 1)),
    (
        Row(3, 240, 80, False, _HS, 2),
        Row(3, 200, 80, False, _HS, 1),
        Row(3, 184, 80, False, _HS, 1),
        Row(3, 184, 80, False, _HS, 1),
    ),
    (Row(3, 480, 112, True, _HS, 1), Row(3, 672, 112, True, _HS, 1)),
    (
        Row(5, 672, 160, True, _HS, 2),
        Row(5, 960, 160, True, _HS, 1),
        Row(5, 960, 160, True, _HS, 1),
    ),
)

# Table 2 of the paper, cut into stages.
SMALL = (
    (Row(3, 16, 16, True, _RE, 2),),
    (Row(3, 72, 24, False, _RE, 2), Row(3, 88, 24, False, _RE, 1)),
    (Row(5, 96, 40, True, _HS, 2), Row(5, 240, 40, True, _HS, 1), Row(5, 240, 40, True, _HS, 1)),
    (Row(5, 120, 48, True, _HS, 1), Row(5, 144, 48, True, _HS, 1)),
    (Row(5, 288, 96, True, _HS, 2), Row(5, 576, 96, True, _HS, 1), Row(5, 576, 96, True, _HS, 1)),
)


@dataclass(frozen=True)
class Variant:
    """A network of one of the tables.

    Attributes:
        table: the rows of each stage.
        hidden_width: of the dense layer after the pooling.
        width: what the channels are multiplied by.
        minimal: whether it is a minimal one.
    """

    table: tuple[tuple[Row, ...], ...]
    hidden_width: int
    width: float = 1.0
    minimal: bool = False


VARIANTS = {
    "mobilenet_v3_small_050": Variant(SMALL, 1024, 0.5),
    "mobilenet_v3_small_075": Variant(SMALL, 1024, 0.75),
    "mobilenet_v3_small_minimal": Variant(SMALL, 1024, minimal=True),
    "mobilenet_v3_small": Variant(SMALL, 1024),
    "mobilenet_v3_large_minimal": Variant(LARGE, 1280, minimal=True),
    "mobilenet_v3_large_075": Variant(LARGE, 1280, 0.75),
    "mobilenet_v3_large": Variant(LARGE, 1280),
}


def mobilenet_v3(
    name: str,
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    input_size: tuple[int, int] = (224, 224),
    width: float | None = None,
    blocks: Sequence[int] | None = None,
    hidden_width: int | None = None,
    dropout: float = 0.2,
    padding: str = "symmetric",
    epsilon: float = 1e-5,
    momentum: float = 0.9,
) -> tuple[ModelSpec, nn.Module]:
    """MobileNetV3, large or small, of any width.

    Args:
        name: a key of `VARIANTS`.
        num_classes: outputs of the head.
        in_channels: input channels.
        input_size: (height, width) of the images.
        width: what the channels are multiplied by, rounded to multiples of 8; `None` for the
            variant's. The stem never has less than 16.
        blocks: how many of its blocks each stage has; `None` for all.
        hidden_width: of the dense layer after the pooling; `None` for the variant's, 0 for no such
            layer, as in the files of Keras without a head.
        dropout: the rate at which features before the head are left out in training.
        padding: "symmetric" or "same"; see `Conventions`, as for the next two.
        epsilon: of the normalisation; torchvision, Keras and TensorFlow have 0.001.
        momentum: of the normalisation.

    Raises:
        ModelError: an option is not one that it can be.
    """
    variant = VARIANTS[name]
    check_sizes(name, num_classes=num_classes, in_channels=in_channels)
    conventions = Conventions(padding, epsilon, momentum)
    width = variant.width if width is None else width
    check_options(name, conventions, ("symmetric", "same"), width=width, dropout=dropout)
    if hidden_width is None:
        hidden_width = round_channels(variant.hidden_width * max(width, 1.0))
    if not isinstance(hidden_width, int) or hidden_width < 0:
        raise ModelError(f"{name}: expected hidden_width of at least 0, found {hidden_width!r}")
    layers = _layers(variant, width, _kept_blocks(name, blocks, variant))
    module = MobileNet(
        stem_width=round_channels(16 * max(width, 1.0)),
        layers=layers,
        num_classes=num_classes,
        last_width=6 * layers[-1][-1].features,
        hidden_width=hidden_width,
        activation="relu" if variant.minimal else "hard_swish",
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
        sources=_sources(layers),
        paper=PAPER,
    )
    return spec, module


def _kept_blocks(name: str, blocks: Sequence[int] | None, variant: Variant) -> tuple[int, ...]:
    usual = tuple(len(stage) for stage in variant.table)
    counts = block_counts(name, blocks, usual)
    if any(count > most for count, most in zip(counts, usual, strict=True)):
        raise ModelError(f"{name}: expected at most {usual} blocks, found {blocks!r}")
    return counts


def _layers(variant: Variant, width: float, blocks: tuple[int, ...]) -> Layers:
    layers = []
    # The stem is not made narrower, and the tables tell expansions of unscaled channels.
    channels, unscaled = round_channels(16 * max(width, 1.0)), 16
    for rows, count in zip(variant.table, blocks, strict=True):
        stage = []
        for row in rows[:count]:
            expanded = round_channels(channels * row.expanded / unscaled)
            channels, unscaled = round_channels(row.features * width), row.features
            stage.append(
                BlockSizes(
                    channels,
                    row.stride,
                    size=3 if variant.minimal else row.size,
                    expanded=expanded if len(layers) else 0,
                    squeezed=round_channels(expanded / 4)
                    if row.squeezes and not variant.minimal
                    else 0,
                    activation="relu" if variant.minimal else row.activation,
                )
            )
        layers.append(tuple(stage))
    return tuple(layers)


def _keras_file(name: str) -> str:
    folder = "https://storage.googleapis.com/tensorflow/keras-applications/mobilenet_v3"
    return f"{folder}/weights_mobilenet_v3_{name}_float.h5"


def _timm_tf(model: str, top1: float) -> Weights:
    return timm_weights(f"tf_mobilenetv3_{model}", top1, source="timm_tf")


MOBILENETS_V3 = Family(
    name="mobilenet_v3",
    build=mobilenet_v3,
    # torchvision states 5,483,032 and 2,542,856 for the usual ones; timm 1.59, 2.04, 2.04, 3.92
    # and 3.99 million for the others; these are the exact numbers.
    parameters={
        "mobilenet_v3_small_050": 1_593_224,
        "mobilenet_v3_small_075": 2_041_872,
        "mobilenet_v3_small_minimal": 2_044_736,
        "mobilenet_v3_small": 2_542_856,
        "mobilenet_v3_large_minimal": 3_924_288,
        "mobilenet_v3_large_075": 3_993_528,
        "mobilenet_v3_large": 5_483_032,
    },
    aliases={
        "mobilenetv3_large_075": ("mobilenet_v3_large_075", {}),
        "mobilenetv3_large_100": ("mobilenet_v3_large", {}),
        "mobilenetv3_small_050": ("mobilenet_v3_small_050", {}),
        "mobilenetv3_small_075": ("mobilenet_v3_small_075", {}),
        "mobilenetv3_small_100": ("mobilenet_v3_small", {}),
        **{
            f"tf_mobilenetv3_{size}": (variant, {"padding": "same", "epsilon": 1e-3})
            for size, variant in {
                "large_075": "mobilenet_v3_large_075",
                "large_100": "mobilenet_v3_large",
                "large_minimal_100": "mobilenet_v3_large_minimal",
                "small_075": "mobilenet_v3_small_075",
                "small_100": "mobilenet_v3_small",
                "small_minimal_100": "mobilenet_v3_small_minimal",
            }.items()
        },
    },
    # Accuracy: torchvision's `MobileNet_V3_Large_Weights` and `MobileNet_V3_Small_Weights`;
    # results-imagenet.csv and README of https://github.com/huggingface/pytorch-image-models; the
    # documentation of Keras's `MobileNetV3Large`.
    weights={
        "mobilenet_v3_small_050": (timm_weights("mobilenetv3_small_050.lamb_in1k", 57.91),),
        "mobilenet_v3_small_075": (
            timm_weights("mobilenetv3_small_075.lamb_in1k", 65.234),
            _timm_tf("small_075.in1k", 65.728),
            Weights(_keras_file("small_224_0.75"), "keras", top1=65.4),
        ),
        "mobilenet_v3_small_minimal": (
            _timm_tf("small_minimal_100.in1k", 62.89),
            Weights(_keras_file("small_minimalistic_224_1.0"), "keras", top1=61.9),
        ),
        "mobilenet_v3_small": (
            torchvision_weights("mobilenet_v3_small-047dcff4", 67.668),
            timm_weights("mobilenetv3_small_100.lamb_in1k", 67.656),
            _timm_tf("small_100.in1k", 67.918),
            Weights(_keras_file("small_224_1.0"), "keras", top1=68.1),
        ),
        "mobilenet_v3_large_minimal": (
            _timm_tf("large_minimal_100.in1k", 72.258),
            Weights(_keras_file("large_minimalistic_224_1.0"), "keras", top1=72.3),
        ),
        "mobilenet_v3_large_075": (
            _timm_tf("large_075.in1k", 73.432),
            Weights(_keras_file("large_224_0.75"), "keras", top1=73.3),
        ),
        "mobilenet_v3_large": (
            torchvision_weights(
                "mobilenet_v3_large-5c1a4163",
                75.274,
                replace(IMAGENET, crop_fraction=224 / 232),
            ),
            torchvision_weights("mobilenet_v3_large-8738ca79", 74.042),
            timm_weights("mobilenetv3_large_100.ra_in1k", 75.766),
            timm_weights(
                "mobilenetv3_large_100.ra4_e3600_r224_in1k",
                76.31,
                replace(INCEPTION_BICUBIC, crop_fraction=0.95),
            ),
            timm_weights(
                "mobilenetv3_large_100.miil_in21k_ft_in1k",
                77.918,
                replace(IMAGENET, mean=(0.0,) * 3, std=(1.0,) * 3),
                data="ImageNet-21k, then ImageNet-1k",
            ),
            _timm_tf("large_100.in1k", 75.516),
            Weights(_keras_file("large_224_1.0"), "keras", top1=75.6),
        ),
    },
)

FAMILIES = (MOBILENETS_V3,)
