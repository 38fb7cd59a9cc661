"""Twins of ConvNeXt and ConvNeXt V2."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from make_twins import Twin, image_of, torch_twin

# Sides that neither 4 nor 2 divide at every stage: stages of 16x18, 8x9, 4x4 and 2x2.
IMAGE = image_of(67, 75)
OPTIONS = {"width": 4, "blocks": [1, 2, 1, 1], "drop_path": 0.0, "num_classes": 5}
BLOCKS, WIDTHS = OPTIONS["blocks"], [4, 8, 16, 32]


def _twin(architecture, source, network, stem, stages, norm, head) -> Twin:
    return torch_twin(
        architecture,
        source,
        network,
        IMAGE,
        {
            "stem": stem,
            **{f"stage{number}": stage for number, stage in enumerate(stages, start=1)},
            "pool": lambda x: x.mean((2, 3)),
            "norm": norm,
            "head": head,
        },
        options=OPTIONS,
    )


def torchvision() -> Twin:
    """V1; torchvision's scales are of shape (channels, 1, 1)."""
    from torch import nn
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    rows = zip(WIDTHS, [*WIDTHS[1:], None], BLOCKS, strict=True)
    network = ConvNeXt([CNBlockConfig(*row) for row in rows], num_classes=5)
    parts = list(network.features)
    stages = [parts[1], *(nn.Sequential(*parts[i : i + 2]) for i in (2, 4, 6))]

    def norm(x):
        return network.classifier[0](x[:, :, None, None])[:, :, 0, 0]

    head = network.classifier[2]
    return _twin("convnext_tiny", "torchvision", network, parts[0], stages, norm, head)


def _timm(name: str):
    import timm

    return timm.create_model(name, depths=BLOCKS, dims=WIDTHS, num_classes=5)


def _of_timm(architecture, source) -> Twin:
    network = _timm(architecture)

    def norm(x):
        return network.head.norm(x[:, :, None, None])[:, :, 0, 0]

    stages = list(network.stages)
    return _twin(architecture, source, network, network.stem, stages, norm, network.head.fc)


def timm_v1() -> Twin:
    """V1 in timm's names."""
    return _of_timm("convnext_tiny", "timm")


def timm_v2_convolutions() -> Twin:
    """V2 with the 1x1 convolutions that timm's small networks have for dense layers."""
    return _of_timm("convnextv2_atto", "timm")


def timm_v2_dense() -> Twin:
    """V2 with dense layers."""
    return _of_timm("convnextv2_tiny", "timm")


def facebook_name(name: str) -> str:
    """The authors' name for a tensor of timm's network, the inverse of timm's own translation."""
    parts = name.split(".")
    if parts[0] == "stem":
        return ".".join(["downsample_layers.0", *parts[1:]])
    if parts[0] == "head":
        return f"norm.{parts[2]}" if parts[1] == "norm" else f"head.{parts[2]}"
    if parts[2] == "downsample":
        return ".".join(["downsample_layers", parts[1], *parts[3:]])
    within = ".".join(parts[4:])
    for timm, facebook in (
        ("conv_dw", "dwconv"),
        ("mlp.fc1", "pwconv1"),
        ("mlp.fc2", "pwconv2"),
        ("mlp.grn.weight", "grn.gamma"),
        ("mlp.grn.bias", "grn.beta"),
    ):
        within = within.replace(timm, facebook)
    return f"stages.{parts[1]}.{parts[3]}.{within}"


def facebook_state(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of timm's network with the names and shapes of the authors' files."""
    return {
        facebook_name(name): array.reshape(1, 1, 1, -1) if ".grn." in name else array
        for name, array in state.items()
    }


def _facebook(architecture: str) -> Twin:
    twin = _of_timm(architecture, "facebook")
    return replace(twin, state=facebook_state(twin.state))


def facebook_v1() -> Twin:
    """The names of the authors' files, from timm's network."""
    return _facebook("convnext_tiny")


def facebook_v2() -> Twin:
    """The names and the shape (1, 1, 1, channels) of the authors' files, from timm's network."""
    return _facebook("convnextv2_tiny")


def _transformers(architecture: str, kind: str) -> Twin:
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        hidden_sizes=WIDTHS, depths=BLOCKS, drop_path_rate=0.0, num_labels=5
    )
    network = getattr(transformers, f"{kind}ForImageClassification")(config)
    body = network.base_model
    return _twin(
        architecture,
        "transformers",
        network,
        body.embeddings,
        list(body.encoder.stages),
        body.layernorm,
        network.classifier,
    )


def transformers_v1() -> Twin:
    """V1 of transformers, with its other epsilon after the pooling."""
    return _transformers("convnext_tiny", "ConvNext")


def transformers_v2() -> Twin:
    """V2 of transformers."""
    return _transformers("convnextv2_tiny", "ConvNextV2")


TWINS = {
    "convnext_torchvision": torchvision,
    "convnext_timm": timm_v1,
    "convnext_facebook": facebook_v1,
    "convnext_transformers": transformers_v1,
    "convnextv2_timm_convolutions": timm_v2_convolutions,
    "convnextv2_timm_dense": timm_v2_dense,
    "convnextv2_facebook": facebook_v2,
    "convnextv2_transformers": transformers_v2,
}
