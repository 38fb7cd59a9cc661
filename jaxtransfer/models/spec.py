"""Data about a network: stages, head, the input that it expects, the sources of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from jaxtransfer.errors import ModelError
from jaxtransfer.mapping import Rule
from jaxtransfer.surgery.layers import HeadLayer, TaskHead
from jaxtransfer.types import Pattern


@dataclass(frozen=True)
class Preprocess:
    """What happens to images between the file and the network; it travels with the weights.

    The steps, in order: integers are divided by `scale`; images are resized so that they cover
    `size / crop_fraction` and their centre of `size` is kept; grey images are repeated, or colours
    weighted by ITU-R BT.601, to give `channels`; `mean` is taken away and the result divided by
    `std`.

    Attributes:
        size: (height, width) that the network gets; `None` keeps the size as it comes.
        channels: 1 or 3; `None` keeps the channels as they come.
        scale: what integer images are divided by, 255 for bytes; floats are expected to be in
            [0, 1] already. `None` takes numbers as they are, integers or floats.
        mean: taken away from each channel after scaling; one number serves all channels.
        std: what each channel is divided by; one number serves all channels.
        interpolation: "nearest", "bilinear", "bicubic" or "lanczos3".
        antialias: whether resizing to a smaller size blurs first, as PIL does and TensorFlow's
            resize does not.
        crop_fraction: share of the resized image's side that the central crop keeps.
        channel_order: "rgb", or "bgr" for networks that come from Caffe.
        label_offset: added to a label to give its output: 1 for networks whose output 0 is a
            background that the labels do not count.
    """

    size: tuple[int, int] | None = None
    channels: int | None = None
    scale: float | None = 255.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    interpolation: str = "bilinear"
    antialias: bool = True
    crop_fraction: float = 1.0
    channel_order: str = "rgb"
    label_offset: int = 0

    def __post_init__(self) -> None:
        # Lists, as JSON gives them, have no hash, which what is static under jit must have.
        for name in ("size", "mean", "std"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(value))
        problems = []
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            problems.append(f"size {self.size}, expected (height, width) or None")
        if self.channels not in (None, 1, 3):
            problems.append(f"channels {self.channels}, expected 1, 3 or None")
        if self.scale is not None and not self.scale > 0:
            problems.append(f"scale {self.scale}, expected a number above 0 or None")
        if not self.mean or not self.std or 0 in self.std:
            problems.append(f"mean {self.mean} and std {self.std}, expected numbers, no std of 0")
        if not 0 < self.crop_fraction <= 1:
            problems.append(f"crop_fraction {self.crop_fraction}, expected above 0 and at most 1")
        if self.channel_order not in ("rgb", "bgr"):
            problems.append(f"channel_order {self.channel_order!r}, expected 'rgb' or 'bgr'")
        if problems:
            raise ModelError("\n - ".join(["preprocess: found", *problems]))

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON can hold them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Preprocess:
        """The value that `to_dict` described.

        Raises:
            ModelError: a field is unknown, or its value is not one it can have.
        """
        try:
            return cls(**fields)
        except TypeError as error:
            raise ModelError(
                f"preprocess: expected the fields of Preprocess, found {error}"
            ) from error


@dataclass(frozen=True)
class Source:
    """A library or a project whose files hold weights of a network, and what they need.

    Attributes:
        name: such as "torchvision", "timm", "transformers", "keras", "caffe".
        rules: how the names and layouts of its files translate.
        preprocess: what happens to images that its networks get.
        options: what the catalog's builder needs so that the network computes what the source's
            does, such as another epsilon, where that is not the default.
        ignore: tensors of its files that belong to nothing here, such as auxiliary classifiers.
    """

    name: str
    rules: tuple[Rule, ...]
    preprocess: Preprocess
    options: Mapping[str, Any] = field(default_factory=dict)
    ignore: tuple[Pattern, ...] = ()


@dataclass(frozen=True)
class Weights:
    """Published weights of a network: facts, as those who published them state them.

    Attributes:
        reference: what `jaxtransfer.load` takes, such as `hf://timm/resnet50.a1_in1k`.
        source: the name of the `Source` whose rules they need.
        licence: of the weights, as an SPDX identifier where there is one; `None` where unknown.
        top1: published top-1 accuracy in percent on the validation images of ImageNet-1k, with one
            central crop; `None` for weights that do not classify these, or where none is published.
        data: what they were trained on, in order, such as "ImageNet-21k, ImageNet-1k".
        preprocess: where it differs from that of the source.
    """

    reference: str
    source: str
    licence: str | None = None
    top1: float | None = None
    data: str = "ImageNet-1k"
    preprocess: Preprocess | None = None

    @property
    def is_fetchable(self) -> bool:
        """Whether `load` can fetch them by the reference alone: others have no SHA-256 published.

        For these, `REFERENCE#sha256=HEX` is what `load` takes, with the hash of a copy you trust.
        """
        return self.reference.startswith("hf://") or "#sha256=" in self.reference

    @property
    def has_imagenet_classes(self) -> bool:
        """Whether the outputs are the classes of ImageNet-1k."""
        return self.top1 is not None or self.data.endswith("ImageNet-1k")


@dataclass(frozen=True)
class PositionEmbedding:
    """A learned embedding of a grid of patches.

    Attributes:
        path: of the leaf in the parameters, of shape (1, prefix + rows * columns, features).
        patch: side of a patch in pixels.
        prefix: tokens before those of the grid, such as a class token.
    """

    path: str
    patch: int
    prefix: int = 0


@dataclass(frozen=True)
class ModelSpec:
    """Data about a network.

    Attributes:
        name: the architecture's name in the catalog, or a name of the user's own.
        stages: the names of the stages from input to head. All but parameter-free ones, such as a
            pooling between body and head, are top-level keys of the parameters.
        head: path of the last layer or layers in the parameters.
        stem: path of the layer that takes the images, `None` where unknown.
        input_size: (height, width) that the network was made for, `None` where unknown.
        in_channels: number of input channels, `None` where unknown.
        options: what the catalog needs beside the name to build the network again.
        head_layers: the layers of a head that surgery put in place; empty for the network's own.
        task_heads: the heads of several tasks that surgery put in place, below `head`.
        truncated_after: the stage after which surgery cut the network off; `None` for the whole.
        position_embedding: where the network has one.
        sources: whose files of weights the network can read, the usual one first.
        weights: what is known to be published, the usual ones first.
        paper: where the network is published.
    """

    name: str
    stages: tuple[str, ...]
    head: str
    stem: str | None = None
    input_size: tuple[int, int] | None = None
    in_channels: int | None = None
    options: tuple[tuple[str, Any], ...] = ()
    head_layers: tuple[HeadLayer, ...] = ()
    task_heads: tuple[TaskHead, ...] = ()
    truncated_after: str | None = None
    position_embedding: PositionEmbedding | None = None
    # Name and options determine these, and a spec is hashed wherever it is static under jit.
    sources: tuple[Source, ...] = field(default=(), compare=False, repr=False)
    weights: tuple[Weights, ...] = field(default=(), compare=False, repr=False)
    paper: str | None = None

    def source(self, name: str) -> Source:
        """The source of weights of this name.

        Raises:
            ModelError: there is none.
        """
        for source in self.sources:
            if source.name == name:
                return source
        known = ", ".join(source.name for source in self.sources) or "none"
        raise ModelError(f"{self.name}: expected a source of weights among {known}, found {name!r}")

    def rules_for(self, source: str) -> tuple[Rule, ...]:
        """The rules for one source of weights, such as `torchvision`.

        Raises:
            ModelError: there are none for that source.
        """
        return self.source(source).rules
