"""Twins of MobileNets, the first to the third version.

Networks are put together from the libraries' own blocks, with fewer of them and narrower ones.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from make_twins import Twin, grid_values, image_of, torch_twin

CLASSES = 5


# ---------------------------------------------------------------------------------------------
# Frames for the libraries


def _mean(x: Any) -> Any:
    return x.mean((2, 3))


def _flat(x: Any) -> Any:
    return x.flatten(1)


def _chain(*modules: Any) -> Callable[[Any], Any]:
    return lambda x: functools.reduce(lambda values, module: module(values), modules, x)


def _timm_twin(
    architecture: str,
    network: Any,
    size: int,
    *,
    source: str = "timm",
    options: dict[str, Any],
) -> Twin:
    """A network of timm, whose blocks lie in stages; the last stage of its third is ours apart."""
    third = "v3" in architecture
    layers = list(network.blocks)[:-1] if third else list(network.blocks)
    stages = {
        "stem": _chain(network.conv_stem, network.bn1),
        **{f"layer{number}": stage for number, stage in enumerate(layers, start=1)},
    }
    if third:
        stages["last_conv"] = network.blocks[-1]
    elif "v2" in architecture:
        stages["last_conv"] = _chain(network.conv_head, network.bn2)
    stages["pool"] = _mean
    if third:
        hidden = _chain(network.conv_head, network.act2, _flat)
        stages["hidden"] = lambda x: hidden(x[:, :, None, None])
    stages["head"] = network.classifier
    twin = torch_twin(architecture, source, network, image_of(size, size), stages, options=options)
    return replace(twin, options={**options, "dropout": 0.0, "num_classes": CLASSES})


def _timm_network(kind: str, blocks: list[list[str]], round_channels: Any, **options: Any) -> Any:
    from timm.models._efficientnet_builder import decode_arch_def
    from timm.models.efficientnet import EfficientNet
    from timm.models.mobilenetv3 import MobileNetV3
    from torch.nn import BatchNorm2d

    epsilon = options.pop("epsilon", 1e-5)
    return {"EfficientNet": EfficientNet, "MobileNetV3": MobileNetV3}[kind](
        block_args=decode_arch_def(blocks),
        num_classes=CLASSES,
        round_chs_fn=round_channels,
        norm_layer=functools.partial(BatchNorm2d, eps=epsilon),
        **options,
    )


def _correct_momentum(network: Any) -> Any:
    """transformers gives PyTorch the share of the old statistics, where it wants the new one's."""
    from torch.nn import BatchNorm2d

    for module in network.modules():
        if isinstance(module, BatchNorm2d):
            module.momentum = 1 - module.momentum
    return network


def _keras() -> Any:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras

    return keras


def _keras_twin(
    architecture: str,
    inputs: Any,
    stages: dict[str, Any],
    size: int,
    *,
    source: str = "keras",
    rename: Callable[[str], str] = lambda layer: layer,
    options: dict[str, Any],
) -> Twin:
    """A twin of a functional network, given as what leaves each stage.

    The names are those of HDF5 files, the layer's twice and then the weight's. The running variance
    of Keras 3 is biased, other than that of TensorFlow's fused layer, with which the published
    weights were trained: it is made unbiased here.
    """
    keras = _keras()
    network = keras.Model(inputs, list(stages.values()))
    weights = {
        f"{rename(layer.name)}/{rename(layer.name)}/{_weight_name(layer, weight)}:0": (
            layer,
            weight,
        )
        for layer in network.layers
        for weight in layer.weights
    }
    before = {name: _keras_values(name, weight.shape) for name, (_, weight) in weights.items()}
    for name, (_, weight) in weights.items():
        weight.assign(before[name])
    image = image_of(size, size)

    def run(training: bool) -> dict[str, np.ndarray]:
        # A scale that is built into the network expects bytes.
        values = (image + 1) * 127.5 if "v3" in architecture else image
        found = network(values.astype(np.float32), training=training)
        arrays = [keras.ops.convert_to_numpy(each) for each in found]
        shapes = [a.reshape(len(a), -1) if a.shape[1:3] == (1, 1) else a for a in arrays]
        return dict(zip(stages, shapes, strict=True))

    evaluated, trained = run(training=False), run(training=True)
    moved = {}
    for name, (layer, weight) in weights.items():
        after = keras.ops.convert_to_numpy(weight).copy()
        if name.endswith("moving_mean:0"):
            moved[name] = after
        elif name.endswith("moving_variance:0"):
            count = len(image) * np.prod(layer.output.shape[1:3])
            kept = layer.momentum * before[name]
            moved[name] = (kept + (after - kept) * count / (count - 1)).astype(np.float32)
    options = {**options, "dropout": 0.0, "num_classes": CLASSES}
    return Twin(architecture, source, before, image, evaluated, trained, moved, options)


def _weight_name(layer: Any, weight: Any) -> str:
    depthwise = type(layer).__name__ == "DepthwiseConv2D" and weight.name == "kernel"
    return "depthwise_kernel" if depthwise else weight.name


def _keras_values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values of the size that a network keeps, in the layouts of Keras."""
    if len(shape) == 4 and "depthwise_kernel" in name:
        height, width, channels, one = shape
        return grid_values(name, (channels, one, height, width)).transpose(2, 3, 0, 1)
    if len(shape) == 4:
        height, width, entering, leaving = shape
        return grid_values(name, (leaving, entering, height, width)).transpose(2, 3, 1, 0)
    if len(shape) == 2:
        return grid_values(name, shape[::-1]).T
    return grid_values(name, tuple(shape))


# ---------------------------------------------------------------------------------------------
# The first version

_V1 = {"width": 1 / 16, "blocks": [1, 2, 1, 2, 1]}
# Channels, stride of each of the seven blocks.
_V1_BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (512, 2), (512, 1), (1024, 2))
_V1_ENDS = {1: "layer1", 3: "layer2", 4: "layer3", 6: "layer4", 7: "layer5"}


def v1_keras() -> Twin:
    """Strided maps of odd size, where Keras pads in a way of its own."""
    keras = _keras()
    from keras.src.applications.mobilenet import _conv_block, _depthwise_conv_block

    inputs = keras.Input((65, 65, 3))
    x = _conv_block(inputs, 32, 1 / 16, strides=(2, 2))
    stages = {"stem": x}
    for number, (channels, stride) in enumerate(_V1_BLOCKS, start=1):
        x = _depthwise_conv_block(x, channels, 1 / 16, strides=(stride,) * 2, block_id=number)
        if number in _V1_ENDS:
            stages[_V1_ENDS[number]] = x
    stages["pool"] = x = keras.layers.GlobalAveragePooling2D(keepdims=True)(x)
    stages["head"] = keras.layers.Conv2D(CLASSES, (1, 1), padding="same", name="conv_preds")(x)
    return _keras_twin("mobilenet_v1", inputs, stages, 65, options=_V1)


def v1_mlperf_tiny() -> Twin:
    """The layers of the person detector: biases, ReLU, names that Keras counts."""
    layers = _keras().layers
    inputs = _keras().Input((49, 49, 3))
    names = {"conv2d": 0, "depthwise_conv2d": 0, "batch_normalization": 0}

    def named(kind: str) -> str:
        number, names[kind] = names[kind], names[kind] + 1
        return f"{kind}_{number}" if number else kind

    def conv_norm(x: Any, layer: Any) -> Any:
        x = layers.BatchNormalization(name=named("batch_normalization"))(layer(x))
        return layers.Activation("relu")(x)

    stem = layers.Conv2D(2, 3, strides=2, padding="same", name=named("conv2d"))
    x = conv_norm(inputs, stem)
    stages = {"stem": x}
    for number, (channels, stride) in enumerate(_V1_BLOCKS, start=1):
        name = named("depthwise_conv2d")
        x = conv_norm(x, layers.DepthwiseConv2D(3, strides=stride, padding="same", name=name))
        x = conv_norm(x, layers.Conv2D(channels // 16, 1, name=named("conv2d")))
        if number in _V1_ENDS:
            stages[_V1_ENDS[number]] = x
    stages["pool"] = x = layers.Flatten()(layers.AveragePooling2D(x.shape[1:3])(x))
    stages["head"] = layers.Dense(CLASSES, name="dense")(x)
    options = {**_V1, "input_size": [49, 49]}
    return _keras_twin(
        "mobilenet_v1_025", inputs, stages, 49, source="mlperf_tiny", options=options
    )


def v1_timm() -> Twin:
    """Symmetric padding and an epsilon of 1e-5."""
    from torch.nn import ReLU6

    blocks = [
        ["dsa_r1_k3_s1_c64"],
        ["dsa_r2_k3_s2_c128"],
        ["dsa_r1_k3_s2_c256"],
        ["dsa_r2_k3_s2_c512"],
        ["dsa_r1_k3_s2_c1024"],
    ]
    network = _timm_network(
        "EfficientNet",
        blocks,
        lambda channels: channels // 16,
        num_features=0,
        stem_size=32,
        act_layer=ReLU6,
    )
    return _timm_twin("mobilenet_v1", network, 49, options=_V1)


def v1_transformers() -> Twin:
    """The padding of TensorFlow and a background class; blocks are left out once it is built."""
    from torch.nn import ModuleList
    from transformers import MobileNetV1Config, MobileNetV1ForImageClassification

    config = MobileNetV1Config(depth_multiplier=1 / 16, min_depth=1, num_labels=CLASSES)
    network = _correct_momentum(MobileNetV1ForImageClassification(config))
    body = network.mobilenet_v1
    # A depthwise and a 1x1 convolution for each block.
    kept = [2 * block + part for block in (0, 1, 2, 3, 5, 6, 11) for part in (0, 1)]
    body.layer = ModuleList(body.layer[number] for number in kept)
    ends = (0, 2, 6, 8, 12, 14)
    stages = {
        "stem": body.conv_stem,
        **{
            f"layer{number}": _chain(*body.layer[start:end])
            for number, (start, end) in enumerate(itertools.pairwise(ends), start=1)
        },
        "pool": _mean,
        "head": network.classifier,
    }
    options = {**_V1, "dropout": 0.0, "num_classes": CLASSES}
    return torch_twin(
        "mobilenet_v1", "transformers", network, image_of(49, 49), stages, options=options
    )


def v1_tf_slim() -> Twin:
    """The twin of transformers with the names and layouts of TF-slim, whose port it is.

    TF-slim needs a TensorFlow of its time. Its checkpoints hold more than weights.
    """
    twin = v1_transformers()
    state = {_slim_name(name): _slim_layout(name, array) for name, array in twin.state.items()}
    moved = {_slim_name(name): array for name, array in twin.trained_state.items()}
    state = {name: array for name, array in state.items() if name}
    training = {
        "global_step": np.int64(7),
        "MobilenetV1/Conv2d_0/weights/RMSProp": np.ones(3, np.float32),
        "MobilenetV1/Conv2d_0/weights/RMSProp_1": np.ones(3, np.float32),
        "MobilenetV1/Conv2d_0/weights/ExponentialMovingAverage": np.ones(3, np.float32),
    }
    return replace(twin, source="tf_slim", state={**state, **training}, trained_state=moved)


def _slim_name(name: str) -> str:
    *layer, kind, leaf = name.removeprefix("mobilenet_v1.").split(".")
    if kind == "classifier":
        return f"MobilenetV1/Logits/Conv2d_1c_1x1/{'weights' if leaf == 'weight' else 'biases'}"
    if leaf == "num_batches_tracked":
        return ""
    place = "Conv2d_0"
    if layer[0] == "layer":
        block, is_pointwise = divmod(int(layer[1]), 2)
        place = f"Conv2d_{block + 1}_{'pointwise' if is_pointwise else 'depthwise'}"
    if kind == "convolution":
        kernel = "depthwise_weights" if place.endswith("depthwise") else "weights"
        return f"MobilenetV1/{place}/{kernel}"
    names = {
        "weight": "gamma",
        "bias": "beta",
        "running_mean": "moving_mean",
        "running_var": "moving_variance",
    }
    return f"MobilenetV1/{place}/BatchNorm/{names[leaf]}"


def _slim_layout(name: str, array: np.ndarray) -> np.ndarray:
    if array.ndim == 2:
        return array.T[None, None].copy()
    depthwise = array.ndim == 4 and array.shape[1] == 1 and ".layer." in name
    return (
        array.transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0)) if array.ndim == 4 else array
    )


# ---------------------------------------------------------------------------------------------
# The second version

_V2 = {"width": 0.1, "blocks": [1, 2, 1, 1, 1, 2, 1], "last_width": 24}
# Expansion, channels, number of blocks, stride of each stage.
_V2_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 1, 2),
    (6, 64, 1, 2),
    (6, 96, 1, 1),
    (6, 160, 2, 2),
    (6, 320, 1, 1),
)


def v2_torchvision() -> Twin:
    """ReLU6 and symmetric padding."""
    from torch import nn
    from torchvision.models.mobilenetv2 import MobileNetV2
    from torchvision.ops.misc import Conv2dNormActivation

    network = MobileNetV2(CLASSES, 0.1, [list(stage) for stage in _V2_STAGES])
    network.features[-1] = Conv2dNormActivation(32, 24, 1, activation_layer=nn.ReLU6)
    network.classifier[1] = nn.Linear(24, CLASSES)
    ends = np.cumsum([1, *(stage[2] for stage in _V2_STAGES)])
    stages = {
        "stem": network.features[0],
        **{
            f"layer{number}": network.features[start:end]
            for number, (start, end) in enumerate(itertools.pairwise(ends), start=1)
        },
        "last_conv": network.features[-1],
        "pool": _mean,
        "head": network.classifier[1],
    }
    options = {**_V2, "dropout": 0.0, "num_classes": CLASSES}
    return torch_twin(
        "mobilenet_v2", "torchvision", network, image_of(41, 41), stages, options=options
    )


def v2_timm() -> Twin:
    """The first stage is of another kind of block there."""
    from timm.models._efficientnet_builder import round_channels
    from torch.nn import ReLU6

    blocks = [
        [f"{'ir' if t > 1 else 'ds'}_r{n}_k3_s{s}_c{c}" + (f"_e{t}" if t > 1 else "")]
        for t, c, n, s in _V2_STAGES
    ]
    rounding = functools.partial(round_channels, multiplier=0.1)
    network = _timm_network(
        "EfficientNet", blocks, rounding, num_features=24, stem_size=32, act_layer=ReLU6
    )
    return _timm_twin("mobilenet_v2", network, 41, options=_V2)


def v2_transformers() -> Twin:
    """The padding of TensorFlow; blocks are left out once it is built.

    Its first block never has a shortcut, which shows where stem and first block are equally wide:
    never in published networks, and not at this width.
    """
    from torch.nn import Linear, ModuleList
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification
    from transformers.models.mobilenet_v2.modeling_mobilenet_v2 import MobileNetV2ConvLayer

    config = MobileNetV2Config(depth_multiplier=0.3, num_labels=CLASSES)
    network = MobileNetV2ForImageClassification(config)
    body = network.mobilenet_v2
    body.conv_1x1 = MobileNetV2ConvLayer(config, 96, 24, 1)
    network.classifier = Linear(24, CLASSES)
    _correct_momentum(network)
    body.layer = ModuleList(body.layer[number] for number in (0, 1, 2, 5, 9, 12, 15))
    ends = (0, 2, 3, 4, 5, 6, 7)
    stages = {
        "stem": body.conv_stem.first_conv,
        "layer1": _chain(body.conv_stem.conv_3x3, body.conv_stem.reduce_1x1),
        **{
            f"layer{number}": _chain(*body.layer[start:end])
            for number, (start, end) in enumerate(itertools.pairwise(ends), start=2)
        },
        "last_conv": body.conv_1x1,
        "pool": _mean,
        "head": network.classifier,
    }
    options = {
        "width": 0.3,
        "blocks": [1, 2, 1, 1, 1, 1, 1],
        "last_width": 24,
        "dropout": 0.0,
        "num_classes": CLASSES,
    }
    return torch_twin(
        "mobilenet_v2", "transformers", network, image_of(33, 33), stages, options=options
    )


def v2_keras() -> Twin:
    """The names of the published files, which are older than those of today's Keras."""
    layers = _keras().layers
    from keras.src.applications.mobilenet_v2 import _inverted_res_block

    norm = functools.partial(layers.BatchNormalization, epsilon=1e-3, momentum=0.999)
    inputs = _keras().Input((41, 41, 3))
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False, name="Conv1")(inputs)
    stages = {"stem": layers.ReLU(6.0)(norm(name="bn_Conv1")(x))}
    x, number = stages["stem"], 0
    for stage, (expansion, channels, count, stride) in enumerate(_V2_STAGES, start=1):
        for position in range(count):
            step = stride if position == 0 else 1
            x = _inverted_res_block(x, expansion, step, 0.1, channels, number)
            number += 1
        stages[f"layer{stage}"] = x
    x = layers.Conv2D(24, 1, use_bias=False, name="Conv_1")(x)
    stages["last_conv"] = x = layers.ReLU(6.0)(norm(name="Conv_1_bn")(x))
    stages["pool"] = x = layers.GlobalAveragePooling2D()(x)
    stages["head"] = layers.Dense(CLASSES, name="Logits")(x)

    def published(layer: str) -> str:
        if layer.startswith("expanded_conv_"):
            layer = layer.replace("expanded_conv_", "block_0_")
        if not layer.startswith("block_"):
            return layer
        _, number, part, *is_norm = layer.split("_")
        kind = f"bn{number}_conv_{number}_bn" if is_norm else f"mobl{number}_conv_{number}"
        return f"{kind}_{part}"

    return _keras_twin("mobilenet_v2", inputs, stages, 41, rename=published, options=_V2)


# ---------------------------------------------------------------------------------------------
# The third version

_LARGE = {"width": 0.1, "blocks": [1, 1, 2, 2, 1, 1], "hidden_width": 24}
_SMALL = {"width": 0.25, "blocks": [1, 2, 1, 1, 1], "hidden_width": 24}

# Kernel, expanded channels, channels, squeeze-and-excitation, activation, stride of each block, at
# these widths, in stages.
_LARGE_BLOCKS = (
    ((3, 16, 8, False, "RE", 1),),
    ((3, 32, 8, False, "RE", 2),),
    ((5, 24, 8, True, "RE", 2), (5, 24, 8, True, "RE", 1)),
    ((3, 48, 8, False, "HS", 2), (3, 24, 8, False, "HS", 1)),
    ((3, 48, 16, True, "HS", 1),),
    ((5, 96, 16, True, "HS", 2),),
)
_SMALL_BLOCKS = (
    ((3, 16, 8, True, "RE", 2),),
    ((3, 40, 8, False, "RE", 2), (3, 32, 8, False, "RE", 1)),
    ((5, 32, 16, True, "HS", 2),),
    ((5, 48, 16, True, "HS", 1),),
    ((5, 96, 24, True, "HS", 2),),
)
_TIMM_LARGE = [
    ["ds_r1_k3_s1_e1_c16_nre"],
    ["ir_r1_k3_s2_e4_c24_nre"],
    ["ir_r2_k5_s2_e3_c40_se0.25_nre"],
    ["ir_r1_k3_s2_e6_c80", "ir_r1_k3_s1_e2.5_c80"],
    ["ir_r1_k3_s1_e6_c112_se0.25"],
    ["ir_r1_k5_s2_e6_c160_se0.25"],
    ["cn_r1_k1_s1_c960"],
]
_TIMM_SMALL_MINIMAL = [
    ["ds_r1_k3_s2_e1_c16"],
    ["ir_r1_k3_s2_e4.5_c24", "ir_r1_k3_s1_e3.67_c24"],
    ["ir_r1_k3_s2_e4_c40"],
    ["ir_r1_k3_s1_e3_c48"],
    ["ir_r1_k3_s2_e6_c96"],
    ["cn_r1_k1_s1_c576"],
]


def _v3_torchvision(architecture: str, blocks: Any, options: dict[str, Any]) -> Twin:
    from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3

    entering, settings = 16, []
    for kernel, expanded, leaving, squeezes, activation, stride in sum(blocks, ()):
        settings.append(
            InvertedResidualConfig(
                entering, kernel, expanded, leaving, squeezes, activation, stride, 1, 1.0
            )
        )
        entering = leaving
    network = MobileNetV3(settings, options["hidden_width"], CLASSES)
    ends = np.cumsum([1, *map(len, blocks)])
    stages = {
        "stem": network.features[0],
        **{
            f"layer{number}": network.features[start:end]
            for number, (start, end) in enumerate(itertools.pairwise(ends), start=1)
        },
        "last_conv": network.features[-1],
        "pool": _mean,
        "hidden": network.classifier[:2],
        "head": network.classifier[3],
    }
    options = {**options, "dropout": 0.0, "num_classes": CLASSES}
    return torch_twin(
        architecture, "torchvision", network, image_of(33, 33), stages, options=options
    )


def v3_torchvision_large() -> Twin:
    """Table 1 of the paper, an epsilon of 1e-3 and a momentum of 0.01."""
    return _v3_torchvision("mobilenet_v3_large", _LARGE_BLOCKS, _LARGE)


def v3_torchvision_small() -> Twin:
    """Table 2 of the paper, where the block without expansion squeezes too."""
    return _v3_torchvision("mobilenet_v3_small", _SMALL_BLOCKS, _SMALL)


def _v3_timm(
    architecture: str, blocks: Any, activation: str, source: str, options: Any, **conventions: Any
) -> Twin:
    from timm.layers import get_act_layer
    from timm.models._efficientnet_blocks import SqueezeExcite
    from timm.models._efficientnet_builder import round_channels
    from torch.nn import ReLU

    squeeze = functools.partial(
        SqueezeExcite, gate_layer="hard_sigmoid", force_act_layer=ReLU, rd_round_fn=round_channels
    )
    network = _timm_network(
        "MobileNetV3",
        blocks,
        functools.partial(round_channels, multiplier=options["width"]),
        num_features=options["hidden_width"],
        stem_size=16,
        fix_stem=True,
        act_layer=get_act_layer(activation),
        se_layer=squeeze,
        **conventions,
    )
    return _timm_twin(architecture, network, 33, source=source, options=options)


def v3_timm_large() -> Twin:
    """Expansions by a factor, squeezed channels rounded."""
    return _v3_timm("mobilenet_v3_large", _TIMM_LARGE, "hard_swish", "timm", _LARGE)


def v3_timm_tf_small_minimal() -> Twin:
    """The padding and epsilon of TensorFlow, and no search's findings but the channels."""
    return _v3_timm(
        "mobilenet_v3_small_minimal",
        _TIMM_SMALL_MINIMAL,
        "relu",
        "timm_tf",
        _SMALL,
        pad_type="same",
        epsilon=1e-3,
    )


def _v3_keras(
    architecture: str, blocks: Any, minimal: bool, rename: Any, options: dict[str, Any]
) -> Twin:
    layers = _keras().layers
    from keras.src.applications import mobilenet_v3

    norm = functools.partial(layers.BatchNormalization, epsilon=1e-3, momentum=0.999)
    activation = mobilenet_v3.relu if minimal else mobilenet_v3.hard_swish
    inputs = _keras().Input((33, 33, 3))
    x = layers.Rescaling(scale=1.0 / 127.5, offset=-1.0)(inputs)
    x = layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False, name="conv")(x)
    stages = {"stem": activation(norm(name="conv_bn")(x))}
    x, number = stages["stem"], 0
    for stage, rows in enumerate(blocks, start=1):
        for kernel, expanded, features, squeezes, kind, stride in rows:
            x = mobilenet_v3._inverted_res_block(
                x,
                expanded / x.shape[-1],
                features,
                3 if minimal else kernel,
                stride,
                0.25 if squeezes and not minimal else None,
                mobilenet_v3.relu if kind == "RE" else activation,
                number,
            )
            number += 1
        stages[f"layer{stage}"] = x
    x = layers.Conv2D(6 * x.shape[-1], 1, use_bias=False, name="conv_1")(x)
    stages["last_conv"] = x = activation(norm(name="conv_1_bn")(x))
    stages["pool"] = x = layers.GlobalAveragePooling2D(keepdims=True)(x)
    hidden = layers.Conv2D(options["hidden_width"], 1, name="conv_2")
    stages["hidden"] = x = activation(hidden(x))
    stages["head"] = layers.Conv2D(CLASSES, 1, name="logits")(x)
    return _keras_twin(architecture, inputs, stages, 33, rename=rename, options=options)


def v3_keras_large() -> Twin:
    """The names of the published files, which have slashes in them."""

    def published(layer: str) -> str:
        if layer.startswith("expanded_conv"):
            block, part = layer.removesuffix("_bn"), ""
            for known in ("expand", "depthwise", "project", "squeeze_excite"):
                block, found, rest = block.partition(f"_{known}")
                if found:
                    part = known + rest.replace("_conv", "/Conv", 1)
                    break
            layer = f"{block}/{part}" + ("_bn" if layer.endswith("_bn") else "")
        else:
            layer = "Logits" if layer == "logits" else layer.replace("conv", "Conv")
        return layer.removesuffix("_bn") + "/BatchNorm" if layer.endswith("_bn") else layer

    return _v3_keras("mobilenet_v3_large", _LARGE_BLOCKS, False, published, _LARGE)


def v3_keras_small_minimal() -> Twin:
    """The minimal one, without hard swish, and the names of today's Keras."""
    return _v3_keras(
        "mobilenet_v3_small_minimal",
        _SMALL_BLOCKS,
        True,
        lambda layer: layer,
        _SMALL,
    )


TWINS = {
    "mobilenet_v1_keras": v1_keras,
    "mobilenet_v1_mlperf_tiny": v1_mlperf_tiny,
    "mobilenet_v1_timm": v1_timm,
    "mobilenet_v1_transformers": v1_transformers,
    "mobilenet_v1_tf_slim": v1_tf_slim,
    "mobilenet_v2_torchvision": v2_torchvision,
    "mobilenet_v2_timm": v2_timm,
    "mobilenet_v2_transformers": v2_transformers,
    "mobilenet_v2_keras": v2_keras,
    "mobilenet_v3_torchvision_large": v3_torchvision_large,
    "mobilenet_v3_torchvision_small": v3_torchvision_small,
    "mobilenet_v3_timm_large": v3_timm_large,
    "mobilenet_v3_timm_tf_small_minimal": v3_timm_tf_small_minimal,
    "mobilenet_v3_keras_large": v3_keras_large,
    "mobilenet_v3_keras_small_minimal": v3_keras_small_minimal,
}
