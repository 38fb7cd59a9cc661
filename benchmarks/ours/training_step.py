"""Times training steps of a network of the zoo, and measures their memory.

    python3 -m benchmarks.ours.training_step resnet50 --plan full --batch-size 16 --steps 4

Random weights, random images, AdamW. It prints the seconds of each step after the first two, and of
all until the first has ended; the most memory of the process until then, and while steps run; and
what the compiler says of memory and operations.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import jax
import numpy as np

import jaxtransfer as jt
from benchmarks.measured import peak_mebibytes, reset_peak

CLASSES = 10
LAST_STAGE = {
    "resnet50": "layer4",
    "vgg16": "stage5",
    "mobilenet_v2": "layer7",
    "convnext_tiny": "stage4",
    "vit_b16": "block11",
}


def plan_of(model: jt.Model, network: str, name: str) -> jt.Plan:
    """What trains: "full", "last_stage" or "probe"."""
    if name == "last_stage":
        return jt.freeze_until(model, LAST_STAGE[network])
    return {"full": jt.full, "probe": jt.probe}[name](model)


def main() -> None:
    """Build, compile, time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=LAST_STAGE)
    parser.add_argument("--plan", default="full", choices=("full", "last_stage", "probe"))
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=4, help="that are timed, after the first two")
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--compilation-cache", metavar="FOLDER")
    options = parser.parse_args()
    if options.compilation_cache:
        jt.compilation_cache(options.compilation_cache)
    begun = time.perf_counter()
    model = jt.init(options.network, num_classes=CLASSES, input_size=(options.size, options.size))
    plan = plan_of(model, options.network, options.plan)
    tx = plan.optimizer(1e-4)
    precision = jt.BFLOAT16 if options.bfloat16 else jt.FLOAT32
    step = jt.make_train_step(model.apply, jt.cross_entropy(), tx, plan, precision=precision)
    state = jt.init_state(model, plan, tx, precision=precision)
    del model  # the state has all that steps need
    batch = jax.device_put(random_batch(options.batch_size, options.size))
    found: dict[str, Any] = {
        "dtype": "bfloat16" if options.bfloat16 else "float32",
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.trainable)),
    }
    state, metrics = jax.block_until_ready(step(state, batch))
    found["first_step_seconds"] = time.perf_counter() - begun
    found["process_mebibytes"] = peak_mebibytes()
    reset_peak()
    seconds = []
    for _ in range(1 + options.steps):
        begun = time.perf_counter()
        state, metrics = jax.block_until_ready(step(state, batch))
        seconds.append(time.perf_counter() - begun)
    found["seconds"] = seconds[1:]
    found["steps_mebibytes"] = peak_mebibytes()
    found["loss"] = float(metrics["loss"])
    found |= _analysed(step.lower(state, batch).compile())
    of_device = jax.devices()[0].memory_stats()
    if of_device is not None:  # a CPU tells nothing
        found["device_mebibytes"] = of_device["peak_bytes_in_use"] / 2**20
    print(json.dumps(found))


def random_batch(batch_size: int, size: int) -> dict[str, np.ndarray]:
    """Images and labels at random, always the same."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch_size, size, size, 3), np.float32)
    return {"image": images, "label": rng.integers(0, CLASSES, batch_size).astype(np.int32)}


def _analysed(compiled: Any) -> dict[str, float]:
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes
    kept += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    return {
        "compiler_mebibytes": kept / 2**20,
        "gigaflop": cost.get("flops", 0.0) / 1e9,
        "gigabytes": cost.get("bytes accessed", 0.0) / 1e9,
    }


if __name__ == "__main__":
    main()
