"""How the time and the memory of a training step grow with the batch and the number of devices.

    python3 -m benchmarks.scaling --out FOLDER [--devices 1 2 4 8] [--rounds 3]

Each number of devices is a process of its own, and processes take turns. On a CPU the devices are
virtual and share its cores, so that more of them do not make a step faster: what is seen is what
dividing costs. `scaling.json` has the figures, `scaling.png` shows them. Expected: seconds and
memory linear in the batch beyond what parameters and optimizer take; the memory of an image divided
by the number of devices; with large batches, seconds within a fifth of those of one device.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.suite import Machine, Runner
from jaxtransfer.evaluate.environment import environment


def main() -> None:
    """Measure, write the figures, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the folder for both files")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[4, 8, 16, 32, 64])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    sizes = tuple(map(str, options.batch_sizes))
    runner = Runner("jaxtransfer", "scaling", ("--batch-sizes", *sizes))
    runs: dict[int, list[Any]] = {count: [] for count in options.devices}
    for turn in range(options.rounds):
        for count in options.devices:
            machine = Machine(environment={"JAX_NUM_CPU_DEVICES": str(count)})
            runs[count].append(machine.run(runner, {}))
            print(
                f"{turn + 1}/{options.rounds}, {count} devices: {told(runs[count][-1])}", flush=True
            )
    curves = [curve(count, found) for count, found in runs.items()]
    options.out.mkdir(parents=True, exist_ok=True)
    found = {"environment": environment(), "curves": curves}
    (options.out / "scaling.json").write_text(json.dumps(found, indent=2) + "\n")
    draw(curves, options.out / "scaling.png")


def told(run: dict[str, Any]) -> str:
    """The median step of each size of the batch, in a line."""
    return ", ".join(
        f"{row['batch_size']} images {statistics.median(row['seconds']):.2f} s"
        for row in run["rows"]
    )


def curve(devices: int, runs: list[Any]) -> dict[str, Any]:
    """Medians over runs for each size of the batch, and the straight lines through them."""
    sizes = [row["batch_size"] for row in runs[0]["rows"]]
    columns = list(zip(*(run["rows"] for run in runs), strict=True))
    seconds = [statistics.median(s for row in rows for s in row["seconds"]) for rows in columns]
    mebibytes = [rows[0]["mebibytes"] for rows in columns]
    per_image, fixed = np.polyfit(sizes, seconds, 1)
    memory_per_image, fixed_memory = np.polyfit(sizes, mebibytes, 1)
    return {
        "devices": devices,
        "batch_sizes": sizes,
        "seconds": seconds,
        "mebibytes": mebibytes,
        "seconds_per_image": float(per_image),
        "fixed_seconds": float(fixed),
        "mebibytes_per_image": float(memory_per_image),
        "fixed_mebibytes": float(fixed_memory),
    }


def draw(curves: list[dict[str, Any]], path: Path) -> None:
    """Seconds of a step, and memory of a device, over the size of the batch."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    kinds = (("seconds", "seconds of a step"), ("mebibytes", "MiB of one device"))
    for panel, (key, label) in zip(panels, kinds, strict=True):
        for found in curves:
            count = found["devices"]
            name = f"{count} device{'s' if count > 1 else ''}"
            panel.plot(found["batch_sizes"], found[key], marker="o", label=name)
        panel.set(xlabel="images in a batch", ylabel=label)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log", base=2)
        panel.yaxis.set_major_formatter("{x:g}")
        ticks = sorted({size for found in curves for size in found["batch_sizes"]})
        panel.set_xticks(ticks, list(map(str, ticks)), minor=False)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
