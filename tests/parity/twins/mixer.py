"""Twins of MLP-Mixer."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
from make_twins import Twin, image_of, torch_twin

IMAGE = image_of(32, 48)
OPTIONS = {"width": 8, "blocks": 2, "input_size": [32, 48], "num_classes": 5}


def _of_timm(source, **more) -> Twin:
    from timm.models.mlp_mixer import MlpMixer

    network = MlpMixer(5, img_size=(32, 48), patch_size=16, num_blocks=2, embed_dim=8, **more)
    stages = {
        "embed": network.stem,
        **{f"block{number}": block for number, block in enumerate(network.blocks)},
        "norm": network.norm,
        "pool": lambda x: x.mean(1),
        "head": network.head,
    }
    return torch_twin("mixer_b16", source, network, IMAGE, stages, options=OPTIONS)


def timm() -> Twin:
    """timm's network, with the exact GELU."""
    return _of_timm("timm")


def tanh_gelu():
    """The activation of the authors' code."""
    import functools

    from torch import nn

    return functools.partial(nn.GELU, approximate="tanh")


# What the layers of timm's network are called in the authors' files.
VIT_JAX = (
    (r"stem\.proj", "stem"),
    ("norm", "pre_head_layer_norm"),
    ("head", "head"),
    (r"blocks\.(\d+)\.norm1", r"MixerBlock_\1/LayerNorm_0"),
    (r"blocks\.(\d+)\.norm2", r"MixerBlock_\1/LayerNorm_1"),
    (r"blocks\.(\d+)\.mlp_tokens\.fc1", r"MixerBlock_\1/token_mixing/Dense_0"),
    (r"blocks\.(\d+)\.mlp_tokens\.fc2", r"MixerBlock_\1/token_mixing/Dense_1"),
    (r"blocks\.(\d+)\.mlp_channels\.fc1", r"MixerBlock_\1/channel_mixing/Dense_0"),
    (r"blocks\.(\d+)\.mlp_channels\.fc2", r"MixerBlock_\1/channel_mixing/Dense_1"),
)


def vit_jax_state(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of timm's network in the names and layouts of the authors' files."""
    found = {}
    for name, array in state.items():
        layer, leaf = name.rsplit(".", 1)
        (path,) = (re.sub(old, new, layer) for old, new in VIT_JAX if re.fullmatch(old, layer))
        if leaf == "weight":
            leaf = "scale" if array.ndim == 1 else "kernel"
        order = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[array.ndim]
        found[f"{path}/{leaf}"] = array.transpose(order).copy()
    return found


def vit_jax() -> Twin:
    """The names and layouts of the authors' files, and their GELU by tanh, from timm's network."""
    twin = _of_timm("vit_jax", act_layer=tanh_gelu())
    return replace(twin, state=vit_jax_state(twin.state))


TWINS = {"mixer_timm": timm, "mixer_vit_jax": vit_jax}
