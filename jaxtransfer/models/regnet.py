"""RegNet X and Y (Radosavovic et al. 2020, "Designing Network Design Spaces", arXiv 2003.13678).

A RegNet is a residual network of bottlenecks that keep their width inside, with a 3x3 convolution
in groups of one width throughout. The widths of its four stages follow a rounded line (section
3.3), so that the whole network is a row of a table. RegNetY has squeeze-and-excitation after the
3x3 convolution, with a quarter of the channels that enter the block (section 4).

Stages are adjusted to a multiple of the groups' width, and where that is a tie, the authors' code
rounds to even and torchvision upwards. Hence three networks, X-400MF, Y-800MF and Y-8GF, are wider
in torchvision; those of the paper, which timm and transformers have, end in `_pycls` here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn

from jaxtransfer.errors import ModelError
from jaxtransfer.mapping import Rule
from jaxtransfer.models.family import Family
from jaxtransfer.models.naming import (
    torch_batch_norm,
    torch_layer,
    torch_squeeze_excitation,
)
from jaxtransfer.models.preprocessing import IMAGENET, IMAGENET_BICUBIC
from jaxtransfer.models.published import SWAG_DATA, timm_weights, torchvision_weights
from jaxtransfer.models.resnet import (
    Design,
    ResNet,
    StageSizes,
    StemSizes,
    transformers_rules,
)
from jaxtransfer.models.resnet_weights import bsd_weights
from jaxtransfer.models.spec import ModelSpec, Source, Weights
from jaxtransfer.models.stages import check_rates, check_sizes

PAPER = "https://arxiv.org/abs/2003.13678"


# ---------------------------------------------------------------------------------------------
# Variants


@dataclass(frozen=True)
class Variant:
    """A row of the paper's tables.

    Attributes:
        blocks: number of blocks in each stage.
        widths: channels of each stage.
        group_width: channels of each group of the 3x3 convolutions.
    """

    blocks: tuple[int, int, int, int]
    widths: tuple[int, int, int, int]
    group_width: int


# Figure 16 of the paper, and torchvision's networks where they differ.
X_VARIANTS = {
    "regnet_x_200mf": Variant((1, 1, 4, 7), (24, 56, 152, 368), 8),
    "regnet_x_400mf": Variant((1, 2, 7, 12), (32, 64, 160, 400), 16),
    "regnet_x_400mf_pycls": Variant((1, 2, 7, 12), (32, 64, 160, 384), 16),
    "regnet_x_600mf": Variant((1, 3, 5, 7), (48, 96, 240, 528), 24),
    "regnet_x_800mf": Variant((1, 3, 7, 5), (64, 128, 288, 672), 16),
    "regnet_x_1_6gf": Variant((2, 4, 10, 2), (72, 168, 408, 912), 24),
    "regnet_x_3_2gf": Variant((2, 6, 15, 2), (96, 192, 432, 1008), 48),
    "regnet_x_4gf": Variant((2, 5, 14, 2), (80, 240, 560, 1360), 40),
    "regnet_x_6_4gf": Variant((2, 4, 10, 1), (168, 392, 784, 1624), 56),
    "regnet_x_8gf": Variant((2, 5, 15, 1), (80, 240, 720, 1920), 120),
    "regnet_x_12gf": Variant((2, 5, 11, 1), (224, 448, 896, 2240), 112),
    "regnet_x_16gf": Variant((2, 6, 13, 1), (256, 512, 896, 2048), 128),
    "regnet_x_32gf": Variant((2, 7, 13, 1), (336, 672, 1344, 2520), 168),
}

# Figure 17 of the paper, and torchvision's networks where they differ. Y-64GF and Y-128GF are of
# Goyal et al. 2021 (arXiv 2103.01988) and Singh et al. 2022 (arXiv 2201.08371).
Y_VARIANTS = {
    "regnet_y_200mf": Variant((1, 1, 4, 7), (24, 56, 152, 368), 8),
    "regnet_y_400mf": Variant((1, 3, 6, 6), (48, 104, 208, 440), 8),
    "regnet_y_600mf": Variant((1, 3, 7, 4), (48, 112, 256, 608), 16),
    "regnet_y_800mf": Variant((1, 3, 8, 2), (64, 144, 320, 784), 16),
    "regnet_y_800mf_pycls": Variant((1, 3, 8, 2), (64, 128, 320, 768), 16),
    "regnet_y_1_6gf": Variant((2, 6, 17, 2), (48, 120, 336, 888), 24),
    "regnet_y_3_2gf": Variant((2, 5, 13, 1), (72, 216, 576, 1512), 24),
    "regnet_y_4gf": Variant((2, 6, 12, 2), (128, 192, 512, 1088), 64),
    "regnet_y_6_4gf": Variant((2, 7, 14, 2), (144, 288, 576, 1296), 72),
    "regnet_y_8gf": Variant((2, 4, 10, 1), (224, 448, 896, 2016), 56),
    "regnet_y_8gf_pycls": Variant((2, 4, 10, 1), (168, 448, 896, 2016), 56),
    "regnet_y_12gf": Variant((2, 5, 11, 1), (224, 448, 896, 2240), 112),
    "regnet_y_16gf": Variant((2, 4, 11, 1), (224, 448, 1232, 3024), 112),
    "regnet_y_32gf": Variant((2, 5, 12, 1), (232, 696, 1392, 3712), 232),
    "regnet_y_64gf": Variant((2, 5, 12, 1), (328, 984, 1968, 4920), 328),
    "regnet_y_128gf": Variant((2, 7, 17, 1), (528, 1056, 2904, 7392), 264),
}

VARIANTS = {**X_VARIANTS, **Y_VARIANTS}


# ---------------------------------------------------------------------------------------------
# Rules: where files of each source keep what


def _torchvision_rules() -> tuple[Rule, ...]:
    """Source: https://github.com/pytorch/vision, torchvision/models/regnet.py."""
    block, here = "trunk_output.block{i}.block{i}-{j}", "layer{i}/{j}"
    layers = {
        "stem": ("stem/conv", "stem/bn"),
        **{
            f"{block}.f.{letter}": (f"{here}/conv{k}", f"{here}/bn{k}")
            for k, letter in enumerate("abc", start=1)
        },
        f"{block}.proj": (f"{here}/shortcut_conv", f"{here}/shortcut_bn"),
    }
    return (
        *(
            rule
            for source, (conv, norm) in layers.items()
            for rule in (
                *torch_layer(f"{source}.0", conv),
                *torch_batch_norm(f"{source}.1", norm),
            )
        ),
        *torch_squeeze_excitation(
            f"{block}.f.se.fc1", f"{block}.f.se.fc2", f"{here}/squeeze_excitation"
        ),
        *torch_layer("fc", "head", "dense", bias=True),
    )


def _timm_rules(longest: int) -> tuple[Rule, ...]:
    """The rules of timm, which counts blocks from 1 on.

    Args:
        longest: the number of blocks of the longest stage.

    Source: https://github.com/huggingface/pytorch-image-models, timm/models/regnet.py.
    """

    def convolution(source: str, conv: str, norm: str) -> tuple[Rule, ...]:
        return (*torch_layer(f"{source}.conv", conv), *torch_batch_norm(f"{source}.bn", norm))

    rules = [*convolution("stem", "stem/conv", "stem/bn")]
    for j in range(longest):
        block, here = f"s{{i}}.b{j + 1}", f"layer{{i}}/{j}"
        for k in (1, 2, 3):
            rules += convolution(f"{block}.conv{k}", f"{here}/conv{k}", f"{here}/bn{k}")
        shortcut = (f"{here}/shortcut_conv", f"{here}/shortcut_bn")
        rules += convolution(f"{block}.downsample", *shortcut)
        rules += torch_squeeze_excitation(
            f"{block}.se.fc1", f"{block}.se.fc2", f"{here}/squeeze_excitation"
        )
    return (*rules, *torch_layer("head.fc", "head", "dense", bias=True))


def _transformers_rules(is_y: bool) -> tuple[Rule, ...]:
    """In blocks of RegNetY, squeeze-and-excitation stands before the last convolution."""
    if not is_y:
        return transformers_rules("regnet", (0, 1, 2))
    rules = transformers_rules("regnet", (0, 1, 3))
    for stage in range(4):
        attention = f"regnet.encoder.stages.{stage}.layers.{{j}}.layer.2.attention"
        here = f"layer{stage + 1}/{{j}}/squeeze_excitation"
        rules += torch_squeeze_excitation(f"{attention}.0", f"{attention}.2", here)
    return rules


TORCHVISION_RULES = _torchvision_rules()


# ---------------------------------------------------------------------------------------------
# Builder


def regnet(
    name: str,
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    input_size: tuple[int, int] = (224, 224),
    blocks: tuple[int, ...] | None = None,
    widths: tuple[int, ...] | None = None,
    group_width: int | None = None,
    stem_width: int = 32,
    drop_path: float = 0.0,
) -> tuple[ModelSpec, nn.Module]:
    """A RegNetX or RegNetY.

    Args:
        name: a key of `VARIANTS`.
        num_classes: outputs of the head, 0 for none.
        in_channels: input channels.
        input_size: (height, width) of the images.
        blocks: number of blocks in each of the four stages, by default the variant's.
        widths: channels of each stage, by default the variant's.
        group_width: channels of each group of the 3x3 convolutions, by default the variant's; a
            narrower stage is one group.
        stem_width: channels that leave the stem.
        drop_path: rate of stochastic depth of the last block.

    Raises:
        ModelError: a number is out of its range, or a group's width does not divide a stage's.
    """
    variant = VARIANTS[name]
    blocks = variant.blocks if blocks is None else tuple(blocks)
    widths = variant.widths if widths is None else tuple(widths)
    group_width = variant.group_width if group_width is None else group_width
    height, breadth = input_size
    sizes = {
        "in_channels": in_channels,
        "height": height,
        "breadth": breadth,
        "group_width": group_width,
        "stem_width": stem_width,
        **{f"blocks[{i}]": count for i, count in enumerate(blocks)},
        **{f"widths[{i}]": width for i, width in enumerate(widths)},
    }
    check_sizes(name, num_classes, **sizes)
    check_rates(name, drop_path=drop_path)
    if not len(blocks) == len(widths) == 4:
        raise ModelError(
            f"{name}: expected blocks and widths of 4 stages, found {blocks}, {widths}"
        )
    uneven = [width for width in widths if width % min(group_width, width)]
    if uneven:
        raise ModelError(
            f"{name}: expected widths that are multiples of group_width {group_width}, "
            f"found {uneven}"
        )
    is_y = name in Y_VARIANTS
    module = ResNet(
        stem=StemSizes(stem_width, stride=2),
        body=tuple(
            StageSizes(count, width, width, max(width // group_width, 1))
            for count, width in zip(blocks, widths, strict=True)
        ),
        design=Design(bottleneck=True, squeeze=0.25 if is_y else 0.0),
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
        sources=(
            Source("torchvision", TORCHVISION_RULES, IMAGENET),
            Source("timm", _timm_rules(max(blocks)), IMAGENET_BICUBIC),
            Source("transformers", _transformers_rules(is_y), IMAGENET_BICUBIC),
        ),
        paper=PAPER,
    )
    return spec, module


# ---------------------------------------------------------------------------------------------
# Published weights


# Names of timm and transformers for the networks that the paper's authors trained: a hundredth of
# the number of million multiply-adds.
PYCLS_NAMES = {
    "x_002": "regnet_x_200mf",
    "x_004": "regnet_x_400mf_pycls",
    "x_006": "regnet_x_600mf",
    "x_008": "regnet_x_800mf",
    "x_016": "regnet_x_1_6gf",
    "x_032": "regnet_x_3_2gf",
    "x_040": "regnet_x_4gf",
    "x_064": "regnet_x_6_4gf",
    "x_080": "regnet_x_8gf",
    "x_120": "regnet_x_12gf",
    "x_160": "regnet_x_16gf",
    "x_320": "regnet_x_32gf",
    "y_002": "regnet_y_200mf",
    "y_004": "regnet_y_400mf",
    "y_006": "regnet_y_600mf",
    "y_008": "regnet_y_800mf_pycls",
    "y_016": "regnet_y_1_6gf",
    "y_032": "regnet_y_3_2gf",
    "y_040": "regnet_y_4gf",
    "y_064": "regnet_y_6_4gf",
    "y_080": "regnet_y_8gf_pycls",
    "y_120": "regnet_y_12gf",
    "y_160": "regnet_y_16gf",
    "y_320": "regnet_y_32gf",
}

ALIASES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    **{f"regnet{name}": (ours, {}) for name, ours in PYCLS_NAMES.items()},
    **{f"regnet-{name.replace('_', '-')}": (ours, {}) for name, ours in PYCLS_NAMES.items()},
    "regnetx_004_tv": ("regnet_x_400mf", {}),
    "regnety_008_tv": ("regnet_y_800mf", {}),
    "regnety_080_tv": ("regnet_y_8gf", {}),
    "regnety_640": ("regnet_y_64gf", {}),
    "regnety_1280": ("regnet_y_128gf", {}),
}

_SWAG_PREPROCESS = replace(IMAGENET_BICUBIC, size=(384, 384), crop_fraction=1.0)


def _swag(file: str, top1: float, *, tuned: bool) -> Weights:
    """Weights of https://github.com/facebookresearch/SWAG.

    Args:
        file: the file's name without its ending.
        top1: accuracy as torchvision states it.
        tuned: whether the whole network was trained on ImageNet, at 384x384, not the head alone.
    """
    how = _SWAG_PREPROCESS if tuned else replace(IMAGENET_BICUBIC, crop_fraction=1.0)
    return torchvision_weights(file, top1, how, licence="CC-BY-NC-4.0", data=SWAG_DATA)


_TORCHVISION_WEIGHTS = {
    "regnet_x_400mf": (
        bsd_weights("regnet_x_400mf-62229a5f", 74.864, resized=232),
        bsd_weights("regnet_x_400mf-adf1edd5", 72.834),
    ),
    "regnet_x_800mf": (
        bsd_weights("regnet_x_800mf-94a99ebd", 77.522, resized=232),
        bsd_weights("regnet_x_800mf-ad17e45c", 75.212),
    ),
    "regnet_x_1_6gf": (
        bsd_weights("regnet_x_1_6gf-a12f2b72", 79.668, resized=232),
        bsd_weights("regnet_x_1_6gf-e3633e7f", 77.04),
    ),
    "regnet_x_3_2gf": (
        bsd_weights("regnet_x_3_2gf-7071aa85", 81.196, resized=232),
        bsd_weights("regnet_x_3_2gf-f342aeae", 78.364),
    ),
    "regnet_x_8gf": (
        bsd_weights("regnet_x_8gf-2b70d774", 81.682, resized=232),
        bsd_weights("regnet_x_8gf-03ceed89", 79.344),
    ),
    "regnet_x_16gf": (
        bsd_weights("regnet_x_16gf-ba3796d7", 82.716, resized=232),
        bsd_weights("regnet_x_16gf-2007eb11", 80.058),
    ),
    "regnet_x_32gf": (
        bsd_weights("regnet_x_32gf-6eb8fdc6", 83.014, resized=232),
        bsd_weights("regnet_x_32gf-9d47f8d0", 80.622),
    ),
    "regnet_y_400mf": (
        bsd_weights("regnet_y_400mf-e6988f5f", 75.804, resized=232),
        bsd_weights("regnet_y_400mf-c65dace8", 74.046),
    ),
    "regnet_y_800mf": (
        bsd_weights("regnet_y_800mf-58fc7688", 78.828, resized=232),
        bsd_weights("regnet_y_800mf-1b27b58c", 76.42),
    ),
    "regnet_y_1_6gf": (
        bsd_weights("regnet_y_1_6gf-0d7bc02a", 80.876, resized=232),
        bsd_weights("regnet_y_1_6gf-b11a554e", 77.95),
    ),
    "regnet_y_3_2gf": (
        bsd_weights("regnet_y_3_2gf-9180c971", 81.982, resized=232),
        bsd_weights("regnet_y_3_2gf-b5a9779c", 78.948),
    ),
    "regnet_y_8gf": (
        bsd_weights("regnet_y_8gf-dc2b1b54", 82.828, resized=232),
        bsd_weights("regnet_y_8gf-d0d0e4a8", 80.032),
    ),
    "regnet_y_16gf": (
        bsd_weights("regnet_y_16gf-3e4a00f9", 82.886, resized=232),
        bsd_weights("regnet_y_16gf-9e6ed7dd", 80.424),
        _swag("regnet_y_16gf_swag-43afe44d", 86.012, tuned=True),
        _swag("regnet_y_16gf_lc_swag-f3ec0043", 83.976, tuned=False),
    ),
    "regnet_y_32gf": (
        bsd_weights("regnet_y_32gf-8db6d4b5", 83.368, resized=232),
        bsd_weights("regnet_y_32gf-4dee3f7a", 80.878),
        _swag("regnet_y_32gf_swag-04fdfa75", 86.838, tuned=True),
        _swag("regnet_y_32gf_lc_swag-e1583746", 84.622, tuned=False),
    ),
    "regnet_y_128gf": (
        _swag("regnet_y_128gf_swag-c8ce3e52", 88.228, tuned=True),
        _swag("regnet_y_128gf_lc_swag-cbe8ce12", 86.068, tuned=False),
    ),
}


def _pycls(name: str) -> tuple[Weights, ...]:
    """The authors' weights, as timm and transformers have them."""
    letter, size = name.split("_")
    return (
        timm_weights(f"regnet{letter}_{size}.pycls_in1k", licence="MIT"),
        Weights(f"hf://facebook/regnet-{letter}-{size}", "transformers", "Apache-2.0"),
    )


def _weights() -> dict[str, tuple[Weights, ...]]:
    pycls = {ours: _pycls(name) for name, ours in PYCLS_NAMES.items()}
    return {
        name: (*_TORCHVISION_WEIGHTS.get(name, ()), *pycls.get(name, ()))
        for name in VARIANTS
        if name in _TORCHVISION_WEIGHTS or name in pycls
    }


REGNETS = Family(
    name="regnet",
    build=regnet,
    # torchvision's `num_params`; those that torchvision has not are timm's.
    parameters={
        "regnet_x_200mf": 2_684_792,
        "regnet_x_400mf": 5_495_976,
        "regnet_x_400mf_pycls": 5_157_512,
        "regnet_x_600mf": 6_196_040,
        "regnet_x_800mf": 7_259_656,
        "regnet_x_1_6gf": 9_190_136,
        "regnet_x_3_2gf": 15_296_552,
        "regnet_x_4gf": 22_118_248,
        "regnet_x_6_4gf": 26_209_256,
        "regnet_x_8gf": 39_572_648,
        "regnet_x_12gf": 46_106_056,
        "regnet_x_16gf": 54_278_536,
        "regnet_x_32gf": 107_811_560,
        "regnet_y_200mf": 3_162_996,
        "regnet_y_400mf": 4_344_144,
        "regnet_y_600mf": 6_055_160,
        "regnet_y_800mf": 6_432_512,
        "regnet_y_800mf_pycls": 6_263_168,
        "regnet_y_1_6gf": 11_202_430,
        "regnet_y_3_2gf": 19_436_338,
        "regnet_y_4gf": 20_646_656,
        "regnet_y_6_4gf": 30_583_252,
        "regnet_y_8gf": 39_381_472,
        "regnet_y_8gf_pycls": 39_180_068,
        "regnet_y_12gf": 51_822_544,
        "regnet_y_16gf": 83_590_140,
        "regnet_y_32gf": 145_046_770,
        "regnet_y_64gf": 281_378_786,
        "regnet_y_128gf": 644_812_894,
    },
    aliases=ALIASES,
    weights=_weights(),
)

FAMILIES = (REGNETS,)
