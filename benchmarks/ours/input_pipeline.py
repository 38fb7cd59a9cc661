"""Counts how many images a second come from a folder of JPEGs as batches on the device.

    python3 -m benchmarks.ours.input_pipeline FOLDER

The host decodes, takes a part at random and resizes it to 224x224; the device mirrors half of them
and normalises. An epoch starts the workers, then two are timed; the stream
goes on behind them, so that as many batches are read ahead when the seconds end as when they begin.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import jaxtransfer as jt
from jaxtransfer.data import crop_when_read, preprocess_images

HOW = jt.Preprocess(
    size=(224, 224),
    channels=3,
    crop_fraction=0.875,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)


def main() -> None:
    """Read three epochs, and time the last two."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()
    data = jt.image_folder(options.folder).ready(HOW)
    crop, rest = crop_when_read(jt.augment.standard_augment(HOW.size), data)

    @jax.jit
    def prepare(key: jax.Array, batch: Any) -> jax.Array:
        """What a network gets: parts of images, some mirrored, and normalised."""
        floats = {**batch, "image": batch["image"].astype(jnp.float32) / 255}
        images = rest(key, floats)["image"]
        return preprocess_images(images, dataclasses.replace(HOW, crop_fraction=1.0))

    loader = jt.Loader(data, options.batch_size, crop=crop)
    steps = len(loader.data) // options.batch_size
    key, begun = jax.random.key(0), 0.0
    with jt.prefetch_to_device(loader.batches(0)) as batches:
        for step in range(3 * steps):
            images = prepare(jax.random.fold_in(key, step), next(batches)).block_until_ready()
            assert images.shape == (options.batch_size, *HOW.size, 3)
            if step == steps - 1:
                begun = time.perf_counter()
        seconds = time.perf_counter() - begun
    print(json.dumps({"rate": 2 * steps * options.batch_size / seconds}))


if __name__ == "__main__":
    main()
