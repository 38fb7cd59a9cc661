"""RegNets of other libraries in their full size, with random weights; see `resnet.py` here."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from resnet import Case, timm_case, torch_case, torchvision_case


def transformers_case(
    architecture: str, kind: str, blocks: list[int], widths: list[int], group_width: int
) -> Case:
    from transformers import RegNetConfig, RegNetForImageClassification

    config = RegNetConfig(
        depths=blocks,
        hidden_sizes=widths,
        groups_width=group_width,
        layer_type=kind,
        num_labels=1000,
    )
    return torch_case(architecture, "transformers", RegNetForImageClassification(config))


_TORCHVISION = (
    *(f"regnet_x_{size}" for size in ("400mf", "800mf", "1_6gf", "3_2gf", "8gf", "16gf", "32gf")),
    *(f"regnet_y_{size}" for size in ("400mf", "800mf", "1_6gf", "3_2gf", "8gf", "16gf", "32gf")),
)

# What is here, and timm's name for it: networks that torchvision has not, or otherwise.
_TIMM = {
    "regnet_x_200mf": "regnetx_002",
    "regnet_x_400mf": "regnetx_004_tv",
    "regnet_x_400mf_pycls": "regnetx_004",
    "regnet_x_12gf": "regnetx_120",
    "regnet_y_800mf_pycls": "regnety_008",
    "regnet_y_8gf_pycls": "regnety_080",
    "regnet_y_4gf": "regnety_040",
}

CASES: dict[str, Callable[[], Case]] = {
    **{f"torchvision_{name}": functools.partial(torchvision_case, name) for name in _TORCHVISION},
    **{
        f"timm_{name}": functools.partial(timm_case, name, theirs) for name, theirs in _TIMM.items()
    },
    # facebook/regnet-x-004 and facebook/regnet-y-040.
    "transformers_regnet_x_400mf_pycls": functools.partial(
        transformers_case, "regnet_x_400mf_pycls", "x", [1, 2, 7, 12], [32, 64, 160, 384], 16
    ),
    "transformers_regnet_y_4gf": functools.partial(
        transformers_case, "regnet_y_4gf", "y", [2, 6, 12, 2], [128, 192, 512, 1088], 64
    ),
}
