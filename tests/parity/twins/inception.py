"""Twins of Inception v3, a thirty-second of the width."""

from __future__ import annotations

import functools
import importlib
import re

import numpy as np
from keras_twin import keras_twin, replaced
from make_twins import Twin, calm_values, image_of, torch_twin

SIDE = 107  # 2x2 pixels are left at the end
OPTIONS = {"width": 1, "num_classes": 5, "dropout": 0.0}

BLOCKS = (
    *("Mixed_5b", "Mixed_5c", "Mixed_5d"),
    *("Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
    *("Mixed_7a", "Mixed_7b", "Mixed_7c"),
)
STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")


def narrow(channels: int, width: int) -> int:
    """As many channels as in a network whose first convolution has `width` of them."""
    return max(1, channels * width // 32)


def _smaller(twin: Twin) -> Twin:
    """Of training, what leaves each size of maps: what is wrong before can be seen there too."""
    kept = ("mixed_5d", "mixed_6e", "mixed_7c", "head")
    twin.trained_stages = {stage: twin.trained_stages[stage] for stage in kept}
    return twin


# ---------------------------------------------------------------------------------------------
# torchvision and timm


def torchvision_network(classes: int, width: int):
    """torchvision's network, narrowed, without its auxiliary classifier."""
    import torch

    # The package has a function of the same name as some modules.
    module = importlib.import_module("torchvision.models.inception")
    start = module.BasicConv2d.__init__

    def narrowed(self, inputs, outputs, **kwargs):
        inputs = narrow(inputs, width) if inputs > 3 else inputs
        start(self, inputs, narrow(outputs, width), **kwargs)

    with replaced(module.BasicConv2d, "__init__", narrowed):
        network = module.Inception3(classes, aux_logits=False, init_weights=False)
    network.fc = torch.nn.Linear(narrow(2048, width), classes)
    return network


def timm_network(classes: int, width: int):
    """timm's network, narrowed."""
    import torch

    module = importlib.import_module("timm.models.inception_v3")
    kind = module.ConvNormAct

    def narrowed(inputs, outputs, *args, **kwargs):
        inputs = narrow(inputs, width) if inputs > 3 else inputs
        return kind(inputs, narrow(outputs, width), *args, **kwargs)

    with replaced(module, "ConvNormAct", narrowed):
        network = module.InceptionV3(classes)
    network.fc = torch.nn.Linear(narrow(2048, width), classes)
    return network


def _torch_twin(source: str, network, pools: tuple[str, str]) -> Twin:
    def stem(x):
        first, second = (getattr(network, pool) for pool in pools)
        layers = [getattr(network, name) for name in STEM]
        for layer in (*layers[:3], first, *layers[3:], second):
            x = layer(x)
        return x

    twin = torch_twin(
        "inception_v3",
        source,
        network,
        image_of(SIDE, SIDE),
        {
            "stem": stem,
            **{block.lower(): getattr(network, block) for block in BLOCKS},
            "pool": lambda x: x.mean((2, 3)),
            "head": network.fc,
        },
        options=OPTIONS,
        # The counters of steps would be an eighth of the file.
        rename=lambda name: "" if name.endswith("num_batches_tracked") else name,
        values=calm_values,
    )
    twin.state["AuxLogits.conv0.conv.weight"] = np.zeros((1, 1, 1, 1), np.float32)
    twin.trained_state = {
        name: values for name, values in twin.trained_state.items() if name.startswith("Mixed_7c")
    }
    return _smaller(twin)


def torchvision() -> Twin:
    """BatchNorm with scales, poolings that count their padding."""
    network = torchvision_network(classes=5, width=1)
    return _torch_twin("torchvision", network, ("maxpool1", "maxpool2"))


def timm() -> Twin:
    """The same; what training gives would be the same as well and is left out."""
    twin = _torch_twin("timm", timm_network(classes=5, width=1), ("Pool1", "Pool2"))
    twin.trained_stages, twin.trained_state = {}, {}
    return twin


# ---------------------------------------------------------------------------------------------
# Keras and TF-Slim


def keras_network(side: int, classes: int, width: int):
    """Keras's network, narrowed, whose layers are numbered as in a new session."""
    import keras

    keras.backend.clear_session()
    module = importlib.import_module("keras.src.applications.inception_v3")
    make = module.conv2d_bn

    def narrowed(x, filters, *args, **kwargs):
        return make(x, narrow(filters, width), *args, **kwargs)

    with replaced(module, "conv2d_bn", narrowed):
        return module.InceptionV3(
            weights=None,
            input_shape=(side, side, 3),
            classes=classes,
            classifier_activation=None,
        )


_KERAS_STAGES = {
    "stem": "max_pooling2d_1",
    **{block.lower(): f"mixed{number}" for number, block in enumerate(BLOCKS)},
    "pool": "avg_pool",
    "head": "predictions",
}


def _keras_twin(source: str, rename) -> Twin:
    network = keras_network(SIDE, classes=5, width=1)
    stages = _KERAS_STAGES
    return keras_twin(
        "inception_v3",
        source,
        network,
        image_of(SIDE, SIDE),
        stages,
        options=OPTIONS,
        rename=rename,
        values=calm_values,
    )


def counted_from_one(name: str) -> str:
    """`conv2d` becomes `conv2d_1`, `conv2d_1` becomes `conv2d_2`, as Keras 2.0 named layers."""

    def following(found: re.Match[str]) -> str:
        return f"{found[1]}_{int(found[2] or 0) + 1}/"

    return re.sub(r"(conv2d|batch_normalization)(?:_(\d+))?/", following, name)


def keras() -> Twin:
    """BatchNorm without scales, poolings that leave their padding out; layers counted from 1."""
    return _smaller(_keras_twin("keras", counted_from_one))


def tf_keras() -> Twin:
    """The same with the names of newer versions, which count layers from none; in evaluation."""
    twin = _keras_twin("tf_keras", lambda name: name)
    twin.trained_stages, twin.trained_state = {}, {}
    return twin


# The variables of TF-Slim's network in the order of their creation, which is that of Keras's.
SLIM_SCOPES = """
Conv2d_1a_3x3 Conv2d_2a_3x3 Conv2d_2b_3x3 Conv2d_3b_1x1 Conv2d_4a_3x3
Mixed_5b/Branch_0/Conv2d_0a_1x1
Mixed_5b/Branch_1/Conv2d_0a_1x1 Mixed_5b/Branch_1/Conv2d_0b_5x5
Mixed_5b/Branch_2/Conv2d_0a_1x1 Mixed_5b/Branch_2/Conv2d_0b_3x3 Mixed_5b/Branch_2/Conv2d_0c_3x3
Mixed_5b/Branch_3/Conv2d_0b_1x1
Mixed_5c/Branch_0/Conv2d_0a_1x1
Mixed_5c/Branch_1/Conv2d_0b_1x1 Mixed_5c/Branch_1/Conv_1_0c_5x5
Mixed_5c/Branch_2/Conv2d_0a_1x1 Mixed_5c/Branch_2/Conv2d_0b_3x3 Mixed_5c/Branch_2/Conv2d_0c_3x3
Mixed_5c/Branch_3/Conv2d_0b_1x1
Mixed_5d/Branch_0/Conv2d_0a_1x1
Mixed_5d/Branch_1/Conv2d_0a_1x1 Mixed_5d/Branch_1/Conv2d_0b_5x5
Mixed_5d/Branch_2/Conv2d_0a_1x1 Mixed_5d/Branch_2/Conv2d_0b_3x3 Mixed_5d/Branch_2/Conv2d_0c_3x3
Mixed_5d/Branch_3/Conv2d_0b_1x1
Mixed_6a/Branch_0/Conv2d_1a_1x1
Mixed_6a/Branch_1/Conv2d_0a_1x1 Mixed_6a/Branch_1/Conv2d_0b_3x3 Mixed_6a/Branch_1/Conv2d_1a_1x1
{17:Mixed_6b} {17:Mixed_6c} {17:Mixed_6d} {17:Mixed_6e}
Mixed_7a/Branch_0/Conv2d_0a_1x1 Mixed_7a/Branch_0/Conv2d_1a_3x3
Mixed_7a/Branch_1/Conv2d_0a_1x1 Mixed_7a/Branch_1/Conv2d_0b_1x7
Mixed_7a/Branch_1/Conv2d_0c_7x1 Mixed_7a/Branch_1/Conv2d_1a_3x3
Mixed_7b/Branch_0/Conv2d_0a_1x1
Mixed_7b/Branch_1/Conv2d_0a_1x1 Mixed_7b/Branch_1/Conv2d_0b_1x3 Mixed_7b/Branch_1/Conv2d_0b_3x1
Mixed_7b/Branch_2/Conv2d_0a_1x1 Mixed_7b/Branch_2/Conv2d_0b_3x3
Mixed_7b/Branch_2/Conv2d_0c_1x3 Mixed_7b/Branch_2/Conv2d_0d_3x1
Mixed_7b/Branch_3/Conv2d_0b_1x1
Mixed_7c/Branch_0/Conv2d_0a_1x1
Mixed_7c/Branch_1/Conv2d_0a_1x1 Mixed_7c/Branch_1/Conv2d_0b_1x3 Mixed_7c/Branch_1/Conv2d_0c_3x1
Mixed_7c/Branch_2/Conv2d_0a_1x1 Mixed_7c/Branch_2/Conv2d_0b_3x3
Mixed_7c/Branch_2/Conv2d_0c_1x3 Mixed_7c/Branch_2/Conv2d_0d_3x1
Mixed_7c/Branch_3/Conv2d_0b_1x1
"""
_SLIM_17 = """
Branch_0/Conv2d_0a_1x1
Branch_1/Conv2d_0a_1x1 Branch_1/Conv2d_0b_1x7 Branch_1/Conv2d_0c_7x1
Branch_2/Conv2d_0a_1x1 Branch_2/Conv2d_0b_7x1 Branch_2/Conv2d_0c_1x7 Branch_2/Conv2d_0d_7x1
Branch_2/Conv2d_0e_1x7
Branch_3/Conv2d_0b_1x1
"""


@functools.cache
def slim_scopes() -> list[str]:
    """The scopes of TF-Slim's convolutions in the order of their creation."""

    def block(found: re.Match[str]) -> str:
        return " ".join(f"{found[1]}/{name}" for name in _SLIM_17.split())

    return re.sub(r"\{17:(\w+)\}", block, SLIM_SCOPES).split()


def slim_name(name: str) -> str:
    """The name in TF-Slim's checkpoint of what Keras calls `LAYER/LAYER/VARIABLE:0`."""
    layer, _, variable = name.removesuffix(":0").split("/")
    kinds = {"kernel": "weights", "bias": "biases"}
    if layer == "predictions":
        return f"InceptionV3/Logits/Conv2d_1c_1x1/{kinds[variable]}"
    number = layer.rpartition("_")[2]
    scope = slim_scopes()[int(number) if number.isdecimal() else 0]
    group = "" if layer.startswith("conv2d") else "BatchNorm/"
    return f"InceptionV3/{scope}/{group}{kinds.get(variable, variable)}"


def slim_state(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Logits are a 1x1 convolution there; an auxiliary classifier and slots are in files too."""
    logits = "InceptionV3/Logits/Conv2d_1c_1x1/weights"
    return {
        **state,
        logits: state[logits][None, None],
        "InceptionV3/AuxLogits/Conv2d_1b_1x1/weights": np.zeros((1, 1, 1, 1), np.float32),
        f"{logits}/ExponentialMovingAverage": np.zeros((1, 1, 1, 1), np.float32),
        "global_step": np.zeros((), np.int64),
    }


def tf_slim() -> Twin:
    """Keras's network, which computes the same, with TF-Slim's names; its training is Keras's."""
    twin = _keras_twin("tf_slim", slim_name)
    twin.state, twin.trained_stages = slim_state(twin.state), {}
    return twin


TWINS = {
    "inception_v3_torchvision": torchvision,
    "inception_v3_timm": timm,
    "inception_v3_keras": keras,
    "inception_v3_tf_keras": tf_keras,
    "inception_v3_tf_slim": tf_slim,
}
