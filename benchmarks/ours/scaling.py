"""Times training steps over all devices of the process, for several sizes of the batch.

    JAX_NUM_CPU_DEVICES=4 python3 -m benchmarks.ours.scaling --batch-sizes 4 8 16 32 64

ResNet-18 trains whole, by data parallelism. For each size that the devices divide it prints the
seconds of steps, and the memory of one device between arguments and results as the compiler has it.
"""

from __future__ import annotations

import argparse
import json
import time

import jax

import jaxtransfer as jt
from benchmarks.ours.training_step import CLASSES, random_batch


def main() -> None:
    """Measure each size of the batch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[4, 8, 16, 32, 64])
    parser.add_argument("--steps", type=int, default=5, help="that are timed, after the first two")
    options = parser.parse_args()
    devices = jax.device_count()
    size = (options.size, options.size)
    model = jt.init(options.network, num_classes=CLASSES, input_size=size)
    plan, sharding = jt.full(model), jt.Sharding()
    tx = plan.optimizer(1e-4)
    step = jt.make_train_step(model.apply, jt.cross_entropy(), tx, plan, sharding=sharding)
    rows = []
    for batch_size in options.batch_sizes:
        if batch_size % devices:
            continue
        state = sharding.place(jt.init_state(model, plan, tx))
        batch = sharding.put_batch(random_batch(batch_size, options.size))
        seconds = []
        for _ in range(2 + options.steps):
            begun = time.perf_counter()
            state, _ = jax.block_until_ready(step(state, batch))
            seconds.append(time.perf_counter() - begun)
        memory = step.lower(state, batch).compile().memory_analysis()
        mebibytes = memory.temp_size_in_bytes / 2**20
        rows.append({"batch_size": batch_size, "seconds": seconds[2:], "mebibytes": mebibytes})
    print(json.dumps({"devices": devices, "rows": rows}))


if __name__ == "__main__":
    main()
