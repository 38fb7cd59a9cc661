"""Twins of Vision Transformers, image towers of CLIP and SigLIP included.

The files of DINOv2, OpenAI, AugReg and big_vision belong to libraries that are not asked here:
their twins are those of timm or transformers with the names and layouts of the published files.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import numpy as np
from make_twins import Twin, image_of, torch_twin

WIDTH, DEPTH, HEADS, PATCH = 8, 2, 2, 8
SIZES = {"patch": PATCH, "width": WIDTH, "depth": DEPTH, "heads": HEADS}
CONFIG = {
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "intermediate_size": 4 * WIDTH,
    "image_size": 24,
    "patch_size": PATCH,
}


# ---------------------------------------------------------------------------------------------
# timm


def _timm(architecture, source="timm", *, size=(24, 16), options=None, kind=None, **arguments):
    """A twin of timm's network; images are not square, so that rows and columns differ."""
    from timm.models.vision_transformer import VisionTransformer

    classes = {"num_classes": 5, **arguments}
    network = (kind or VisionTransformer)(
        img_size=size,
        patch_size=PATCH,
        embed_dim=WIDTH,
        depth=DEPTH,
        num_heads=HEADS,
        **classes,
    )
    end = {"norm": network.norm, "pool": lambda x: network.pool(x)}
    if arguments.get("global_pool") == "avg":
        end = {"pool": lambda x: network.pool(x), "norm": network.fc_norm}
    if arguments.get("global_pool") == "map":
        end["pool"] = network.attn_pool
    head = network.head
    if kind is not None:  # the distilled one
        end["pool"] = lambda x: x[:, :2].flatten(1)
        head = _distilled(network.head, network.head_dist)
    return torch_twin(
        architecture,
        source,
        network,
        image_of(*size),
        {
            "embed": lambda x: network.norm_pre(network._pos_embed(network.patch_embed(x))),
            **{f"block{i}": block for i, block in enumerate(network.blocks)},
            **end,
            "head": head,
        },
        options={
            **SIZES,
            "input_size": list(size),
            "num_classes": classes["num_classes"],
            **(options or {}),
        },
    )


def _distilled(head, other):
    return lambda x: (head(x[:, :WIDTH]) + other(x[:, WIDTH:])) / 2


def vit_timm() -> Twin:
    """The class token's features to the head."""
    return _timm("vit_b16")


def vit_timm_mean() -> Twin:
    """No class token; the mean of the patches is normalised."""
    return _timm(
        "vit_b16",
        class_token=False,
        global_pool="avg",
        options={"class_token": False, "pool": "mean", "norm_after_pool": True},
    )


def deit_timm_distilled() -> Twin:
    """Two tokens and two heads."""
    from timm.models.deit import VisionTransformerDistilled

    return _timm("deit_b16_distilled", kind=VisionTransformerDistilled)


def dinov2_timm() -> Twin:
    """LayerScale and no head."""
    return _timm("dinov2_s14", num_classes=0, init_values=1e-5)


def dinov2_timm_registers() -> Twin:
    """Registers, and a position embedding of the patches alone."""
    return _timm(
        "dinov2_s14_reg",
        num_classes=0,
        init_values=1e-5,
        reg_tokens=4,
        no_embed_class=True,
    )


def clip_timm() -> Twin:
    """The projection has a bias."""
    from functools import partial

    from timm.layers import LayerNorm

    return _timm(
        "clip_vit_b16",
        num_classes=6,
        pre_norm=True,
        norm_layer=partial(LayerNorm, eps=1e-5),
        act_layer="quick_gelu",
    )


def siglip_timm() -> Twin:
    """Attention pooling, and the exact GELU of timm's networks."""
    return _timm("siglip_b16", num_classes=0, class_token=False, global_pool="map")


def dinov2_own() -> Twin:
    """The names of DINOv2's own files are timm's, and there is a mask token."""
    twin = dinov2_timm()
    twin.source = "dinov2"
    twin.state["mask_token"] = np.ones((1, WIDTH), np.float32)
    return twin


# ---------------------------------------------------------------------------------------------
# torchvision


def vit_torchvision() -> Twin:
    """The names that torchvision has now."""
    import torch
    from torchvision.models.vision_transformer import VisionTransformer

    network = VisionTransformer(24, PATCH, DEPTH, HEADS, WIDTH, 4 * WIDTH, num_classes=5)

    def embed(x):
        x = network._process_input(x)
        token = network.class_token.expand(x.shape[0], -1, -1)
        return torch.cat([token, x], 1) + network.encoder.pos_embedding

    return torch_twin(
        "vit_b16",
        "torchvision",
        network,
        image_of(24, 24),
        {
            "embed": embed,
            **{f"block{i}": block for i, block in enumerate(network.encoder.layers)},
            "norm": network.encoder.ln,
            "pool": lambda x: x[:, 0],
            "head": network.heads,
        },
        options={**SIZES, "input_size": [24, 24], "num_classes": 5},
    )


def vit_torchvision_published() -> Twin:
    """The names of the published files, which are older than the library's MLP."""
    twin = vit_torchvision()
    names = {"mlp.0": "mlp.linear_1", "mlp.3": "mlp.linear_2"}
    twin.state = {
        re.sub(r"mlp\.[03]", lambda found: names[found[0]], name): value
        for name, value in twin.state.items()
    }
    return twin


# ---------------------------------------------------------------------------------------------
# transformers


def _published(network) -> dict[str, np.ndarray]:
    """The tensors that transformers writes, under the names that the published files have."""
    from safetensors.numpy import load_file

    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        return load_file(Path(folder) / "model.safetensors")


def _transformers(
    architecture, network, embed, blocks, norm, pool, head=None, *, classes=0, side=24
):
    """A twin of a network of transformers, without a head unless there is one."""
    twin = torch_twin(
        architecture,
        "transformers",
        network,
        image_of(side, side),
        {
            "embed": embed,
            **{f"block{i}": block for i, block in enumerate(blocks)},
            "norm": norm,
            "pool": pool,
            "head": head or (lambda x: x),
        },
        options={**SIZES, "input_size": [side, side], "num_classes": classes},
    )
    twin.state = _published(network)
    return twin


def vit_transformers() -> Twin:
    """An epsilon of 1e-12."""
    from transformers import ViTConfig, ViTForImageClassification

    network = ViTForImageClassification(ViTConfig(**CONFIG, num_labels=5))
    body = network.vit
    return _transformers(
        "vit_b16",
        network,
        body.embeddings,
        body.layers,
        body.layernorm,
        lambda x: x[:, 0],
        network.classifier,
        classes=5,
    )


def deit_transformers_distilled() -> Twin:
    """Two tokens and two heads."""
    from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher

    network = DeiTForImageClassificationWithTeacher(DeiTConfig(**CONFIG, num_labels=5))
    body = network.deit
    return _transformers(
        "deit_b16_distilled",
        network,
        body.embeddings,
        body.layers,
        body.layernorm,
        lambda x: x[:, :2].flatten(1),
        _distilled(network.cls_classifier, network.distillation_classifier),
        classes=5,
    )


def _dinov2_config(kind, **more):
    config = {name: value for name, value in CONFIG.items() if name != "intermediate_size"}
    return kind(**config, mlp_ratio=4, **more)


def dinov2_transformers() -> Twin:
    """With the classifier of class token and mean."""
    import torch
    from transformers import Dinov2Config, Dinov2ForImageClassification

    network = Dinov2ForImageClassification(_dinov2_config(Dinov2Config, num_labels=5))
    body = network.dinov2
    return _transformers(
        "dinov2_s14",
        network,
        body.embeddings,
        body.encoder.layer,
        body.layernorm,
        lambda x: torch.cat([x[:, 0], x[:, 1:].mean(1)], 1),
        network.classifier,
        classes=5,
    )


def dinov2_transformers_registers() -> Twin:
    """Without a classifier, so that the names have no prefix."""
    import torch
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    network = Dinov2WithRegistersModel(_dinov2_config(Dinov2WithRegistersConfig))
    return _transformers(
        "dinov2_s14_reg",
        network,
        network.embeddings,
        network.encoder.layer,
        network.layernorm,
        lambda x: torch.cat([x[:, 0], x[:, 5:].mean(1)], 1),
    )


def dinov2_own_registers() -> Twin:
    """DINOv2's own names for what `dinov2_transformers_registers` is."""
    twin = dinov2_transformers_registers()
    state = twin.state
    found: dict[str, np.ndarray] = {}
    names = {
        "embeddings.cls_token": "cls_token",
        "embeddings.mask_token": "mask_token",
        "embeddings.register_tokens": "register_tokens",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "encoder.layer": "blocks",
        "attention.output.dense": "attn.proj",
        "layer_scale1.lambda1": "ls1.gamma",
        "layer_scale2.lambda1": "ls2.gamma",
        "layernorm": "norm",
    }
    for name, value in state.items():
        if ".attention.attention." in name:
            joined = re.sub(r"attention\.attention\.\w+", "attn.qkv", _renamed(name, names))
            parts = [name.replace(name.split(".")[-2], p) for p in ("query", "key", "value")]
            found[joined] = np.concatenate([state[part] for part in parts])
        else:
            found[_renamed(name, names)] = value
    twin.source, twin.state = "dinov2", found
    twin.options["pool"] = "token_mean"
    return twin


def _renamed(name: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        name = name.replace(old, new)
    return name


TEXT = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "vocab_size": 4,
    "max_position_embeddings": 3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}


def clip_transformers(activation: str = "quick_gelu") -> Twin:
    """Both towers in one file."""
    from transformers import CLIPConfig, CLIPModel

    vision = {**CONFIG, "hidden_act": activation}
    network = CLIPModel(CLIPConfig(text_config=TEXT, vision_config=vision, projection_dim=6))
    tower = network.vision_model
    return _transformers(
        "clip_vit_b16",
        network,
        lambda x: tower.pre_layrnorm(tower.embeddings(x)),
        [_first(layer) for layer in tower.encoder.layers],
        tower.post_layernorm,
        lambda x: x[:, 0],
        network.visual_projection,
        classes=6,
    )


def siglip_transformers() -> Twin:
    """Both towers in one file; images have a rim that no patch covers."""
    from transformers import SiglipConfig, SiglipModel

    vision = {**CONFIG, "image_size": 28}
    network = SiglipModel(SiglipConfig(text_config=TEXT, vision_config=vision))
    tower = network.vision_model
    return _transformers(
        "siglip_b16",
        network,
        tower.embeddings,
        [_first(layer) for layer in tower.encoder.layers],
        tower.post_layernorm,
        tower.head,
        side=28,
    )


def _first(layer):
    def run(x):
        y = layer(x, attention_mask=None)
        return y[0] if isinstance(y, tuple) else y

    return run


# ---------------------------------------------------------------------------------------------
# Files with other names and layouts


def clip_open_clip() -> Twin:
    """The names of OpenAI's files, with the exact gelu that OpenCLIP trains with."""
    twin = clip_openai("gelu")
    twin.source = "open_clip"
    return twin


def clip_openai(activation: str = "quick_gelu") -> Twin:
    """The names of OpenAI's files for what `clip_transformers` is, text tower included."""
    twin = clip_transformers(activation)
    names = {
        "vision_model.embeddings.class_embedding": "visual.class_embedding",
        "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
        "vision_model.embeddings.patch_embedding": "visual.conv1",
        "vision_model.pre_layrnorm": "visual.ln_pre",
        "vision_model.post_layernorm": "visual.ln_post",
        "vision_model.encoder.layers": "visual.transformer.resblocks",
        "text_model.encoder.layers": "transformer.resblocks",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "text_model.embeddings.token_embedding": "token_embedding",
        "text_model.final_layer_norm": "ln_final",
        "self_attn.out_proj": "attn.out_proj",
        "layer_norm": "ln_",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
    }
    found: dict[str, np.ndarray] = {}
    for name, value in twin.state.items():
        if name in ("visual_projection.weight", "text_projection.weight"):
            key = "visual.proj" if name.startswith("visual") else "text_projection"
            found[key] = value.T.copy()
        elif part := re.search(r"self_attn\.[qkv]_proj\.", name):
            parts = [name.replace(part[0], f"self_attn.{p}_proj.") for p in "qkv"]
            joined = _renamed(name, names).replace(part[0], "attn.in_proj_")
            found[joined] = np.concatenate([twin.state[p] for p in parts])
        else:
            found[_renamed(name, names)] = value
    twin.source, twin.state = "openai", found
    return twin


def _flax_names(state: dict[str, np.ndarray], *, attention: int, norm2: int, mlp: int):
    """timm's tensors with the names and layouts of Flax Linen, layers numbered as given."""
    found: dict[str, np.ndarray] = {}

    def heads_apart(where, part, weight, bias):
        found[f"{where}/{part}/kernel"] = weight.T.reshape(WIDTH, HEADS, -1).copy()
        found[f"{where}/{part}/bias"] = bias.reshape(HEADS, -1)

    def out(where, weight, bias):
        found[f"{where}/out/kernel"] = weight.T.reshape(HEADS, -1, WIDTH).copy()
        found[f"{where}/out/bias"] = bias

    def dense(where, name):
        found[f"{where}/kernel"] = state[f"{name}.weight"].T.copy()
        found[f"{where}/bias"] = state[f"{name}.bias"]

    def norm(where, name):
        found[f"{where}/scale"] = state[f"{name}.weight"]
        found[f"{where}/bias"] = state[f"{name}.bias"]

    def parts(name, count):
        weights = np.split(state[f"{name}.weight"], count)
        return zip(weights, np.split(state[f"{name}.bias"], count), strict=True)

    found["embedding/kernel"] = state["patch_embed.proj.weight"].transpose(2, 3, 1, 0).copy()
    found["embedding/bias"] = state["patch_embed.proj.bias"]
    for i in range(DEPTH):
        here, there = f"Transformer/encoderblock_{i}", f"blocks.{i}"
        where = f"{here}/MultiHeadDotProductAttention_{attention}"
        for part, pair in zip(
            ("query", "key", "value"), parts(f"{there}.attn.qkv", 3), strict=True
        ):
            heads_apart(where, part, *pair)
        out(where, state[f"{there}.attn.proj.weight"], state[f"{there}.attn.proj.bias"])
        norm(f"{here}/LayerNorm_0", f"{there}.norm1")
        norm(f"{here}/LayerNorm_{norm2}", f"{there}.norm2")
        for k in (0, 1):
            dense(f"{here}/MlpBlock_{mlp}/Dense_{k}", f"{there}.mlp.fc{k + 1}")
    norm("Transformer/encoder_norm", "norm")
    if "head.weight" in state:
        dense("head", "head")
    if "attn_pool.latent" in state:
        pool = "MAPHead_0"
        where = f"{pool}/MultiHeadDotProductAttention_0"
        found[f"{pool}/probe"] = state["attn_pool.latent"]
        heads_apart(where, "query", state["attn_pool.q.weight"], state["attn_pool.q.bias"])
        for part, pair in zip(("key", "value"), parts("attn_pool.kv", 2), strict=True):
            heads_apart(where, part, *pair)
        out(where, state["attn_pool.proj.weight"], state["attn_pool.proj.bias"])
        norm(f"{pool}/LayerNorm_0", "attn_pool.norm")
        for k in (0, 1):
            dense(f"{pool}/MlpBlock_0/Dense_{k}", f"attn_pool.mlp.fc{k + 1}")
    return found


def vit_augreg() -> Twin:
    """The names of AugReg's `.npz` files for what `vit_timm` is, with a layer that is left out."""
    twin = vit_timm()
    found = _flax_names(twin.state, attention=1, norm2=2, mlp=3)
    found["cls"] = twin.state["cls_token"]
    found["Transformer/posembed_input/pos_embedding"] = twin.state["pos_embed"]
    found["pre_logits/kernel"] = np.ones((WIDTH, WIDTH), np.float32)
    twin.source, twin.state = "augreg", found
    return twin


def siglip_big_vision() -> Twin:
    """The names of big_vision's `.npz` files, with something of a text tower."""
    twin = _timm(
        "siglip_b16", num_classes=0, class_token=False, global_pool="map", act_layer="gelu_tanh"
    )
    found = _flax_names(twin.state, attention=0, norm2=1, mlp=0)
    found["pos_embedding"] = twin.state["pos_embed"]
    twin.state = {f"params/img/{name}": value for name, value in found.items()}
    twin.state["params/txt/Encoder_0/encoder_norm/scale"] = np.ones(WIDTH, np.float32)
    twin.state["params/t"] = np.ones(1, np.float32)
    twin.state["params/b"] = np.ones(1, np.float32)
    twin.source = "big_vision"
    return twin


TWINS = {
    make.__name__: make
    for make in (
        vit_timm,
        vit_timm_mean,
        vit_torchvision,
        vit_torchvision_published,
        vit_transformers,
        vit_augreg,
        deit_timm_distilled,
        deit_transformers_distilled,
        dinov2_own,
        dinov2_own_registers,
        dinov2_timm,
        dinov2_timm_registers,
        dinov2_transformers,
        dinov2_transformers_registers,
        clip_transformers,
        clip_openai,
        clip_open_clip,
        clip_timm,
        siglip_transformers,
        siglip_timm,
        siglip_big_vision,
    )
}
