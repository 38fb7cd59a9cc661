"""Is the embedded source worth having? Margins over scratch, seed by seed.

    python3 -m benchmarks.embedded_source [--source MODEL] [--seeds 5] [--out report.json]

Expected: about a minute for five seeds on two cores. At five labels a class, `lp_ft` should end at
least 8 points above `scratch`, and `probe` above `scratch`, on every seed.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np

import jaxtransfer as jt
from jaxtransfer.evaluate.curves import summarise_curve


def ends(comparison: jt.Comparison, arm: str) -> np.ndarray:
    """The asymptote of each seed's curve, in percent."""
    curves = comparison.arms[arm].curves
    return np.array([100 * summarise_curve(comparison.evaluated_at, c).asymptote for c in curves])


def main() -> None:
    """Compare, print a row a seed, and write the report if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", default="checkpoints/glyphs")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out")
    options = parser.parse_args()
    begun = time.perf_counter()
    comparison = jt.compare(options.source, seeds=options.seeds)
    seconds = time.perf_counter() - begun
    rows = {arm: ends(comparison, arm) for arm in ("scratch", "probe", "full", "lp_ft")}
    rows["probe - scratch"] = rows["probe"] - rows["scratch"]
    rows["lp_ft - scratch"] = rows["lp_ft"] - rows["scratch"]
    print(f"{'seed':16}" + "".join(f"{seed:7d}" for seed in comparison.seeds) + "   mean")
    for name, values in rows.items():
        print(f"{name:16}" + "".join(f"{v:7.1f}" for v in values) + f"{values.mean():7.1f}")
    print(f"{comparison.verdict}\n{seconds:.0f} s")
    if options.out:
        with open(options.out, "w", encoding="utf-8") as file:
            json.dump({**comparison.to_dict(), "seconds": seconds}, file, indent=2)


if __name__ == "__main__":
    main()
