"""DeiT, data-efficient image transformers (Touvron et al. 2021, arXiv 2012.12877).

The network is that of `vit.py`, trained on ImageNet-1k alone; and one with a second token and head
that a teacher trained, both heads' logits averaged (section 4).
"""

from __future__ import annotations

from dataclasses import replace

from jaxtransfer.models.family import Family
from jaxtransfer.models.preprocessing import IMAGENET_BICUBIC
from jaxtransfer.models.published import timm_weights
from jaxtransfer.models.spec import Source, Weights
from jaxtransfer.models.vit import (
    POOLER,
    SIZES,
    TIMM_SIZES,
    Design,
    Variant,
    builder,
    timm_rules,
    transformers_rules,
)

PAPER = "https://arxiv.org/abs/2012.12877"


# ---------------------------------------------------------------------------------------------
# Sources of weights


def _sources(design: Design) -> tuple[Source, ...]:
    """Of DeiT; those without a distillation token are ViTs in `transformers` too."""
    name = "deit" if design.distillation_token else "vit"
    return (
        Source("timm", timm_rules(design), replace(IMAGENET_BICUBIC, crop_fraction=0.9)),
        Source(
            "transformers",
            transformers_rules(name),
            IMAGENET_BICUBIC,
            {"epsilon": 1e-12},
            (POOLER,),
        ),
    )


# ---------------------------------------------------------------------------------------------
# Variants

VARIANTS = {
    f"deit_{size}16{suffix}": Variant(
        Design(16, *SIZES[size], distillation_token=bool(suffix)), _sources, PAPER
    )
    for size in ("ti", "s", "b")
    for suffix in ("", "_distilled")
}

# ---------------------------------------------------------------------------------------------
# Published weights


def _weights(name: str, top1: float, top1_at_384: float | None = None) -> tuple[Weights, ...]:
    """Weights of timm and `transformers`; accuracies: https://github.com/facebookresearch/deit."""
    hyphened = name.replace("_", "-")
    usual = (
        timm_weights(f"{name}_224.fb_in1k", top1),
        Weights(f"hf://facebook/{hyphened}-224", "transformers", "Apache-2.0", top1),
    )
    if top1_at_384 is None:
        return usual
    full = replace(IMAGENET_BICUBIC, crop_fraction=1.0)
    return (*usual, timm_weights(f"{name}_384.fb_in1k", top1_at_384, full))


WEIGHTS = {
    "deit_ti16": _weights("deit_tiny_patch16", 72.2),
    "deit_ti16_distilled": _weights("deit_tiny_distilled_patch16", 74.5),
    "deit_s16": _weights("deit_small_patch16", 79.9),
    "deit_s16_distilled": _weights("deit_small_distilled_patch16", 81.2),
    "deit_b16": _weights("deit_base_patch16", 81.8, 82.9),
    "deit_b16_distilled": _weights("deit_base_distilled_patch16", 83.4, 85.2),
}

# ---------------------------------------------------------------------------------------------
# Family

DEITS = Family(
    name="deit",
    build=builder(VARIANTS),
    # As timm counts them; 5, 22 and 86 million in table 1 of the paper.
    parameters={
        "deit_ti16": 5_717_416,
        "deit_ti16_distilled": 5_910_800,
        "deit_s16": 22_050_664,
        "deit_s16_distilled": 22_436_432,
        "deit_b16": 86_567_656,
        "deit_b16_distilled": 87_338_192,
    },
    aliases={
        f"deit_{TIMM_SIZES[size]}{suffix}_patch16_224": (f"deit_{size}16{suffix}", {})
        for size in ("ti", "s", "b")
        for suffix in ("", "_distilled")
    },
    weights=WEIGHTS,
)

FAMILIES = (DEITS,)
