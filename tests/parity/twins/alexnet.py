"""Twins of AlexNet and CaffeNet."""

from __future__ import annotations

import numpy as np
from make_twins import Twin, image_of, torch_twin
from opencv_network import CaffeNetwork

HIDDEN, CLASSES = 12, 5


def torchvision_alexnet() -> Twin:
    """One tower; the map before the dense layers is 8 high and 2 wide."""
    import torch
    from torchvision.models.alexnet import AlexNet

    with torch.device("meta"):
        network = AlexNet(CLASSES)
    widths = (4, 6, 8, 8, 6)
    before = 3
    for place, features in zip((0, 3, 6, 8, 10), widths, strict=True):
        old = network.features[place]
        network.features[place] = torch.nn.Conv2d(
            before, features, old.kernel_size, old.stride, old.padding
        )
        before = features
    network.classifier[1] = torch.nn.Linear(before * 36, HIDDEN)
    network.classifier[4] = torch.nn.Linear(HIDDEN, HIDDEN)
    network.classifier[6] = torch.nn.Linear(HIDDEN, CLASSES)

    def pool(x):
        return network.avgpool(x).permute(0, 2, 3, 1).flatten(1)

    def fc6(x):
        return network.classifier[:3](x.reshape(-1, 6, 6, before).permute(0, 3, 1, 2).flatten(1))

    return torch_twin(
        "alexnet",
        "torchvision",
        network,
        image_of(290, 102, batch=1),
        {
            "conv1": network.features[:3],
            "conv2": network.features[3:6],
            "conv3": network.features[6:8],
            "conv4": network.features[8:10],
            "conv5": network.features[10:],
            "pool": pool,
            "fc6": fc6,
            "fc7": network.classifier[3:6],
            "head": network.classifier[6],
        },
        options={"widths": widths, "hidden": HIDDEN, "num_classes": CLASSES},
    )


def caffe_network(
    widths: tuple[int, ...], hidden: int, classes: int, *, normalises_first: bool
) -> tuple[CaffeNetwork, dict[str, str]]:
    """CaffeNet, or AlexNet as Caffe has it, and the layers that end its stages."""
    network, stages = CaffeNetwork(), {}
    convolutions = (
        (11, "stride: 4", 1, ["norm", "pool"]),
        (5, "pad: 2", 2, ["norm", "pool"]),
        (3, "pad: 1", 1, []),
        (3, "pad: 1", 2, []),
        (3, "pad: 1", 2, ["pool"]),
    )
    for i, features in enumerate(widths, start=1):
        size, options, groups, follow = convolutions[i - 1]
        network.convolution(f"conv{i}", features, size, options, groups)
        for kind in follow if normalises_first else follow[::-1]:
            if kind == "pool":
                network.max_pool(f"pool{i}", 3)
            else:
                normalisation = "lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 }"
                network.add(f"norm{i}", "LRN", normalisation)
        stages[f"conv{i}"] = network.last
    network.dense("fc6", hidden, widths[-1] * 36)
    network.add("relu6", "ReLU")
    network.dense("fc7", hidden, hidden)
    network.add("relu7", "ReLU")
    network.dense("fc8", classes, hidden)
    return network, {**stages, "fc6": "relu6", "fc7": "relu7", "head": "fc8"}


def _caffe(architecture: str, *, normalises_first: bool) -> Twin:
    """Groups and normalisation as OpenCV has them.

    Of an image of 215x215, two of three poolings round up. Its values are large, as those of bytes,
    for otherwise the normalisation would do nothing.
    """
    widths = (6, 8, 12, 12, 8)
    network, stages = caffe_network(widths, HIDDEN, CLASSES, normalises_first=normalises_first)
    image = np.sign(image_of(215, 215, batch=1)) * 128
    found = network.run(image, stages)
    options = {"widths": widths, "hidden": HIDDEN, "num_classes": CLASSES}
    return Twin(architecture, "caffe", network.tensors, image, found, options=options)


def caffe_caffenet() -> Twin:
    """Normalisation after the pooling."""
    return _caffe("caffenet", normalises_first=False)


def caffe_bvlc_alexnet() -> Twin:
    """Normalisation before the pooling."""
    return _caffe("bvlc_alexnet", normalises_first=True)


TWINS = {
    "alexnet_torchvision": torchvision_alexnet,
    "alexnet_caffenet": caffe_caffenet,
    "alexnet_bvlc": caffe_bvlc_alexnet,
}
