"""What is published of Vision Transformers.

Licences and preprocessing are those of `default_cfgs` of timm and the `Weights` of torchvision,
whose accuracies are on https://docs.pytorch.org/vision/stable/models.html.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from jaxtransfer.models.preprocessing import IMAGENET, IMAGENET_BICUBIC, INCEPTION_BICUBIC
from jaxtransfer.models.published import SWAG_DATA, timm_weights, torchvision_weights
from jaxtransfer.models.spec import Preprocess, Weights

_IMAGENET21K = "ImageNet-21k"
_IMAGENET21K_1K = "ImageNet-21k, then ImageNet-1k"
_UNLABELLED = "ImageNet-1k, without labels"

_FULL = replace(INCEPTION_BICUBIC, crop_fraction=1.0)
_FULL_IMAGENET = replace(IMAGENET_BICUBIC, crop_fraction=1.0)
_SELF_SUPERVISED = replace(IMAGENET_BICUBIC, crop_fraction=0.9)


def _timm(
    name: str,
    data: str = _IMAGENET21K_1K,
    *,
    licence: str = "Apache-2.0",
    preprocess: Preprocess | None = None,
) -> Weights:
    return timm_weights(name, preprocess=preprocess, licence=licence, data=data)


def _swag(file: str, top1: float) -> Weights:
    """Weights of https://github.com/facebookresearch/SWAG."""
    return torchvision_weights(file, top1, _FULL_IMAGENET, licence="CC-BY-NC-4.0", data=SWAG_DATA)


def _google(name: str, data: str = _IMAGENET21K_1K) -> Weights:
    return Weights(f"hf://google/{name}", "transformers", "Apache-2.0", data=data)


WEIGHTS: Mapping[str, tuple[Weights, ...]] = {
    "vit_ti16": (
        _timm("vit_tiny_patch16_224.augreg_in21k_ft_in1k"),
        _timm("vit_tiny_patch16_384.augreg_in21k_ft_in1k", preprocess=_FULL),
        _timm("vit_tiny_patch16_224.augreg_in21k", _IMAGENET21K),
    ),
    "vit_s32": (
        _timm("vit_small_patch32_224.augreg_in21k_ft_in1k"),
        _timm("vit_small_patch32_384.augreg_in21k_ft_in1k", preprocess=_FULL),
        _timm("vit_small_patch32_224.augreg_in21k", _IMAGENET21K),
    ),
    "vit_s16": (
        _timm("vit_small_patch16_224.augreg_in21k_ft_in1k"),
        _timm("vit_small_patch16_384.augreg_in21k_ft_in1k", preprocess=_FULL),
        _timm("vit_small_patch16_224.augreg_in21k", _IMAGENET21K),
        _timm("vit_small_patch16_224.augreg_in1k", "ImageNet-1k"),
        _timm("vit_small_patch16_224.dino", _UNLABELLED, preprocess=_SELF_SUPERVISED),
    ),
    "vit_b32": (
        _timm("vit_base_patch32_224.augreg_in21k_ft_in1k"),
        _timm("vit_base_patch32_384.augreg_in21k_ft_in1k", preprocess=_FULL),
        _timm("vit_base_patch32_224.augreg_in21k", _IMAGENET21K),
        torchvision_weights("vit_b_32-d86f8d99", 75.912, licence="BSD-3-Clause"),
        _google("vit-base-patch32-384"),
        _google("vit-base-patch32-224-in21k", _IMAGENET21K),
    ),
    "vit_b16": (
        _timm("vit_base_patch16_224.augreg_in21k_ft_in1k"),
        _timm("vit_base_patch16_384.augreg_in21k_ft_in1k", preprocess=_FULL),
        _timm("vit_base_patch16_224.augreg_in21k", _IMAGENET21K),
        _timm("vit_base_patch16_224.augreg_in1k", "ImageNet-1k"),
        _timm("vit_base_patch16_224.dino", _UNLABELLED, preprocess=_SELF_SUPERVISED),
        _timm(
            "vit_base_patch16_224.mae",
            _UNLABELLED,
            licence="CC-BY-NC-4.0",
            preprocess=_SELF_SUPERVISED,
        ),
        torchvision_weights("vit_b_16-c867db91", 81.072, licence="BSD-3-Clause"),
        _swag("vit_b_16_swag-9ac1b537", 85.304),
        _swag("vit_b_16_lc_swag-4e70ced5", 81.886),
        _google("vit-base-patch16-224"),
        _google("vit-base-patch16-384"),
        _google("vit-base-patch16-224-in21k", _IMAGENET21K),
    ),
    "vit_b8": (
        _timm("vit_base_patch8_224.augreg_in21k_ft_in1k"),
        _timm("vit_base_patch8_224.augreg_in21k", _IMAGENET21K),
        _timm("vit_base_patch8_224.dino", _UNLABELLED, preprocess=_SELF_SUPERVISED),
    ),
    "vit_l32": (
        _timm("vit_large_patch32_384.orig_in21k_ft_in1k", preprocess=_FULL),
        torchvision_weights("vit_l_32-c7638314", 76.972, licence="BSD-3-Clause"),
        _google("vit-large-patch32-384"),
    ),
    "vit_l16": (
        _timm("vit_large_patch16_224.augreg_in21k_ft_in1k"),
        _timm("vit_large_patch16_384.augreg_in21k_ft_in1k", preprocess=_FULL),
        _timm("vit_large_patch16_224.augreg_in21k", _IMAGENET21K),
        # Its images are resized to 242 before the crop of 224.
        torchvision_weights(
            "vit_l_16-852ce7e3",
            79.662,
            replace(IMAGENET, crop_fraction=224 / 242),
            licence="BSD-3-Clause",
        ),
        _swag("vit_l_16_swag-4f3808c9", 88.064),
        _swag("vit_l_16_lc_swag-4d563306", 85.146),
        _google("vit-large-patch16-224"),
        _google("vit-large-patch16-384"),
        _google("vit-large-patch16-224-in21k", _IMAGENET21K),
    ),
    "vit_h14": (
        _timm("vit_huge_patch14_224.orig_in21k", _IMAGENET21K),
        _swag("vit_h_14_swag-80465313", 88.552),
        _swag("vit_h_14_lc_swag-c1eb923e", 85.708),
        _google("vit-huge-patch14-224-in21k", _IMAGENET21K),
    ),
}
