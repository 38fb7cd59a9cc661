"""Writes a folder of JPEGs in two classes, of the size of photographs.

python3 -m benchmarks.ours.photos FOLDER 300
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image


def main() -> None:
    """Images of 500x400: smooth colours with noise."""
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    rng = np.random.default_rng(0)
    for number in range(count):
        colours = Image.fromarray(rng.integers(0, 256, (10, 12, 3)).astype(np.uint8))
        smooth = np.asarray(colours.resize((500, 400), Image.Resampling.BICUBIC), np.float32)
        pixels = np.clip(smooth + rng.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)
        path = folder / f"class{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=85)


if __name__ == "__main__":
    main()
