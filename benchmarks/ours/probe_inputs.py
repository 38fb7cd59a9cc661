"""Writes the images, the labels and the order of the examples that both probes train on.

python3 -m benchmarks.ours.probe_inputs FOLDER --images 2000 --epochs 20 --batch-size 50
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from jaxtransfer.data import batch_indices

SIZE, CLASSES = 224, 2


def main() -> None:
    """Random images as uint8, those of the second class brighter."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=50)
    options = parser.parse_args()
    count, rng = options.images, np.random.default_rng(0)
    labels = np.arange(count) % CLASSES
    pixels = rng.integers(0, 200, (count, SIZE, SIZE, 3), dtype=np.uint8)
    pixels += (50 * labels).astype(np.uint8)[:, None, None, None]
    steps = options.epochs * count // options.batch_size
    order = [batch_indices(count, options.batch_size, step, 0) for step in range(steps)]
    for name, values in (
        ("images", pixels),
        ("labels", labels.astype(np.int64)),
        ("order", np.concatenate(order)),
    ):
        np.save(options.folder / f"{name}.npy", values)


if __name__ == "__main__":
    main()
