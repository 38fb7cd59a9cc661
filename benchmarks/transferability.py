"""How far up a small network features transfer: MNIST's or CIFAR-10's classes in two halves.

    python3 -m benchmarks.transferability mnist FOLDER [--out transferability]
    python3 -m benchmarks.transferability cifar FOLDER [--out transferability]

The experiment of Yosinski et al. 2014 (arXiv 1411.1792) with a residual network of eight layers.
`mnist` is a folder with the four idx files of MNIST: A has the digits 0 to 4, B those from 5 to 9.
`cifar` is one with images of CIFAR-10 in sprites of one image a row, `cifar10_batch_*.png`, and
`labels.txt`; for each seed other classes make up A and B. Prints the table and what it says, and
writes `report.json` and `figure.png` to the folder `--out`. Expected: about six minutes on two
cores; `--quick` takes one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

import jaxtransfer as jt
from benchmarks.mnist import read_mnist

CIFAR_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
HALVES = ("01234", "56789")
# Examples of each class to train on and to test on. So few that networks differ.
SIZES = {"mnist": (60, 300), "cifar": (300, 80)}
WIDTHS = {"mnist": 8, "cifar": 16}

Parts = tuple[jt.ArrayData, jt.ArrayData]


def main() -> None:
    """Run the experiment, print its table, and write the report and the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", choices=SIZES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    parser.add_argument("--quick", action="store_true", help="one seed, and a third of the steps")
    parser.add_argument("--out", type=Path, default=Path("transferability"))
    options = parser.parse_args()
    seeds, steps = (1, options.steps // 3) if options.quick else (options.seeds, options.steps)
    target, source = tasks(options.data, options.folder)
    images = target[0].images
    model = jt.init(
        "cifar_resnet8",
        in_channels=images.shape[-1],
        input_size=images.shape[1:3],
        width=WIDTHS[options.data],
    )
    begun = time.perf_counter()
    found = jt.transferability_by_layer(
        model,
        target,
        source,
        settings=jt.Settings(steps=steps, batch_size=64, learning_rate=options.learning_rate),
        seeds=seeds,
        on_progress=lambda what, done, of: print(f"{done} of {of} steps: {what}", file=sys.stderr),
    )
    seconds = time.perf_counter() - begun
    print(found.table(), *found.readings(), f"{seconds:.0f} s", sep="\n")
    options.out.mkdir(parents=True, exist_ok=True)
    report = {**found.to_dict(), "data": options.data, "seconds": seconds}
    (options.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    jt.plot_transferability(found, options.out / "figure.png")


def tasks(name: str, folder: Path) -> tuple[Parts, Parts | None]:
    """B and A, or all classes and `None` where each seed divides them."""
    train, test = read_mnist(folder) if name == "mnist" else read_cifar(folder)
    if name == "cifar":
        return (train, test), None
    a, b = (
        (_few(_digits(train, half), SIZES[name][0]), _few(_digits(test, half), SIZES[name][1]))
        for half in HALVES
    )
    return b, a


def read_cifar(folder: Path) -> Parts:
    """The images of the sprites, divided into a training and a test part."""
    from PIL import Image

    sprites = [np.asarray(Image.open(path)) for path in sorted(folder.glob("cifar10_batch_*.png"))]
    images = np.concatenate(sprites).reshape(-1, 32, 32, 3)
    labels = np.loadtxt(folder / "labels.txt", dtype=np.int32, ndmin=1)
    data = jt.ArrayData(images, labels, CIFAR_CLASSES)
    test = jt.few_shot(labels, SIZES["cifar"][1], seed=0)
    rest = data.take(np.setdiff1d(np.arange(len(data)), test))
    return _few(rest, SIZES["cifar"][0]), data.take(test)


def _digits(data: jt.ArrayData, half: str) -> jt.ArrayData:
    first = int(half[0])
    kept = data.take(np.flatnonzero((data.labels >= first) & (data.labels <= int(half[-1]))))
    return jt.ArrayData(kept.images, kept.labels - first, tuple(half))


def _few(data: jt.ArrayData, per_class: int) -> jt.ArrayData:
    return data.take(jt.few_shot(data.labels, per_class, seed=0))


if __name__ == "__main__":
    main()
