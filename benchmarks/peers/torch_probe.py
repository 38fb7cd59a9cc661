"""Times the usual loop of PyTorch over a new head on a frozen ResNet-50.

    python3 benchmarks/peers/torch_probe.py FOLDER --epochs 20 --timed-epochs 1 --batch-size 50

The frozen network runs in evaluation mode, without gradients, on each batch of each epoch. One
epoch is like any other: a few are timed, and the seconds of all are those of these times their
number. With `--write` it writes weights to the folder, for others to begin with, and ends.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch
import torchvision

RATE = 0.01


def write_weights(folder: str) -> None:
    """Random weights; residual branches start small, so that features are of moderate size."""
    torch.manual_seed(0)
    model = torchvision.models.resnet50(num_classes=2)
    for name, leaf in model.named_parameters():
        if name.endswith("bn3.weight"):
            torch.nn.init.constant_(leaf, 0.2)
    torch.save(model.state_dict(), f"{folder}/resnet50.pth")


def main() -> None:
    """Train a head, and tell how long all epochs take."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--timed-epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=50)
    options = parser.parse_args()
    if options.write:
        write_weights(options.folder)
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images, labels, order = (
        np.load(f"{options.folder}/{name}.npy") for name in ("images", "labels", "order")
    )
    model = torchvision.models.resnet50(num_classes=2)
    model.load_state_dict(torch.load(f"{options.folder}/resnet50.pth"))
    model.to(device)
    head, model.fc = model.fc, torch.nn.Identity()
    model.requires_grad_(False).eval()
    mean = torch.tensor([0.485, 0.456, 0.406], device=device).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225], device=device).view(1, 3, 1, 1)
    optimizer = torch.optim.SGD(head.parameters(), lr=RATE, momentum=0.9)
    losses = []
    begun = time.perf_counter()
    for step in range(options.timed_epochs * len(images) // options.batch_size):
        chosen = order[step * options.batch_size : (step + 1) * options.batch_size]
        batch = torch.from_numpy(images[chosen]).to(device).permute(0, 3, 1, 2).float() / 255
        with torch.no_grad():
            features = model((batch - mean) / std)
        target = torch.from_numpy(labels[chosen]).to(device)
        loss = torch.nn.functional.cross_entropy(head(features), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    seconds = (time.perf_counter() - begun) * options.epochs / options.timed_epochs
    print(json.dumps({"seconds": seconds, "losses": losses}))


if __name__ == "__main__":
    main()
