"""How many images a second come from a folder of JPEGs as batches for a network.

    python3 -m benchmarks.input_pipeline [--pairs 5] [--images 300] [--torch PYTHON]

Expected: at least as many as torchvision's `ImageFolder` with a `DataLoader` of two workers gives,
on two cores, for images of 500x400 that become batches of 224x224.

Every run is a process of its own, with the files in the page cache; processes take turns. A run
reads one epoch to start its workers, then two that are timed; the stream goes on behind them, so
that as many batches are read ahead when the seconds end as when they begin. Both give the network's
input: torchvision resizes to 256, crops and normalises on the host; here the host resizes and cuts
to 256x256, and the jitted `preprocess_images` crops and normalises on the device, which is part of
the seconds. `--torch` names an interpreter that has PyTorch and torchvision, `--shim` a module that
it must import first; without one, that case is left out.
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

import numpy as np

BATCH_SIZE = 32

OURS = """
import functools, json, sys, time
import jax
import jaxtransfer as jt
from jaxtransfer.data import preprocess_images

def main():
    folder, batch_size = sys.argv[1], int(sys.argv[2])
    how = jt.Preprocess(
        size=(224, 224), channels=3, crop_fraction=0.875,
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
    )
    prepare = jax.jit(functools.partial(preprocess_images, how=how))
    loader = jt.Loader(jt.image_folder(folder).ready(how), batch_size)
    steps = len(loader.data) // batch_size
    with jt.prefetch_to_device(loader.batches(0)) as batches:
        for step in range(3 * steps):
            images = prepare(next(batches)["image"]).block_until_ready()
            assert images.shape == (batch_size, 224, 224, 3)
            if step == steps - 1:
                began = time.perf_counter()
        seconds = time.perf_counter() - began
    print(json.dumps({"rate": 2 * steps * batch_size / seconds, "workers": loader.choice[1]}))

if __name__ == "__main__":
    main()
"""

TORCHVISION = """
import json, sys, time
if len(sys.argv) > 3:
    __import__(sys.argv[3])
import torch
from torchvision import datasets, transforms

def main():
    folder, batch_size = sys.argv[1], int(sys.argv[2])
    transform = transforms.Compose([
        transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])
    data = datasets.ImageFolder(folder, transform)
    steps = len(data) // batch_size
    # One sampler for all epochs, so that the workers need not be started anew between them.
    order = torch.cat([torch.randperm(len(data)) for _ in range(5)]).tolist()
    batches = iter(torch.utils.data.DataLoader(data, batch_size, sampler=order, num_workers=2))
    for step in range(3 * steps):
        images, _ = next(batches)
        assert images.shape == (batch_size, 3, 224, 224)
        if step == steps - 1:
            began = time.perf_counter()
    seconds = time.perf_counter() - began
    print(json.dumps({"rate": 2 * steps * batch_size / seconds, "workers": "2 processes"}))

if __name__ == "__main__":
    main()
"""


def write_photos(folder: Path, count: int, seed: int = 0) -> None:
    """JPEGs of 500x400 in two classes: smooth colours with noise, of the size of photographs."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    for number in range(count):
        colours = Image.fromarray(rng.integers(0, 256, (10, 12, 3)).astype(np.uint8))
        smooth = np.asarray(colours.resize((500, 400), Image.Resampling.BICUBIC), np.float32)
        pixels = np.clip(smooth + rng.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)
        path = folder / f"class{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=85)


def run(python: str, code: str, arguments: Sequence[str]) -> dict[str, object]:
    """What a script prints, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "run.py"
        script.write_text(code)
        root = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [python, str(script), *arguments],
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure, and print the ratio first."""
    parser = argparse.ArgumentParser(description="Measure the input pipeline.")
    parser.add_argument("--pairs", type=int, default=5, help="runs of each")
    parser.add_argument("--images", type=int, default=300, help="files in the folder")
    parser.add_argument("--torch", metavar="PYTHON", help="an interpreter that has torchvision")
    parser.add_argument("--shim", metavar="MODULE", help="what that interpreter imports first")
    options = parser.parse_args()
    rates: dict[str, list[float]] = {"jaxtransfer": [], "torchvision": []}
    said: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder), options.images)
        arguments = [folder, str(BATCH_SIZE)]
        for _ in range(options.pairs):
            cases = [("jaxtransfer", sys.executable, OURS, arguments)]
            if options.torch:
                shim = [options.shim] if options.shim else []
                cases.append(("torchvision", options.torch, TORCHVISION, arguments + shim))
            for name, python, code, given in cases:
                result = run(python, code, given)
                rates[name].append(float(str(result["rate"])))
                said[name] = result["workers"]
    if options.torch:
        pairs = zip(rates["jaxtransfer"], rates["torchvision"], strict=True)
        ratios = sorted(ours / theirs for ours, theirs in pairs)
        print(
            f"jaxtransfer / torchvision: {statistics.median(ratios):.2f} "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f} of {len(ratios)} pairs)"
        )
    for name, values in rates.items():
        if values:
            middle, low, high = statistics.median(values), min(values), max(values)
            print(f"{name}: {middle:.0f} images/s ({low:.0f} to {high:.0f}); {said[name]}")


if __name__ == "__main__":
    main()
