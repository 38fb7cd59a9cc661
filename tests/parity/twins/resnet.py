"""Twins of residual networks.

Those of torchvision and timm have a fixed stem of 64 channels, which is cut down after they are
built. Caffe is not among the libraries that twins are made with: its networks are torchvision's,
changed to what the authors' prototxt says, and called as in the authors' files. So is the network
for CIFAR, whose code is on GitHub alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from make_twins import Twin, grid_values, image_of, torch_twin

# The last map is of 3x3: batch statistics of fewer values would amplify rounding.
IMAGE = image_of(65, 66)


# ---------------------------------------------------------------------------------------------
# torchvision and timm


def narrow_torchvision(block: Any, blocks: list[int], width: int, **options: Any) -> Any:
    """A ResNet of torchvision whose layers have `width`, 2 `width` and so on channels."""
    from torch import nn
    from torchvision.models.resnet import ResNet

    class Narrow(ResNet):
        def _make_layer(self, block, planes, *args, **kwargs):
            if planes == 64:
                self.inplanes = width
            return super()._make_layer(block, planes * width // 64, *args, **kwargs)

    network = Narrow(block, blocks, num_classes=5, **options)
    network.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
    network.bn1 = nn.BatchNorm2d(width)
    network.fc = nn.Linear(network.inplanes, 5)
    return network


def torch_stages(network: Any) -> dict[str, Callable[[Any], Any]]:
    def stem(x):
        return network.maxpool(network.relu(network.bn1(network.conv1(x))))

    return {
        "stem": stem,
        **{f"layer{i}": getattr(network, f"layer{i}") for i in range(1, 5)},
        "pool": lambda x: x.mean((2, 3)),
        "head": network.fc,
    }


def _torchvision(
    architecture: str,
    kind: str,
    blocks: list[int],
    width: int,
    groups: int = 1,
    per_group: int = 64,
) -> Twin:
    from torchvision.models import resnet

    cardinality = {"groups": groups, "width_per_group": per_group}
    network = narrow_torchvision(getattr(resnet, kind), blocks, width, **cardinality)
    options = {"width": width, "num_classes": 5, "blocks": blocks, "groups": groups}
    twin = torch_twin(
        architecture, "torchvision", network, IMAGE, torch_stages(network), options=options
    )
    if (groups, per_group) != (1, 64):
        # Another width changes nothing about training, and the files are to be small.
        twin.trained_stages, twin.trained_state = {}, {}
    return twin


def torchvision_basic() -> Twin:
    return _torchvision("resnet18", "BasicBlock", [2, 1, 1, 1], 4)


def torchvision_bottleneck() -> Twin:
    return _torchvision("resnet50", "Bottleneck", [2, 1, 1, 1], 4)


def torchvision_resnext() -> Twin:
    return _torchvision("resnext101_32x8d", "Bottleneck", [1, 1, 1, 1], 8, 4, 8)


def torchvision_wide() -> Twin:
    return _torchvision("wide_resnet50_2", "Bottleneck", [1, 1, 1, 1], 4, 1, 128)


def timm_bottleneck() -> Twin:
    from timm.models.resnet import Bottleneck, ResNet
    from torch import nn

    width, blocks = 4, [1, 2, 1, 1]
    channels = tuple(width * factor for factor in (1, 2, 4, 8))
    network = ResNet(Bottleneck, blocks, num_classes=5, channels=channels)
    network.conv1, network.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
    first = network.layer1[0]
    first.conv1 = nn.Conv2d(width, width, 1, bias=False)
    first.downsample[0] = nn.Conv2d(width, 4 * width, 1, bias=False)
    stages = torch_stages(network) | {
        "stem": lambda x: network.maxpool(network.act1(network.bn1(network.conv1(x)))),
        "pool": network.global_pool,
    }
    options = {"width": width, "num_classes": 5, "blocks": blocks}
    return torch_twin("resnet50", "timm", network, IMAGE, stages, options=options)


# ---------------------------------------------------------------------------------------------
# transformers


def _transformers(architecture: str, kind: str, blocks: list[int], widths: list[int]) -> Twin:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=4, hidden_sizes=widths, depths=blocks, layer_type=kind, num_labels=5
    )
    network = ResNetForImageClassification(config)
    stages = {
        "stem": network.resnet.embedder,
        **{f"layer{i + 1}": stage for i, stage in enumerate(network.resnet.encoder.stages)},
        "pool": lambda x: network.resnet.pooler(x).flatten(1),
        "head": network.classifier,
    }
    options = {"width": 4, "num_classes": 5, "blocks": blocks}
    return torch_twin(architecture, "transformers", network, IMAGE, stages, options=options)


def transformers_basic() -> Twin:
    return _transformers("resnet34", "basic", [1, 1, 2, 1], [4, 8, 16, 32])


def transformers_bottleneck() -> Twin:
    return _transformers("resnet50", "bottleneck", [1, 1, 2, 1], [16, 32, 64, 128])


# ---------------------------------------------------------------------------------------------
# Caffe


def as_caffe(network: Any, bias: bool) -> None:
    """Change a network of bottlenecks of torchvision to the one of the authors' prototxt."""
    from torch import nn

    for i in range(1, 5):
        first = getattr(network, f"layer{i}")[0]
        first.conv1.stride, first.conv2.stride = first.conv2.stride, first.conv1.stride
    network.maxpool = nn.MaxPool2d(3, 2, ceil_mode=True)
    if bias:
        network.conv1 = nn.Conv2d(3, network.conv1.out_channels, 7, 2, 3)


def caffe_name(name: str, numbered: bool) -> str:
    """What a tensor of torchvision's is called in the authors' files; empty for counters."""
    *path, layer, leaf = name.split(".")
    leaves = {"running_mean": ("bn", 0), "running_var": ("bn", 1)}
    norms = {"weight": ("scale", 0), "bias": ("scale", 1), **leaves}
    index = {"weight": 0, "bias": 1}
    if leaf == "num_batches_tracked":
        return ""
    if layer == "fc":
        return f"fc1000/{index[leaf]}"
    if not path:
        kind, number = norms[leaf] if layer == "bn1" else ("", index[leaf])
        return f"{kind}_conv1/{number}" if kind else f"conv1/{number}"
    stage, position = int(path[0].removeprefix("layer")) + 1, int(path[1])
    block = f"{stage}{'abcdefgh'[position]}"
    if numbered and stage in (3, 4) and position:
        block = f"{stage}b{position}"
    is_shortcut = path[-1] == "downsample"
    branch = "1" if is_shortcut else "2" + "abc"[int(layer[-1]) - 1]
    is_norm = layer == "1" if is_shortcut else layer.startswith("bn")
    kind, number = norms[leaf] if is_norm else ("res", 0)
    return f"{kind}{block}_branch{branch}/{number}"


def _caffe(architecture: str, blocks: list[int], numbered: bool) -> Twin:
    from torchvision.models.resnet import Bottleneck

    network = narrow_torchvision(Bottleneck, blocks, 4)
    as_caffe(network, bias=not numbered)
    options = {"width": 4, "num_classes": 5, "blocks": blocks}

    def rename(name: str) -> str:
        return caffe_name(name, numbered)

    twin = torch_twin(
        architecture,
        "caffe",
        network,
        IMAGE,
        torch_stages(network),
        options=options,
        rename=rename,
    )
    moved = network.state_dict().items()
    twin.trained_state = {rename(n): t.numpy().copy() for n, t in moved if "running_" in n}
    return twin


def caffe_50() -> Twin:
    return _caffe("resnet50", [1, 2, 1, 1], numbered=False)


def caffe_101() -> Twin:
    return _caffe("resnet101", [2, 1, 3, 1], numbered=True)


# ---------------------------------------------------------------------------------------------
# Keras


def keras_twin(
    architecture: str,
    source: str,
    outputs: dict[str, Any],
    inputs: Any,
    image: np.ndarray,
    options: dict[str, Any],
) -> Twin:
    """A twin from tensors of Keras's functional interface.

    The running variances are left out: Keras 3 averages biased ones, but the published weights are
    of `tf.keras`, whose fused BatchNorm averaged unbiased ones, as the package does.

    Args:
        architecture: the name in the catalog.
        source: the name of the source.
        outputs: for each stage, what leaves it.
        inputs: the tensor of the images.
        image: the input.
        options: what `build` gets beside those of the source.
    """
    import keras

    network = keras.Model(inputs, list(outputs.values()))
    weights = {
        f"{layer.name}/{layer.name}/{weight.name}:0": weight
        for layer in network.layers
        for weight in layer.weights
    }
    for name, weight in weights.items():
        shape = tuple(weight.shape)
        # Channels that leave a layer are the last axis here, but the first for `grid_values`.
        values = grid_values(name, (shape[-1], *shape[:-1]))
        weight.assign(np.moveaxis(values, 0, -1))

    def state() -> dict[str, np.ndarray]:
        return {name: keras.ops.convert_to_numpy(w).copy() for name, w in weights.items()}

    def run(training: bool) -> dict[str, np.ndarray]:
        values = map(keras.ops.convert_to_numpy, network(image, training=training))
        return dict(zip(outputs, (value.copy() for value in values), strict=True))

    before, evaluated, trained = state(), run(False), run(True)
    moved = {name: array for name, array in state().items() if "moving_mean" in name}
    return Twin(architecture, source, before, image, evaluated, trained, moved, options)


def keras_stages(inputs: Any, blocks: list[int], width: int, classes: int) -> dict[str, Any]:
    """What leaves each stage of Keras's ResNet, whose own stem has 64 channels."""
    from keras import layers
    from keras.src.applications.resnet import stack_residual_blocks_v1

    x = layers.ZeroPadding2D(3)(inputs)
    x = layers.Conv2D(width, 7, strides=2, name="conv1_conv")(x)
    x = layers.BatchNormalization(epsilon=1.001e-5, name="conv1_bn")(x)
    x = layers.ZeroPadding2D(1)(layers.Activation("relu")(x))
    outputs = {"stem": layers.MaxPooling2D(3, strides=2)(x)}
    x = outputs["stem"]
    for stage, count in enumerate(blocks):
        stride = 2 if stage else 1
        sizes = (width * 2**stage, count, stride)
        x = stack_residual_blocks_v1(x, *sizes, name=f"conv{stage + 2}")
        outputs[f"layer{stage + 1}"] = x
    outputs["pool"] = layers.GlobalAveragePooling2D()(x)
    outputs["head"] = layers.Dense(classes, name="probs")(outputs["pool"])
    return outputs


def keras_bottleneck() -> Twin:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras

    blocks, inputs = [1, 1, 2, 1], keras.Input((65, 66, 3))
    outputs = keras_stages(inputs, blocks, 4, 5)
    options = {"width": 4, "num_classes": 5, "blocks": blocks}
    return keras_twin("resnet50", "keras", outputs, inputs, IMAGE, options)


def mlperf_tiny() -> Twin:
    """The layers and names of the `model_config` in MLPerf Tiny's `pretrainedResnet.h5`."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras
    from keras import layers

    counts = {"conv2d": 0, "batch_normalization": 0}

    def numbered(kind: str) -> str:
        counts[kind] += 1
        return kind if counts[kind] == 1 else f"{kind}_{counts[kind] - 1}"

    def conv(x, width, size, stride):
        options = {"strides": stride, "padding": "same", "name": numbered("conv2d")}
        return layers.Conv2D(width, size, **options)(x)

    def norm(x):
        return layers.BatchNormalization(name=numbered("batch_normalization"))(x)

    def relu(x):
        return layers.Activation("relu")(x)

    inputs = keras.Input((16, 15, 3))
    outputs = {"stem": relu(norm(conv(inputs, 4, 3, 1)))}
    x = outputs["stem"]
    for stage in range(3):
        width, stride = 4 * 2**stage, 2 if stage else 1
        branch = relu(norm(conv(x, width, 3, stride)))
        branch = conv(branch, width, 3, 1)
        shortcut = conv(x, width, 1, stride) if stage else x
        outputs[f"layer{stage + 1}"] = x = relu(layers.Add()([shortcut, norm(branch)]))
    outputs["pool"] = layers.GlobalAveragePooling2D()(x)
    outputs["head"] = layers.Dense(5, name="dense")(outputs["pool"])
    options = {"width": 4, "num_classes": 5, "input_size": [16, 15]}
    image = image_of(16, 15)
    return keras_twin("cifar_resnet8", "mlperf_tiny", outputs, inputs, image, options)


# ---------------------------------------------------------------------------------------------
# CIFAR


def cifar_pad() -> Twin:
    """Blocks of torchvision with the parameter-free shortcuts and names of the GitHub project."""
    from torch import nn
    from torch.nn import functional
    from torchvision.models.resnet import BasicBlock

    class Pad(nn.Module):
        def forward(self, x):
            added = x.shape[1] // 2  # on each side, to twice the channels
            return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, added, added))

    network = nn.Module()
    network.conv1, network.bn1 = nn.Conv2d(3, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4)
    network.layer1 = nn.Sequential(BasicBlock(4, 4), BasicBlock(4, 4))
    network.layer2 = nn.Sequential(BasicBlock(4, 8, 2, Pad()), BasicBlock(8, 8))
    network.layer3 = nn.Sequential(BasicBlock(8, 16, 2, Pad()), BasicBlock(16, 16))
    network.linear = nn.Linear(16, 10)
    stages = {
        "stem": lambda x: functional.relu(network.bn1(network.conv1(x))),
        **{f"layer{i}": getattr(network, f"layer{i}") for i in range(1, 4)},
        "pool": lambda x: x.mean((2, 3)),
        "head": network.linear,
    }
    options = {"width": 4, "input_size": [16, 15]}
    image = image_of(16, 15)
    return torch_twin(
        "cifar_resnet14", "pytorch_resnet_cifar10", network, image, stages, options=options
    )


TWINS = {
    "resnet_torchvision_basic": torchvision_basic,
    "resnet_torchvision_bottleneck": torchvision_bottleneck,
    "resnet_torchvision_resnext": torchvision_resnext,
    "resnet_torchvision_wide": torchvision_wide,
    "resnet_timm_bottleneck": timm_bottleneck,
    "resnet_transformers_basic": transformers_basic,
    "resnet_transformers_bottleneck": transformers_bottleneck,
    "resnet_caffe_50": caffe_50,
    "resnet_caffe_101": caffe_101,
    "resnet_keras": keras_bottleneck,
    "resnet_mlperf_tiny": mlperf_tiny,
    "resnet_cifar_pad": cifar_pad,
}
