"""Twins of RegNets: four narrow stages of one, one, two and one blocks."""

from __future__ import annotations

from typing import Any

from make_twins import Twin, image_of, torch_twin

IMAGE = image_of(65, 66)
BLOCKS, WIDTHS, GROUP, STEM = [1, 1, 2, 1], [8, 16, 24, 40], 8, 4
OPTIONS = {
    "blocks": BLOCKS,
    "widths": WIDTHS,
    "group_width": GROUP,
    "stem_width": STEM,
    "num_classes": 5,
}


def _torchvision(architecture: str, squeeze: float | None) -> Twin:
    from torchvision.models.regnet import BlockParams, RegNet

    params = BlockParams(BLOCKS, WIDTHS, [GROUP] * 4, [1.0] * 4, [2] * 4, squeeze)
    network = RegNet(params, num_classes=5, stem_width=STEM)
    stages = {
        "stem": network.stem,
        **{f"layer{i}": getattr(network.trunk_output, f"block{i}") for i in range(1, 5)},
        "pool": lambda x: network.avgpool(x).flatten(1),
        "head": network.fc,
    }
    return torch_twin(architecture, "torchvision", network, IMAGE, stages, options=OPTIONS)


def torchvision_x() -> Twin:
    return _torchvision("regnet_x_400mf", None)


def torchvision_y() -> Twin:
    return _torchvision("regnet_y_400mf", 0.25)


def timm_y() -> Twin:
    from timm.models.regnet import RegNet, RegNetCfg

    # The line whose rounded widths are those above.
    line = {"depth": sum(BLOCKS), "w0": 8, "wa": 8.0, "wm": 1.5}
    config = RegNetCfg(**line, group_size=GROUP, se_ratio=0.25, stem_width=STEM)
    network = RegNet(config, num_classes=5)
    stages = {
        "stem": network.stem,
        **{f"layer{i}": getattr(network, f"s{i}") for i in range(1, 5)},
        "pool": network.head.global_pool,
        "head": network.head.fc,
    }
    return torch_twin("regnet_y_800mf_pycls", "timm", network, IMAGE, stages, options=OPTIONS)


def _transformers(architecture: str, kind: str) -> Twin:
    from transformers import RegNetConfig, RegNetForImageClassification

    sizes: dict[str, Any] = {"embedding_size": STEM, "hidden_sizes": WIDTHS, "depths": BLOCKS}
    config = RegNetConfig(**sizes, groups_width=GROUP, layer_type=kind, num_labels=5)
    network = RegNetForImageClassification(config)
    stages = {
        "stem": network.regnet.embedder,
        **{f"layer{i + 1}": stage for i, stage in enumerate(network.regnet.encoder.stages)},
        "pool": lambda x: network.regnet.pooler(x).flatten(1),
        "head": network.classifier,
    }
    return torch_twin(architecture, "transformers", network, IMAGE, stages, options=OPTIONS)


def transformers_x() -> Twin:
    return _transformers("regnet_x_400mf_pycls", "x")


def transformers_y() -> Twin:
    return _transformers("regnet_y_4gf", "y")


TWINS = {
    "regnet_torchvision_x": torchvision_x,
    "regnet_torchvision_y": torchvision_y,
    "regnet_timm_y": timm_y,
    "regnet_transformers_x": transformers_x,
    "regnet_transformers_y": transformers_y,
}
