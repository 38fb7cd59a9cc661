"""Weights by their names at those who publish most of them."""

from __future__ import annotations

from jaxtransfer.models.spec import Preprocess, Weights

SWAG_DATA = "3.6 billion images of Instagram with hashtags, then ImageNet-1k"
"""What the networks of https://github.com/facebookresearch/SWAG were trained on."""


def torchvision_weights(
    file: str,
    top1: float,
    preprocess: Preprocess | None = None,
    *,
    licence: str | None = None,
    data: str = "ImageNet-1k",
) -> Weights:
    """Weights of torchvision by their file's name, whose last part begins its SHA-256.

    Source: the `Weights` in https://github.com/pytorch/vision, torchvision/models.

    >>> torchvision_weights("resnet50-0676ba61", 76.13).reference
    'https://download.pytorch.org/models/resnet50-0676ba61.pth#sha256=0676ba61'
    """
    sha256 = file.rpartition("-")[2]
    reference = f"https://download.pytorch.org/models/{file}.pth#sha256={sha256}"
    return Weights(reference, "torchvision", licence, top1, data, preprocess)


def timm_weights(
    name: str,
    top1: float | None = None,
    preprocess: Preprocess | None = None,
    *,
    licence: str = "Apache-2.0",
    data: str = "ImageNet-1k",
    source: str = "timm",
) -> Weights:
    """Weights of timm by their name on the Hugging Face Hub.

    Source: the `default_cfgs` in https://github.com/huggingface/pytorch-image-models, timm/models.

    >>> timm_weights("resnet50.a1_in1k").reference
    'hf://timm/resnet50.a1_in1k'
    """
    return Weights(f"hf://timm/{name}", source, licence, top1, data, preprocess)
