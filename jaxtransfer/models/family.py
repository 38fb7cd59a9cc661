"""What a file of the zoo tells the catalog about its networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn

from jaxtransfer.models.spec import ModelSpec, Weights

Builder = Callable[..., tuple[ModelSpec, nn.Module]]


@dataclass(frozen=True)
class Family:
    """Networks that one function builds.

    Attributes:
        name: of the family, such as "resnet".
        build: `(name, *, num_classes=…, in_channels=3, input_size=…, …)` to the network's spec and
            its Linen module. Every family takes these three options, and `width` or the like where
            a network's sizes can be cut down. The spec's `weights` are left to the catalog, and so
            are its `options`, but for those whose default depends on the variant.
        parameters: for each variant, from small to large, the published number of parameters of
            the usual network. These are the names in the catalog.
        aliases: other names, as libraries have them, and the variant and options they stand for.
        weights: for each variant, what is known to be published, the usual ones first.
    """

    name: str
    build: Builder
    parameters: Mapping[str, int]
    aliases: Mapping[str, tuple[str, Mapping[str, Any]]] = field(default_factory=dict)
    weights: Mapping[str, tuple[Weights, ...]] = field(default_factory=dict)
