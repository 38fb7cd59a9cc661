"""MLP-Mixer (Tolstikhin et al. 2021, arXiv 2105.01601): perceptrons over patches and over channels.

Patches of 16x16 or 32x32 pixels become tokens, the stage `embed`; each block (section 2, figure 1)
mixes first the tokens of each channel, then the channels of each token, both in a perceptron with a
LayerNorm before and a residual connection. A LayerNorm, the stage `norm`, the mean over tokens, the
parameter-free stage `pool`, and a dense `head` end the network. Table 1 has the sizes S, B and L.

The perceptrons over tokens fix how many there are: a network works on images of one size only.

The networks were trained with the approximate GELU by tanh, Flax's default; timm computes the exact
one with the same weights. Each source here brings its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxtransfer.errors import ModelError
from jaxtransfer.mapping import Rule
from jaxtransfer.models.convolution import convolve
from jaxtransfer.models.family import Family
from jaxtransfer.models.layers import StochasticDepth, classify
from jaxtransfer.models.naming import flax_layer, flax_layer_norm, torch_layer, torch_layer_norm
from jaxtransfer.models.preprocessing import INCEPTION, INCEPTION_BICUBIC
from jaxtransfer.models.published import timm_weights
from jaxtransfer.models.spec import ModelSpec, Source, Weights
from jaxtransfer.models.stages import StagedNetwork, check_rates, check_sizes
from jaxtransfer.models.transformer import (
    Mlp,
    drop_path_rates,
    scan_blocks,
)

PAPER = "https://arxiv.org/abs/2105.01601"
EPSILON = 1e-6
GELUS = ("gelu", "gelu_tanh")


# ---------------------------------------------------------------------------------------------
# Modules


class Block(nn.Module):
    """A perceptron over the tokens and one over the channels, each a residual branch.

    Attributes:
        tokens_hidden: inner width of the perceptron over tokens.
        channels_hidden: inner width of the perceptron over channels.
        activation: a key of `ACTIVATIONS`.
    """

    tokens_hidden: int
    channels_hidden: int
    activation: str

    @nn.compact
    def __call__(
        self, x: jax.Array, drop_path: float | jax.Array | None = None, *, train: bool
    ) -> jax.Array:
        """From (batch, tokens, channels) to the same shape.

        Args:
            x: the tokens.
            drop_path: the share of examples that a branch is left out of in training, if any.
            train: whether `drop_path` is at work.
        """
        drop = StochasticDepth(0.0 if drop_path is None else drop_path)
        y = nn.LayerNorm(epsilon=EPSILON, name="norm1")(x).swapaxes(1, 2)
        y = Mlp(self.tokens_hidden, self.activation, name="token_mlp")(y, train=train)
        x = x + drop(y.swapaxes(1, 2), train=train)
        y = nn.LayerNorm(epsilon=EPSILON, name="norm2")(x)
        y = Mlp(self.channels_hidden, self.activation, name="channel_mlp")(y, train=train)
        return x + drop(y, train=train)


class Mixer(StagedNetwork):
    """An MLP-Mixer; between `embed` and `pool` are tokens (batch, tokens, width), row by row.

    Attributes:
        patch: side of the patches in pixels.
        image_size: (height, width) of the images.
        blocks: number of blocks.
        width: channels of each token.
        num_classes: outputs of the head, 0 for features without a head.
        activation: a key of `ACTIVATIONS`.
        drop_path: share of the examples that training leaves the last block's branches out for; it
            grows from 0 at the first block in equal steps.
        scan: whether one block runs in a loop over parameters that are stacked along a first axis,
            as the one stage `blocks`, which compiles faster.
    """

    patch: int
    image_size: tuple[int, int]
    blocks: int
    width: int
    num_classes: int
    activation: str
    drop_path: float
    scan: bool

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages from input to head."""
        blocks = ("blocks",) if self.scan else tuple(f"block{i}" for i in range(self.blocks))
        return ("embed", *blocks, "norm", "pool", "head")

    def _run(self, stage: str, x: jax.Array, train: bool) -> jax.Array:
        if stage == "embed":
            return self._embed(x)
        if stage == "norm":
            return nn.LayerNorm(epsilon=EPSILON, name=stage)(x)
        if stage == "pool":
            return jnp.mean(x, axis=1)
        if stage == "head":
            return classify(x, self.num_classes)
        inner = (self.width // 2, 4 * self.width)  # as in all columns of table 1
        block = Block(*inner, self.activation, name=stage)
        rates = drop_path_rates(self.drop_path, self.blocks)
        if self.scan:
            return scan_blocks(block, x, rates, train=train)
        return block(x, rates[int(stage.removeprefix("block"))], train=train)

    def _embed(self, images: jax.Array) -> jax.Array:
        if images.shape[1:3] != self.image_size:
            raise ModelError(
                "MLP-Mixer: expected images of the size that its perceptrons over tokens are for, "
                f"{self.image_size}, found {images.shape[1:3]}; build it with another input_size "
                "and train these perceptrons anew, or resize the images"
            )
        sides = (self.patch, self.patch)
        convolution = nn.Conv(
            self.width, sides, sides, "VALID", conv_general_dilated=convolve, name="embed"
        )
        x = convolution(images)
        return x.reshape(x.shape[0], -1, self.width)


# ---------------------------------------------------------------------------------------------
# Rules: where files keep what


def _timm_rules() -> tuple[Rule, ...]:
    rules = (
        *torch_layer("stem.proj", "embed", bias=True),
        *torch_layer_norm("norm", "norm"),
        *torch_layer("head", "head", "dense", bias=True),
    )
    for norm in ("norm1", "norm2"):
        rules += torch_layer_norm(f"blocks.{{i}}.{norm}", f"block{{i}}/{norm}")
    for mlp, here in (("mlp_tokens", "token_mlp"), ("mlp_channels", "channel_mlp")):
        for layer, leaf in (("fc1", "dense1"), ("fc2", "dense2")):
            source, target = f"blocks.{{i}}.{mlp}.{layer}", f"block{{i}}/{here}/{leaf}"
            rules += torch_layer(source, target, "dense", bias=True)
    return rules


def _vit_jax_rules() -> tuple[Rule, ...]:
    """The files of https://github.com/google-research/vision_transformer and big_vision.

    They are Flax's own leaves by path.
    """
    block, here = "MixerBlock_{i}", "block{i}"
    rules = (
        *flax_layer("stem", "embed"),
        *flax_layer_norm("pre_head_layer_norm", "norm"),
        *flax_layer("head", "head"),
    )
    for number in (1, 2):
        rules += flax_layer_norm(f"{block}/LayerNorm_{number - 1}", f"{here}/norm{number}")
        for mlp, name in (("token_mixing", "token_mlp"), ("channel_mixing", "channel_mlp")):
            source = f"{block}/{mlp}/Dense_{number - 1}"
            rules += flax_layer(source, f"{here}/{name}/dense{number}")
    return rules


TIMM_RULES = _timm_rules()
VIT_JAX_RULES = _vit_jax_rules()


# ---------------------------------------------------------------------------------------------
# Variants


@dataclass(frozen=True)
class Variant:
    """A column of table 1 of the paper.

    Attributes:
        patch: side of the patches in pixels.
        blocks: number of blocks.
        width: channels of each token; perceptrons have half of it inside for tokens, four times
            it for channels.
    """

    patch: int
    blocks: int
    width: int


VARIANTS = {
    "mixer_s32": Variant(32, 8, 512),
    "mixer_s16": Variant(16, 8, 512),
    "mixer_b32": Variant(32, 12, 768),
    "mixer_b16": Variant(16, 12, 768),
    "mixer_l16": Variant(16, 24, 1024),
}

SOURCES = (
    Source("timm", TIMM_RULES, INCEPTION_BICUBIC),
    # The authors' code resizes whole images to 224, the longer side squeezed.
    Source(
        "vit_jax",
        VIT_JAX_RULES,
        replace(INCEPTION, crop_fraction=1.0),
        {"activation": "gelu_tanh"},
    ),
)


def mixer(
    name: str,
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    input_size: tuple[int, int] = (224, 224),
    width: int | None = None,
    blocks: int | None = None,
    activation: str = "gelu",
    drop_path: float = 0.0,
    scan: bool = False,
) -> tuple[ModelSpec, nn.Module]:
    """An MLP-Mixer.

    Args:
        name: a key of `VARIANTS`.
        num_classes: outputs of the head.
        in_channels: input channels.
        input_size: (height, width) of the images, multiples of the patch.
        width: channels of each token, an even number; the variant's own if `None`.
        blocks: number of blocks; the variant's own if `None`.
        activation: "gelu", or "gelu_tanh" for its approximation, which the authors have.
        drop_path: share of the examples that training leaves the last block's branches out for; it
            grows from 0 at the first block in equal steps.
        scan: whether blocks are one stage `blocks` with stacked parameters. The sources' rules are
            for the other form: load that one and stack its blocks.

    Raises:
        ModelError: a number is below 1, the width odd, an image no multiple of the patch, the
            activation unknown, or the rate not from 0 to below 1.
    """
    variant = VARIANTS[name]
    width = variant.width if width is None else width
    blocks = variant.blocks if blocks is None else blocks
    height, breadth = input_size
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "width": width}
    check_sizes(name, **sizes, blocks=blocks, height=height, breadth=breadth)
    if height % variant.patch or breadth % variant.patch:
        raise ModelError(
            f"{name}: expected an input_size of multiples of {variant.patch}, found {input_size}"
        )
    if width % 2:
        raise ModelError(f"{name}: expected an even width, found {width}")
    if activation not in GELUS:
        raise ModelError(f"{name}: expected activation in {GELUS}, found {activation!r}")
    check_rates(name, drop_path=drop_path)
    module = Mixer(
        patch=variant.patch,
        image_size=(height, breadth),
        blocks=blocks,
        width=width,
        num_classes=num_classes,
        activation=activation,
        drop_path=drop_path,
        scan=scan,
    )
    spec = ModelSpec(
        name=name,
        stages=module.stages,
        head="head",
        stem="embed",
        input_size=(height, breadth),
        in_channels=in_channels,
        sources=SOURCES,
        paper=PAPER,
    )
    return spec, module


# ---------------------------------------------------------------------------------------------
# Published weights

MIIL = replace(INCEPTION, mean=(0.0,), std=(1.0,))
IN21K = "ImageNet-21k"
IN21K_1K = "ImageNet-21k, then ImageNet-1k"


def _weights(size: str, top1: float) -> tuple[Weights, ...]:
    """What the authors published; the accuracy is that of table 3 of the paper."""
    files, licence = "https://storage.googleapis.com/mixer_models", "Apache-2.0"
    hub, file = f"mixer_{size.lower()}16_224", f"Mixer-{size}_16.npz"
    return (
        timm_weights(f"{hub}.goog_in21k_ft_in1k", data=IN21K_1K),
        timm_weights(f"{hub}.goog_in21k", data=IN21K),
        Weights(f"{files}/imagenet1k/{file}", "vit_jax", licence, top1),
        Weights(f"{files}/imagenet21k/{file}", "vit_jax", licence, None, IN21K),
    )


def _miil(name: str, data: str) -> Weights:
    """Weights of Ridnik et al. 2021, arXiv 2104.10972."""
    return timm_weights(name, preprocess=MIIL, data=data)


MIXERS = Family(
    name="mixer",
    build=mixer,
    # The numbers of timm's networks; table 1 of the paper rounds them to millions.
    parameters={
        "mixer_s32": 19_104_624,
        "mixer_s16": 18_528_264,
        "mixer_b32": 60_293_428,
        "mixer_b16": 59_880_472,
        "mixer_l16": 208_196_168,
    },
    aliases={f"{name}_224": (name, {}) for name in VARIANTS},
    weights={
        "mixer_b16": (
            *_weights("B", 76.44),
            _miil("mixer_b16_224.miil_in21k_ft_in1k", "ImageNet-21K-P, then ImageNet-1k"),
            _miil("mixer_b16_224.miil_in21k", "ImageNet-21K-P"),
        ),
        "mixer_l16": _weights("L", 71.76),
    },
)

FAMILIES = (MIXERS,)
