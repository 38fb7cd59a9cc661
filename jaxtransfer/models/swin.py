"""Swin transformers (Liu et al. 2021, arXiv 2103.14030): attention within shifted windows.

Patches of 4x4, then four stages of blocks, each attention within windows of 7x7 and a perceptron,
both with a LayerNorm before and a residual connection (section 3.1, figure 3). Every second block
shifts the windows by half their size, and a mask keeps apart what was not together before the shift
(section 3.2, figure 4). A learned table of the relative positions within a window is added to the
attention (section 3.3). Swin-T, -S and -B differ in width and depth.

Stages 2 to 4 begin with the merging of 2x2 patches, so that stages end at a quarter, an eighth, a
sixteenth and a thirty-second of the image's side, as in timm; torchvision and the authors have the
merging at the end of the stage before. A LayerNorm, the stage `norm`, a global mean, the
parameter-free stage `pool`, and a dense `head` end the network.

Any image of at least a patch will do. A map that windows do not divide is padded with zeros at the
right and the bottom, after the LayerNorm and before the shift, as torchvision, transformers and the
authors' detection code do; timm shifts first, and takes one size only unless told otherwise. Where
one window covers a side of the map, it is not shifted along that side. Rows and columns of pixels
that patches do not divide are left out, as torchvision does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxtransfer.errors import ModelError
from jaxtransfer.mapping import Rule
from jaxtransfer.models.family import Family
from jaxtransfer.models.layers import StochasticDepth, classify, conv, global_mean, stage_rates
from jaxtransfer.models.naming import torch_layer, torch_layer_norm
from jaxtransfer.models.preprocessing import IMAGENET_BICUBIC
from jaxtransfer.models.products import dense
from jaxtransfer.models.published import timm_weights, torchvision_weights
from jaxtransfer.models.spec import ModelSpec, Source, Weights
from jaxtransfer.models.stages import StagedNetwork, check_rates, check_sizes
from jaxtransfer.models.transformer import PROJECTIONS, Mlp, torch_attention, torch_joined

PAPER = "https://arxiv.org/abs/2103.14030"
PATCH = 4
EPSILON = 1e-5

# What is added to the attention between places that the shift brought together, as in all sources.
MASKED = -100.0


# ---------------------------------------------------------------------------------------------
# Windows


def relative_positions(window: int) -> np.ndarray:
    """For each pair of places in a window, the row of the table that belongs to their distance.

    Shape (window², window²), values from 0 to (2 window - 1)² - 1, in the order of all sources: the
    first place's row minus the second's, from the lowest on, and within it the same for columns.

    >>> relative_positions(2)[0].tolist()
    [4, 3, 1, 0]
    """
    places = np.stack(np.divmod(np.arange(window**2), window), axis=-1)
    rows, columns = np.moveaxis(places[:, None] - places[None, :] + window - 1, -1, 0)
    return rows * (2 * window - 1) + columns


def to_windows(x: jax.Array, window: int) -> jax.Array:
    """Maps (batch, height, width, channels) to (batch, windows, window², channels)."""
    batch, height, width, channels = x.shape
    rows, columns = height // window, width // window
    x = x.reshape(batch, rows, window, columns, window, channels).swapaxes(2, 3)
    return x.reshape(batch, rows * columns, window**2, channels)


def from_windows(x: jax.Array, height: int, width: int) -> jax.Array:
    """Windows (batch, windows, window², channels) to maps (batch, height, width, channels)."""
    batch, _, places, channels = x.shape
    window = round(places**0.5)
    x = x.reshape(batch, height // window, width // window, window, window, channels)
    return x.swapaxes(2, 3).reshape(batch, height, width, channels)


def shifted_regions(
    height: int, width: int, window: int, shifts: tuple[int, int]
) -> np.ndarray | None:
    """For each place of a shifted map, in windows, a number that its neighbours before share.

    Shape (windows, window²), or `None` where nothing is shifted. The last windows hold places from
    both ends of the map: those rows and columns that the shift brought there are told from others.
    """
    if not any(shifts):
        return None
    rows, columns = (
        np.arange(length) >= length - shift
        for length, shift in zip((height, width), shifts, strict=True)
    )
    regions = (rows[:, None] * 2 + columns).reshape(height // window, window, -1, window)
    return regions.swapaxes(1, 2).reshape(-1, window**2)


# ---------------------------------------------------------------------------------------------
# Modules


class WindowAttention(nn.Module):
    """Attention of several heads within windows, with a bias for each relative position.

    Attributes:
        heads: number of heads, which share the channels evenly.
        window: side of the windows.
    """

    heads: int
    window: int

    @nn.compact
    def __call__(self, x: jax.Array, regions: np.ndarray | None) -> jax.Array:
        """From (batch, windows, window², channels) to the same shape.

        Places of different `regions`, of shape (windows, window²), do not see each other.
        """
        channels = x.shape[-1]
        table = self.param(
            "relative_position_bias",
            nn.initializers.truncated_normal(0.02),
            ((2 * self.window - 1) ** 2, self.heads),
            jnp.float32,
        )
        query, key, value = (
            dense(channels, name=name)(x).reshape(*x.shape[:-1], self.heads, -1)
            for name in PROJECTIONS
        )
        query *= (channels // self.heads) ** -0.5
        scores = jnp.einsum("bwqhd,bwkhd->bwhqk", query, key)
        scores += jnp.moveaxis(table[relative_positions(self.window)], -1, 0).astype(x.dtype)
        if regions is not None:
            numbers = jnp.asarray(regions)
            apart = numbers[:, None, :, None] != numbers[:, None, None, :]
            scores += jnp.where(apart, MASKED, 0.0).astype(x.dtype)
        mixed = jnp.einsum("bwhqk,bwkhd->bwqhd", nn.softmax(scores), value)
        return dense(channels, name="out")(mixed.reshape(x.shape))


class Block(nn.Module):
    """Attention within windows and a perceptron, each a residual branch after a LayerNorm.

    Attributes:
        heads: number of heads.
        window: side of the windows.
        shifted: whether the windows are shifted by half their size.
        drop_path: share of the examples that training leaves each branch out for.
    """

    heads: int
    window: int
    shifted: bool
    drop_path: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """From (batch, height, width, channels) to the same shape."""
        drop = StochasticDepth(self.drop_path)
        y = self._attend(nn.LayerNorm(epsilon=EPSILON, name="norm1")(x))
        x = x + drop(y, train=train)
        y = nn.LayerNorm(epsilon=EPSILON, name="norm2")(x)
        # Four times the channels inside, in all variants.
        y = Mlp(4 * x.shape[-1], name="mlp")(y, train=train)
        return x + drop(y, train=train)

    def _attend(self, x: jax.Array) -> jax.Array:
        height, width = x.shape[1:3]
        rows, columns = (-(-side // self.window) * self.window for side in (height, width))
        x = jnp.pad(x, ((0, 0), (0, rows - height), (0, columns - width), (0, 0)))
        half = self.window // 2 if self.shifted else 0
        down = half if rows > self.window else 0
        right = half if columns > self.window else 0
        windows = to_windows(jnp.roll(x, (-down, -right), (1, 2)), self.window)
        regions = shifted_regions(rows, columns, self.window, (down, right))
        windows = WindowAttention(self.heads, self.window, name="attention")(windows, regions)
        x = jnp.roll(from_windows(windows, rows, columns), (down, right), (1, 2))
        return x[:, :height, :width]


class Downsample(nn.Module):
    """The merging of 2x2 patches: their channels side by side, normalised and halved.

    The order is that of the sources: down the columns first. Maps of odd size are padded with zeros
    at the right and the bottom.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """From (batch, height, width, c) to (batch, height/2, width/2, 2c), rounded up."""
        batch, height, width, channels = x.shape
        x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
        x = x.reshape(batch, -(-height // 2), 2, -(-width // 2), 2, channels)
        x = x.transpose(0, 1, 3, 4, 2, 5).reshape(*x.shape[:2], x.shape[3], 4 * channels)
        x = nn.LayerNorm(epsilon=EPSILON, name="norm")(x)
        return dense(2 * channels, use_bias=False, name="reduction")(x)


class Stem(nn.Module):
    """Patches as a convolution, and a LayerNorm."""

    features: int

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """From (batch, height, width, channels) to (batch, height//4, width//4, features)."""
        x = conv(self.features, PATCH, PATCH, padding=0, use_bias=True, name="conv")(images)
        return nn.LayerNorm(epsilon=EPSILON, name="norm")(x)


class Stage(nn.Module):
    """Blocks one after the other, named by their position, every second one with shifted windows.

    Attributes:
        heads: number of heads.
        window: side of the windows.
        drop_path: for each block, the share of examples that training leaves its branches out for.
        merges: whether the stage begins with the merging of patches.
    """

    heads: int
    window: int
    drop_path: tuple[float, ...]
    merges: bool

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """From (batch, height, width, channels) to the same shape.

        Where patches are merged, to half the height and width and twice the channels.
        """
        if self.merges:
            x = Downsample(name="downsample")(x)
        for position, rate in enumerate(self.drop_path):
            block = Block(self.heads, self.window, position % 2 == 1, rate, name=str(position))
            x = block(x, train=train)
        return x


class Swin(StagedNetwork):
    """A Swin transformer.

    Attributes:
        blocks: number of blocks in each stage.
        width: channels of the first stage; each further one has twice as many.
        head_width: channels of each head.
        window: side of the windows.
        num_classes: outputs of the head, 0 for features without a head.
        drop_path: share of the examples that training leaves the last block's branches out for; it
            grows from 0 at the first block in equal steps.
    """

    blocks: tuple[int, ...]
    width: int
    head_width: int
    window: int
    num_classes: int
    drop_path: float

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages from input to head."""
        return ("stem", *(f"stage{i + 1}" for i in range(len(self.blocks))), "norm", "pool", "head")

    def _run(self, stage: str, x: jax.Array, train: bool) -> jax.Array:
        if stage == "stem":
            return Stem(self.width, name=stage)(x)
        if stage == "norm":
            return nn.LayerNorm(epsilon=EPSILON, name=stage)(x)
        if stage == "pool":
            return global_mean(x)
        if stage == "head":
            return classify(x, self.num_classes)
        position = int(stage.removeprefix("stage")) - 1
        module = Stage(
            self.width * 2**position // self.head_width,
            self.window,
            stage_rates(self.drop_path, self.blocks, position),
            merges=position > 0,
            name=stage,
        )
        return module(x, train=train)


# ---------------------------------------------------------------------------------------------
# Rules: where files of PyTorch keep what


@dataclass(frozen=True)
class _Names:
    """How one source names its layers.

    Attributes:
        stem: the convolution and the LayerNorm of the stem.
        downsample: from a stage's number, from 1, to the merging of patches before its blocks.
        block: from a stage's number to what its blocks are called, with `{j}` for their position.
        attention: within a block, the projections to query, key and value, together or apart.
        out: within a block, the projection after the attention.
        table: within a block, the tensor of the biases of relative positions.
        norms: within a block, the LayerNorms before the attention and before the perceptron.
        mlp: within a block, the two layers of the perceptron.
        end: the last LayerNorm and the head.
    """

    stem: tuple[str, str]
    downsample: Callable[[int], str]
    block: Callable[[int], str]
    attention: tuple[str, ...]
    out: str
    table: str
    norms: tuple[str, str]
    mlp: tuple[str, str]
    end: tuple[str, str]


def _projections(names: tuple[str, ...], target: str) -> tuple[Rule, ...]:
    """Query, key and value, which the file has in one layer or in three."""
    if len(names) == 1:
        return torch_joined(f"{names[0]}.weight", f"{names[0]}.bias", target)
    return torch_attention(dict(zip(PROJECTIONS, names, strict=True)), target)


def _rules(names: _Names) -> tuple[Rule, ...]:
    rules = (
        *torch_layer(names.stem[0], "stem/conv", bias=True),
        *torch_layer_norm(names.stem[1], "stem/norm"),
        *torch_layer_norm(names.end[0], "norm"),
        *torch_layer(names.end[1], "head", "dense", bias=True),
    )
    for stage in (1, 2, 3, 4):
        if stage > 1:
            before, here = names.downsample(stage), f"stage{stage}/downsample"
            rules += torch_layer_norm(f"{before}.norm", f"{here}/norm")
            rules += torch_layer(f"{before}.reduction", f"{here}/reduction", "dense")
        block, here = names.block(stage), f"stage{stage}/{{j}}"
        table = f"params/{here}/attention/relative_position_bias"
        projections = tuple(f"{block}.{name}" for name in names.attention)
        rules += _projections(projections, f"{here}/attention")
        rules += torch_layer(f"{block}.{names.out}", f"{here}/attention/out", "dense", bias=True)
        rules += (Rule(f"{block}.{names.table}", table),)
        for name, leaf in zip(names.norms, ("norm1", "norm2"), strict=True):
            rules += torch_layer_norm(f"{block}.{name}", f"{here}/{leaf}")
        for name, leaf in zip(names.mlp, ("dense1", "dense2"), strict=True):
            rules += torch_layer(f"{block}.{name}", f"{here}/mlp/{leaf}", "dense", bias=True)
    return rules


TORCHVISION = _Names(
    stem=("features.0.0", "features.0.2"),
    downsample=lambda stage: f"features.{2 * stage - 2}",
    block=lambda stage: f"features.{2 * stage - 1}.{{j}}",
    attention=("attn.qkv",),
    out="attn.proj",
    table="attn.relative_position_bias_table",
    norms=("norm1", "norm2"),
    mlp=("mlp.0", "mlp.3"),
    end=("norm", "head"),
)

TIMM = replace(
    TORCHVISION,
    stem=("patch_embed.proj", "patch_embed.norm"),
    downsample=lambda stage: f"layers.{stage - 1}.downsample",
    block=lambda stage: f"layers.{stage - 1}.blocks.{{j}}",
    mlp=("mlp.fc1", "mlp.fc2"),
    end=("norm", "head.fc"),
)

# https://github.com/microsoft/Swin-Transformer
MICROSOFT = replace(
    TIMM, downsample=lambda stage: f"layers.{stage - 2}.downsample", end=("norm", "head")
)

TRANSFORMERS = _Names(
    stem=("swin.embeddings.patch_embeddings.projection", "swin.embeddings.norm"),
    downsample=lambda stage: f"swin.encoder.layers.{stage - 2}.downsample",
    block=lambda stage: f"swin.encoder.layers.{stage - 1}.blocks.{{j}}",
    attention=tuple(f"attention.self.{name}" for name in PROJECTIONS),
    out="attention.output.dense",
    table="attention.self.relative_position_bias_table",
    norms=("layernorm_before", "layernorm_after"),
    mlp=("intermediate.dense", "output.dense"),
    end=("swin.layernorm", "classifier"),
)


# ---------------------------------------------------------------------------------------------
# Variants


@dataclass(frozen=True)
class Variant:
    """A network of section 3.3 of the paper.

    Attributes:
        width: channels of the first stage, C in the paper.
        blocks: number of blocks in each stage.
        drop_path: the rate that the network was trained with (appendix A2.1).
        resize: side to which torchvision resizes images before the crop of 224.
    """

    width: int
    blocks: tuple[int, ...]
    drop_path: float
    resize: int


VARIANTS = {
    "swin_t": Variant(96, (2, 2, 6, 2), 0.2, resize=232),
    "swin_s": Variant(96, (2, 2, 18, 2), 0.3, resize=246),
    "swin_b": Variant(128, (2, 2, 18, 2), 0.5, resize=238),
}


def _sources(variant: Variant) -> tuple[Source, ...]:
    """The authors crop 0.875 of the resized images' sides, all others something else."""
    torchvision = replace(IMAGENET_BICUBIC, crop_fraction=224 / variant.resize)
    # Its images are resized to 224 as a whole, the longer side squeezed.
    transformers = replace(IMAGENET_BICUBIC, crop_fraction=1.0)
    return (
        Source("torchvision", _rules(TORCHVISION), torchvision),
        Source("timm", _rules(TIMM), replace(IMAGENET_BICUBIC, crop_fraction=0.9)),
        Source("microsoft", _rules(MICROSOFT), IMAGENET_BICUBIC),
        Source("transformers", _rules(TRANSFORMERS), transformers),
    )


def swin(
    name: str,
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    input_size: tuple[int, int] = (224, 224),
    window: int = 7,
    width: int | None = None,
    head_width: int = 32,
    blocks: tuple[int, ...] | None = None,
    drop_path: float | None = None,
) -> tuple[ModelSpec, nn.Module]:
    """A Swin transformer.

    Args:
        name: a key of `VARIANTS`.
        num_classes: outputs of the head.
        in_channels: input channels.
        input_size: (height, width) of the images.
        window: side of the windows: 7 for images of 224, 12 for the weights made for 384.
        width: channels of the first stage; the variant's own if `None`.
        head_width: channels of each head; 32 in the paper (section 3.3).
        blocks: number of blocks in each of the four stages; the variant's own if `None`.
        drop_path: share of the examples that training leaves the last block's branches out for; the
            variant's own if `None`.

    Raises:
        ModelError: a number is below 1, an image smaller than a patch, a width that heads do not
            divide, or a rate not from 0 to below 1.
    """
    variant = VARIANTS[name]
    width = variant.width if width is None else width
    blocks = variant.blocks if blocks is None else tuple(blocks)
    drop_path = variant.drop_path if drop_path is None else drop_path
    numbers = {f"blocks of stage {i}": count for i, count in enumerate(blocks, start=1)}
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "window": window}
    check_sizes(name, **sizes, width=width, head_width=head_width, **numbers)
    if len(blocks) != 4:
        raise ModelError(f"{name}: expected blocks of four stages, found {blocks}")
    if width % head_width:
        raise ModelError(
            f"{name}: expected a width that heads of {head_width} divide, found {width}; "
            "set head_width"
        )
    if min(input_size) < PATCH:
        raise ModelError(f"{name}: expected an input_size of at least {PATCH}, found {input_size}")
    check_rates(name, drop_path=drop_path)
    module = Swin(blocks, width, head_width, window, num_classes, drop_path)
    spec = ModelSpec(
        name=name,
        stages=module.stages,
        head="head",
        stem="stem/conv",
        input_size=input_size,
        in_channels=in_channels,
        sources=_sources(variant),
        paper=PAPER,
    )
    return spec, module


# ---------------------------------------------------------------------------------------------
# Published weights

IN22K = "ImageNet-22K"
IN22K_1K = "ImageNet-22K, then ImageNet-1k"
MICROSOFT_FILES = "https://github.com/SwinTransformer/storage/releases/download"


def _weights(size: str, top1: float) -> tuple[Weights, ...]:
    """Weights of ImageNet-1k, accuracies as in the README of microsoft/Swin-Transformer."""
    name = f"swin_{size}_patch4_window7_224"
    return (
        timm_weights(f"{name}.ms_in1k", top1, licence="MIT"),
        Weights(f"{MICROSOFT_FILES}/v1.0.0/{name}.pth", "microsoft", "MIT", top1),
        Weights(f"hf://microsoft/{name.replace('_', '-')}", "transformers", top1=top1),
    )


def _weights_22k(size: str, files: str, ending: str, top1: float) -> tuple[Weights, ...]:
    """Weights of ImageNet-22K, with and without training on ImageNet-1k."""
    name = f"swin_{size}_patch4_window7_224"
    file = f"{MICROSOFT_FILES}/{files}/{name}"
    return (
        timm_weights(f"{name}.ms_in22k_ft_in1k", top1, licence="MIT", data=IN22K_1K),
        timm_weights(f"{name}.ms_in22k", None, licence="MIT", data=IN22K),
        Weights(f"{file}_22kto1k{ending}.pth", "microsoft", "MIT", top1, IN22K_1K),
        Weights(f"{file}_22k.pth", "microsoft", "MIT", None, IN22K),
    )


SWINS = Family(
    name="swin",
    build=swin,
    # torchvision's numbers: https://docs.pytorch.org/vision/stable/models/swin_transformer.html
    parameters={"swin_t": 28_288_354, "swin_s": 49_606_258, "swin_b": 87_768_224},
    aliases={
        "swin_tiny_patch4_window7_224": ("swin_t", {}),
        "swin_small_patch4_window7_224": ("swin_s", {}),
        "swin_base_patch4_window7_224": ("swin_b", {}),
        "swin_base_patch4_window12_384": ("swin_b", {"window": 12, "input_size": (384, 384)}),
        "swin-tiny-patch4-window7-224": ("swin_t", {}),
        "swin-small-patch4-window7-224": ("swin_s", {}),
        "swin-base-patch4-window7-224": ("swin_b", {}),
    },
    weights={
        "swin_t": (
            torchvision_weights("swin_t-704ceda3", 81.474),
            *_weights("tiny", 81.2),
            *_weights_22k("tiny", "v1.0.8", "_finetune", 80.9),
        ),
        "swin_s": (
            torchvision_weights("swin_s-5e29d889", 83.196),
            *_weights("small", 83.2),
            *_weights_22k("small", "v1.0.8", "_finetune", 83.2),
        ),
        "swin_b": (
            torchvision_weights("swin_b-68c6b09e", 83.582),
            *_weights("base", 83.5),
            *_weights_22k("base", "v1.0.0", "", 85.2),
        ),
    },
)

FAMILIES = (SWINS,)
