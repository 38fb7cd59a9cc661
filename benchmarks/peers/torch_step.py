"""Times training steps of a network of torchvision, and measures their memory.

    python3 benchmarks/peers/torch_step.py resnet50 --plan full --batch-size 16 --compile

It needs PyTorch and torchvision alone, and no package of this repository.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from pathlib import Path

import torch
import torchvision

CLASSES = 10
NETWORKS = {
    "resnet50": "resnet50",
    "vgg16": "vgg16",
    "mobilenet_v2": "mobilenet_v2",
    "convnext_tiny": "convnext_tiny",
    "vit_b16": "vit_b_16",
}
# What trains where the last stage does, or the head alone: beginnings of names of parameters.
TRAINED = {
    "resnet50": (("layer4.", "fc."), ("fc.",)),
    "vgg16": (
        ("features.24.", "features.26.", "features.28.", "classifier."),
        ("classifier.6.",),
    ),
    "mobilenet_v2": (("features.17.", "features.18.", "classifier."), ("classifier.",)),
    "convnext_tiny": (("features.6.", "features.7.", "classifier."), ("classifier.2.",)),
    "vit_b16": (("encoder.layers.encoder_layer_11.", "encoder.ln.", "heads."), ("heads.",)),
}


def main() -> None:
    """Build, compile, time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--plan", default="full", choices=("full", "last_stage", "probe"))
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=4, help="that are timed, after the first two")
    parser.add_argument("--bfloat16", action="store_true", help="automatic mixed precision")
    parser.add_argument("--compile", action="store_true", help="by torch.compile")
    parser.add_argument("--channels-last", action="store_true", help="in memory")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    begun = time.perf_counter()
    model = getattr(torchvision.models, NETWORKS[options.network])(num_classes=CLASSES)
    model = model.to(device)
    images = torch.randn(options.batch_size, 3, options.size, options.size, device=device)
    labels = torch.randint(0, CLASSES, (options.batch_size,), device=device)
    if options.channels_last:
        model = model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    set_trained(model, options.network, options.plan)
    trained = [leaf for leaf in model.parameters() if leaf.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.01, fused=True)
    forward = torch.compile(model) if options.compile else model
    cast = torch.autocast(device, torch.bfloat16) if options.bfloat16 else contextlib.nullcontext()

    def step() -> float:
        started = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with cast:
            loss = torch.nn.functional.cross_entropy(forward(images), labels)
        loss.backward()
        optimizer.step()
        loss.item()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    step()
    found = {
        "parameters": sum(leaf.numel() for leaf in trained),
        "first_step_seconds": time.perf_counter() - begun,
        "process_mebibytes": peak_mebibytes(),
    }
    reset_peak()
    found["seconds"] = [step() for _ in range(1 + options.steps)][1:]
    found["steps_mebibytes"] = peak_mebibytes()
    if device == "cuda":
        found["device_mebibytes"] = torch.cuda.max_memory_allocated() / 2**20
    print(json.dumps(found))


def set_trained(model: torch.nn.Module, network: str, plan: str) -> None:
    """What does not train has no gradient and runs as in evaluation."""
    model.train()
    if plan == "full":
        return
    beginnings = TRAINED[network][plan == "probe"]
    for name, leaf in model.named_parameters():
        leaf.requires_grad_(name.startswith(beginnings))
    for name, module in model.named_modules():
        is_leaf = not list(module.children())
        if is_leaf and not f"{name}.".startswith(beginnings):
            module.eval()


def peak_mebibytes() -> float:
    """The most resident memory so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmHWM:"))


def reset_peak() -> None:
    """The peak counts from here on."""
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    main()
