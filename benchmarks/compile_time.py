"""How long the gradient of a Vision Transformer takes to compile, blocks in a loop or scanned.

    python3 -m benchmarks.compile_time [--network vit_b16] [--depths 6 12 24] [--pairs 3]

Expected: the loop's time grows with the depth, that of the scan does not: a ratio above 1 that
rises with the depth. Nothing is read from a compilation cache. Fresh processes take turns; medians
of lowering and compiling are printed, and their ratio.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

_ONE = """
import functools, time
import jax, jax.numpy as jnp
from jaxtransfer.models import build
model = build({network!r}, depth={depth}, scan={scan}, drop_path=0.0)
image = jax.ShapeDtypeStruct((8, *model.spec.input_size, 3), jnp.float32)
def loss(params, stats, images):
    return jnp.sum(model.apply(params, stats, images, train=True)[0] ** 2)
gradient = jax.jit(jax.grad(loss))
start = time.perf_counter()
lowered = gradient.lower(model.params, model.stats, image)
middle = time.perf_counter()
lowered.compile()
print(middle - start, time.perf_counter() - middle)
"""


def seconds(network: str, depth: int, scan: bool) -> tuple[float, float]:
    """How long lowering and compiling take in a fresh process."""
    code = _ONE.format(network=network, depth=depth, scan=scan)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lowering, compiling = map(float, run.stdout.split())
    return lowering, compiling


def main() -> None:
    """Take turns for each depth, and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="vit_b16")
    parser.add_argument("--depths", type=int, nargs="+", default=[6, 12, 24])
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    print("depth  blocks  lowering  compiling  both   ratio")
    for depth in options.depths:
        totals = {}
        runs = [
            (scan, seconds(options.network, depth, scan))
            for _ in range(options.pairs)
            for scan in (False, True)
        ]
        for scan in (False, True):
            times = [found for which, found in runs if which == scan]
            lowering, compiling = (statistics.median(column) for column in zip(*times, strict=True))
            totals[scan] = statistics.median(map(sum, times))
            ratio = f"{totals[False] / totals[True]:.2f}" if scan else ""
            name = "scan" if scan else "loop"
            columns = f"{lowering:8.2f}  {compiling:9.2f}  {totals[scan]:5.2f}  {ratio:>6}"
            print(f"{depth:5}  {name:6}  {columns}")


if __name__ == "__main__":
    main()
