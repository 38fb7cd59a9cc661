"""AlexNet and its kin (Krizhevsky et al. 2012, "ImageNet Classification with Deep CNNs").

Five convolutions, three of them followed by a 3x3 max pooling with stride 2, and three dense layers
with ReLU and dropout. Three networks bear the name:

*   `alexnet` is the one tower of Krizhevsky 2014 (arXiv 1404.5997), as torchvision has it: no
    normalisation, and maps of all sizes are averaged to 6x6 before the dense layers;
*   `bvlc_alexnet` is the paper's two towers, which are groups of channels, with a local response
    normalisation before the pooling (sections 3.3 to 3.5), as Caffe has it;
*   `caffenet` is the same with the normalisation after the pooling, which costs less.

The two of Caffe round sizes up where they pool, and take images of 227x227, which is what gives the
55x55 map of the paper.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import flax.linen as nn
import jax

from jaxtransfer.errors import ModelError
from jaxtransfer.mapping import Rule
from jaxtransfer.models.family import Family
from jaxtransfer.models.layers import (
    HiddenDense,
    adaptive_average_pool,
    classify,
    conv,
    local_response_norm,
    max_pool,
)
from jaxtransfer.models.naming import caffe_layer, torch_layer
from jaxtransfer.models.preprocessing import CAFFE, IMAGENET
from jaxtransfer.models.published import torchvision_weights
from jaxtransfer.models.spec import ModelSpec, Source, Weights
from jaxtransfer.models.stages import StagedNetwork, check_rates, check_sizes

PAPER_TWO_TOWERS = (
    "https://papers.nips.cc/paper/2012/hash/c399862d3b9d6b76c8436e924a68c45b-Abstract.html"
)
PAPER_ONE_TOWER = "https://arxiv.org/abs/1404.5997"

# Rows and columns of the map that the dense layers see.
MAP_SIDE = 6


@dataclass(frozen=True)
class Variant:
    """What tells the networks apart.

    Attributes:
        widths: channels that leave each convolution.
        groups: of channels in each convolution.
        first_padding: zeros on each side of the image.
        normalises: "before" or "after" the pooling of the first two stages, or "never".
        ceil_pooling: whether sizes are rounded up.
        drops_input: whether dropout comes before fc6 and fc7 rather than after them.
        side: of the images.
        paper: where the network is published.
    """

    widths: tuple[int, ...]
    groups: tuple[int, ...]
    first_padding: int
    normalises: str
    ceil_pooling: bool
    drops_input: bool
    side: int
    paper: str


# Source: models/bvlc_alexnet/train_val.prototxt of https://github.com/BVLC/caffe
_TWO_TOWERS = Variant(
    widths=(96, 256, 384, 384, 256),
    groups=(1, 2, 1, 2, 2),
    first_padding=0,
    normalises="before",
    ceil_pooling=True,
    drops_input=False,
    side=227,
    paper=PAPER_TWO_TOWERS,
)

VARIANTS = {
    # Source: torchvision/models/alexnet.py of https://github.com/pytorch/vision
    "alexnet": Variant(
        widths=(64, 192, 384, 256, 256),
        groups=(1, 1, 1, 1, 1),
        first_padding=2,
        normalises="never",
        ceil_pooling=False,
        drops_input=True,
        side=224,
        paper=PAPER_ONE_TOWER,
    ),
    "bvlc_alexnet": _TWO_TOWERS,
    "caffenet": replace(_TWO_TOWERS, normalises="after"),
}


# ---------------------------------------------------------------------------------------------
# Modules


# Side, stride and following max pooling of each convolution.
_CONVOLUTIONS = ((11, 4, True), (5, 1, True), (3, 1, False), (3, 1, False), (3, 1, True))

# The first two convolutions are normalised, where any are.
_NORMALISED = ("conv1", "conv2")


class AlexNet(StagedNetwork):
    """A network of the family.

    Attributes:
        variant: what tells the networks apart.
        hidden: features of fc6 and fc7.
        num_classes: outputs of the head, 0 for features without a head.
        dropout: rate at fc6 and fc7.
    """

    variant: Variant
    hidden: int
    num_classes: int
    dropout: float = 0.5

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages from input to head."""
        return (*(f"conv{i + 1}" for i in range(5)), "pool", "fc6", "fc7", "head")

    def _run(self, stage: str, x: jax.Array, train: bool) -> jax.Array:
        if stage.startswith("conv"):
            return self._convolve(stage, x)
        if stage == "pool":
            return adaptive_average_pool(x, MAP_SIDE, MAP_SIDE).reshape(len(x), -1)
        if stage == "head":
            return classify(x, self.num_classes)
        layer = HiddenDense(self.hidden, self.dropout, self.variant.drops_input, name=stage)
        return layer(x, train=train)

    def _convolve(self, stage: str, x: jax.Array) -> jax.Array:
        """A convolution with what follows it; its parameters are those of the stage."""
        index, variant = int(stage.removeprefix("conv")) - 1, self.variant
        size, stride, pools = _CONVOLUTIONS[index]
        layer = conv(
            variant.widths[index],
            size,
            stride,
            padding=variant.first_padding if index == 0 else None,
            groups=variant.groups[index],
            use_bias=True,
            name=stage,
        )
        x = nn.relu(layer(x))
        normalises = variant.normalises if stage in _NORMALISED else "never"
        if normalises == "before":
            x = local_response_norm(x)
        if pools:
            x = max_pool(x, 3, 2, ceil=variant.ceil_pooling)
        return local_response_norm(x) if normalises == "after" else x


# ---------------------------------------------------------------------------------------------
# Rules: where the files of each library keep what


def _flattened(widths: tuple[int, ...]) -> str:
    """The layout of fc6 in files that flatten a map with the channels first."""
    return f"flatten_chw({widths[-1]},{MAP_SIDE},{MAP_SIDE})"


def _torchvision_rules(widths: tuple[int, ...]) -> tuple[Rule, ...]:
    places = enumerate((0, 3, 6, 8, 10), start=1)  # ReLU and pooling are counted, too
    body = [torch_layer(f"features.{place}", f"conv{i}", bias=True) for i, place in places]
    return (
        *(rule for rules in body for rule in rules),
        *torch_layer("classifier.1", "fc6", _flattened(widths), bias=True),
        *torch_layer("classifier.4", "fc7", "dense", bias=True),
        *torch_layer("classifier.6", "head", "dense", bias=True),
    )


def _caffe_rules(widths: tuple[int, ...]) -> tuple[Rule, ...]:
    return (
        *caffe_layer("conv{i}", "conv{i}"),
        *caffe_layer("fc6", "fc6", _flattened(widths)),
        *caffe_layer("fc7", "fc7", "dense"),
        *caffe_layer("fc8", "head", "dense"),
    )


# The networks took a mean image away; these are the means of its channels, blue, green and red.
# Source: examples/00-classification.ipynb of https://github.com/BVLC/caffe
CAFFE_PREPROCESS = replace(
    CAFFE, size=(227, 227), mean=(104.00699, 116.66877, 122.67892), crop_fraction=227 / 256
)


def alexnet(
    name: str,
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    input_size: tuple[int, int] | None = None,
    widths: tuple[int, ...] | None = None,
    hidden: int = 4096,
    dropout: float = 0.5,
) -> tuple[ModelSpec, nn.Module]:
    """AlexNet of one tower, AlexNet of two towers, or CaffeNet.

    Args:
        name: a key of `VARIANTS`.
        num_classes: outputs of the head.
        in_channels: input channels.
        input_size: (height, width) of the images, at least 63; `None` for the variant's own.
        widths: channels that leave each of the five convolutions; `None` for the variant's own.
            Smaller ones make test networks.
        hidden: features of fc6 and fc7.
        dropout: rate at fc6 and fc7.

    Raises:
        ModelError: a number is not one that it can be, or there are not five widths that the
            groups divide.
    """
    check_sizes(name, num_classes=num_classes, in_channels=in_channels, hidden=hidden)
    check_rates(name, dropout=dropout)
    variant = VARIANTS[name]
    if widths is not None:
        variant = replace(variant, widths=_checked_widths(name, tuple(widths), variant.groups))
    if input_size is None:
        input_size = (variant.side, variant.side)
    module = AlexNet(variant, hidden, num_classes, dropout)
    source = (
        Source("torchvision", _torchvision_rules(variant.widths), IMAGENET)
        if name == "alexnet"
        else Source("caffe", _caffe_rules(variant.widths), CAFFE_PREPROCESS)
    )
    spec = ModelSpec(
        name=name,
        stages=module.stages,
        head="head",
        stem="conv1",
        input_size=input_size,
        in_channels=in_channels,
        sources=(source,),
        paper=variant.paper,
    )
    return spec, module


def _checked_widths(name: str, widths: tuple[int, ...], groups: tuple[int, ...]) -> tuple[int, ...]:
    check_sizes(name, 0, **{f"widths[{index}]": width for index, width in enumerate(widths)})
    # The groups of a convolution share both what enters it and what leaves it.
    pairs = zip((widths[0], *widths), widths, groups, strict=False) if widths else ()
    if len(widths) != len(groups) or any(w % g or before % g for before, w, g in pairs):
        raise ModelError(
            f"{name}: expected as many widths as there are convolutions, {len(groups)}, each of "
            f"which, as the one before it, its groups {groups} divide, found {widths}"
        )
    return widths


FAMILIES = (
    Family(
        name="alexnet",
        build=alexnet,
        # https://docs.pytorch.org/vision/stable/models.html for the first one. Both others: (11 *
        # 11 * 3 * 96 + 5 * 5 * 48 * 256 + 3 * 3 * (256 * 384 + 192 * 384 + 192 * 256) + 9216 * 4096
        # + 4096 * 4096 + 4096 * 1000) weights and 10,568 biases.
        parameters={
            "alexnet": 61_100_840,
            "bvlc_alexnet": 60_965_224,
            "caffenet": 60_965_224,
        },
        aliases={"bvlc_reference_caffenet": ("caffenet", {})},
        weights={
            "alexnet": (torchvision_weights("alexnet-owt-7be5be79", 56.522),),
            # models/bvlc_alexnet and models/bvlc_reference_caffenet of
            # https://github.com/BVLC/caffe, whose readme.md states what follows.
            "bvlc_alexnet": (
                Weights(
                    "http://dl.caffe.berkeleyvision.org/bvlc_alexnet.caffemodel",
                    "caffe",
                    licence="unrestricted",
                    top1=57.1,
                ),
            ),
            "caffenet": (
                Weights(
                    "http://dl.caffe.berkeleyvision.org/bvlc_reference_caffenet.caffemodel",
                    "caffe",
                    licence="unrestricted",
                    top1=57.4,
                ),
            ),
        },
    ),
)
