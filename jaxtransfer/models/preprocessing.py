"""How images were prepared for most published weights; `replace` makes the rest of these.

The size is the usual one: that of a network comes in its place.
"""

from __future__ import annotations

from dataclasses import replace

from jaxtransfer.models.spec import Preprocess

IMAGENET = Preprocess(
    size=(224, 224),
    channels=3,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    crop_fraction=0.875,
)
"""ImageNet's channel means and deviations, as torchvision documents them for its weights.

Source: https://docs.pytorch.org/vision/stable/models.html. Keras calls it mode "torch".
"""

IMAGENET_BICUBIC = replace(IMAGENET, interpolation="bicubic")
"""The same with the interpolation of timm and transformers."""

INCEPTION = replace(IMAGENET, mean=(0.5,) * 3, std=(0.5,) * 3)
"""Images in [-1, 1], as Google trained its networks. Keras calls it mode "tf".

Source: `inception_preprocessing` of
https://github.com/tensorflow/models/tree/master/research/slim/preprocessing.
"""

INCEPTION_BICUBIC = replace(INCEPTION, interpolation="bicubic")
"""The same with the interpolation of timm."""

CAFFE = Preprocess(
    size=(224, 224),
    channels=3,
    scale=None,
    mean=(103.939, 116.779, 123.68),
    crop_fraction=0.875,
    channel_order="bgr",
)
"""Bytes as they are, in the order of OpenCV, less the channel means. Keras calls it mode "caffe".

Source: https://gist.github.com/ksimonyan/211839e770f7b538e2d8 for VGG, and the mean image of
https://github.com/KaimingHe/deep-residual-networks.
"""
