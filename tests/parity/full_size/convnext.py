"""ConvNeXt, Swin and MLP-Mixer at full size: networks of other libraries with random weights.

`CASES` has, for each variant and source, a function that gives the architecture, the source, the
options beside those of the source, the state dict, an image and the logits.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

State = dict[str, np.ndarray]
Case = tuple[str, str, dict[str, Any], State, np.ndarray, np.ndarray]


def _renamed(rename: Callable[[str], str]) -> Callable[[State], State]:
    return lambda state: {rename(name): array for name, array in state.items()}


def _case(
    architecture: str,
    source: str,
    network: Any,
    *,
    size: int = 224,
    options: dict[str, Any] | None = None,
    as_published: Callable[[State], State] = dict,
) -> Case:
    """A case from a torch module, whose weights are moved away from what they start from.

    Scales that start near zero, and biases and heads that start at zero, would hide what they do.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in network.named_parameters():
            flat = tensor.squeeze().ndim < 2 or "relative_position_bias" in name
            step = 0.2 if flat else 0.01
            tensor.add_(step * torch.randn(tensor.shape, generator=generator))
        image = torch.randn((1, 3, size, size), generator=generator)
        found = network.eval()(image)
    state = as_published({name: tensor.numpy() for name, tensor in network.state_dict().items()})
    inputs = image.numpy().transpose(0, 2, 3, 1).copy()
    logits = getattr(found, "logits", found).numpy()
    return architecture, source, options or {}, state, inputs, logits


def torchvision(architecture: str) -> Case:
    """A network of torchvision, which has the same names."""
    import torchvision

    return _case(architecture, "torchvision", getattr(torchvision.models, architecture)())


def timm(name: str, architecture: str, **more: Any) -> Case:
    """A network of timm."""
    import timm

    return _case(architecture, "timm", timm.create_model(name), **more)


def facebook(architecture: str) -> Case:
    """The names and shapes of the authors' files, from timm's network."""
    import timm
    from twins.convnext import facebook_state

    network = timm.create_model(architecture)
    return _case(architecture, "facebook", network, as_published=facebook_state)


def microsoft(name: str, architecture: str) -> Case:
    """The names of the authors' files, from timm's network."""
    import timm
    from twins.swin import microsoft_name

    names = _renamed(microsoft_name)
    return _case(architecture, "microsoft", timm.create_model(name), as_published=names)


def transformers(kind: str, architecture: str) -> Case:
    """The network that a configuration of transformers is by default, a tiny one."""
    import transformers
    from twins.swin import published_name

    config = getattr(transformers, f"{kind}Config")(num_labels=1000)
    network = getattr(transformers, f"{kind}ForImageClassification")(config)
    names = _renamed(published_name) if kind == "Swin" else dict
    return _case(architecture, "transformers", network, as_published=names)


def vit_jax(name: str, architecture: str) -> Case:
    """The names and layouts of the authors' files, and their GELU by tanh, from timm's network."""
    import timm
    from twins.mixer import tanh_gelu, vit_jax_state

    network = timm.create_model(name, act_layer=tanh_gelu())
    return _case(architecture, "vit_jax", network, as_published=vit_jax_state)


CONVNEXTS = [f"convnext_{size}" for size in ("tiny", "small", "base", "large", "xlarge")]
CONVNEXTS_V2 = [
    f"convnextv2_{size}"
    for size in ("atto", "femto", "pico", "nano", "tiny", "base", "large", "huge")
]
SWINS = {"swin_t": "tiny", "swin_s": "small", "swin_b": "base"}
MIXERS = ["mixer_s32", "mixer_s16", "mixer_b32", "mixer_b16", "mixer_l16"]

LARGE_WINDOWS = {"size": 384, "options": {"window": 12, "input_size": (384, 384)}}

CASES: dict[str, Callable[[], Case]] = {
    **{f"{n}_torchvision": functools.partial(torchvision, n) for n in (*CONVNEXTS[:4], *SWINS)},
    **{f"{n}_timm": functools.partial(timm, n, n) for n in (*CONVNEXTS, *CONVNEXTS_V2)},
    **{
        f"{name}_timm": functools.partial(timm, f"swin_{size}_patch4_window7_224", name)
        for name, size in SWINS.items()
    },
    **{f"{n}_timm": functools.partial(timm, f"{n}_224", n) for n in MIXERS},
    "swin_b_384_timm": functools.partial(
        timm, "swin_base_patch4_window12_384", "swin_b", **LARGE_WINDOWS
    ),
    "swin_t_microsoft": functools.partial(microsoft, "swin_tiny_patch4_window7_224", "swin_t"),
    "convnext_tiny_facebook": functools.partial(facebook, "convnext_tiny"),
    "convnextv2_tiny_facebook": functools.partial(facebook, "convnextv2_tiny"),
    "convnext_tiny_transformers": functools.partial(transformers, "ConvNext", "convnext_tiny"),
    "convnextv2_tiny_transformers": functools.partial(
        transformers, "ConvNextV2", "convnextv2_tiny"
    ),
    "swin_t_transformers": functools.partial(transformers, "Swin", "swin_t"),
    "mixer_b16_vit_jax": functools.partial(vit_jax, "mixer_b16_224", "mixer_b16"),
}
