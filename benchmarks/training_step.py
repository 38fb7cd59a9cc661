"""What each option of a training step costs, against the plain step, in time and in memory.

    python3 -m benchmarks.training_step [--network resnet18] [--size 128] [--batch-size 32]
        [--rounds 7] [--only clip] [--out FILE]

Every step trains the whole network by AdamW in float32. The plain step leaves out what is not
finite; the others add one option each, and one adds micro-batches, moving average and clipping
together. All programs are compiled first and then take turns, so that a busy machine slows all
alike; the table has the median of the ratios to the plain step of the same round, their spread, and
what the compiler says of memory. With more than one device the batch and the parameters are also
spread over them. Expected: clipping and the moving average within 5 % of the plain step,
micro-batches within 5 % where each of them still fills the machine, rematerialisation up to a third
more (a second forward pass), bfloat16 faster where the hardware has it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxtransfer as jt
from jaxtransfer.evaluate.environment import environment

PLAIN = "plain"
OPTIONS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "clip_norm": {"clip_norm": 1.0},
    "ema_decay": {"ema_decay": 0.999},
    "accumulate 2": {"accumulate": 2},
    "accumulate 4": {"accumulate": 4},
    "accumulate 4, ema_decay, clip_norm": {"accumulate": 4, "ema_decay": 0.999, "clip_norm": 1.0},
    "remat": {"remat": "all"},
    "bfloat16": {"precision": jt.BFLOAT16},
    "float16": {"precision": jt.FLOAT16},
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "data": {},
    "fsdp": {"fsdp": jax.device_count()},
}


class Case:
    """A compiled step, its state, and how long each of its calls took."""

    def __init__(
        self, model: jt.Model, batch: Any, how: dict[str, Any], layout: dict[str, Any] | None
    ) -> None:
        how = dict(how)
        plan = jt.full(model)
        tx = plan.optimizer(1e-4, clip_norm=how.pop("clip_norm", None))
        sharding = None if layout is None else jt.Sharding(**layout)
        step = jt.make_train_step(
            model.apply,
            jt.cross_entropy(),
            tx,
            plan,
            stages=model.spec.stages,
            sharding=sharding,
            **how,
        )
        precision = how.get("precision", jt.FLOAT32)
        state = jt.init_state(model, plan, tx, with_ema="ema_decay" in how, precision=precision)
        self.state = state if sharding is None else sharding.place(state)
        self.batch = jax.device_put(batch) if sharding is None else sharding.put_batch(batch)
        begun = time.perf_counter()
        self.memory = step.lower(self.state, self.batch).compile().memory_analysis()
        self.compile_seconds = time.perf_counter() - begun
        self.step = step
        self.run()  # the jitted call compiles for itself
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
        return self.memory.temp_size_in_bytes / 2**20


def main() -> None:
    """Compile all, take turns, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="options with this in their name, and plain")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    model = jt.init(options.network, input_size=(options.size, options.size))
    rng = np.random.default_rng(0)
    shape = (options.batch_size, *model.spec.input_size, model.spec.in_channels)
    batch = {
        "image": rng.normal(size=shape).astype(np.float32),
        "label": rng.integers(0, model.num_classes, options.batch_size).astype(np.int32),
    }
    asked = {name: (how, None) for name, how in OPTIONS.items()}
    if jax.device_count() > 1:
        asked |= {f"{name} over devices": ({}, layout) for name, layout in LAYOUTS.items()}
    cases = {
        name: Case(model, batch, how, layout)
        for name, (how, layout) in asked.items()
        if name == PLAIN or options.only in name
    }
    for _ in range(options.rounds):
        for case in cases.values():
            case.seconds.append(case.run())
    rows = [_row(name, case, cases[PLAIN]) for name, case in cases.items()]
    print("ratio  lowest highest  seconds  MiB between  option")
    for row in rows:
        print(
            f"{row['ratio']:5.2f}  {row['lowest']:6.2f}  {row['highest']:6.2f}  "
            f"{row['seconds']:7.3f}  {row['mebibytes']:11.0f}  {row['option']}"
        )
    if options.out is not None:
        asked_for = {key: value for key, value in vars(options).items() if key != "out"}
        found = {"environment": environment(), "options": asked_for, "rows": rows}
        options.out.write_text(json.dumps(found, indent=2) + "\n")


def _row(name: str, case: Case, plain: Case) -> dict[str, Any]:
    ratios = [mine / its for mine, its in zip(case.seconds, plain.seconds, strict=True)]
    return {
        "option": name,
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "seconds": statistics.median(case.seconds),
        "compile_seconds": case.compile_seconds,
        "mebibytes": case.mebibytes,
    }


if __name__ == "__main__":
    main()
