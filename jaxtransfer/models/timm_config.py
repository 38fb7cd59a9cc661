"""What a repository of timm says of its weights, in the `config.json` beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtransfer.errors import ModelError
from jaxtransfer.models.spec import Preprocess

CONFIG_FILE = "config.json"


@dataclass(frozen=True)
class TimmConfig:
    """What is known of weights in a repository of timm.

    Attributes:
        architecture: timm's name for the network.
        preprocess: what happens to images before they enter.
    """

    architecture: str
    preprocess: Preprocess


def read_timm_config(folder: Path) -> TimmConfig | None:
    """What the config in a folder of weights says, or `None` where there is none of timm.

    Source: `save_config_for_hf` and `PretrainedCfg` of
    https://github.com/huggingface/pytorch-image-models

    Args:
        folder: where the weights lie.
    """
    try:
        content = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        architecture = content["architecture"]
        # Older files have at the top what newer ones have in a part of their own.
        fields = content.get("pretrained_cfg", content)
        preprocess = _preprocess(fields)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ModelError):
        return None
    return TimmConfig(architecture, preprocess) if isinstance(architecture, str) else None


def _preprocess(fields: Mapping[str, Any]) -> Preprocess:
    channels, height, width = fields["input_size"]
    return Preprocess(
        size=(int(height), int(width)),
        channels=int(channels),
        mean=tuple(map(float, fields["mean"])),
        std=tuple(map(float, fields["std"])),
        interpolation=str(fields["interpolation"]),
        crop_fraction=float(fields["crop_pct"]),
    )
