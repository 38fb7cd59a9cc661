"""What is published of EfficientNets: weights, and the images that they expect.

Accuracies are those that the publishers state, torchvision's at
https://docs.pytorch.org/vision/stable/models.html, timm's at
https://github.com/huggingface/pytorch-image-models/blob/main/results/results-imagenet.csv, those of
Keras at https://keras.io/api/applications.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from jaxtransfer.models.preprocessing import IMAGENET, INCEPTION
from jaxtransfer.models.published import timm_weights, torchvision_weights
from jaxtransfer.models.spec import Preprocess, Weights


def prepared(
    size: int, resized: int | None = None, *, centred: bool = False, interpolation: str = "bicubic"
) -> Preprocess:
    """Images resized to cover `resized`, of which the centre of `size` is kept.

    They are normalised by ImageNet's means and deviations, or `centred`: brought to [-1, 1].
    """
    return replace(
        INCEPTION if centred else IMAGENET,
        size=(size, size),
        interpolation=interpolation,
        crop_fraction=size / (resized or size),
    )


# How torchvision evaluates the weights that it has by default:
# https://docs.pytorch.org/vision/stable/models/efficientnet.html
TORCHVISION_IMAGES = {
    "efficientnet_b0": prepared(224, 256),
    "efficientnet_b1": prepared(240, 255, interpolation="bilinear"),
    "efficientnet_b2": prepared(288),
    "efficientnet_b3": prepared(300, 320),
    "efficientnet_b4": prepared(380, 384),
    "efficientnet_b5": prepared(456),
    "efficientnet_b6": prepared(528),
    "efficientnet_b7": prepared(600),
    "efficientnet_v2_s": prepared(384, interpolation="bilinear"),
    "efficientnet_v2_m": prepared(480, interpolation="bilinear"),
    "efficientnet_v2_l": prepared(480, centred=True),
}

# The name of a file ends in the first digits of its SHA-256.
_TORCHVISION_WEIGHTS: Mapping[str, tuple[tuple[str, float, Preprocess | None], ...]] = {
    "efficientnet_b0": (("efficientnet_b0_rwightman-7f5810bc", 77.692, None),),
    "efficientnet_b1": (
        ("efficientnet_b1-c27df63c", 79.838, None),
        ("efficientnet_b1_rwightman-bac287d4", 78.642, prepared(240, 256)),
    ),
    "efficientnet_b2": (("efficientnet_b2_rwightman-c35c1473", 80.608, None),),
    "efficientnet_b3": (("efficientnet_b3_rwightman-b3899882", 82.008, None),),
    "efficientnet_b4": (("efficientnet_b4_rwightman-23ab8bcd", 83.384, None),),
    "efficientnet_b5": (("efficientnet_b5_lukemelas-1a07897c", 83.444, None),),
    "efficientnet_b6": (("efficientnet_b6_lukemelas-24a108a5", 84.008, None),),
    "efficientnet_b7": (("efficientnet_b7_lukemelas-c5b4e57e", 84.122, None),),
    "efficientnet_v2_s": (("efficientnet_v2_s-dd5fe13b", 84.228, None),),
    "efficientnet_v2_m": (("efficientnet_v2_m-dc08266a", 85.112, None),),
    "efficientnet_v2_l": (("efficientnet_v2_l-59c71312", 85.808, None),),
}

# timm's own, at the size that it evaluates them at.
_TIMM_WEIGHTS: Mapping[str, tuple[tuple[str, float, Preprocess | None], ...]] = {
    "efficientnet_b0": (
        ("ra_in1k", 77.694, None),
        ("ra4_e3600_r224_in1k", 79.364, prepared(256, centred=True)),
    ),
    "efficientnet_b1": (
        ("ft_in1k", 78.800, prepared(256)),
        ("ra4_e3600_r240_in1k", 81.440, prepared(288, centred=True)),
    ),
    "efficientnet_b2": (("ra_in1k", 80.610, prepared(288)),),
    "efficientnet_b3": (("ra2_in1k", 82.242, prepared(320)),),
    "efficientnet_b4": (("ra2_in1k", 83.414, prepared(384)),),
    "efficientnet_b5": (("sw_in12k_ft_in1k", 85.892, prepared(448)),),
}

# The authors' weights, which timm has under the names of its networks `tf_efficientnet_…`; `None`
# where it has none.
_V1_TRAININGS = ("in1k", "aa_in1k", "ra_in1k", "ap_in1k", "ns_jft_in1k")
_V1_TIMM_TF_TOP1 = {
    "efficientnet_b0": (76.532, 76.834, None, 77.090, 78.670),
    "efficientnet_b1": (78.560, 78.830, None, 79.280, 81.394),
    "efficientnet_b2": (79.604, 80.084, None, 80.308, 82.378),
    "efficientnet_b3": (80.878, 81.644, None, 81.826, 84.056),
    "efficientnet_b4": (82.608, 83.018, None, 83.250, 85.162),
    "efficientnet_b5": (83.176, 83.688, 83.810, 84.258, 86.088),
    "efficientnet_b6": (None, 84.116, None, 84.786, 86.456),
    "efficientnet_b7": (None, 84.414, 84.932, 85.122, 86.840),
}
_V2_TRAININGS = ("in1k", "in21k_ft_in1k")
_V2_TIMM_TF_TOP1 = {
    "efficientnet_v2_s": (83.900, 84.288),
    "efficientnet_v2_m": (85.204, 86.000),
    "efficientnet_v2_l": (85.664, 86.802),
}

_KERAS_TOP1 = {
    "efficientnet_b0": 77.1,
    "efficientnet_b1": 79.1,
    "efficientnet_b2": 80.1,
    "efficientnet_b3": 81.6,
    "efficientnet_b4": 82.9,
    "efficientnet_b5": 83.6,
    "efficientnet_b6": 84.0,
    "efficientnet_b7": 84.3,
    "efficientnet_v2_s": 83.9,
    "efficientnet_v2_m": 85.3,
    "efficientnet_v2_l": 85.7,
}

# What weights have seen, by the last parts of timm's names, the longer first.
_TIMM_DATA = {
    "ns_jft_in1k": "ImageNet-1k, and JFT-300M without its labels",
    "in21k_ft_in1k": "ImageNet-21k, then ImageNet-1k",
    "in12k_ft_in1k": "ImageNet-12k, then ImageNet-1k",
    "in21k": "ImageNet-21k",
    "in1k": "ImageNet-1k",
}


def v1_weights(name: str, size: int) -> tuple[Weights, ...]:
    """What is published of EfficientNet-B0 to -B7, for images of `size`."""
    # Adversarial training was done with images in [-1, 1].
    adversarial = {"ap_in1k": prepared(size, size + 32, centred=True)}
    keras = f"https://storage.googleapis.com/keras-applications/{name.replace('_', '')}.h5"
    return (
        *_torch_weights(name),
        *(
            _timm_weights(f"tf_{name}.{tag}", "timm_tf", top1, adversarial.get(tag))
            for tag, top1 in zip(_V1_TRAININGS, _V1_TIMM_TF_TOP1[name], strict=True)
            if top1 is not None
        ),
        Weights(keras, "keras", top1=_KERAS_TOP1[name]),
        Weights(f"hf://google/{name.replace('_', '-')}", "transformers", licence="Apache-2.0"),
    )


def v2_weights(name: str) -> tuple[Weights, ...]:
    """What is published of EfficientNetV2-S, -M and -L."""
    tf_name = f"tf_{timm_name(name)}"
    folder = "https://storage.googleapis.com/tensorflow/keras-applications/efficientnet_v2"
    keras = f"{folder}/{timm_name(name).replace('_', '-')}.h5"
    return (
        *_torch_weights(name),
        *(
            _timm_weights(f"{tf_name}.{tag}", "timm_tf", top1)
            for tag, top1 in zip(_V2_TRAININGS, _V2_TIMM_TF_TOP1[name], strict=True)
        ),
        _timm_weights(f"{tf_name}.in21k", "timm_tf", None),
        Weights(keras, "keras", top1=_KERAS_TOP1[name]),
    )


def _torch_weights(name: str) -> tuple[Weights, ...]:
    return (
        *(torchvision_weights(*row) for row in _TORCHVISION_WEIGHTS[name]),
        *(
            _timm_weights(f"{name}.{tag}", "timm", top1, preprocess)
            for tag, top1, preprocess in _TIMM_WEIGHTS.get(name, ())
        ),
    )


def _timm_weights(
    name: str, source: str, top1: float | None, preprocess: Preprocess | None = None
) -> Weights:
    data = next(data for ending, data in _TIMM_DATA.items() if name.endswith(ending))
    return timm_weights(name, top1, preprocess, data=data, source=source)


def timm_name(name: str) -> str:
    """What timm calls a network.

    >>> timm_name("efficientnet_v2_s"), timm_name("efficientnet_b0")
    ('efficientnetv2_s', 'efficientnet_b0')
    """
    return name.replace("net_v2", "netv2")
