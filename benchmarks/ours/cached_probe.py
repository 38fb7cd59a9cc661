"""Times `jt.finetune(…, plan="probe")` of a ResNet-50, images in, trained head out.

    python3 -m benchmarks.ours.cached_probe FOLDER --epochs 20 --batch-size 50

The frozen part is computed once. All of it is timed, compilation too, but for starting Python,
reading files and building the network. The weights are those that the peer wrote, where it did.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path

import numpy as np

import jaxtransfer as jt

RATE = 0.01


def main() -> None:
    """Train a head for as many epochs as are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=50)
    options = parser.parse_args()
    images, labels = (np.load(options.folder / f"{name}.npy") for name in ("images", "labels"))
    file = options.folder / "resnet50.pth"
    model = jt.load("resnet50", file) if file.exists() else jt.init("resnet50", num_classes=2)
    model = dataclasses.replace(
        model,
        preprocess=jt.Preprocess(
            size=images.shape[1:3],
            channels=3,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        ),
    )
    begun = time.perf_counter()
    result = jt.finetune(
        model,
        (images, labels),
        plan="probe",
        steps=options.epochs * len(images) // options.batch_size,
        batch_size=options.batch_size,
        learning_rate=RATE,
        optimizer="sgd",
        weight_decay=0.0,
        schedule=lambda steps: lambda step: 1.0,
        progress=False,
    )
    seconds = time.perf_counter() - begun
    losses = [float(record["loss"]) for record in result.history]
    print(json.dumps({"seconds": seconds, "losses": losses}))


if __name__ == "__main__":
    main()
