"""Twins of residual networks."""

from __future__ import annotations

from make_twins import Twin, image_of, torch_twin


def _stages(network):
    def stem(x):
        return network.maxpool(network.relu(network.bn1(network.conv1(x))))

    return {
        "stem": stem,
        **{f"layer{i}": getattr(network, f"layer{i}") for i in range(1, 5)},
        "pool": lambda x: x.mean((2, 3)),
        "head": network.fc,
    }


def torchvision_resnet18() -> Twin:
    """Basic blocks, an eighth of the width."""
    from torchvision.models.resnet import BasicBlock, ResNet

    class Narrow(ResNet):
        def __init__(self):
            super().__init__(BasicBlock, [2, 2, 2, 2], num_classes=5)

    network = _narrow(Narrow, 8)
    return torch_twin(
        "resnet18",
        "torchvision",
        network,
        image_of(67, 67),
        _stages(network),
        options={"width": 8, "num_classes": 5},
    )


def _narrow(kind, width):
    """A torchvision ResNet whose layers have `width`, 2 `width` and so on channels."""
    from torchvision.models.resnet import ResNet

    make, start = ResNet._make_layer, ResNet.__init__

    def make_layer(self, block, planes, *args, **kwargs):
        if planes == 64:
            self.inplanes = width
            self.conv1 = type(self.conv1)(3, width, 7, 2, 3, bias=False)
            self.bn1 = self._norm_layer(width)
        return make(self, block, planes * width // 64, *args, **kwargs)

    ResNet._make_layer = make_layer
    try:
        network = kind()
    finally:
        ResNet._make_layer, ResNet.__init__ = make, start
    network.fc = type(network.fc)(network.fc.in_features * width // 64, network.fc.out_features)
    return network


TWINS = {"resnet_torchvision_basic": torchvision_resnet18}
