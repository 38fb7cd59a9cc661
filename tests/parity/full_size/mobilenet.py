"""Published MobileNets at their full size, with random weights.

Each case is a function of no arguments that builds a network with the library that it comes from
and gives (architecture, source, options, state dict, image, logits): what `build` and the rules
here need to compute the same logits. Nothing of JAX is imported, so that a case can run where only
the other library is.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np

Case = tuple[str, str, dict[str, Any], dict[str, np.ndarray], np.ndarray, np.ndarray]


def _image(size: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1, (1, size, size, 3)).astype(np.float32)


def _torch_case(
    architecture: str,
    source: str,
    make: Callable[[], Any],
    options: dict[str, Any] | None = None,
    size: int = 224,
) -> Case:
    import torch

    torch.manual_seed(0)
    network = make().eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                for tensor in (module.bias, module.running_mean):
                    tensor.normal_(0, 0.1)
                for tensor in (module.weight, module.running_var):
                    tensor.uniform_(0.8, 1.2)
        image = _image(size)
        logits = network(torch.from_numpy(image.transpose(0, 3, 1, 2).copy()))
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    found = getattr(logits, "logits", logits).numpy()
    return architecture, source, options or {}, state, image, found


def _torchvision(architecture: str) -> Case:
    import torchvision

    return _torch_case(architecture, "torchvision", getattr(torchvision.models, architecture))


def _timm(model: str, architecture: str, source: str = "timm") -> Case:
    import timm

    return _torch_case(architecture, source, functools.partial(timm.create_model, model))


def _transformers(version: int, multiplier: float, architecture: str, size: int) -> Case:
    import transformers

    config = getattr(transformers, f"MobileNetV{version}Config")
    network = getattr(transformers, f"MobileNetV{version}ForImageClassification")
    made = config(depth_multiplier=multiplier, num_labels=1001)
    make = functools.partial(network, made)
    return _torch_case(architecture, "transformers", make, {"num_classes": 1001}, size)


def _keras(architecture: str, model: str, size: int = 224, **options: Any) -> Case:
    """Beside the image that the network here gets: the third version scales bytes by itself."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras

    network = getattr(keras.applications, model)(
        input_shape=(size, size, 3), weights=None, classifier_activation=None, **options
    )
    rng = np.random.default_rng(0)
    state = {}
    for layer in network.layers:
        for weight in layer.weights:
            # As it starts, and normalisation a little off that.
            value = keras.ops.convert_to_numpy(weight)
            if value.ndim == 1:
                value = value + rng.uniform(-0.1, 0.1, value.shape).astype(np.float32)
                weight.assign(value)
            depthwise = type(layer).__name__ == "DepthwiseConv2D"
            name = "depthwise_kernel" if depthwise else weight.name
            state[f"{layer.name}/{layer.name}/{name}:0"] = np.array(value)
    image = _image(size)
    given = (image + 1) * np.float32(127.5) if "V3" in model else image
    logits = keras.ops.convert_to_numpy(network(given, training=False))
    return architecture, "keras", {}, state, image, logits


CASES: dict[str, Callable[[], Case]] = {
    "mobilenet_v1_keras": functools.partial(_keras, "mobilenet_v1", "MobileNet"),
    # 50x50 and 25x25 maps: an odd one is padded as only Keras's first version does.
    "mobilenet_v1_025_keras_odd": functools.partial(
        _keras, "mobilenet_v1_025", "MobileNet", 200, alpha=0.25
    ),
    "mobilenet_v1_timm": functools.partial(_timm, "mobilenetv1_100", "mobilenet_v1"),
    "mobilenet_v1_125_timm": functools.partial(_timm, "mobilenetv1_125", "mobilenet_v1_125"),
    "mobilenet_v1_transformers": functools.partial(_transformers, 1, 1.0, "mobilenet_v1", 224),
    "mobilenet_v1_075_transformers": functools.partial(
        _transformers, 1, 0.75, "mobilenet_v1_075", 192
    ),
    "mobilenet_v2_torchvision": functools.partial(_torchvision, "mobilenet_v2"),
    "mobilenet_v2_timm": functools.partial(_timm, "mobilenetv2_100", "mobilenet_v2"),
    "mobilenet_v2_035_timm": functools.partial(_timm, "mobilenetv2_035", "mobilenet_v2_035"),
    "mobilenet_v2_050_timm": functools.partial(_timm, "mobilenetv2_050", "mobilenet_v2_050"),
    "mobilenet_v2_110d_timm": functools.partial(_timm, "mobilenetv2_110d", "mobilenet_v2_110d"),
    "mobilenet_v2_120d_timm": functools.partial(_timm, "mobilenetv2_120d", "mobilenet_v2_120d"),
    "mobilenet_v2_140_timm": functools.partial(_timm, "mobilenetv2_140", "mobilenet_v2_140"),
    "mobilenet_v2_keras": functools.partial(_keras, "mobilenet_v2", "MobileNetV2"),
    "mobilenet_v2_035_keras": functools.partial(
        _keras, "mobilenet_v2_035", "MobileNetV2", 96, alpha=0.35
    ),
    "mobilenet_v2_130_keras": functools.partial(
        _keras, "mobilenet_v2_130", "MobileNetV2", 96, alpha=1.3
    ),
    "mobilenet_v2_transformers": functools.partial(_transformers, 2, 1.0, "mobilenet_v2", 224),
    "mobilenet_v2_035_transformers": functools.partial(
        _transformers, 2, 0.35, "mobilenet_v2_035", 96
    ),
    "mobilenet_v2_140_transformers": functools.partial(
        _transformers, 2, 1.4, "mobilenet_v2_140", 224
    ),
    "mobilenet_v3_large_torchvision": functools.partial(_torchvision, "mobilenet_v3_large"),
    "mobilenet_v3_small_torchvision": functools.partial(_torchvision, "mobilenet_v3_small"),
    "mobilenet_v3_large_timm": functools.partial(
        _timm, "mobilenetv3_large_100", "mobilenet_v3_large"
    ),
    "mobilenet_v3_small_timm": functools.partial(
        _timm, "mobilenetv3_small_100", "mobilenet_v3_small"
    ),
    "mobilenet_v3_small_050_timm": functools.partial(
        _timm, "mobilenetv3_small_050", "mobilenet_v3_small_050"
    ),
    "mobilenet_v3_small_075_timm": functools.partial(
        _timm, "mobilenetv3_small_075", "mobilenet_v3_small_075"
    ),
    "mobilenet_v3_large_075_timm_tf": functools.partial(
        _timm, "tf_mobilenetv3_large_075", "mobilenet_v3_large_075", "timm_tf"
    ),
    "mobilenet_v3_large_minimal_timm_tf": functools.partial(
        _timm, "tf_mobilenetv3_large_minimal_100", "mobilenet_v3_large_minimal", "timm_tf"
    ),
    "mobilenet_v3_small_timm_tf": functools.partial(
        _timm, "tf_mobilenetv3_small_100", "mobilenet_v3_small", "timm_tf"
    ),
    "mobilenet_v3_large_keras": functools.partial(_keras, "mobilenet_v3_large", "MobileNetV3Large"),
    "mobilenet_v3_small_keras": functools.partial(_keras, "mobilenet_v3_small", "MobileNetV3Small"),
    "mobilenet_v3_small_075_keras": functools.partial(
        _keras, "mobilenet_v3_small_075", "MobileNetV3Small", alpha=0.75
    ),
    "mobilenet_v3_large_minimal_keras": functools.partial(
        _keras, "mobilenet_v3_large_minimal", "MobileNetV3Large", minimalistic=True
    ),
}
