"""The frame of the MobileNets: a stem, stages of depthwise separable blocks, and what classifies.

A depthwise convolution looks at each channel alone, and 1x1 convolutions mix the channels. What the
three versions of the network add to that, with their papers, stands in the files of their names;
here is what they share.

Each library pads strided convolutions in a way of its own, and has its own constants of
normalisation: `Conventions` are options, so that a network computes what it did where its weights
come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxtransfer.errors import ModelError
from jaxtransfer.mapping import Rule
from jaxtransfer.models.layers import (
    ACTIVATIONS,
    BatchNorm,
    SqueezeExcitation,
    classify,
    conv,
    global_mean,
)
from jaxtransfer.models.naming import (
    keras_batch_norm,
    keras_layer,
    torch_batch_norm,
    torch_layer,
    torch_squeeze_excitation,
)
from jaxtransfer.models.stages import StagedNetwork


@dataclass(frozen=True)
class Conventions:
    """What libraries do differently in one and the same network; the defaults are PyTorch's.

    Attributes:
        padding: of convolutions: "symmetric", the same on all sides, as in PyTorch; "same", as
            TensorFlow has it; "end", as the MobileNet of Keras has it: like "same", but strided
            depthwise convolutions get one row and one column at the end whatever the size.
        epsilon: of the normalisation.
        momentum: of the normalisation: the share of the old statistics that each batch leaves.
        use_bias: whether convolutions have a bias, which the normalisation after them undoes.
    """

    padding: str = "symmetric"
    epsilon: float = 1e-5
    momentum: float = 0.9
    use_bias: bool = False


@dataclass(frozen=True)
class BlockSizes:
    """A row of the papers' tables, scaled by the width.

    Attributes:
        features: channels that leave the block.
        stride: of the depthwise convolution.
        size: of its kernel.
        expanded: channels of the depthwise convolution where a 1x1 convolution expands to them
            first; 0 where there is none.
        squeezed: channels to which the squeeze-and-excitation narrows; 0 where there is none.
        activation: a key of `ACTIVATIONS`.
    """

    features: int
    stride: int = 1
    size: int = 3
    expanded: int = 0
    squeezed: int = 0
    activation: str = "relu6"


Layers = tuple[tuple[BlockSizes, ...], ...]
"""The blocks of each stage."""


# ---------------------------------------------------------------------------------------------
# Modules


class ConvNorm(nn.Module):
    """A convolution, its normalisation and maybe an activation.

    Attributes:
        features: channels that leave it.
        size: of the kernel.
        conventions: of the library that the weights come from.
        stride: in both directions.
        depthwise: whether each channel is looked at alone.
        activation: a key of `ACTIVATIONS`, `None` for none.
    """

    features: int
    size: int
    conventions: Conventions
    stride: int = 1
    depthwise: bool = False
    activation: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """From (batch, height, width, channels) to (batch, h/stride, w/stride, features).

        Sizes that the stride does not divide are rounded up, with padding "end" down.
        """
        rules = self.conventions
        padding = None if rules.padding == "symmetric" else "SAME"
        if rules.padding == "end" and self.stride > 1:
            x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
            padding = "VALID"
        x = conv(
            self.features,
            self.size,
            self.stride,
            padding=padding,
            groups=x.shape[-1] if self.depthwise else 1,
            use_bias=rules.use_bias,
            name="conv",
        )(x)
        x = BatchNorm(not train, rules.momentum, rules.epsilon, name="bn")(x)
        return ACTIVATIONS[self.activation](x) if self.activation else x


class Block(nn.Module):
    """A depthwise convolution between 1x1 convolutions.

    Attributes:
        sizes: of its layers.
        bottleneck: whether the last convolution is linear, and the input is added where shapes
            allow it (MobileNetV2, section 3.3).
        conventions: of the library that the weights come from.
    """

    sizes: BlockSizes
    bottleneck: bool
    conventions: Conventions

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
        """From (batch, height, width, channels) to (batch, h/stride, w/stride, features)."""
        sizes, rules, x = self.sizes, self.conventions, inputs
        activation = sizes.activation
        if sizes.expanded:
            expand = ConvNorm(sizes.expanded, 1, rules, activation=activation, name="expand")
            x = expand(x, train=train)
        x = ConvNorm(
            x.shape[-1],
            sizes.size,
            rules,
            sizes.stride,
            depthwise=True,
            activation=activation,
            name="depthwise",
        )(x, train=train)
        if sizes.squeezed:
            # The gate of MobileNetV3, section 5.2.
            squeeze = SqueezeExcitation(
                sizes.squeezed, gate="hard_sigmoid", name="squeeze_excitation"
            )
            x = squeeze(x)
        last = None if self.bottleneck else activation
        project = ConvNorm(sizes.features, 1, rules, activation=last, name="project")
        x = project(x, train=train)
        return x + inputs if self.bottleneck and x.shape == inputs.shape else x


class Stage(nn.Module):
    """Blocks one after the other, named by their position."""

    blocks: tuple[BlockSizes, ...]
    bottleneck: bool
    conventions: Conventions

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """From (batch, height, width, channels) to a map that the blocks' strides make smaller."""
        for position, sizes in enumerate(self.blocks):
            x = Block(sizes, self.bottleneck, self.conventions, name=str(position))(x, train=train)
        return x


class MobileNet(StagedNetwork):
    """A network of depthwise separable blocks.

    Attributes:
        stem_width: channels that leave the stem.
        layers: the blocks of each stage.
        num_classes: outputs of the head, 0 for features without a head.
        bottleneck: whether blocks end in a linear convolution and have shortcuts.
        last_width: channels of a 1x1 convolution after all blocks; 0 for none.
        hidden_width: of a dense layer between pooling and head; 0 for none.
        activation: of stem, last convolution and hidden layer: a key of `ACTIVATIONS`.
        dropout: the rate at which features before the head are left out in training.
        conventions: of the library that the weights come from.
    """

    stem_width: int
    layers: Layers
    num_classes: int
    bottleneck: bool = True
    last_width: int = 0
    hidden_width: int = 0
    activation: str = "relu6"
    dropout: float = 0.0
    conventions: Conventions = Conventions()

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages from input to head."""
        return (
            "stem",
            *(f"layer{number}" for number in range(1, len(self.layers) + 1)),
            *(["last_conv"] if self.last_width else []),
            "pool",
            *(["hidden"] if self.hidden_width else []),
            "head",
        )

    def _run(self, stage: str, x: jax.Array, train: bool) -> jax.Array:
        match stage:
            case "stem":
                return self._stem(x, train)
            case "last_conv":
                last = ConvNorm(
                    self.last_width, 1, self.conventions, activation=self.activation, name=stage
                )
                return last(x, train=train)
            case "pool":
                return global_mean(x)
            case "hidden":
                x = nn.Dense(self.hidden_width, name=stage)(x)
                return jnp.asarray(ACTIVATIONS[self.activation](x))
            case "head":
                if self.num_classes:
                    x = nn.Dropout(self.dropout, name="dropout")(x, deterministic=not train)
                return classify(x, self.num_classes)
        blocks = self.layers[int(stage.removeprefix("layer")) - 1]
        return Stage(blocks, self.bottleneck, self.conventions, name=stage)(x, train=train)

    def _stem(self, images: jax.Array, train: bool) -> jax.Array:
        rules = self.conventions
        if rules.padding == "end":  # which is about depthwise convolutions
            rules = replace(rules, padding="same")
        return ConvNorm(
            self.stem_width, 3, rules, stride=2, activation=self.activation, name="stem"
        )(images, train=train)


# ---------------------------------------------------------------------------------------------
# Options


def check_options(
    name: str,
    conventions: Conventions,
    paddings: tuple[str, ...],
    *,
    width: float,
    dropout: float,
) -> None:
    """Raise unless the options that are no integers can be what they are.

    Raises:
        ModelError: some cannot.
    """
    share = f"from 0 to less than 1, found {dropout!r}"
    problems = {
        f"padding among {paddings}, found {conventions.padding!r}": conventions.padding in paddings,
        f"epsilon above 0, found {conventions.epsilon!r}": conventions.epsilon > 0,
        f"momentum from 0 to 1, found {conventions.momentum!r}": 0 <= conventions.momentum <= 1,
        f"width above 0, found {width!r}": width > 0,
        f"dropout {share}": 0 <= dropout < 1,
    }
    wrong = [problem for problem, is_right in problems.items() if not is_right]
    if wrong:
        raise ModelError(f"{name}: expected {'; '.join(wrong)}")


def block_counts(
    name: str, blocks: Sequence[int] | None, usual: tuple[int, ...]
) -> tuple[int, ...]:
    """The number of blocks in each stage: those that are asked for, or the usual ones.

    Raises:
        ModelError: there is not one positive integer for each stage.

    >>> block_counts("mobilenet_v1", [1, 1, 1, 2, 1], usual=(1, 2, 2, 6, 2))
    (1, 1, 1, 2, 1)
    """
    if blocks is None:
        return usual
    counts = tuple(blocks)
    if len(counts) != len(usual) or not all(isinstance(n, int) and n > 0 for n in counts):
        raise ModelError(
            f"{name}: expected blocks for {len(usual)} stages, each an integer of at least 1, such "
            f"as {usual}, found {blocks!r}"
        )
    return counts


# ---------------------------------------------------------------------------------------------
# Rules: where files keep what. Most number all blocks through, so there is a rule for each.


def numbered_blocks(layers: Layers) -> Iterator[tuple[int, str, BlockSizes]]:
    """Each block with its number in the whole network, from 0 on, and its path here.

    >>> layers = ((BlockSizes(8),), (BlockSizes(16), BlockSizes(16)))
    >>> [(number, path) for number, path, _ in numbered_blocks(layers)]
    [(0, 'layer1/0'), (1, 'layer2/0'), (2, 'layer2/1')]
    """
    places = [
        (f"layer{stage}/{position}", sizes)
        for stage, blocks in enumerate(layers, start=1)
        for position, sizes in enumerate(blocks)
    ]
    for number, (path, sizes) in enumerate(places):
        yield number, path, sizes


def parts_of(sizes: BlockSizes) -> tuple[str, ...]:
    """The convolutions of a block, in their order."""
    return ("expand", "depthwise", "project") if sizes.expanded else ("depthwise", "project")


def torch_conv_norm(convolution: str, norm: str, target: str) -> tuple[Rule, ...]:
    """A `ConvNorm` in a file of PyTorch."""
    layout = "depthwise" if target.endswith("/depthwise") else "conv"
    return (
        *torch_layer(convolution, f"{target}/conv", layout),
        *torch_batch_norm(norm, f"{target}/bn"),
    )


def keras_conv_norm(
    convolution: str, norm: str, target: str, *, bias: bool = False
) -> tuple[Rule, ...]:
    """A `ConvNorm` in a Keras HDF5 file."""
    kind: dict[str, Any] = {"bias": bias}
    if target.endswith("/depthwise"):
        kind |= {"layout": "depthwise_keras(1)", "kernel": "depthwise_kernel"}
    return (
        *keras_layer(convolution, f"{target}/conv", **kind),
        *keras_batch_norm(norm, f"{target}/bn"),
    )


def timm_rules(layers: Layers, *, last: tuple[str, str] | None = None) -> tuple[Rule, ...]:
    """The names of timm's `EfficientNet` and `MobileNetV3`.

    Args:
        layers: the blocks of each stage.
        last: the names of the last convolution and its normalisation, where there is one.
    """
    rules = [*torch_conv_norm("conv_stem", "bn1", "stem")]
    for _, here, sizes in numbered_blocks(layers):
        stage, position = here.removeprefix("layer").split("/")
        block = f"blocks.{int(stage) - 1}.{position}"
        convolutions = ("conv_pw", "conv_dw", "conv_pwl") if sizes.expanded else _SEPARABLE
        for number, (part, name) in enumerate(zip(parts_of(sizes), convolutions, strict=True), 1):
            rules += torch_conv_norm(f"{block}.{name}", f"{block}.bn{number}", f"{here}/{part}")
        if sizes.squeezed:
            narrow, widen = f"{block}.se.conv_reduce", f"{block}.se.conv_expand"
            rules += torch_squeeze_excitation(narrow, widen, f"{here}/squeeze_excitation")
    if last:
        rules += torch_conv_norm(*last, "last_conv")
    return (*rules, *torch_layer("classifier", "head", "dense", bias=True))


_SEPARABLE = ("conv_dw", "conv_pw")
