"""Measures what an option of a training step costs, as a ratio to the plain step.

    python3 -m benchmarks.ours.step_options clip_norm --network resnet50 --batch-size 16

Both programs are compiled first and then take turns, since a few per cent are less than what a
machine's speed changes by from one process to the next. It prints the seconds of both, the median
of their ratios in turns, and what the compiler says of the memory between arguments and results.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import jax

import jaxtransfer as jt
from benchmarks.ours.training_step import CLASSES, random_batch

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clip_norm": {"clip_norm": 1.0},
    "ema_decay": {"ema_decay": 0.999},
    "accumulate": {"accumulate": 2},
    "accumulate_4": {"accumulate": 4},
    "all": {"accumulate": 2, "ema_decay": 0.999, "clip_norm": 1.0},
    "remat": {"remat": "all"},
    "bfloat16": {"precision": jt.BFLOAT16},
}


class Program:
    """A compiled step with its state, and how long each of its calls took."""

    def __init__(self, model: jt.Model, batch: Any, how: dict[str, Any]) -> None:
        how = dict(how)
        plan = jt.full(model)
        tx = plan.optimizer(1e-4, clip_norm=how.pop("clip_norm", None))
        self.step = jt.make_train_step(
            model.apply, jt.cross_entropy(), tx, plan, stages=model.spec.stages, **how
        )
        precision = how.get("precision", jt.FLOAT32)
        self.state = jt.init_state(
            model, plan, tx, with_ema="ema_decay" in how, precision=precision
        )
        self.batch = batch
        self.run()
        self.run()
        self.seconds: list[float] = []

    def run(self) -> float:
        """Seconds of one step."""
        begun = time.perf_counter()
        self.state, metrics = self.step(self.state, self.batch)
        jax.block_until_ready((self.state, metrics))
        return time.perf_counter() - begun

    @property
    def mebibytes(self) -> float:
        """What lies between arguments and results, at the most."""
        compiled = self.step.lower(self.state, self.batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes / 2**20


def main() -> None:
    """Compile both, take turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("option", choices=OPTIONS)
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    size = (options.size, options.size)
    model = jt.init(options.network, num_classes=CLASSES, input_size=size)
    batch = jax.device_put(random_batch(options.batch_size, options.size))
    plain, other = (Program(model, batch, OPTIONS[name]) for name in ("plain", options.option))
    for number in range(options.rounds):
        turns = (plain, other) if number % 2 == 0 else (other, plain)
        for program in turns:
            program.seconds.append(program.run())
    ratios = [a / b for a, b in zip(other.seconds, plain.seconds, strict=True)]
    found = {
        "overhead": statistics.median(ratios),
        "seconds": other.seconds,
        "plain_seconds": plain.seconds,
        "mebibytes": other.mebibytes,
        "plain_mebibytes": plain.mebibytes,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
