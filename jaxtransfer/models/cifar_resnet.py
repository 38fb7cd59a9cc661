"""Residual networks for small images (He et al. 2016, arXiv 1512.03385, section 4.2).

A 3x3 stem and three stages of n basic blocks, depth 6n + 2, whose shortcuts are either
parameter-free ("option A": subsample, and pad the new channels with zeros) or projections.

The modules are those of `resnet.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import flax.linen as nn

from jaxtransfer.models.family import Family
from jaxtransfer.models.naming import KERAS_TRAINING_STATE, keras_layer
from jaxtransfer.models.preprocessing import IMAGENET
from jaxtransfer.models.resnet import (
    PAPER,
    Design,
    ResNet,
    StageSizes,
    StemSizes,
    keras_pairs,
    torch_rules,
)
from jaxtransfer.models.spec import ModelSpec, Preprocess, Source, Weights
from jaxtransfer.models.stages import check_choice, check_sizes

# ---------------------------------------------------------------------------------------------
# Rules: where files of each source keep what

# https://github.com/akamaster/pytorch_resnet_cifar10, whose files hold `nn.DataParallel` modules:
# each name has `module.` before it.
PYTORCH_RESNET_CIFAR10_RULES = torch_rules("shortcut", "linear")

# The ResNet-8 of MLPerf Tiny (Banbury et al. 2021, arXiv 2106.07597) has Keras's own names, which
# count the layers in the order in which they were made. The convolutions of its shortcuts have no
# BatchNorm. https://github.com/mlcommons/tiny, benchmark/training/image_classification
MLPERF_TINY_RULES = (
    *keras_pairs(
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
    *keras_layer("dense", "head", bias=True),
)


# ---------------------------------------------------------------------------------------------
# Variants


@dataclass(frozen=True)
class Variant:
    """A row of the paper's table, or the like.

    Attributes:
        blocks: number of blocks in each stage.
        widths: channels of each stage as multiples of the stem's.
        strides: of each stage.
        stem_stride: of the stem.
    """

    blocks: tuple[int, int, int]
    widths: tuple[int, int, int]
    strides: tuple[int, int, int]
    stem_stride: int = 1


# Section 4.2 and table 6 of the paper: n blocks a stage give depth 6n + 2. Depths 8 and 14 are the
# same design, smaller.
VARIANTS = {
    **{
        f"cifar_resnet{6 * n + 2}": Variant((n, n, n), widths=(1, 2, 4), strides=(1, 2, 2))
        for n in (1, 2, 3, 5, 7, 9, 18)
    },
    # Our own, for images of 16x16: most channels work at 8x8 and 4x4, where they cost little.
    "glyph_resnet8": Variant((1, 1, 1), widths=(1, 2, 2), strides=(1, 2, 1), stem_stride=2),
}


# ---------------------------------------------------------------------------------------------
# Sources


def _sources(name: str, size: tuple[int, int]) -> tuple[Source, ...]:
    # The published weights were trained with the normalisation of ImageNet.
    how = replace(IMAGENET, size=size, crop_fraction=1.0)
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
        ignore=(KERAS_TRAINING_STATE,),
    )
    return (akamaster, mlperf_tiny)


# ---------------------------------------------------------------------------------------------
# Builder


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
        name: a key of `VARIANTS`.
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
    variant = VARIANTS[name]
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
        sources=_sources(name, (height, breadth)),
        paper=PAPER,
    )
    return spec, module


# ---------------------------------------------------------------------------------------------
# Published weights


def _akamaster(file: str) -> Weights:
    folder = "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models"
    reference = f"{folder}/{file}.th#sha256={file.rpartition('-')[2]}"
    return Weights(reference, "pytorch_resnet_cifar10", "BSD-2-Clause", data="CIFAR-10")


WEIGHTS: Mapping[str, tuple[Weights, ...]] = {
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
    weights=WEIGHTS,
)

GLYPH_RESNETS = Family(
    name="glyph_resnet",
    build=functools.partial(
        cifar_resnet, in_channels=1, width=32, input_size=(16, 16), shortcut="projection"
    ),
    parameters={"glyph_resnet8": 151_274},
)

FAMILIES = (CIFAR_RESNETS, GLYPH_RESNETS)
