"""Vision Transformers (Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", arXiv 2010.11929).

A convolution without overlap turns patches into tokens; a class token goes before them; learned
position embeddings are added; pre-norm blocks, a normalisation and a dense head follow. Here is the
network with all options, and ViT itself, with the training recipes of Steiner et al. 2021 (AugReg,
arXiv 2106.10270), in the sizes Ti, S, B, L and H. What came after differs in a few places only:

*   DeiT, in `deit.py`: a second token and head that a teacher trained;
*   DINOv2, in `dinov2.py`: LayerScale, no head, and maybe tokens that have no position;
*   the image towers of CLIP and SigLIP, in `clip.py`: other inputs, activations and poolings.

The stages are `embed`, one for each block (or `blocks` with `scan=True`), `norm`, `pool` and
`head`. Where the mean of the tokens is normalised, rather than each token, `pool` is before `norm`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxtransfer.errors import ModelError
from jaxtransfer.mapping import Rule
from jaxtransfer.models.convolution import convolve
from jaxtransfer.models.family import Builder, Family
from jaxtransfer.models.layers import ACTIVATIONS
from jaxtransfer.models.naming import flax_layer, flax_layer_norm, torch_layer, torch_layer_norm
from jaxtransfer.models.preprocessing import IMAGENET, INCEPTION, INCEPTION_BICUBIC
from jaxtransfer.models.spec import ModelSpec, PositionEmbedding, Source
from jaxtransfer.models.stages import StagedNetwork, check_sizes
from jaxtransfer.models.transformer import (
    PROJECTIONS,
    Attention,
    Block,
    Mlp,
    drop_path_rates,
    flax_attention,
    scan_blocks,
    torch_attention,
    torch_joined,
)
from jaxtransfer.models.vit_weights import WEIGHTS

POOLS = ("token", "mean", "token_mean", "map")


@dataclass(frozen=True)
class Design:
    """In what Vision Transformers differ; each attribute is an option of the builder too.

    Attributes:
        patch: side of a patch in pixels.
        width: features of a token.
        depth: number of blocks.
        heads: of the attention.
        hidden: features inside the MLP.
        input_size: (height, width) of the images.
        num_classes: outputs of the head, 0 for features without a head.
        activation: of the MLP, a name in `ACTIVATIONS`.
        epsilon: of all normalisations.
        pool: what the head gets: "token", the class token, and beside it the distillation token
            where there is one; "mean", that of the patches' tokens; "token_mean", both side by
            side; "map", what a learned probe finds by attention.
        norm_after_pool: whether the normalisation comes after the pooling.
        class_token: whether there is one.
        distillation_token: whether there is one, with a head of its own.
        registers: tokens between these and the patches' that have no position.
        embed_class: whether class and distillation token have rows in the position embedding.
        pre_norm: whether tokens are normalised before the first block, as in CLIP, whose patch
            convolution then has no bias.
        layer_scale: what the factors of residual branches begin with; 0 for none.
        head_bias: whether the head has a bias; the projection of CLIP has none.
    """

    patch: int
    width: int
    depth: int
    heads: int
    hidden: int
    input_size: tuple[int, int] = (224, 224)
    num_classes: int = 1000
    activation: str = "gelu"
    epsilon: float = 1e-6
    pool: str = "token"
    norm_after_pool: bool = False
    class_token: bool = True
    distillation_token: bool = False
    registers: int = 0
    embed_class: bool = True
    pre_norm: bool = False
    layer_scale: float = 0.0
    head_bias: bool = True

    @property
    def tokens(self) -> tuple[str, ...]:
        """The names of the tokens before the registers."""
        present = {"class_token": self.class_token, "distillation_token": self.distillation_token}
        return tuple(name for name, is_there in present.items() if is_there)


# ---------------------------------------------------------------------------------------------
# Modules


class Embed(nn.Module):
    """Patches to tokens, with the other tokens before them and positions added."""

    design: Design
    dropout: float

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """From (batch, height, width, channels) to (batch, tokens, width).

        Raises:
            ModelError: the images have more or fewer patches than the position embedding.
        """
        design = self.design
        side = (design.patch, design.patch)
        convolution = nn.Conv(
            design.width,
            side,
            side,
            "VALID",
            use_bias=not design.pre_norm,
            conv_general_dilated=convolve,
            name="patch",
        )
        x = convolution(images)
        x = x.reshape(x.shape[0], -1, design.width)
        size = (images.shape[1], images.shape[2])
        if design.embed_class:
            x = self._with_positions(jnp.concatenate([*self._tokens(x), x], axis=1), size)
        else:
            x = jnp.concatenate([*self._tokens(x), self._with_positions(x, size)], axis=1)
        if design.registers:
            first, patches = jnp.split(x, [len(design.tokens)], axis=1)
            registers = self._token("register_tokens", design.registers, x)
            x = jnp.concatenate([first, registers, patches], axis=1)
        x = nn.Dropout(self.dropout, name="dropout")(x, deterministic=not train)
        return nn.LayerNorm(design.epsilon, name="norm")(x) if design.pre_norm else x

    def _tokens(self, x: jax.Array) -> list[jax.Array]:
        return [self._token(name, 1, x) for name in self.design.tokens]

    def _token(self, name: str, count: int, x: jax.Array) -> jax.Array:
        batch, _, width = x.shape
        # https://github.com/huggingface/pytorch-image-models begins in this way.
        token = self.param(name, nn.initializers.normal(1e-6), (1, count, width))
        return jnp.broadcast_to(token, (batch, count, width))

    def _with_positions(self, x: jax.Array, size: tuple[int, int]) -> jax.Array:
        name, (_, count, width) = "position_embedding", x.shape
        if self.has_variable("params", name):
            rows = self.get_variable("params", name).shape[1]
            if rows != count:
                raise ModelError(
                    f"embed/{name}: expected images of {rows} tokens, found {count}: {size[0]}x"
                    f"{size[1]} pixels in patches of {self.design.patch}; "
                    "change_input_size(model, (height, width)) resizes the position embedding"
                )
        return x + self.param(name, nn.initializers.normal(0.02), (1, count, width))


class AttentionPool(nn.Module):
    """A learned probe that attends to all tokens, and an MLP in a residual branch.

    Source: Zhai et al. 2022, "Scaling Vision Transformers", arXiv 2106.04560, section 3.4.
    """

    design: Design

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """From (batch, tokens, width) to (batch, width)."""
        design, (batch, _, width) = self.design, x.shape
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, width))
        probe = jnp.broadcast_to(probe, (batch, 1, width)).astype(x.dtype)
        x = Attention(design.heads, name="attention")(probe, x)
        y = nn.LayerNorm(design.epsilon, name="norm")(x)
        x = x + Mlp(design.hidden, design.activation, name="mlp")(y, train=train)
        return x[:, 0]


class DistilledHead(nn.Module):
    """The mean of what a dense layer makes of the class token and another of the distillation one.

    Source: Touvron et al. 2021, arXiv 2012.12877, section 4, "Joint classifiers".
    """

    num_classes: int

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """From (batch, 2 * width), class token first, to (batch, num_classes)."""
        token, distillation = jnp.split(features, 2, axis=-1)
        dense = nn.Dense(self.num_classes)
        nn.share_scope(self, dense)
        return (dense(token) + nn.Dense(self.num_classes, name="distillation")(distillation)) / 2


class VisionTransformer(StagedNetwork):
    """A Vision Transformer.

    Attributes:
        design: all sizes, and in what it differs from others.
        dropout: the rate after the embedding and in the blocks.
        drop_path: the share of examples that the last block's branches are left out of; the share
            grows from 0 over the blocks.
        scan: whether the blocks are one stage `blocks`, compiled once, whose leaves have a leading
            axis for the block; by default each is a stage of its own.
    """

    design: Design
    dropout: float = 0.0
    drop_path: float = 0.0
    scan: bool = False

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages from input to head."""
        blocks = tuple(f"block{i}" for i in range(self.design.depth))
        end = ("pool", "norm") if self.design.norm_after_pool else ("norm", "pool")
        return ("embed", *(("blocks",) if self.scan else blocks), *end, "head")

    def _run(self, stage: str, x: jax.Array, train: bool) -> jax.Array:
        design = self.design
        if stage == "embed":
            return Embed(design, self.dropout, name=stage)(x, train=train)
        if stage == "norm":
            return nn.LayerNorm(design.epsilon, name=stage)(x)
        if stage == "pool":
            return self._pool(x, train)
        if stage == "head":
            return self._classify(x)
        block = Block(
            design.heads,
            design.hidden,
            design.activation,
            design.epsilon,
            design.layer_scale,
            self.dropout,
            name=stage,
        )
        rates = drop_path_rates(self.drop_path, design.depth)
        if self.scan:
            return scan_blocks(block, x, rates, train=train)
        return block(x, rates[int(stage.removeprefix("block"))], train=train)

    def _pool(self, x: jax.Array, train: bool) -> jax.Array:
        design = self.design
        if design.pool == "map":
            return AttentionPool(design, name="pool")(x, train=train)
        tokens = x[:, : len(design.tokens)].reshape(x.shape[0], -1)
        if design.pool == "token":
            return tokens
        mean = jnp.mean(x[:, len(design.tokens) + design.registers :], axis=1)
        return mean if design.pool == "mean" else jnp.concatenate([tokens, mean], axis=-1)

    def _classify(self, features: jax.Array) -> jax.Array:
        design = self.design
        if not design.num_classes:
            return features
        if design.distillation_token and design.pool == "token":
            return DistilledHead(design.num_classes, name="head")(features)
        return nn.Dense(design.num_classes, use_bias=design.head_bias, name="head")(features)


# ---------------------------------------------------------------------------------------------
# Rules: where files keep what

BLOCK = "block{i}"


def torch_block(
    source: str, norm1: str, norm2: str, dense1: str, dense2: str, target: str = BLOCK
) -> tuple[Rule, ...]:
    """The normalisations and the MLP of a block of PyTorch, by their names in it."""
    return (
        *torch_layer_norm(f"{source}.{norm1}", f"{target}/norm1"),
        *torch_layer_norm(f"{source}.{norm2}", f"{target}/norm2"),
        *torch_layer(f"{source}.{dense1}", f"{target}/mlp/dense1", "dense", bias=True),
        *torch_layer(f"{source}.{dense2}", f"{target}/mlp/dense2", "dense", bias=True),
    )


def timm_rules(design: Design, registers: str = "reg_token") -> tuple[Rule, ...]:
    """`VisionTransformer` of timm; DINOv2's own files differ in the name of the registers alone."""
    block, pool = "blocks.{i}", "attn_pool"
    return (
        *torch_layer("patch_embed.proj", "embed/patch", bias=True),
        Rule("cls_token", "params/embed/class_token"),
        Rule("dist_token", "params/embed/distillation_token"),
        Rule(registers, "params/embed/register_tokens"),
        Rule("pos_embed", "params/embed/position_embedding"),
        *torch_layer_norm("norm_pre", "embed/norm"),
        *torch_block(block, "norm1", "norm2", "mlp.fc1", "mlp.fc2"),
        *torch_joined(f"{block}.attn.qkv.weight", f"{block}.attn.qkv.bias", f"{BLOCK}/attention"),
        *torch_layer(f"{block}.attn.proj", f"{BLOCK}/attention/out", "dense", bias=True),
        Rule(f"{block}.ls{{k}}.gamma", f"params/{BLOCK}/layer_scale{{k}}/scale"),
        *torch_layer_norm("fc_norm" if design.norm_after_pool else "norm", "norm"),
        Rule(f"{pool}.latent", "params/pool/probe"),
        *torch_attention({"query": f"{pool}.q", "out": f"{pool}.proj"}, "pool/attention"),
        *torch_joined(f"{pool}.kv.weight", f"{pool}.kv.bias", "pool/attention", ("key", "value")),
        *torch_layer_norm(f"{pool}.norm", "pool/norm"),
        *torch_layer(f"{pool}.mlp.fc{{k}}", "pool/mlp/dense{k}", "dense", bias=True),
        *torch_layer("head", "head", "dense", bias=True),
        *torch_layer("head_dist", "head/distillation", "dense", bias=True),
    )


def torchvision_rules() -> tuple[Rule, ...]:
    """`VisionTransformer` of torchvision."""
    block = "encoder.layers.encoder_layer_{i}"
    attention = f"{block}.self_attention"
    return (
        *torch_layer("conv_proj", "embed/patch", bias=True),
        Rule("class_token", "params/embed/class_token"),
        Rule("encoder.pos_embedding", "params/embed/position_embedding"),
        *torch_block(block, "ln_1", "ln_2", "mlp.0", "mlp.3"),
        # What the layers of the MLP are called in the published files, which are older.
        *torch_layer(f"{block}.mlp.linear_{{k}}", f"{BLOCK}/mlp/dense{{k}}", "dense", bias=True),
        *torch_joined(
            f"{attention}.in_proj_weight", f"{attention}.in_proj_bias", f"{BLOCK}/attention"
        ),
        *torch_layer(f"{attention}.out_proj", f"{BLOCK}/attention/out", "dense", bias=True),
        *torch_layer_norm("encoder.ln", "norm"),
        *torch_layer("heads.head", "head", "dense", bias=True),
    )


def transformers_rules(name: str) -> tuple[Rule, ...]:
    """The networks of `transformers` whose files have their names below `NAME.`.

    Files of a network without its classifier have the same names without `NAME.`.
    """
    if name in ("vit", "deit"):
        block = ("layernorm_before", "layernorm_after", "intermediate.dense", "output.dense")
    else:
        block = ("norm1", "norm2", "mlp.fc1", "mlp.fc2")
    return (
        *_transformers_body(f"{name}.", block),
        *_transformers_body("", block),
        *torch_layer("classifier", "head", "dense", bias=True),
        *torch_layer("cls_classifier", "head", "dense", bias=True),
        *torch_layer("distillation_classifier", "head/distillation", "dense", bias=True),
    )


def _transformers_body(prefix: str, block_names: tuple[str, str, str, str]) -> tuple[Rule, ...]:
    embeddings, block = f"{prefix}embeddings", f"{prefix}encoder.layer.{{i}}"
    attention = {part: f"{block}.attention.attention.{part}" for part in PROJECTIONS}
    attention["out"] = f"{block}.attention.output.dense"
    return (
        *torch_layer(f"{embeddings}.patch_embeddings.projection", "embed/patch", bias=True),
        Rule(f"{embeddings}.cls_token", "params/embed/class_token"),
        Rule(f"{embeddings}.distillation_token", "params/embed/distillation_token"),
        Rule(f"{embeddings}.register_tokens", "params/embed/register_tokens"),
        Rule(f"{embeddings}.position_embeddings", "params/embed/position_embedding"),
        *torch_block(block, *block_names),
        *torch_attention(attention, f"{BLOCK}/attention"),
        Rule(f"{block}.layer_scale{{k}}.lambda1", f"params/{BLOCK}/layer_scale{{k}}/scale"),
        *torch_layer_norm(f"{prefix}layernorm", "norm"),
    )


def augreg_rules(design: Design) -> tuple[Rule, ...]:
    """The `.npz` files of https://github.com/google-research/vision_transformer."""
    block = "Transformer/encoderblock_{i}"
    return (
        *flax_layer("embedding", "embed/patch"),
        Rule("cls", "params/embed/class_token"),
        Rule("Transformer/posembed_input/pos_embedding", "params/embed/position_embedding"),
        *flax_layer_norm(f"{block}/LayerNorm_0", f"{BLOCK}/norm1"),
        *flax_attention(
            f"{block}/MultiHeadDotProductAttention_1", f"{BLOCK}/attention", design.heads
        ),
        *flax_layer_norm(f"{block}/LayerNorm_2", f"{BLOCK}/norm2"),
        *flax_layer(f"{block}/MlpBlock_3/Dense_0", f"{BLOCK}/mlp/dense1"),
        *flax_layer(f"{block}/MlpBlock_3/Dense_1", f"{BLOCK}/mlp/dense2"),
        *flax_layer_norm("Transformer/encoder_norm", "norm"),
        *flax_layer("head", "head"),
    )


# ---------------------------------------------------------------------------------------------
# Sources of weights

# The pooler of `transformers` and the representation layer of ViT feed no published classifier.
POOLER = re.compile(r"(.*\.)?pooler\..*")
_PRE_LOGITS = re.compile(r"(.*[./])?pre_logits[./].*")


def _sources(design: Design) -> tuple[Source, ...]:
    """Of ViT. Images are in [-1, 1] except in torchvision."""
    return (
        Source(
            "timm",
            timm_rules(design),
            replace(INCEPTION_BICUBIC, crop_fraction=0.9),
            ignore=(_PRE_LOGITS,),
        ),
        Source("torchvision", torchvision_rules(), IMAGENET),
        Source(
            "transformers",
            transformers_rules("vit"),
            replace(INCEPTION, crop_fraction=1.0),
            {"epsilon": 1e-12},
            (POOLER,),
        ),
        Source(
            "augreg",
            augreg_rules(design),
            replace(INCEPTION, crop_fraction=1.0),
            ignore=(_PRE_LOGITS,),
        ),
    )


# ---------------------------------------------------------------------------------------------
# Variants


@dataclass(frozen=True)
class Variant:
    """A network with a name.

    Attributes:
        design: all sizes.
        sources: for a design, whose files of weights it can read.
        paper: where it is published.
    """

    design: Design
    sources: Callable[[Design], tuple[Source, ...]]
    paper: str


# Width, depth, heads and MLP: table 1 of Dosovitskiy et al. for B, L and H; table 1 of Touvron et
# al. 2021 for Ti and S, which Steiner et al. took over (table 2).
SIZES: Mapping[str, tuple[int, int, int, int]] = {
    "ti": (192, 12, 3, 768),
    "s": (384, 12, 6, 1536),
    "b": (768, 12, 12, 3072),
    "l": (1024, 24, 16, 4096),
    "h": (1280, 32, 16, 5120),
}

PAPER = "https://arxiv.org/abs/2010.11929"

VARIANTS = {
    f"vit_{size}{patch}": Variant(Design(patch, *SIZES[size]), _sources, PAPER)
    for size, patch in [
        ("ti", 16),
        ("s", 32),
        ("s", 16),
        ("b", 32),
        ("b", 16),
        ("b", 8),
        ("l", 32),
        ("l", 16),
        ("h", 14),
    ]
}


def builder(variants: Mapping[str, Variant]) -> Builder:
    """The function that builds the networks of a table, with the options that all of them have."""

    def build(
        name: str,
        *,
        num_classes: int | None = None,
        in_channels: int = 3,
        input_size: tuple[int, int] | None = None,
        patch: int | None = None,
        width: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        hidden: int | None = None,
        activation: str | None = None,
        epsilon: float | None = None,
        pool: str | None = None,
        norm_after_pool: bool | None = None,
        class_token: bool | None = None,
        registers: int | None = None,
        embed_class: bool | None = None,
        pre_norm: bool | None = None,
        layer_scale: float | None = None,
        head_bias: bool | None = None,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        scan: bool = False,
    ) -> tuple[ModelSpec, nn.Module]:
        """A Vision Transformer; what is `None` is as in the variant of that name.

        Files are read into networks with one stage a block; those of `scan` are made from them.

        Args:
            name: a key of the table.
            num_classes: see `Design`, as for all others that are not here.
            in_channels: input channels.
            input_size: (height, width) of the images.
            patch: see `Design`.
            width: features of a token.
            depth: number of blocks.
            heads: of the attention.
            hidden: features inside the MLP; by default in the variant's proportion to the width.
            activation: see `Design`.
            epsilon: see `Design`.
            pool: see `Design`.
            norm_after_pool: see `Design`.
            class_token: see `Design`.
            registers: see `Design`.
            embed_class: see `Design`.
            pre_norm: see `Design`.
            layer_scale: see `Design`.
            head_bias: see `Design`.
            dropout: see `VisionTransformer`; 0 in most fine-tuning, 0.1 in the paper's training.
            drop_path: see `VisionTransformer`.
            scan: see `VisionTransformer`.

        Raises:
            ModelError: an option makes no network.
        """
        variant = variants[name]
        usual = variant.design
        if width is not None and hidden is None:
            hidden = width * usual.hidden // usual.width
        changes = {
            "num_classes": num_classes,
            "input_size": input_size,
            "patch": patch,
            "width": width,
            "depth": depth,
            "heads": heads,
            "hidden": hidden,
            "activation": activation,
            "epsilon": epsilon,
            "pool": pool,
            "norm_after_pool": norm_after_pool,
            "class_token": class_token,
            "registers": registers,
            "embed_class": embed_class,
            "pre_norm": pre_norm,
            "layer_scale": layer_scale,
            "head_bias": head_bias,
        }
        given = {option: value for option, value in changes.items() if value is not None}
        design = replace(usual, **given)
        _check(name, design, in_channels=in_channels, dropout=dropout, drop_path=drop_path)
        module = VisionTransformer(design, dropout, drop_path, scan)
        prefix = len(design.tokens) if design.embed_class else 0
        spec = ModelSpec(
            name=name,
            stages=module.stages,
            head="head",
            stem="embed/patch",
            input_size=design.input_size,
            in_channels=in_channels,
            options=(("num_classes", design.num_classes), ("input_size", design.input_size)),
            position_embedding=PositionEmbedding("embed/position_embedding", design.patch, prefix),
            sources=variant.sources(design),
            paper=variant.paper,
        )
        return spec, module

    return build


def _check(
    name: str, design: Design, *, in_channels: int, dropout: float, drop_path: float
) -> None:
    """Raise unless the options make a network."""
    sizes = ("patch", "width", "depth", "heads", "hidden")
    height, breadth = design.input_size
    check_sizes(
        name,
        design.num_classes,
        in_channels=in_channels,
        height=height,
        breadth=breadth,
        **{size: getattr(design, size) for size in sizes},
    )
    problems = []
    if min(height, breadth) < design.patch:
        problems.append(
            f"input_size {design.input_size}, expected at least a patch, {design.patch}"
        )
    if design.width % design.heads:
        problems.append(f"width {design.width}, expected a multiple of heads, {design.heads}")
    if design.pool not in POOLS:
        problems.append(f"pool {design.pool!r}, expected one of {', '.join(POOLS)}")
    if design.pool.startswith("token") and not design.tokens:
        problems.append(f"pool {design.pool!r} without a class token")
    if design.activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        problems.append(f"activation {design.activation!r}, expected one of {known}")
    if not isinstance(design.registers, int) or design.registers < 0:
        problems.append(f"registers {design.registers}, expected a number from 0")
    for option, rate in {"dropout": dropout, "drop_path": drop_path}.items():
        if not 0 <= rate < 1:
            problems.append(f"{option} {rate}, expected a rate from 0, below 1")
    if problems:
        raise ModelError("\n - ".join([f"{name}: found", *problems]))


# ---------------------------------------------------------------------------------------------
# Family

# What timm calls the sizes.
TIMM_SIZES = {"ti": "tiny", "s": "small", "b": "base", "l": "large", "h": "huge"}

VITS = Family(
    name="vit",
    build=builder(VARIANTS),
    # https://docs.pytorch.org/vision/stable/models.html for those that are there, else as timm
    # counts them.
    parameters={
        "vit_ti16": 5_717_416,
        "vit_s32": 22_878_952,
        "vit_s16": 22_050_664,
        "vit_b32": 88_224_232,
        "vit_b16": 86_567_656,
        "vit_b8": 86_576_872,
        "vit_l32": 306_535_400,
        "vit_l16": 304_326_632,
        "vit_h14": 632_045_800,
    },
    aliases={
        f"vit_{TIMM_SIZES[size]}_patch{patch}_{side}": (
            f"vit_{size}{patch}",
            {} if side == 224 else {"input_size": (side, side)},
        )
        for size, patch, sides in [
            ("ti", 16, (224, 384)),
            ("s", 32, (224, 384)),
            ("s", 16, (224, 384)),
            ("b", 32, (224, 384)),
            ("b", 16, (224, 384)),
            ("b", 8, (224,)),
            ("l", 32, (224, 384)),
            ("l", 16, (224, 384)),
            ("h", 14, (224,)),
        ]
        for side in sides
    }
    | {
        f"vit_{size}_{patch}": (f"vit_{size}{patch}", {})
        for size, patch in [("b", 16), ("b", 32), ("l", 16), ("l", 32), ("h", 14)]
    },
    weights=WEIGHTS,
)

FAMILIES = (VITS,)
