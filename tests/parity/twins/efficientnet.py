"""Twins of EfficientNets: an eighth of the width, a third or less of the depth.

Images are tall and narrow, so that what leaves the first stages stays small; their sides are odd
in some stages and even in others, where PyTorch and TensorFlow pad differently.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import re

import numpy as np
from make_twins import Twin, grid_values, image_of, torch_twin

WIDTH = 1 / 8
V1_DEPTH, V2_DEPTH = 0.3, 0.1
V1_OPTIONS = {"width": WIDTH, "depth": V1_DEPTH, "num_classes": 5, "dropout": 0.0, "drop_path": 0.0}
V2_OPTIONS = {**V1_OPTIONS, "depth": V2_DEPTH}
IMAGE = image_of(66, 10)


def torchvision_twin(name: str, settings: list, top: int, **norm: float) -> Twin:
    """A network from the settings of its stages, with the batch normalisation that `name` has."""
    import torch
    from torchvision.models.efficientnet import EfficientNet

    network = EfficientNet(
        settings,
        dropout=0.0,
        stochastic_depth_prob=0.0,
        num_classes=5,
        norm_layer=functools.partial(torch.nn.BatchNorm2d, **norm),
        last_channel=top,
    )
    stages = {
        "stem": network.features[0],
        **{f"stage{i}": network.features[i] for i in range(1, len(settings) + 1)},
        "top": network.features[-1],
        "pool": lambda x: network.avgpool(x).flatten(1),
        "head": network.classifier,
    }
    options = V2_OPTIONS if "v2" in name else V1_OPTIONS
    return torch_twin(name, "torchvision", network, IMAGE, stages, options=options)


def torchvision_v1() -> Twin:
    """MBConv alone; the last channels are four times those of the last stage."""
    from torchvision.models.efficientnet import _efficientnet_conf

    settings, top = _efficientnet_conf("efficientnet_b0", width_mult=WIDTH, depth_mult=V1_DEPTH)
    return torchvision_twin("efficientnet_b0", settings, top)


def torchvision_v2() -> Twin:
    """Fused-MBConv with and without expansion, and MBConv."""
    from torchvision.models.efficientnet import _efficientnet_conf

    settings, top = _efficientnet_conf("efficientnet_v2_s")
    for row in settings:
        row.input_channels = row.adjust_channels(row.input_channels, WIDTH)
        row.out_channels = row.adjust_channels(row.out_channels, WIDTH)
        row.num_layers = math.ceil(row.num_layers * V2_DEPTH)
    return torchvision_twin("efficientnet_v2_s", settings, int(top * WIDTH), eps=1e-3)


def timm_twin(source: str, name: str, make: str, depth: float, **options: object) -> Twin:
    """A network of timm's, built by `make` with multipliers of our own."""
    from timm.models import efficientnet

    network = getattr(efficientnet, make)(
        name, channel_multiplier=WIDTH, depth_multiplier=depth, num_classes=5, **options
    )
    stages = {
        "stem": lambda x: network.bn1(network.conv_stem(x)),
        **{f"stage{i}": stage for i, stage in enumerate(network.blocks, start=1)},
        "top": lambda x: network.bn2(network.conv_head(x)),
        "pool": network.global_pool,
        "head": network.classifier,
    }
    architecture = "efficientnet_v2_s" if "v2" in name else "efficientnet_b0"
    ours = V2_OPTIONS if "v2" in name else V1_OPTIONS
    return torch_twin(architecture, source, network, IMAGE, stages, options=ours)


TENSORFLOW = {"bn_eps": 1e-3, "pad_type": "same"}


def transformers_v1() -> Twin:
    """The network of transformers, with two of its peculiarities taken away.

    Its `momentum` is TensorFlow's, 0.99, where PyTorch understands the opposite, 0.01. It never
    adds the input of a stage's first block, as the full networks have no reason to; with the few
    channels here some have the shape for it.

    Which strided convolutions pad as for odd sizes is data, `depthwise_padding`: here it is all of
    them, behind a stem that pads as for even sizes.
    """
    import torch
    from transformers import EfficientNetConfig, EfficientNetForImageClassification

    config = EfficientNetConfig(
        width_coefficient=WIDTH,
        depth_coefficient=V1_DEPTH,
        hidden_dim=int(1280 * WIDTH),
        dropout_rate=0.0,
        drop_connect_rate=0.0,
        num_labels=5,
    )
    counts = [math.ceil(V1_DEPTH * count) for count in config.num_block_repeats]
    ends = list(itertools.accumulate(counts))
    config.depthwise_padding = [end - count for end, count in zip(ends, counts, strict=True)]
    network = EfficientNetForImageClassification(config)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.01
    body, encoder = network.efficientnet, network.efficientnet.encoder
    channels = body.embeddings.out_dim
    for block in encoder.blocks:
        before, channels = channels, block.projection.project_conv.out_channels
        block.projection.apply_dropout = block.depthwise_conv.stride == 1 and before == channels
    stages = {
        "stem": body.embeddings,
        **{
            f"stage{i}": torch.nn.Sequential(*encoder.blocks[end - count : end])
            for i, (end, count) in enumerate(zip(ends, counts, strict=True), start=1)
        },
        "top": lambda x: encoder.top_activation(encoder.top_bn(encoder.top_conv(x))),
        "pool": lambda x: body.pooler(x).flatten(1),
        "head": network.classifier,
    }
    image = image_of(34, 34)
    return torch_twin("efficientnet_b0", "transformers", network, image, stages, options=V1_OPTIONS)


def keras_v1() -> Twin:
    """The layers of preprocessing stand at the identity, and their tensors in the file."""
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    from keras.src.applications.efficientnet import EfficientNet

    network = EfficientNet(WIDTH, V1_DEPTH, 224, 0.0, 0.0, **_keras_arguments())
    normalization = next(
        layer for layer in network.layers if layer.name.startswith("normalization")
    )
    normalization.mean, normalization.variance = np.zeros((1, 1, 1, 3)), np.ones((1, 1, 1, 3))
    twin = keras_twin("efficientnet_b0", network, IMAGE * 255, V1_OPTIONS)
    constants = {"mean": np.zeros(3), "variance": np.ones(3)}
    for name, values in constants.items():
        twin.state[f"normalization/normalization/{name}:0"] = values.astype(np.float32)
    twin.state["normalization/normalization/count:0"] = np.array(0, np.int64)
    return twin


def keras_v2() -> Twin:
    """Without the layer of preprocessing, which has no tensors."""
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    from keras.src.applications.efficientnet_v2 import DEFAULT_BLOCKS_ARGS, EfficientNetV2

    blocks = [
        {**row, "num_repeat": math.ceil(row["num_repeat"] * V2_DEPTH)}
        for row in DEFAULT_BLOCKS_ARGS["efficientnetv2-s"]
    ]
    network = EfficientNetV2(
        WIDTH,
        1.0,
        384,
        0.0,
        0.0,
        blocks_args=blocks,
        include_preprocessing=False,
        **_keras_arguments(),
    )
    return keras_twin("efficientnet_v2_s", network, IMAGE, V2_OPTIONS)


def _keras_arguments() -> dict[str, object]:
    import keras

    return {
        "weights": None,
        "classes": 5,
        "classifier_activation": None,
        # Images below 32 pixels are refused, but not those of an input made before.
        "input_tensor": keras.Input(IMAGE.shape[1:]),
    }


def keras_twin(architecture: str, network, fed: np.ndarray, options: dict) -> Twin:
    """A twin from a network of Keras, with the names that files of Keras 2 have.

    Args:
        architecture: the name in the catalog.
        network: of `keras.applications`; its weights are replaced.
        fed: what the network gets, so that `IMAGE` enters its stem.
        options: what `build` gets beside those of the source.
    """
    import keras

    def state() -> dict[str, np.ndarray]:
        return {
            _keras_name(layer, weight): np.asarray(weight)
            for layer in network.layers
            for weight in layer.weights
            if not layer.name.startswith("normalization")
        }

    for layer in network.layers:
        for weight in layer.weights:
            name = _keras_name(layer, weight)
            weight.assign(grid_values(name, tuple(weight.shape)))
    last = {}
    for layer in network.layers:
        stage = re.match(r"(stem|top|block\d+|avg_pool|predictions)", layer.name)
        if stage:
            last[stage[1]] = layer.output
    names = {"avg_pool": "pool", "predictions": "head"}
    stages = {names.get(n, n.replace("block", "stage")): output for n, output in last.items()}
    run = keras.Model(network.input, stages)
    before = state()

    def outputs(training: bool) -> dict[str, np.ndarray]:
        found = run(fed, training=training)
        return {name: np.asarray(found[name]) for name in stages}

    evaluated, trained = outputs(False), outputs(True)
    moved = {n: a for n, a in state().items() if "moving_" in n}
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            _unbias(layer, before, moved)
    return Twin(architecture, "keras", before, IMAGE, evaluated, trained, moved, options)


def _keras_name(layer, weight) -> str:
    kind = type(layer).__name__
    name = (
        "depthwise_kernel" if (kind, weight.name) == ("DepthwiseConv2D", "kernel") else weight.name
    )
    return f"{layer.name}/{layer.name}/{name}:0"


def _unbias(layer, before: dict[str, np.ndarray], moved: dict[str, np.ndarray]) -> None:
    """Put the moving variance of Keras 2, which trained the published weights, in its place.

    Its batch normalisation on images is TensorFlow's fused one, which takes the unbiased variance
    of a batch as PyTorch does; Keras 3 takes the biased one.
    """
    name = f"{layer.name}/{layer.name}/moving_variance:0"
    count = IMAGE.shape[0] * math.prod(layer.input.shape[1:3])
    batch = (moved[name] - layer.momentum * before[name]) / (1 - layer.momentum)
    unbiased = batch * count / (count - 1)
    moved[name] = layer.momentum * before[name] + (1 - layer.momentum) * unbiased


TWINS = {
    "efficientnet_b0_torchvision": torchvision_v1,
    "efficientnet_v2_torchvision": torchvision_v2,
    "efficientnet_b0_timm": functools.partial(
        timm_twin, "timm", "efficientnet_b0", "_gen_efficientnet", V1_DEPTH
    ),
    "efficientnet_b0_timm_tf": functools.partial(
        timm_twin, "timm_tf", "tf_efficientnet_b0", "_gen_efficientnet", V1_DEPTH, **TENSORFLOW
    ),
    "efficientnet_v2_timm": functools.partial(
        timm_twin, "timm", "efficientnetv2_s", "_gen_efficientnetv2_s", V2_DEPTH
    ),
    "efficientnet_v2_timm_tf": functools.partial(
        timm_twin, "timm_tf", "tf_efficientnetv2_s", "_gen_efficientnetv2_s", V2_DEPTH, **TENSORFLOW
    ),
    "efficientnet_b0_keras": keras_v1,
    "efficientnet_v2_keras": keras_v2,
    "efficientnet_b0_transformers": transformers_v1,
}
