"""DINOv2 (Oquab et al. 2023, arXiv 2304.07193): Vision Transformers trained without labels.

The network is that of `vit.py` with patches of 14, LayerScale, images of 518 and no head; with
registers (Darcet et al. 2023, arXiv 2309.16588), four tokens that have no position.
"""

from __future__ import annotations

import re
from dataclasses import replace

from jaxtransfer.models.family import Family
from jaxtransfer.models.preprocessing import IMAGENET_BICUBIC
from jaxtransfer.models.published import timm_weights
from jaxtransfer.models.spec import Source, Weights
from jaxtransfer.models.vit import (
    SIZES,
    TIMM_SIZES,
    Design,
    Variant,
    builder,
    timm_rules,
    transformers_rules,
)

PAPER = "https://arxiv.org/abs/2304.07193"
REGISTERS_PAPER = "https://arxiv.org/abs/2309.16588"


# ---------------------------------------------------------------------------------------------
# Sources of weights

_MASK_TOKEN = re.compile(r"(.*\.)?mask_token")


def _sources(design: Design) -> tuple[Source, ...]:
    """Of DINOv2: its own files, timm's and those of `transformers`.

    timm adds the class token's position to the class token where there are registers. The
    classifiers in `transformers` get class token and mean of the patches side by side.
    """
    dinov2 = Source(
        "dinov2",
        timm_rules(design, "register_tokens"),
        replace(IMAGENET_BICUBIC, crop_fraction=1.0),
        ignore=(_MASK_TOKEN,),
    )
    name = "dinov2_with_registers" if design.registers else "dinov2"
    return (
        dinov2,
        replace(
            dinov2,
            name="timm",
            rules=timm_rules(design),
            options={"embed_class": False} if design.registers else {},
        ),
        Source(
            "transformers",
            transformers_rules(name),
            IMAGENET_BICUBIC,
            {"pool": "token_mean"},
            (_MASK_TOKEN,),
        ),
    )


# ---------------------------------------------------------------------------------------------
# Variants

# LayerScale starts at 1e-5 (section 4 and https://github.com/facebookresearch/dinov2); the last
# part of the training was at 518 pixels, 37 patches of 14.
VARIANTS = {
    f"dinov2_{size}14{suffix}": Variant(
        Design(
            14,
            *SIZES[size],
            input_size=(518, 518),
            num_classes=0,
            registers=4 if suffix else 0,
            layer_scale=1e-5,
        ),
        _sources,
        REGISTERS_PAPER if suffix else PAPER,
    )
    for size in ("s", "b", "l")
    for suffix in ("", "_reg")
}


# ---------------------------------------------------------------------------------------------
# Published weights

_LVD142M = "LVD-142M, without labels"

WEIGHTS = {
    f"dinov2_{size[0]}14{suffix}": (
        timm_weights(f"vit_{size}_patch14{registers}_dinov2.lvd142m", data=_LVD142M),
        Weights(f"hf://facebook/{name}", "transformers", "Apache-2.0", data=_LVD142M),
        Weights(
            f"hf://facebook/{name}-imagenet1k-1-layer",
            "transformers",
            "Apache-2.0",
            data="LVD-142M, without labels, then the head on ImageNet-1k",
        ),
    )
    for size in ("small", "base", "large")
    for suffix, registers, name in (
        ("", "", f"dinov2-{size}"),
        ("_reg", "_reg4", f"dinov2-with-registers-{size}"),
    )
}

# ---------------------------------------------------------------------------------------------
# Family

DINOV2S = Family(
    name="dinov2",
    build=builder(VARIANTS),
    # As timm counts them without registers, `transformers` with them and without its mask token.
    parameters={
        "dinov2_s14": 22_056_192,
        "dinov2_s14_reg": 22_057_728,
        "dinov2_b14": 86_579_712,
        "dinov2_b14_reg": 86_582_784,
        "dinov2_l14": 304_367_616,
        "dinov2_l14_reg": 304_371_712,
    },
    aliases={
        alias: (f"dinov2_{size}14{suffix}", {})
        for size in ("s", "b", "l")
        for suffix, registers in (("", ""), ("_reg", "_reg4"))
        # In https://github.com/facebookresearch/dinov2 and in timm.
        for alias in (
            f"dinov2_vit{size}14{suffix}",
            f"vit_{TIMM_SIZES[size]}_patch14{registers}_dinov2",
        )
    },
    weights=WEIGHTS,
)

FAMILIES = (DINOV2S,)
