"""Asks the compiler how much memory a step of a probe needs, for networks of more and more blocks.

    python3 -m benchmarks.ours.probe_memory --depths 3 6 12 24

Vision Transformers of 64 features with random weights, of which the head alone trains. It prints
the memory between arguments and results for each depth, the same for the step that trains all, and
the ratios of the deepest to the shallowest.
"""

from __future__ import annotations

import argparse
import json

import jax

import jaxtransfer as jt
from benchmarks.ours.training_step import CLASSES, random_batch

SIZE = 64


def mebibytes(model: jt.Model, plan: jt.Plan, batch_size: int) -> float:
    """What lies between arguments and results of a compiled step, at the most."""
    tx = plan.optimizer(1e-3)
    step = jt.make_train_step(model.apply, jt.cross_entropy(), tx, plan)
    batch = jax.device_put(random_batch(batch_size, SIZE))
    compiled = step.lower(jt.init_state(model, plan, tx), batch).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 2**20


def main() -> None:
    """Compile the steps of all depths."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depths", type=int, nargs="+", default=[3, 6, 12, 24])
    parser.add_argument("--batch-size", type=int, default=16)
    options = parser.parse_args()
    found: dict[str, list[float]] = {"probe_mebibytes": [], "full_mebibytes": []}
    for depth in options.depths:
        model = jt.init(
            "vit_ti16",
            depth=depth,
            width=64,
            heads=4,
            patch=8,
            input_size=(SIZE, SIZE),
            num_classes=CLASSES,
        )
        for name, plan in (("probe", jt.probe(model)), ("full", jt.full(model))):
            found[f"{name}_mebibytes"].append(mebibytes(model, plan, options.batch_size))
    growth = {
        f"{name}_growth": found[f"{name}_mebibytes"][-1] / found[f"{name}_mebibytes"][0]
        for name in ("probe", "full")
    }
    print(json.dumps({"depths": options.depths, **found, **growth}))


if __name__ == "__main__":
    main()
