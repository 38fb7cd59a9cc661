"""Times training steps of a network of Keras on JAX.

    KERAS_BACKEND=jax python3 benchmarks/peers/keras_step.py resnet50 --batch-size 16 --steps 4

It needs Keras and JAX, and no package of this repository.
"""

from __future__ import annotations

import argparse
import json
import os
import time

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np

CLASSES = 10
NETWORKS = {
    "resnet50": "ResNet50",
    "vgg16": "VGG16",
    "mobilenet_v2": "MobileNetV2",
    "convnext_tiny": "ConvNeXtTiny",
}


def main() -> None:
    """Build, compile, time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=4, help="that are timed, after the first two")
    options = parser.parse_args()
    keras.utils.set_random_seed(0)
    begun = time.perf_counter()
    model = getattr(keras.applications, NETWORKS[options.network])(
        weights=None, classes=CLASSES, input_shape=(options.size, options.size, 3)
    )
    model.compile(
        keras.optimizers.AdamW(1e-4, weight_decay=0.01),
        keras.losses.SparseCategoricalCrossentropy(),
    )
    rng = np.random.default_rng(0)
    images = rng.standard_normal((options.batch_size, options.size, options.size, 3), np.float32)
    labels = rng.integers(0, CLASSES, options.batch_size)
    model.train_on_batch(images, labels)
    first = time.perf_counter() - begun
    seconds = []
    for _ in range(1 + options.steps):
        begun = time.perf_counter()
        float(model.train_on_batch(images, labels))
        seconds.append(time.perf_counter() - begun)
    print(json.dumps({"seconds": seconds[1:], "first_step_seconds": first}))


if __name__ == "__main__":
    main()
