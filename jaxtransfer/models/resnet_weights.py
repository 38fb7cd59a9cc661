"""What is published of residual networks for ImageNet.

Accuracies are those that the publishers state, torchvision's at
https://docs.pytorch.org/vision/stable/models.html.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from jaxtransfer.models.preprocessing import IMAGENET, IMAGENET_BICUBIC
from jaxtransfer.models.published import timm_weights, torchvision_weights
from jaxtransfer.models.spec import Weights


def bsd_weights(file: str, top1: float, *, resized: int = 256) -> Weights:
    """Weights of torchvision's own training, for the central 224 pixels of images `resized`."""
    how = None if resized == 256 else replace(IMAGENET, crop_fraction=224 / resized)
    return torchvision_weights(file, top1, how, licence="BSD-3-Clause")


def _semi_supervised(name: str, top1: float) -> Weights:
    """Weights of https://github.com/facebookresearch/semi-supervised-ImageNet1K-models."""
    data = "a billion images of Instagram with hashtags, then ImageNet-1k"
    return timm_weights(name, top1, IMAGENET, licence="CC-BY-NC-4.0", data=data)


def _transformers(name: str) -> Weights:
    return Weights(f"hf://microsoft/{name}", "transformers", "Apache-2.0")


def _keras(name: str, top1: float) -> Weights:
    """Weights of https://keras.io/api/applications, which are those of the authors."""
    folder = "https://storage.googleapis.com/tensorflow/keras-applications/resnet"
    file = f"{name}_weights_tf_dim_ordering_tf_kernels.h5"
    return Weights(f"{folder}/{file}", "keras", "MIT", top1)


WEIGHTS: Mapping[str, tuple[Weights, ...]] = {
    "resnet18": (
        bsd_weights("resnet18-f37072fd", 69.758),
        timm_weights("resnet18.a1_in1k"),
        _semi_supervised("resnet18.fb_swsl_ig1b_ft_in1k", 73.4),
        _transformers("resnet-18"),
    ),
    "resnet34": (
        bsd_weights("resnet34-b627a593", 73.314),
        timm_weights("resnet34.a1_in1k"),
        _transformers("resnet-34"),
    ),
    "resnet50": (
        bsd_weights("resnet50-11ad3fa6", 80.858, resized=232),
        bsd_weights("resnet50-0676ba61", 76.13),
        # Wightman et al. 2021, "ResNet strikes back", arXiv 2110.00476, abstract.
        timm_weights("resnet50.a1_in1k", top1=80.4),
        _semi_supervised("resnet50.fb_swsl_ig1b_ft_in1k", 81.2),
        _transformers("resnet-50"),
        _keras("resnet50", 74.9),
    ),
    "resnet101": (
        bsd_weights("resnet101-cd907fc2", 81.886, resized=232),
        bsd_weights("resnet101-63fe2227", 77.374),
        timm_weights("resnet101.a1h_in1k"),
        _transformers("resnet-101"),
        _keras("resnet101", 76.4),
    ),
    "resnet152": (
        bsd_weights("resnet152-f82ba261", 82.284, resized=232),
        bsd_weights("resnet152-394f9c45", 78.312),
        timm_weights("resnet152.a1h_in1k"),
        _transformers("resnet-152"),
        _keras("resnet152", 76.6),
    ),
    "resnext50_32x4d": (
        bsd_weights("resnext50_32x4d-1a0047aa", 81.198, resized=232),
        bsd_weights("resnext50_32x4d-7cdf4587", 77.618),
        timm_weights("resnext50_32x4d.a1h_in1k"),
        _semi_supervised("resnext50_32x4d.fb_swsl_ig1b_ft_in1k", 82.2),
    ),
    "resnext101_32x8d": (
        bsd_weights("resnext101_32x8d-110c445d", 82.834, resized=232),
        bsd_weights("resnext101_32x8d-8ba56ff5", 79.312),
        _semi_supervised("resnext101_32x8d.fb_swsl_ig1b_ft_in1k", 84.3),
    ),
    "resnext101_64x4d": (
        bsd_weights("resnext101_64x4d-173b62eb", 83.246, resized=232),
        timm_weights("resnext101_64x4d.c1_in1k"),
    ),
    "wide_resnet50_2": (
        bsd_weights("wide_resnet50_2-9ba9bcbe", 81.602, resized=232),
        bsd_weights("wide_resnet50_2-95faca4d", 78.468),
        timm_weights("wide_resnet50_2.racm_in1k", preprocess=IMAGENET_BICUBIC),
    ),
    "wide_resnet101_2": (
        bsd_weights("wide_resnet101_2-d733dc28", 82.51, resized=232),
        bsd_weights("wide_resnet101_2-32ee1156", 78.848),
    ),
}
