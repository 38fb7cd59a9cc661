"""Vision Transformers at full size, CLIP and SigLIP included, with random weights."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Case = tuple[str, str, dict[str, Any], dict[str, np.ndarray], np.ndarray, np.ndarray]


def _randomise(network: Any) -> None:
    """Make every tensor matter: the libraries begin with zeros, and with factors of 1e-5."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in network.named_parameters():
            if name.endswith(("gamma", "lambda1")):
                tensor.uniform_(0.5, 1.5, generator=generator)
            else:
                tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.02)


def _run(network: Any, side: int, logits: Callable[[Any, Any], Any]) -> tuple[Any, Any]:
    import torch

    image = np.random.RandomState(0).normal(size=(1, side, side, 3)).astype(np.float32)
    with torch.no_grad():
        found = logits(network.eval(), torch.from_numpy(image.transpose(0, 3, 1, 2).copy()))
    return image, found.numpy()


def _state(network: Any) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


def timm_case(architecture: str, name: str, **arguments: Any) -> Case:
    """A network of timm by its name there."""
    import timm

    network = timm.create_model(name, **arguments)
    _randomise(network)
    image, logits = _run(network, network.default_cfg["input_size"][-1], lambda n, x: n(x))
    return architecture, "timm", {}, _state(network), image, logits


def torchvision_case(architecture: str, name: str) -> Case:
    """A network of torchvision by its name there."""
    import torchvision

    network = torchvision.models.get_model(name)
    _randomise(network)
    image, logits = _run(network, 224, lambda n, x: n(x))
    return architecture, "torchvision", {}, _state(network), image, logits


def transformers_case(
    architecture: str,
    kind: str,
    config: str,
    sizes: tuple[int, int, int, int],
    patch: int,
    side: int,
    output: str,
    **more: Any,
) -> Case:
    """A network of transformers with the tensors as it writes them."""
    import transformers
    from safetensors.numpy import load_file

    width, depth, heads, hidden = sizes
    inner = {"mlp_ratio": 4} if config.startswith("Dinov2") else {"intermediate_size": hidden}
    network = getattr(transformers, kind)(
        getattr(transformers, config)(
            hidden_size=width,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            patch_size=patch,
            image_size=side,
            **inner,
            **more,
        )
    )
    _randomise(network)
    image, logits = _run(network, side, lambda n, x: getattr(n(x), output))
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        state = load_file(Path(folder) / "model.safetensors")
    classes = {"num_classes": 1000} if more.get("num_labels") else {}
    return architecture, "transformers", classes, state, image, logits


# Width, depth, heads and features inside the MLP.
SMALL, BASE = (384, 12, 6, 1536), (768, 12, 12, 3072)
LARGE, SO400M = (1024, 24, 16, 4096), (1152, 27, 16, 4304)

_timm = functools.partial(functools.partial, timm_case)
_torchvision = functools.partial(functools.partial, torchvision_case)
_transformers = functools.partial(functools.partial, transformers_case)

CASES: dict[str, Callable[[], Case]] = {
    "vit_ti16_timm": _timm("vit_ti16", "vit_tiny_patch16_224"),
    "vit_s32_timm": _timm("vit_s32", "vit_small_patch32_224"),
    "vit_b8_timm": _timm("vit_b8", "vit_base_patch8_224"),
    "vit_b16_timm": _timm("vit_b16", "vit_base_patch16_224"),
    "vit_b16_torchvision": _torchvision("vit_b16", "vit_b_16"),
    "vit_l32_torchvision": _torchvision("vit_l32", "vit_l_32"),
    "vit_h14_torchvision": _torchvision("vit_h14", "vit_h_14"),
    "vit_b16_transformers": _transformers(
        "vit_b16",
        "ViTForImageClassification",
        "ViTConfig",
        BASE,
        16,
        224,
        "logits",
        num_labels=1000,
    ),
    "deit_s16_distilled_timm": _timm("deit_s16_distilled", "deit_small_distilled_patch16_224"),
    "deit_b16_distilled_transformers": _transformers(
        "deit_b16_distilled",
        "DeiTForImageClassificationWithTeacher",
        "DeiTConfig",
        BASE,
        16,
        224,
        "logits",
        num_labels=1000,
    ),
    "dinov2_b14_timm": _timm("dinov2_b14", "vit_base_patch14_dinov2"),
    "dinov2_s14_reg_timm": _timm("dinov2_s14_reg", "vit_small_patch14_reg4_dinov2"),
    "dinov2_s14_transformers": _transformers(
        "dinov2_s14",
        "Dinov2ForImageClassification",
        "Dinov2Config",
        SMALL,
        14,
        518,
        "logits",
        num_labels=1000,
    ),
    "dinov2_b14_reg_transformers": _transformers(
        "dinov2_b14_reg",
        "Dinov2WithRegistersForImageClassification",
        "Dinov2WithRegistersConfig",
        BASE,
        14,
        518,
        "logits",
        num_labels=1000,
    ),
    "clip_vit_b32_transformers": _transformers(
        "clip_vit_b32",
        "CLIPVisionModelWithProjection",
        "CLIPVisionConfig",
        BASE,
        32,
        224,
        "image_embeds",
        projection_dim=512,
    ),
    "clip_vit_l14_timm": _timm("clip_vit_l14", "vit_large_patch14_clip_quickgelu_224"),
    "siglip_b16_timm": _timm("siglip_b16", "vit_base_patch16_siglip_224"),
    "siglip_l16_transformers": _transformers(
        "siglip_l16", "SiglipVisionModel", "SiglipVisionConfig", LARGE, 16, 256, "pooler_output"
    ),
    "siglip_so400m14_transformers": _transformers(
        "siglip_so400m14",
        "SiglipVisionModel",
        "SiglipVisionConfig",
        SO400M,
        14,
        384,
        "pooler_output",
    ),
}
