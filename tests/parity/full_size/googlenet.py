"""GoogLeNet in full size with random weights, as other libraries compute it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from full_size_weights import images, keras_case, torch_case
from twins import googlenet


def torchvision() -> tuple:
    """torchvision's network."""
    return torch_case("googlenet", "torchvision", googlenet.torchvision_network(1000, 64), 224)


def tf_slim() -> tuple:
    """TF-Slim's network, of layers of Keras."""
    network, names = googlenet.slim_network((224, 224), 1001, 64)
    case = keras_case(
        "googlenet",
        "tf_slim",
        lambda: network,
        224,
        rename=lambda name: googlenet.slim_name(names, name),
    )
    return (*case[:2], {"num_classes": 1001}, *case[3:])


def caffe() -> tuple:
    """Caffe's network, computed by OpenCV."""
    text, weights = googlenet.caffe_network((224, 224), 1000, 64)
    image = images(224)
    (logits,) = googlenet.opencv_outputs(text, weights, image, ["loss3/classifier"])
    return "googlenet", "caffe", {}, weights, image, logits


CASES: dict[str, Callable[[], tuple[str, str, dict[str, Any], dict[str, np.ndarray], Any, Any]]] = {
    "googlenet_torchvision": torchvision,
    "googlenet_tf_slim": tf_slim,
    "googlenet_caffe": caffe,
}
