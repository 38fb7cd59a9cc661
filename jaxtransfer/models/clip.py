"""The image towers of CLIP and SigLIP: Vision Transformers that learnt from pictures and texts.

*   CLIP (Radford et al. 2021, arXiv 2103.00020, section 2.4): tokens are normalised before the
    first block, the patch convolution has no bias, the MLP's activation is a quick GELU, and the
    head is the projection to the space that pictures share with texts, without a bias. Networks
    that LAION trained with OpenCLIP (Cherti et al. 2023, arXiv 2212.07143) have the exact GELU.
*   SigLIP (Zhai et al. 2023, arXiv 2303.15343): no class token; a learned probe attends to the
    patches' tokens, and what it finds is the embedding, so there is no head. The activation is the
    tanh form of GELU, in timm's networks of this name the exact one.

A text tower in the same file is left out.
"""

from __future__ import annotations

import re
from dataclasses import replace

from jaxtransfer.mapping import Rule
from jaxtransfer.models.family import Family
from jaxtransfer.models.naming import flax_layer, flax_layer_norm, torch_layer, torch_layer_norm
from jaxtransfer.models.preprocessing import INCEPTION_BICUBIC
from jaxtransfer.models.published import timm_weights
from jaxtransfer.models.spec import Preprocess, Source, Weights
from jaxtransfer.models.transformer import (
    PROJECTIONS,
    flax_attention,
    torch_attention,
    torch_joined,
)
from jaxtransfer.models.vit import (
    BLOCK,
    SIZES,
    Design,
    Variant,
    builder,
    timm_rules,
    torch_block,
)

# ---------------------------------------------------------------------------------------------
# Rules: where files keep what


def open_clip_rules() -> tuple[Rule, ...]:
    """The files of https://github.com/openai/CLIP and https://github.com/mlfoundations/open_clip."""
    block = "visual.transformer.resblocks.{i}"
    return (
        *torch_layer("visual.conv1", "embed/patch"),
        Rule("visual.class_embedding", "params/embed/class_token", "token"),
        Rule("visual.positional_embedding", "params/embed/position_embedding", "tokens"),
        *torch_layer_norm("visual.ln_pre", "embed/norm"),
        *torch_block(block, "ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj"),
        *torch_joined(
            f"{block}.attn.in_proj_weight", f"{block}.attn.in_proj_bias", f"{BLOCK}/attention"
        ),
        *torch_layer(f"{block}.attn.out_proj", f"{BLOCK}/attention/out", "dense", bias=True),
        *torch_layer_norm("visual.ln_post", "norm"),
        # A parameter of its own, not a layer: (in, out) as it is.
        Rule("visual.proj", "params/head/kernel"),
    )


def transformers_rules() -> tuple[Rule, ...]:
    """`CLIPModel`, `SiglipModel` and their vision towers.

    Later versions of `transformers` write the vision tower's names without `vision_model.`.
    """
    return (
        *_transformers_tower("vision_model."),
        *_transformers_tower(""),
        *torch_layer("visual_projection", "head", "dense"),
    )


def _transformers_tower(prefix: str) -> tuple[Rule, ...]:
    block, embeddings, pool = (
        f"{prefix}encoder.layers.{{i}}",
        f"{prefix}embeddings",
        f"{prefix}head",
    )
    parts = {**{part: f"{part[0]}_proj" for part in PROJECTIONS}, "out": "out_proj"}
    attention = {part: f"{block}.self_attn.{name}" for part, name in parts.items()}
    joined = f"{pool}.attention.in_proj"
    return (
        *torch_layer(f"{embeddings}.patch_embedding", "embed/patch", bias=True),
        Rule(f"{embeddings}.class_embedding", "params/embed/class_token", "token"),
        Rule(
            f"{embeddings}.position_embedding.weight", "params/embed/position_embedding", "tokens"
        ),
        # So it is spelt.
        *torch_layer_norm(f"{prefix}pre_layrnorm", "embed/norm"),
        *torch_block(block, "layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"),
        *torch_attention(attention, f"{BLOCK}/attention"),
        *torch_layer_norm(f"{prefix}post_layernorm", "norm"),
        Rule(f"{pool}.probe", "params/pool/probe"),
        *torch_joined(f"{joined}_weight", f"{joined}_bias", "pool/attention"),
        *torch_layer(f"{pool}.attention.out_proj", "pool/attention/out", "dense", bias=True),
        *torch_layer_norm(f"{pool}.layernorm", "pool/norm"),
        *torch_layer(f"{pool}.mlp.fc{{k}}", "pool/mlp/dense{k}", "dense", bias=True),
    )


def big_vision_rules(design: Design) -> tuple[Rule, ...]:
    """The `.npz` files of https://github.com/google-research/big_vision with both towers."""
    block, pool = "img/Transformer/encoderblock_{i}", "img/MAPHead_0"
    attention = "MultiHeadDotProductAttention_0"
    return (
        *flax_layer("img/embedding", "embed/patch"),
        Rule("img/pos_embedding", "params/embed/position_embedding"),
        *flax_layer_norm(f"{block}/LayerNorm_0", f"{BLOCK}/norm1"),
        *flax_attention(f"{block}/{attention}", f"{BLOCK}/attention", design.heads),
        *flax_layer_norm(f"{block}/LayerNorm_1", f"{BLOCK}/norm2"),
        *flax_layer(f"{block}/MlpBlock_0/Dense_0", f"{BLOCK}/mlp/dense1"),
        *flax_layer(f"{block}/MlpBlock_0/Dense_1", f"{BLOCK}/mlp/dense2"),
        *flax_layer_norm("img/Transformer/encoder_norm", "norm"),
        Rule(f"{pool}/probe", "params/pool/probe"),
        *flax_attention(f"{pool}/{attention}", "pool/attention", design.heads),
        *flax_layer_norm(f"{pool}/LayerNorm_0", "pool/norm"),
        *flax_layer(f"{pool}/MlpBlock_0/Dense_0", "pool/mlp/dense1"),
        *flax_layer(f"{pool}/MlpBlock_0/Dense_1", "pool/mlp/dense2"),
        *flax_layer("img/head", "head"),
    )


# ---------------------------------------------------------------------------------------------
# Sources of weights

# https://github.com/openai/CLIP, function `_transform`.
CLIP_PREPROCESS = Preprocess(
    channels=3,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    interpolation="bicubic",
)

_TEXT_OF_TRANSFORMERS = re.compile(
    r"(.*\.)?(text_model\..*|text_projection\.weight|logit_scale|logit_bias)"
)
# The text tower has no prefix of its own; the last three are what a traced OpenAI file counts.
_TEXT_OF_OPEN_CLIP = re.compile(
    r"(module\.)?(transformer\..*|token_embedding\..*|positional_embedding|ln_final\..*"
    r"|text_projection|logit_scale|logit_bias|input_resolution|context_length|vocab_size)"
)
_TEXT_OF_BIG_VISION = re.compile(r"(.*/)?(txt/.*|t|b)")


def clip_sources(design: Design) -> tuple[Source, ...]:
    """Of CLIP. timm's heads have a bias, of zeros, that the projection has not.

    The files of OpenAI and of LAION have the same names, and only the source's name tells the
    activations apart; timm's are those of OpenAI.
    """
    openai = Source("openai", open_clip_rules(), CLIP_PREPROCESS, ignore=(_TEXT_OF_OPEN_CLIP,))
    return (
        Source(
            "transformers", transformers_rules(), CLIP_PREPROCESS, ignore=(_TEXT_OF_TRANSFORMERS,)
        ),
        openai,
        Source("open_clip", openai.rules, CLIP_PREPROCESS, {"activation": "gelu"}, openai.ignore),
        Source("timm", timm_rules(design), CLIP_PREPROCESS, {"head_bias": True}),
    )


def siglip_sources(design: Design) -> tuple[Source, ...]:
    """Of SigLIP. timm's networks of these names compute the exact GELU."""
    preprocess = replace(INCEPTION_BICUBIC, crop_fraction=1.0)
    return (
        Source("transformers", transformers_rules(), preprocess, ignore=(_TEXT_OF_TRANSFORMERS,)),
        Source(
            "timm",
            timm_rules(design),
            replace(INCEPTION_BICUBIC, crop_fraction=0.9),
            {"activation": "gelu"},
        ),
        Source("big_vision", big_vision_rules(design), preprocess, ignore=(_TEXT_OF_BIG_VISION,)),
    )


# ---------------------------------------------------------------------------------------------
# Variants


def _clip(patch: int, size: str, embedding: int) -> Variant:
    design = Design(
        patch,
        *SIZES[size],
        num_classes=embedding,
        activation="quick_gelu",
        epsilon=1e-5,
        pre_norm=True,
        head_bias=False,
    )
    return Variant(design, clip_sources, "https://arxiv.org/abs/2103.00020")


# Table 20 of Radford et al.; the embedding's size is what the head gives.
CLIP_VARIANTS = {
    "clip_vit_b32": _clip(32, "b", 512),
    "clip_vit_b16": _clip(16, "b", 512),
    "clip_vit_l14": _clip(14, "l", 768),
}


def _siglip(patch: int, sizes: tuple[int, int, int, int], side: int) -> Variant:
    design = Design(
        patch,
        *sizes,
        input_size=(side, side),
        num_classes=0,
        activation="gelu_tanh",
        pool="map",
        class_token=False,
    )
    return Variant(design, siglip_sources, "https://arxiv.org/abs/2303.15343")


# So400m is the shape that Alabdulmohsin et al. 2023 found (arXiv 2305.13035, section 4.3). Its
# images of 384 pixels leave a rim that no patch of 14 covers.
SIGLIP_VARIANTS = {
    "siglip_b16": _siglip(16, SIZES["b"], 224),
    "siglip_l16": _siglip(16, SIZES["l"], 256),
    "siglip_so400m14": _siglip(14, (1152, 27, 16, 4304), 384),
}

# ---------------------------------------------------------------------------------------------
# Published weights

_PAIRS = "400 million pictures with texts"
_WEBLI = "WebLI"


def _openai(name: str) -> Weights:
    return Weights(f"hf://openai/{name}", "transformers", data=_PAIRS)


def _timm_openai(name: str, crop_fraction: float) -> Weights:
    preprocess = replace(CLIP_PREPROCESS, crop_fraction=crop_fraction)
    return timm_weights(name, preprocess=preprocess, data=_PAIRS)


def _siglip_weights(google: str, timm: str) -> tuple[Weights, ...]:
    return (
        Weights(f"hf://google/{google}", "transformers", "Apache-2.0", data=_WEBLI),
        timm_weights(f"{timm}.webli", data=_WEBLI),
    )


CLIPS = Family(
    name="clip",
    build=builder(CLIP_VARIANTS),
    # `CLIPVisionModelWithProjection` of transformers, as it counts them.
    parameters={
        "clip_vit_b32": 87_849_216,
        "clip_vit_b16": 86_192_640,
        "clip_vit_l14": 303_966_208,
    },
    aliases={
        f"vit_{name}_clip_quickgelu_{side}": (
            variant,
            {} if side == 224 else {"input_size": (side, side)},
        )
        for name, variant, sides in (
            ("base_patch32", "clip_vit_b32", (224,)),
            ("base_patch16", "clip_vit_b16", (224,)),
            ("large_patch14", "clip_vit_l14", (224, 336)),
        )
        for side in sides
    },
    weights={
        "clip_vit_b32": (
            _openai("clip-vit-base-patch32"),
            _timm_openai("vit_base_patch32_clip_224.openai", 0.9),
        ),
        "clip_vit_b16": (
            _openai("clip-vit-base-patch16"),
            _timm_openai("vit_base_patch16_clip_224.openai", 0.9),
        ),
        "clip_vit_l14": (
            _openai("clip-vit-large-patch14"),
            _openai("clip-vit-large-patch14-336"),
            _timm_openai("vit_large_patch14_clip_224.openai", 1.0),
            _timm_openai("vit_large_patch14_clip_336.openai", 1.0),
        ),
    },
)

SIGLIPS = Family(
    name="siglip",
    build=builder(SIGLIP_VARIANTS),
    # `SiglipVisionModel` of transformers, as it counts them.
    parameters={
        "siglip_b16": 92_884_224,
        "siglip_l16": 315_956_224,
        "siglip_so400m14": 428_225_600,
    },
    aliases={
        "vit_base_patch16_siglip_224": ("siglip_b16", {"activation": "gelu"}),
        "vit_large_patch16_siglip_256": ("siglip_l16", {"activation": "gelu"}),
        "vit_so400m_patch14_siglip_384": ("siglip_so400m14", {"activation": "gelu"}),
    },
    weights={
        "siglip_b16": _siglip_weights("siglip-base-patch16-224", "vit_base_patch16_siglip_224"),
        "siglip_l16": _siglip_weights("siglip-large-patch16-256", "vit_large_patch16_siglip_256"),
        "siglip_so400m14": _siglip_weights(
            "siglip-so400m-patch14-384", "vit_so400m_patch14_siglip_384"
        ),
    },
)

FAMILIES = (CLIPS, SIGLIPS)
