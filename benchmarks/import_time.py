"""How long `import jaxtransfer` takes beside `import jax, flax.linen, optax`.

    python3 -m benchmarks.import_time [--pairs 7]

Expected: a ratio of 1.1 to 1.2. Fresh processes take turns; medians and their ratio are printed.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

OURS, BASE = "jaxtransfer", "jax, flax.linen, optax"


def seconds(modules: str) -> float:
    """How long the import takes in a fresh process, interpreter start-up left out."""
    code = f"import time; t = time.perf_counter(); import {modules}; print(time.perf_counter() - t)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(run.stdout)


def main() -> None:
    """Take turns, and print medians, range and ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=7)
    pairs = parser.parse_args().pairs
    seconds(BASE), seconds(OURS)  # bytecode and disk cache
    base, ours = zip(*[(seconds(BASE), seconds(OURS)) for _ in range(pairs)], strict=True)
    for name, times in ((BASE, base), (OURS, ours)):
        median, low, high = statistics.median(times), min(times), max(times)
        print(f"import {name:24} {median:.2f} s ({low:.2f} to {high:.2f})")
    print(f"ratio {statistics.median(ours) / statistics.median(base):.2f}")


if __name__ == "__main__":
    main()
