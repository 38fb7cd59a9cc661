"""Twins of Swin transformers."""

from __future__ import annotations

import re
from dataclasses import replace

from make_twins import Twin, image_of, torch_twin

OPTIONS = {
    "width": 4,
    "head_width": 2,
    "blocks": [2, 2, 1, 2],
    "drop_path": 0.0,
    "num_classes": 5,
}
BLOCKS, HEADS = OPTIONS["blocks"], [2, 4, 8, 16]

# Windows of 3 divide none of the maps of 17x14, 9x7, 5x4 and 3x2, and the last is but one window.
ODD = image_of(69, 58)
# Windows of 2 divide the maps of 16x32, 8x16, 4x8 and 2x4; along a side of 2 nothing is shifted.
EVEN = image_of(64, 128, batch=1)


def _twin(source, network, image, stages, *, window=3, **more) -> Twin:
    options = {**OPTIONS, "window": window}
    return torch_twin("swin_t", source, network, image, stages, options=options, **more)


def torchvision() -> Twin:
    """Maps that windows do not divide; torchvision has the merging of patches after each stage."""
    from torch import nn
    from torchvision.models.swin_transformer import SwinTransformer

    network = SwinTransformer(
        [4, 4], 4, BLOCKS, HEADS, [3, 3], stochastic_depth_prob=0.0, num_classes=5
    )
    parts = list(network.features)
    stages = [parts[1], *(nn.Sequential(*parts[i : i + 2]) for i in (2, 4, 6))]
    twin = _twin("torchvision", network, ODD, _torch_stages(network, parts[0], stages))
    return _channels_stay(twin)


def _torch_stages(network, stem, stages):
    """What is handed on is channels last within these networks."""
    return {
        "stem": stem,
        **{f"stage{number}": stage for number, stage in enumerate(stages, start=1)},
        "norm": network.norm,
        "pool": lambda x: x.mean((1, 2)),
        "head": getattr(network.head, "fc", network.head),
    }


def _channels_stay(twin: Twin) -> Twin:
    """Undo the move of the channels: maps of these networks have them last already."""

    def undo(stages):
        return {
            name: values.transpose(0, 3, 1, 2).copy() if values.ndim == 4 else values
            for name, values in stages.items()
        }

    return replace(twin, stages=undo(twin.stages), trained_stages=undo(twin.trained_stages))


def _of_timm(source, **more) -> Twin:
    import timm

    network = timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=EVEN.shape[1:3],
        window_size=2,
        embed_dim=4,
        depths=BLOCKS,
        num_heads=HEADS,
        num_classes=5,
        drop_path_rate=0.0,
    )
    stages = _torch_stages(network, network.patch_embed, list(network.layers))
    return _channels_stay(_twin(source, network, EVEN, stages, window=2, **more))


def timm() -> Twin:
    """Maps that windows divide."""
    return _of_timm("timm")


def microsoft_name(name: str) -> str:
    """The authors' name for a tensor of timm's network, whose stages begin with the merging."""
    earlier = re.sub(
        r"layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name
    )
    return earlier.replace("head.fc.", "head.")


def microsoft() -> Twin:
    """The names of the authors' files, with their index tables and masks, from timm's network."""
    twin = _of_timm("microsoft", rename=microsoft_name)
    blocks = sorted({name.split(".attn.")[0] for name in twin.state if ".attn." in name})
    index = {f"{block}.attn.relative_position_index": _index_table() for block in blocks}
    masks = {f"{block}.attn_mask": twin.image[0, :1, :1] for block in blocks if block.endswith("1")}
    return replace(twin, state={**twin.state, **index, **masks})


def _index_table():
    from timm.models.swin_transformer import get_relative_position_index

    return get_relative_position_index(2, 2).numpy()


def published_name(name: str) -> str:
    """The name in published files: the library renames on loading what it calls otherwise since."""
    for now, published in (
        (r"attention\.q_proj", "attention.self.query"),
        (r"attention\.k_proj", "attention.self.key"),
        (r"attention\.v_proj", "attention.self.value"),
        (r"attention\.o_proj", "attention.output.dense"),
        (r"attention\.relative_position_bias\.", "attention.self."),
        (r"mlp\.fc1", "intermediate.dense"),
        (r"mlp\.fc2", "output.dense"),
    ):
        name = re.sub(now, published, name)
    return name


def transformers() -> Twin:
    """Maps that windows do not divide, and larger than a window: it shrinks windows to the map."""
    from transformers import SwinConfig, SwinForImageClassification

    image = image_of(100, 116, batch=1)  # maps of 25x29, 13x15, 7x8 and 4x4
    config = SwinConfig(
        image_size=image.shape[1:3],
        embed_dim=4,
        depths=BLOCKS,
        num_heads=HEADS,
        window_size=3,
        drop_path_rate=0.0,
        num_labels=5,
    )
    network = SwinForImageClassification(config)
    body = network.swin
    sides = {}

    def stem(x):
        tokens, sides["now"] = body.embeddings(x)
        return as_map(tokens)

    def as_map(tokens):
        return tokens.reshape(tokens.shape[0], *sides["now"], -1).permute(0, 3, 1, 2)

    def stage(number):
        def run(x):
            sides["now"] = tuple(x.shape[2:])
            tokens = x.flatten(2).transpose(1, 2)
            if number > 1:
                tokens = body.encoder.layers[number - 2].downsample(tokens, sides["now"])
                sides["now"] = tuple(-(-side // 2) for side in sides["now"])
            for block in body.encoder.layers[number - 1].blocks:
                tokens = block(tokens, sides["now"])[0]
            return as_map(tokens)

        return run

    stages = {
        "stem": stem,
        **{f"stage{number}": stage(number) for number in range(1, 5)},
        "norm": lambda x: body.layernorm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
        "pool": lambda x: x.mean((2, 3)),
        "head": network.classifier,
    }
    return _twin("transformers", network, image, stages, rename=published_name)


TWINS = {
    "swin_torchvision": torchvision,
    "swin_timm": timm,
    "swin_microsoft": microsoft,
    "swin_transformers": transformers,
}
