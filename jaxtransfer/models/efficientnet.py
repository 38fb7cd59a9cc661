"""EfficientNets: mobile networks found by search, and scaled up by a rule.

Two families:

*   EfficientNet-B0 to -B7 (Tan & Le 2019, arXiv 1905.11946). B0 (table 1) has a 3x3 stem and seven
    stages of MBConv: a 1x1 convolution widens, a depthwise one looks around, squeeze-and-excitation
    weighs the channels, a 1x1 convolution narrows, and the input is added. B1 to B7 multiply width,
    depth and image size together (section 3.3, "compound scaling"); channels are then rounded to
    multiples of 8, numbers of blocks upwards.
*   EfficientNetV2-S, -M and -L (Tan & Le 2021, arXiv 2104.00298; table 4 is S). The first three
    stages have Fused-MBConv, where one 3x3 convolution both widens and looks around, without
    squeeze-and-excitation. The networks are given as they are, without multipliers.

All end in a 1x1 convolution, the stage `top`, a global mean, the parameter-free stage `pool`, and a
dense `head` behind dropout. Activations are SiLU. In training a residual branch is left out of some
examples, the more often the deeper it lies.

The same network computes differently by who trained it: TensorFlow pads "SAME" and has an epsilon
of 1e-3, PyTorch pads by explicit numbers and has mostly 1e-5. Names of tensors do not show it, so
each source says it in its options.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax

from jaxtransfer.errors import ModelError
from jaxtransfer.mapping import Rule
from jaxtransfer.models.efficientnet_weights import (
    TORCHVISION_IMAGES,
    prepared,
    timm_name,
    v1_weights,
    v2_weights,
)
from jaxtransfer.models.family import Family
from jaxtransfer.models.layers import (
    ACTIVATIONS,
    BatchNorm,
    SqueezeExcitation,
    StochasticDepth,
    classify,
    conv,
    global_mean,
    round_channels,
)
from jaxtransfer.models.naming import (
    keras_batch_norm,
    keras_layer,
    torch_batch_norm,
    torch_layer,
    torch_squeeze_excitation,
)
from jaxtransfer.models.spec import ModelSpec, Source
from jaxtransfer.models.stages import StagedNetwork, check_choice, check_rates, check_sizes

V1_PAPER = "https://arxiv.org/abs/1905.11946"
V2_PAPER = "https://arxiv.org/abs/2104.00298"


# ---------------------------------------------------------------------------------------------
# What a stage is made of


@dataclass(frozen=True)
class Row:
    """A row of the papers' tables: the blocks of a stage.

    Attributes:
        fused: whether the blocks are Fused-MBConv; they are MBConv otherwise.
        expansion: how many times wider a block is inside than its input.
        size: of the kernel that looks around.
        stride: of the first block.
        features: channels that leave each block.
        blocks: their number.
    """

    fused: bool
    expansion: int
    size: int
    stride: int
    features: int
    blocks: int

    @property
    def parts(self) -> tuple[str, ...]:
        """The layers of a block in their order."""
        widened = ("expand",) if self.expansion > 1 else ()
        rest = ("project",) if self.fused else ("depthwise", "squeeze_excitation", "project")
        return (*widened, *rest)


@dataclass(frozen=True)
class Convention:
    """What libraries do differently, and weights depend on.

    Attributes:
        padding: `None` for PyTorch's explicit padding, "SAME" for TensorFlow's.
        epsilon: of all batch normalisations.
        momentum: of all batch normalisations: the share of the old statistics that a batch leaves.
    """

    padding: str | None
    epsilon: float
    momentum: float


# ---------------------------------------------------------------------------------------------
# Modules


class ConvNorm(nn.Module):
    """A convolution without bias, a batch normalisation, and SiLU where it `activates`."""

    features: int
    size: int
    convention: Convention
    stride: int = 1
    depthwise: bool = False
    activates: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """From (batch, height, width, channels) to (batch, h/stride, w/stride, features).

        Sizes that the stride does not divide are rounded up.
        """
        x = conv(
            self.features,
            self.size,
            self.stride,
            padding=self.convention.padding,
            groups=x.shape[-1] if self.depthwise else 1,
            name="conv",
        )(x)
        norm = BatchNorm(
            not train,
            momentum=self.convention.momentum,
            epsilon=self.convention.epsilon,
            name="bn",
        )
        x = norm(x)
        return ACTIVATIONS["silu"](x) if self.activates else x


class Block(nn.Module):
    """MBConv or Fused-MBConv: the input is added where the shape stays.

    Source: figure 2 of arXiv 2104.00298; MBConv is that of MobileNetV2 (Sandler et al. 2018, arXiv
    1801.04381) with squeeze-and-excitation, whose inner channels are a quarter of the block's
    *input* channels.

    Attributes:
        row: what the block is made of.
        stride: of the kernel that looks around.
        drop_path: share of examples that the branch is left out of in training.
        convention: of the library that trained the weights.
    """

    row: Row
    stride: int
    drop_path: float
    convention: Convention

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
        """From (batch, height, width, channels) to (batch, h/stride, w/stride, features).

        Sizes that the stride does not divide are rounded up.
        """
        channels = inputs.shape[-1]
        x = inputs
        for part in self.row.parts:
            if part == "squeeze_excitation":
                x = SqueezeExcitation(max(1, channels // 4), "silu", name=part)(x)
            else:
                x = self._layer(part, channels)(x, train=train)
        if self.stride > 1 or channels != self.row.features:
            return x
        return inputs + StochasticDepth(self.drop_path)(x, train=train)

    def _layer(self, part: str, channels: int) -> ConvNorm:
        row, inner = self.row, channels * self.row.expansion
        looks_around = part == ("depthwise" if not row.fused else row.parts[0])
        return ConvNorm(
            row.features if part == "project" else inner,
            row.size if looks_around else 1,
            self.convention,
            stride=self.stride if looks_around else 1,
            depthwise=part == "depthwise",
            # The projection is linear, except where it is all there is.
            activates=part != "project" or row.parts == ("project",),
            name=part,
        )


class Stage(nn.Module):
    """Blocks one after the other, named by their position; the first one may have a stride.

    Attributes:
        row: what the blocks are made of.
        drop_path: for each block, the share of examples that its branch is left out of.
        convention: of the library that trained the weights.
    """

    row: Row
    drop_path: tuple[float, ...]
    convention: Convention

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """From (batch, height, width, channels) to (batch, h/stride, w/stride, features).

        Sizes that the stride does not divide are rounded up.
        """
        for position, rate in enumerate(self.drop_path):
            stride = self.row.stride if position == 0 else 1
            x = Block(self.row, stride, rate, self.convention, name=str(position))(x, train=train)
        return x


class EfficientNet(StagedNetwork):
    """An EfficientNet of either family.

    Attributes:
        rows: the stages between stem and top.
        stem_features: channels that leave the stem.
        top_features: channels that are averaged before the head.
        num_classes: outputs of the head, 0 for features without a head.
        dropout: share of features that the head does not see in training.
        drop_path: what the share of examples that a branch is left out of would be behind the last
            block; it grows linearly from 0 at the first.
        convention: of the library that trained the weights.
    """

    rows: tuple[Row, ...]
    stem_features: int
    top_features: int
    num_classes: int
    dropout: float
    drop_path: float
    convention: Convention

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages from input to head."""
        body = (f"stage{number}" for number in range(1, len(self.rows) + 1))
        return ("stem", *body, "top", "pool", "head")

    def _run(self, stage: str, x: jax.Array, train: bool) -> jax.Array:
        if stage == "stem":
            stem = ConvNorm(self.stem_features, 3, self.convention, stride=2, name="stem")
            return stem(x, train=train)
        if stage == "top":
            return ConvNorm(self.top_features, 1, self.convention, name="top")(x, train=train)
        if stage == "pool":
            return global_mean(x)
        if stage == "head":
            if self.num_classes:
                x = nn.Dropout(self.dropout, name="dropout")(x, deterministic=not train)
            return classify(x, self.num_classes)
        number = int(stage.removeprefix("stage"))
        module = Stage(
            self.rows[number - 1], self._drop_paths(number - 1), self.convention, name=stage
        )
        return module(x, train=train)

    def _drop_paths(self, position: int) -> tuple[float, ...]:
        before = sum(row.blocks for row in self.rows[:position])
        total = sum(row.blocks for row in self.rows)
        blocks = range(before, before + self.rows[position].blocks)
        return tuple(self.drop_path * block / total for block in blocks)


# ---------------------------------------------------------------------------------------------
# Rules: where the files of each library keep what


def _torchvision_rules(rows: Sequence[Row]) -> tuple[Rule, ...]:
    def conv_norm(source: str, target: str) -> tuple[Rule, ...]:
        return (
            *torch_layer(f"{source}.0", f"{target}/conv"),
            *torch_batch_norm(f"{source}.1", f"{target}/bn"),
        )

    rules = [*conv_norm("features.0", "stem"), *conv_norm(f"features.{len(rows) + 1}", "top")]
    for number, row in enumerate(rows, start=1):
        for index, part in enumerate(row.parts):
            source = f"features.{number}.{{i}}.block.{index}"
            target = f"stage{number}/{{i}}/{part}"
            if part == "squeeze_excitation":
                rules += torch_squeeze_excitation(f"{source}.fc1", f"{source}.fc2", target)
            else:
                rules += conv_norm(source, target)
    return (*rules, *torch_layer("classifier.1", "head", "dense", bias=True))


# What timm calls the convolutions of a block, by whether it is fused and whether it widens. Its
# batch normalisations are numbered from 1.
_TIMM_CONVOLUTIONS = {
    (False, False): ("conv_dw", "conv_pw"),
    (False, True): ("conv_pw", "conv_dw", "conv_pwl"),
    (True, False): ("conv",),
    (True, True): ("conv_exp", "conv_pwl"),
}


def _timm_rules(rows: Sequence[Row]) -> tuple[Rule, ...]:
    rules = [
        *torch_layer("conv_stem", "stem/conv"),
        *torch_batch_norm("bn1", "stem/bn"),
        *torch_layer("conv_head", "top/conv"),
        *torch_batch_norm("bn2", "top/bn"),
        *torch_layer("classifier", "head", "dense", bias=True),
    ]
    for index, row in enumerate(rows):
        source, target = f"blocks.{index}.{{i}}", f"stage{index + 1}/{{i}}"
        names = _TIMM_CONVOLUTIONS[row.fused, row.expansion > 1]
        parts = [part for part in row.parts if part != "squeeze_excitation"]
        for number, (name, part) in enumerate(zip(names, parts, strict=True), start=1):
            rules += torch_layer(f"{source}.{name}", f"{target}/{part}/conv")
            rules += torch_batch_norm(f"{source}.bn{number}", f"{target}/{part}/bn")
        if "squeeze_excitation" in row.parts:
            reduce, expand = f"{source}.se.conv_reduce", f"{source}.se.conv_expand"
            rules += torch_squeeze_excitation(reduce, expand, f"{target}/squeeze_excitation")
    return tuple(rules)


def _keras_rules(rows: Sequence[Row]) -> tuple[Rule, ...]:
    # Version 2 has another name for the depthwise convolutions.
    depthwise = "dwconv2" if any(row.fused for row in rows) else "dwconv"
    names = {
        "expand": ("expand_conv", "expand_bn"),
        "depthwise": (depthwise, "bn"),
        "project": ("project_conv", "project_bn"),
    }
    rules = [
        *keras_layer("stem_conv", "stem/conv"),
        *keras_batch_norm("stem_bn", "stem/bn"),
        *keras_layer("top_conv", "top/conv"),
        *keras_batch_norm("top_bn", "top/bn"),
        *keras_layer("predictions", "head", bias=True),
    ]
    for _, number, position, row in _blocks(rows):
        # Blocks are lettered.
        source = f"block{number}{string.ascii_lowercase[position]}"
        target = f"stage{number}/{position}"
        for part in row.parts:
            if part == "squeeze_excitation":
                for layer in ("reduce", "expand"):
                    there, here = f"{source}_se_{layer}", f"{target}/{part}/{layer}"
                    rules += keras_layer(there, here, "pointwise_keras", bias=True)
                continue
            convolution, norm = (f"{source}_{name}" for name in names[part])
            target_conv = f"{target}/{part}/conv"
            if part == "depthwise":
                layout = "depthwise_keras(1)"
                rules += keras_layer(convolution, target_conv, layout, kernel="depthwise_kernel")
            else:
                rules += keras_layer(convolution, target_conv)
            rules += keras_batch_norm(norm, f"{target}/{part}/bn")
    return tuple(rules)


# Version 1 keeps the constants by which it normalises images beside the weights; `Preprocess` has
# them.
_KERAS_NORMALIZATION = re.compile(r"(.*/)?normalization(_\d+)?/(.*/)?(mean|variance|count):0")


def _transformers_rules(rows: Sequence[Row]) -> tuple[Rule, ...]:
    names = {
        "expand": ("expansion.expand_conv", "expansion.expand_bn"),
        "depthwise": ("depthwise_conv.depthwise_conv", "depthwise_conv.depthwise_norm"),
        "project": ("projection.project_conv", "projection.project_bn"),
    }
    rules = [
        *torch_layer("efficientnet.embeddings.convolution", "stem/conv"),
        *torch_batch_norm("efficientnet.embeddings.batchnorm", "stem/bn"),
        *torch_layer("efficientnet.encoder.top_conv", "top/conv"),
        *torch_batch_norm("efficientnet.encoder.top_bn", "top/bn"),
        *torch_layer("classifier", "head", "dense", bias=True),
    ]
    for index, number, position, row in _blocks(rows):
        # Blocks are counted through all stages.
        source, target = f"efficientnet.encoder.blocks.{index}", f"stage{number}/{position}"
        for part in row.parts:
            here = f"{target}/{part}"
            if part == "squeeze_excitation":
                there = f"{source}.squeeze_excite"
                rules += torch_squeeze_excitation(f"{there}.reduce", f"{there}.expand", here)
                continue
            convolution, norm = (f"{source}.{name}" for name in names[part])
            rules += torch_layer(convolution, f"{here}/conv")
            rules += torch_batch_norm(norm, f"{here}/bn")
    return tuple(rules)


def _blocks(rows: Sequence[Row]) -> Iterator[tuple[int, int, int, Row]]:
    """Each block's index among all, the number of its stage, its position there, and its row."""
    index = 0
    for number, row in enumerate(rows, start=1):
        for position in range(row.blocks):
            yield index, number, position, row
            index += 1


# ---------------------------------------------------------------------------------------------
# Variants


@dataclass(frozen=True)
class Variant:
    """A network of the papers.

    Attributes:
        rows: the stages before scaling.
        stem_features: channels that leave the stem before scaling.
        image_size: side of the images that the network is evaluated on.
        dropout: share of features that the head does not see in training.
        width: what channels are multiplied by.
        depth: what numbers of blocks are multiplied by.
        convention: that of torchvision's weights.
    """

    rows: tuple[Row, ...]
    stem_features: int
    image_size: int
    dropout: float
    width: float = 1.0
    depth: float = 1.0
    convention: Convention = Convention(None, epsilon=1e-3, momentum=0.9)


# Table 1 of arXiv 1905.11946: expansion, kernel, stride, channels, blocks. In the place of strides
# the paper has the sizes of what enters a stage.
B0_ROWS = (
    Row(False, 1, 3, 1, 16, 1),
    Row(False, 6, 3, 2, 24, 2),
    Row(False, 6, 5, 2, 40, 2),
    Row(False, 6, 3, 2, 80, 3),
    Row(False, 6, 5, 1, 112, 3),
    Row(False, 6, 5, 2, 192, 4),
    Row(False, 6, 3, 1, 320, 1),
)

# torchvision has B0 to B4 from timm, and B5 to B7 from a port of the original weights.
_FROM_TIMM = Convention(None, epsilon=1e-5, momentum=0.9)
_PORTED = Convention(None, epsilon=1e-3, momentum=0.99)

# The authors' multipliers, image sizes and dropout rates of section 5.2:
# https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet
V1_VARIANTS = {
    "efficientnet_b0": Variant(B0_ROWS, 32, 224, 0.2, 1.0, 1.0, _FROM_TIMM),
    "efficientnet_b1": Variant(B0_ROWS, 32, 240, 0.2, 1.0, 1.1, _FROM_TIMM),
    "efficientnet_b2": Variant(B0_ROWS, 32, 260, 0.3, 1.1, 1.2, _FROM_TIMM),
    "efficientnet_b3": Variant(B0_ROWS, 32, 300, 0.3, 1.2, 1.4, _FROM_TIMM),
    "efficientnet_b4": Variant(B0_ROWS, 32, 380, 0.4, 1.4, 1.8, _FROM_TIMM),
    "efficientnet_b5": Variant(B0_ROWS, 32, 456, 0.4, 1.6, 2.2, _PORTED),
    "efficientnet_b6": Variant(B0_ROWS, 32, 528, 0.5, 1.8, 2.6, _PORTED),
    "efficientnet_b7": Variant(B0_ROWS, 32, 600, 0.5, 2.0, 3.1, _PORTED),
}

# Table 4 of arXiv 2104.00298 has S; M and L, the image sizes for evaluation and the dropout rates
# are those of the authors' code: https://github.com/google/automl/tree/master/efficientnetv2
V2_VARIANTS = {
    "efficientnet_v2_s": Variant(
        (
            Row(True, 1, 3, 1, 24, 2),
            Row(True, 4, 3, 2, 48, 4),
            Row(True, 4, 3, 2, 64, 4),
            Row(False, 4, 3, 2, 128, 6),
            Row(False, 6, 3, 1, 160, 9),
            Row(False, 6, 3, 2, 256, 15),
        ),
        stem_features=24,
        image_size=384,
        dropout=0.2,
    ),
    "efficientnet_v2_m": Variant(
        (
            Row(True, 1, 3, 1, 24, 3),
            Row(True, 4, 3, 2, 48, 5),
            Row(True, 4, 3, 2, 80, 5),
            Row(False, 4, 3, 2, 160, 7),
            Row(False, 6, 3, 1, 176, 14),
            Row(False, 6, 3, 2, 304, 18),
            Row(False, 6, 3, 1, 512, 5),
        ),
        stem_features=24,
        image_size=480,
        dropout=0.3,
    ),
    "efficientnet_v2_l": Variant(
        (
            Row(True, 1, 3, 1, 32, 4),
            Row(True, 4, 3, 2, 64, 7),
            Row(True, 4, 3, 2, 96, 7),
            Row(False, 4, 3, 2, 192, 10),
            Row(False, 6, 3, 1, 224, 19),
            Row(False, 6, 3, 2, 384, 25),
            Row(False, 6, 3, 1, 640, 7),
        ),
        stem_features=32,
        image_size=480,
        dropout=0.4,
    ),
}

VARIANTS = {**V1_VARIANTS, **V2_VARIANTS}

TOP_FEATURES = 1280  # before scaling, in all networks


def efficientnet(
    name: str,
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    input_size: tuple[int, int] | None = None,
    width: float | None = None,
    depth: float | None = None,
    dropout: float | None = None,
    drop_path: float = 0.2,
    padding: str | None = None,
    epsilon: float | None = None,
    momentum: float | None = None,
) -> tuple[ModelSpec, nn.Module]:
    """EfficientNet-B0 to -B7, or EfficientNetV2-S, -M or -L.

    Args:
        name: a key of `VARIANTS`.
        num_classes: outputs of the head.
        in_channels: input channels.
        input_size: (height, width) of the images; that of the papers by default.
        width: what channels are multiplied by; the variant's by default. Small ones make test
            networks.
        depth: what numbers of blocks are multiplied by; the variant's by default.
        dropout: share of features that the head does not see in training; the variant's by default.
        drop_path: share of examples that a residual branch is left out of in training, reached
            linearly from the first block to the last (1 - survival probability in the papers).
        padding: `None` for that of PyTorch, "SAME" for that of TensorFlow.
        epsilon: of the batch normalisations; that of torchvision's weights by default.
        momentum: of the batch normalisations; that of torchvision's weights by default.

    Raises:
        ModelError: a number is out of its range, or there is no such padding.
    """
    variant = VARIANTS[name]
    height, breadth = input_size or (variant.image_size, variant.image_size)
    sizes = {"num_classes": num_classes, "in_channels": in_channels}
    check_sizes(name, **sizes, height=height, breadth=breadth)
    width = variant.width if width is None else width
    depth = variant.depth if depth is None else depth
    dropout = variant.dropout if dropout is None else dropout
    _check_positive(name, width=width, depth=depth)
    check_rates(name, dropout=dropout, drop_path=drop_path)
    check_choice(name, "padding", padding, (None, "SAME"))
    own = variant.convention
    rows = tuple(
        replace(
            row,
            features=round_channels(width * row.features),
            blocks=math.ceil(depth * row.blocks),
        )
        for row in variant.rows
    )
    module = EfficientNet(
        rows=rows,
        stem_features=round_channels(width * variant.stem_features),
        top_features=round_channels(width * TOP_FEATURES),
        num_classes=num_classes,
        dropout=dropout,
        drop_path=drop_path,
        convention=Convention(
            padding,
            own.epsilon if epsilon is None else epsilon,
            own.momentum if momentum is None else momentum,
        ),
    )
    is_first = name in V1_VARIANTS
    spec = ModelSpec(
        name=name,
        stages=module.stages,
        head="head",
        stem="stem/conv",
        input_size=(height, breadth),
        in_channels=in_channels,
        sources=(_v1_sources if is_first else _v2_sources)(name, rows),
        paper=V1_PAPER if is_first else V2_PAPER,
    )
    return spec, module


def _check_positive(name: str, **numbers: float) -> None:
    wrong = {key: number for key, number in numbers.items() if not number > 0}
    if wrong:
        raise ModelError(f"{name}: expected numbers above 0, found {wrong}")


# ---------------------------------------------------------------------------------------------
# Sources: whose weights there are, and what they expect


def _options(convention: Convention) -> dict[str, Any]:
    """The builder's options; all of them, since what an alias or a caller has may be another's."""
    return {
        "padding": convention.padding,
        "epsilon": convention.epsilon,
        "momentum": convention.momentum,
    }


_TIMM = _options(Convention(None, epsilon=1e-5, momentum=0.9))
_TIMM_TF = _options(Convention("SAME", epsilon=1e-3, momentum=0.9))
_TENSORFLOW = _options(Convention("SAME", epsilon=1e-3, momentum=0.99))


def _v1_sources(name: str, rows: tuple[Row, ...]) -> tuple[Source, ...]:
    variant = V1_VARIANTS[name]
    size = variant.image_size
    # The authors resize to 32 pixels more and crop.
    images = prepared(size, size + 32)
    return (
        Source(
            "torchvision",
            _torchvision_rules(rows),
            TORCHVISION_IMAGES[name],
            _options(variant.convention),
        ),
        Source("timm", _timm_rules(rows), images, _TIMM),
        # Weights of TensorFlow under timm's names: `tf_efficientnet_…`.
        Source("timm_tf", _timm_rules(rows), images, _TIMM_TF),
        # The network of Keras has its preprocessing inside. Its files hold ImageNet's deviations
        # where its layer wants variances, so that the layer divides by their roots; another layer
        # divides by the roots again: https://github.com/tensorflow/tensorflow/issues/49930.
        # Together this is the division by the deviations that all others do.
        Source("keras", _keras_rules(rows), images, _TENSORFLOW, (_KERAS_NORMALIZATION,)),
        # The weights of Keras; the image processor too divides twice by the roots.
        Source(
            "transformers",
            _transformers_rules(rows),
            prepared(size, interpolation="nearest"),
            _TENSORFLOW,
        ),
    )


def _v2_sources(name: str, rows: tuple[Row, ...]) -> tuple[Source, ...]:
    variant = V2_VARIANTS[name]
    size = variant.image_size
    images = prepared(size, centred=True)
    middle = 128 / 255
    return (
        Source(
            "torchvision",
            _torchvision_rules(rows),
            TORCHVISION_IMAGES[name],
            _options(variant.convention),
        ),
        Source("timm", _timm_rules(rows), prepared(size), _TIMM),
        Source("timm_tf", _timm_rules(rows), images, _TIMM_TF),
        # The network of Keras has x / 128 - 1 inside.
        Source(
            "keras",
            _keras_rules(rows),
            replace(images, mean=(middle,), std=(middle,)),
            _options(Convention("SAME", epsilon=1e-3, momentum=0.9)),
        ),
    )


def _aliases(variants: Mapping[str, Variant]) -> Mapping[str, tuple[str, Mapping[str, Any]]]:
    """What timm calls its own networks, where otherwise, and those of TensorFlow's weights."""
    own = {timm_name(name): (name, _TIMM) for name in variants if timm_name(name) != name}
    return own | {f"tf_{timm_name(name)}": (name, _TIMM_TF) for name in variants}


# Parameters: https://docs.pytorch.org/vision/stable/models.html, "Params" of each model's page.

EFFICIENTNETS = Family(
    name="efficientnet",
    build=efficientnet,
    parameters={
        "efficientnet_b0": 5_288_548,
        "efficientnet_b1": 7_794_184,
        "efficientnet_b2": 9_109_994,
        "efficientnet_b3": 12_233_232,
        "efficientnet_b4": 19_341_616,
        "efficientnet_b5": 30_389_784,
        "efficientnet_b6": 43_040_704,
        "efficientnet_b7": 66_347_960,
    },
    aliases=_aliases(V1_VARIANTS),
    weights={name: v1_weights(name, row.image_size) for name, row in V1_VARIANTS.items()},
)

EFFICIENTNETS_V2 = Family(
    name="efficientnet_v2",
    build=efficientnet,
    parameters={
        "efficientnet_v2_s": 21_458_488,
        "efficientnet_v2_m": 54_139_356,
        "efficientnet_v2_l": 118_515_272,
    },
    aliases=_aliases(V2_VARIANTS),
    weights={name: v2_weights(name) for name in V2_VARIANTS},
)

FAMILIES = (EFFICIENTNETS, EFFICIENTNETS_V2)
