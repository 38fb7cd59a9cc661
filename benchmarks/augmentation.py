"""How many images a second each augmentation takes, against a forward pass of ResNet-18.

    python3 -m benchmarks.augmentation [--batch 32] [--rounds 7] [--only RandAugment]

Images are 256 pixels wide, cut to 224 where an augmentation cuts. All programs take turns, so that
a busy machine slows all alike; medians are printed, and the time as a share of the forward pass.
Expected: `standard_augment` well under a fifth of it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtransfer.data import augment
from jaxtransfer.models import init

CLASSES = 1000
AUGMENTS: dict[str, augment.Augment] = {
    "RandomResizedCrop": augment.RandomResizedCrop(224),
    "RandomResizedCrop bicubic": augment.RandomResizedCrop(224, interpolation="bicubic"),
    "RandomCrop": augment.RandomCrop(224),
    "HorizontalFlip": augment.HorizontalFlip(),
    "VerticalFlip": augment.VerticalFlip(),
    "RandomRotation": augment.RandomRotation(30.0),
    "RandomAffine": augment.RandomAffine(30.0, (0.1, 0.1), (0.8, 1.2), 10.0),
    "ColorJitter without hue": augment.ColorJitter(0.4, 0.4, 0.4),
    "ColorJitter": augment.ColorJitter(0.4, 0.4, 0.4, 0.1),
    "RandomGrayscale": augment.RandomGrayscale(),
    "RandAugment": augment.RandAugment(),
    "trivial_augment": augment.trivial_augment(),
    "RandomErasing": augment.RandomErasing(),
    "MixUp": augment.MixUp(0.2, CLASSES),
    "CutMix": augment.CutMix(1.0, CLASSES),
    "MixUpOrCutMix": augment.MixUpOrCutMix(CLASSES),
    "standard_augment": augment.standard_augment(224),
    "strong_augment": augment.strong_augment(224, CLASSES),
    **{
        f"  {row.name}": augment.RandAugment(num_ops=1, operations=(row,))
        for row in augment.RAND_AUGMENT_INCREASING
    },
}


def programs(batch: int, only: str) -> dict[str, Callable[[], Any]]:
    """For each name a compiled program with its arguments, the forward pass first."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (batch, 256, 256, 3)).astype(np.float32) / 255
    examples = {
        "image": jnp.asarray(pixels),
        "label": jnp.asarray(rng.integers(0, CLASSES, batch), jnp.int32),
    }
    key = jax.random.key(0)
    network = init("resnet18")

    @jax.jit
    def forward(images: jax.Array) -> jax.Array:
        return network.apply(network.params, network.stats, images, train=False)[0]

    inputs = examples["image"][:, :224, :224]
    found: dict[str, Callable[[], Any]] = {"forward pass of ResNet-18": lambda: forward(inputs)}
    for name, step in AUGMENTS.items():
        if only in name:
            small = {**examples, "image": inputs}
            given = examples if "Crop" in name or "_augment" in name else small
            jitted = jax.jit(step)
            found[name] = lambda jitted=jitted, given=given: jitted(key, given)
    return found


def main() -> None:
    """Compile all, take turns, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="a part of the names of those that run")
    options = parser.parse_args()
    runs = programs(options.batch, options.only)
    for run in runs.values():
        jax.block_until_ready(run())
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    whole = next(iter(medians.values()))
    print(f"{'':28}{'images/s':>10}{'ms':>9}{'share of the forward pass':>28}")
    for name, median in medians.items():
        share = f"{median / whole:.1%}"
        print(f"{name:28}{options.batch / median:10.0f}{median * 1e3:9.1f}{share:>28}")


if __name__ == "__main__":
    main()
