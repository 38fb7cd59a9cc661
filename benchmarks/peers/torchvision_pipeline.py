"""Counts how many images a second torchvision reads from a folder of JPEGs as augmented batches.

    python3 benchmarks/peers/torchvision_pipeline.py FOLDER [--workers 2]

An epoch starts the workers, then two are timed; the loader goes on behind them.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from torchvision import datasets, transforms


def main() -> None:
    """Read three epochs, and time the last two."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(224),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    data = datasets.ImageFolder(options.folder, transform)
    steps = len(data) // options.batch_size
    # One sampler for all epochs, so that the workers need not be started anew between them.
    order = torch.cat([torch.randperm(len(data)) for _ in range(5)]).tolist()
    loader = torch.utils.data.DataLoader(
        data, options.batch_size, sampler=order, num_workers=options.workers
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batches, begun = iter(loader), 0.0
    for step in range(3 * steps):
        images = next(batches)[0].to(device)
        assert images.shape == (options.batch_size, 3, 224, 224)
        if step == steps - 1:
            begun = time.perf_counter()
    seconds = time.perf_counter() - begun
    print(json.dumps({"rate": 2 * steps * options.batch_size / seconds}))


if __name__ == "__main__":
    main()
