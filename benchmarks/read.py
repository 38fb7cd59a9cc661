"""How fast weights come from a file to a device, and what memory that takes, beside other readers.

    python3 -m benchmarks.read [--pairs 7] [--megabytes 1000] [--torch PYTHON]

Expected: safetensors to the device in less time than the official NumPy reader with `device_put`,
with a peak below 1.1 times the file; a torch zip file into memory in no more time than
`torch.load(weights_only=True)`; on a mesh, a peak of one copy of the file whatever the layout.

Every run is a process of its own, with the file in the page cache; processes take turns. Seconds
begin when the libraries are imported and a device is there; the peak is the growth of resident
memory from then on. `--torch` names an interpreter that has PyTorch; without one, that case is left
out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

SETUP = """
import json, sys, time
path = sys.argv[1]

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

def start():
    global before, began
    open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
    before, began = peak(), time.perf_counter()

def stop(**more):
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "peak": peak() - before, **more}))
"""

WITH_JAX = (
    SETUP
    + """
import jax, numpy as np
jax.device_put(np.ones(3, np.float32)).block_until_ready()
"""
)

OURS = (
    WITH_JAX
    + """
import jaxtransfer as jt
jt.inspect_weights(path)  # what is imported when the first file is read
start()
tree = jax.block_until_ready(jt.place(jt.read_weights(path)))
stop()
"""
)

OFFICIAL = (
    WITH_JAX
    + """
from safetensors.numpy import load_file
start()
tree = jax.block_until_ready(jax.device_put(load_file(path)))
stop()
"""
)

ON_A_MESH = (
    WITH_JAX
    + """
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import jaxtransfer as jt
mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
jt.inspect_weights(path)
start()
spec = PartitionSpec("data", None) if sys.argv[2] == "rows" else PartitionSpec(None, "data")
tree = jax.block_until_ready(jt.place(jt.read_weights(path), NamedSharding(mesh, spec)))
held = dict.fromkeys(jax.devices(), 0)
for leaf in jax.tree.leaves(tree):
    for shard in leaf.addressable_shards:
        held[shard.device] += shard.data.nbytes
stop(largest=max(held.values()))
"""
)

TORCH = (
    SETUP
    + """
import torch
torch.zeros(3)
start()
flat = torch.load(path, weights_only=True)
stop()
"""
)

WRITE_TORCH = """
import sys, torch
torch.manual_seed(0)
rows = int(sys.argv[2]) * 2**20 // 4 // 16 // 1024
torch.save({f"layer{i}.weight": torch.randn(rows, 1024) for i in range(16)}, sys.argv[1])
"""


def measure(code: str, *arguments: str, python: str = sys.executable) -> dict[str, float]:
    """What one process prints."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
    run = subprocess.run(
        [python, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env=environment,
    )
    if run.returncode:
        raise SystemExit(run.stderr)
    return json.loads(run.stdout)


def compare(
    title: str, path: Path, pairs: int, ours: str, theirs: str, python: str, names: Sequence[str]
) -> None:
    """Take turns, and print ratios first."""
    size = path.stat().st_size
    measure(ours, str(path)), measure(theirs, str(path), python=python)  # page cache, bytecode
    runs = [
        (measure(ours, str(path)), measure(theirs, str(path), python=python)) for _ in range(pairs)
    ]
    seconds = [[run[side]["seconds"] for run in runs] for side in (0, 1)]
    medians = [statistics.median(times) for times in seconds]
    print(f"\n{title} ({size / 2**20:.0f} MiB, {pairs} pairs)")
    print(f"  speed {medians[1] / medians[0]:.2f}x that of {names[1]}")
    for name, times, side in zip(names, seconds, (0, 1), strict=True):
        peak = statistics.median(run[side]["peak"] for run in runs)
        spread = f"{min(times):.2f} to {max(times):.2f}"
        median = statistics.median(times)
        print(f"  {name:34} {median:.2f} s ({spread}), peak {peak / size:.2f}x the file")


def main() -> None:
    """Make the files, and run each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--torch", metavar="PYTHON", help="an interpreter that has PyTorch")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        _write_safetensors(path, options.megabytes)
        compare(
            "safetensors to a pytree on the device",
            path,
            options.pairs,
            OURS,
            OFFICIAL,
            sys.executable,
            ("place(read_weights)", "safetensors.numpy with device_put"),
        )
        print(f"\nsafetensors onto 8 devices ({options.pairs} runs)")
        for layout in ("rows", "columns"):
            runs = [measure(ON_A_MESH, str(path), layout) for _ in range(options.pairs)]
            seconds, peak, largest = (
                statistics.median(run[key] for run in runs)
                for key in ("seconds", "peak", "largest")
            )
            size = path.stat().st_size
            print(
                f"  split by {layout:8} {seconds:.2f} s, peak {peak / size:.2f}x the file, at most "
                f"{largest / size:.3f}x the file on one device"
            )
        path.unlink()
        if options.torch is None:
            print("\ntorch: left out, name an interpreter that has it with --torch")
            return
        path = Path(folder) / "weights.pt"
        subprocess.run(
            [options.torch, "-c", WRITE_TORCH, str(path), str(options.megabytes * 2 // 5)],
            check=True,
        )
        compare(
            "torch zip file to a pytree on the device (torch: into memory)",
            path,
            options.pairs,
            OURS,
            TORCH,
            options.torch,
            ("place(read_weights)", "torch.load(weights_only=True)"),
        )


def _write_safetensors(path: Path, megabytes: int) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    rows = megabytes * 2**20 // 4 // 16 // 1024
    random = np.random.default_rng(0)
    save_file(
        {
            f"layer{i}.weight": random.standard_normal((rows, 1024), dtype=np.float32)
            for i in range(16)
        },
        path,
    )


if __name__ == "__main__":
    main()
