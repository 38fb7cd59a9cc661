"""Twins of MLP-Mixer."""

from __future__ import annotations

import re
from dataclasses import replace

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


def vit_jax() -> Twin:
    """The names and layouts of the authors' files, and their GELU by tanh, from timm's network."""
    import functools

    from torch import nn

    twin = _of_timm("vit_jax", act_layer=functools.partial(nn.GELU, approximate="tanh"))
    layers = (
        ("stem.proj", "stem"),
        ("norm", "pre_head_layer_norm"),
        ("head", "head"),
        (r"blocks.(\d+).norm1", r"MixerBlock_\1/LayerNorm_0"),
        (r"blocks.(\d+).norm2", r"MixerBlock_\1/LayerNorm_1"),
        (r"blocks.(\d+).mlp_tokens.fc1", r"MixerBlock_\1/token_mixing/Dense_0"),
        (r"blocks.(\d+).mlp_tokens.fc2", r"MixerBlock_\1/token_mixing/Dense_1"),
        (r"blocks.(\d+).mlp_channels.fc1", r"MixerBlock_\1/channel_mixing/Dense_0"),
        (r"blocks.(\d+).mlp_channels.fc2", r"MixerBlock_\1/channel_mixing/Dense_1"),
    )
    state = {}
    for name, array in twin.state.items():
        layer, leaf = name.rsplit(".", 1)
        found = [re.sub(old, new, layer) for old, new in layers if re.fullmatch(old, layer)]
        leaf = {1: "scale", 2: "kernel", 4: "kernel"}[array.ndim] if leaf == "weight" else leaf
        order = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[array.ndim]
        state[f"{found[0]}/{leaf}"] = array.transpose(order).copy()
    return replace(twin, state=state)


TWINS = {"mixer_timm": timm, "mixer_vit_jax": vit_jax}
