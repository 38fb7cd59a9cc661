"""How long a probe of a frozen ResNet-50 takes, images in, trained head out.

    python3 -m benchmarks.cached_probe [--torch PYTHON] [--torch-epochs 1 | --full] [--folder F]

Expected: `jt.finetune(model, data, plan="probe")`, which computes the frozen part once, in at most
a twelfth of the time of the usual loop of PyTorch, for 2,000 images of 224x224 and 20 epochs. That
loop runs the frozen network, in evaluation mode and under `no_grad`, on each batch of each epoch.

Both begin with the same weights, random ones that are written to a file and converted, with the
same head, the same images and the same order of examples, and train by SGD with a momentum of 0.9
at one rate, so that both should end with the same losses; the script prints them. Each is a process
of its own, and all of it is timed, from arrays of images in memory to the last step: compilation,
activations and steps. What is not timed: starting Python, reading files and building the networks.

An epoch of PyTorch is like any other. So by default it is timed over a few epochs, and the time of
all of them is that of one times their number: the line says so. `--full` times all of them. The
peer's interpreter is `--torch`, `--shim` a module that it imports first; without one, ours is timed
alone. `--folder` has images in `class/name.jpg`, repeated until there are enough; without one they
are random.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import jaxtransfer as jt

SIZE = 224
CLASSES = 2
RATE = 0.01

OURS = """
import dataclasses, json, os, sys, time
import numpy as np
import jaxtransfer as jt

def main():
    folder, batch_size, epochs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    images, labels = np.load(folder + "/images.npy"), np.load(folder + "/labels.npy")
    file = os.path.join(folder, "resnet50.pth")
    is_there = os.path.exists(file)
    model = jt.load("resnet50", file) if is_there else jt.init("resnet50", num_classes=2)
    model = dataclasses.replace(model, preprocess=jt.Preprocess(
        size=(224, 224), channels=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
    ))
    began = time.perf_counter()
    result = jt.finetune(
        model, (images, labels), plan="probe", steps=epochs * len(images) // batch_size,
        batch_size=batch_size, learning_rate=RATE, optimizer="sgd", weight_decay=0.0,
        schedule=lambda steps: lambda step: 1.0, progress=False,
    )
    seconds = time.perf_counter() - began
    losses = [record["loss"] for record in result.history]
    print(json.dumps({"seconds": seconds, "losses": losses, "said": str(result.cache[0])}))

if __name__ == "__main__":
    main()
"""

TORCH = """
import json, sys, time
if len(sys.argv) > 4:
    __import__(sys.argv[4])
import numpy as np
import torch
import torchvision

def main():
    folder, batch_size, epochs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    images, labels = np.load(folder + "/images.npy"), np.load(folder + "/labels.npy")
    order = np.load(folder + "/order.npy")
    model = torchvision.models.resnet50(num_classes=2)
    model.load_state_dict(torch.load(folder + "/resnet50.pth"))
    head, model.fc = model.fc, torch.nn.Identity()
    model.requires_grad_(False).eval()
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    optimizer = torch.optim.SGD(head.parameters(), lr=RATE, momentum=0.9)
    losses = []
    began = time.perf_counter()
    for step in range(epochs * len(images) // batch_size):
        chosen = order[step * batch_size : (step + 1) * batch_size]
        batch = torch.from_numpy(images[chosen]).permute(0, 3, 1, 2).float() / 255
        with torch.no_grad():
            features = model((batch - mean) / std)
        loss = torch.nn.functional.cross_entropy(head(features), torch.from_numpy(labels[chosen]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(json.dumps({"seconds": time.perf_counter() - began, "losses": losses}))

if __name__ == "__main__":
    main()
"""


# Residual branches start small, so that random features are of moderate size.
WEIGHTS = """
import sys
if len(sys.argv) > 2:
    __import__(sys.argv[2])
import torch, torchvision

torch.manual_seed(0)
model = torchvision.models.resnet50(num_classes=2)
for name, leaf in model.named_parameters():
    if name.endswith("bn3.weight"):
        torch.nn.init.constant_(leaf, 0.2)
torch.save(model.state_dict(), sys.argv[1] + "/resnet50.pth")
"""


def read_images(folder: Path | None, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of 224x224 as uint8, and their classes: of a folder, repeated, or random ones."""
    rng = np.random.default_rng(0)
    if folder is None:
        labels = np.arange(count) % CLASSES
        pixels = rng.integers(0, 200, (count, SIZE, SIZE, 3), dtype=np.uint8)
        return pixels + (50 * labels).astype(np.uint8)[:, None, None, None], labels.astype(np.int64)
    how = jt.Preprocess(size=(SIZE, SIZE), channels=3)
    data = jt.image_folder(folder)
    chosen = np.arange(count) % len(data)
    read = data.take(np.arange(min(count, len(data)))).ready(how)
    images = np.concatenate([read.read(np.array([i]))["image"] for i in range(len(read))])
    return images[chosen], np.asarray(data.labels)[chosen].astype(np.int64)


def write_inputs(
    folder: Path, source: Path | None, count: int, batch_size: int, epochs: int
) -> None:
    """Images, labels, the order of the examples, and weights in a file of PyTorch's names."""
    from jaxtransfer.data import batch_indices

    images, labels = read_images(source, count)
    steps = epochs * count // batch_size
    order = np.concatenate([batch_indices(count, batch_size, step, 0) for step in range(steps)])
    for name, values in (("images", images), ("labels", labels), ("order", order)):
        np.save(folder / f"{name}.npy", values)


def run(python: str, code: str, arguments: Sequence[str]) -> Any:
    """What a script prints last, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "run.py"
        script.write_text(code.replace("RATE", str(RATE)))
        root = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [python, str(script), *arguments],
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    lines = done.stdout.splitlines()
    return json.loads(lines[-1]) if lines else None


def main() -> None:
    """Measure, and print the ratio first."""
    parser = argparse.ArgumentParser(description="Measure the probe of a frozen network.")
    parser.add_argument("--images", type=int, default=2000, help="how many there are")
    parser.add_argument("--epochs", type=int, default=20, help="passes over them")
    parser.add_argument("--batch-size", type=int, default=50, help="images a step")
    parser.add_argument("--folder", type=Path, help="images in class/name.jpg, of two classes")
    parser.add_argument("--torch", metavar="PYTHON", help="an interpreter that has torchvision")
    parser.add_argument("--shim", metavar="MODULE", help="what that interpreter imports first")
    parser.add_argument("--torch-epochs", type=int, default=1, help="epochs that it is timed over")
    parser.add_argument("--full", action="store_true", help="time all epochs of it")
    options = parser.parse_args()
    count, epochs, batch_size = options.images, options.epochs, options.batch_size
    timed = epochs if options.full else min(options.torch_epochs, epochs)
    shim = [options.shim] if options.shim else []
    theirs = None
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder), options.folder, count, batch_size, epochs)
        if options.torch:
            run(options.torch, WEIGHTS, [folder, *shim])
        ours = run(sys.executable, OURS, [folder, str(batch_size), str(epochs)])
        if options.torch:
            theirs = run(options.torch, TORCH, [folder, str(batch_size), str(timed), *shim])
    if theirs is not None:
        whole = theirs["seconds"] / timed * epochs
        print(f"PyTorch / jaxtransfer: {whole / ours['seconds']:.1f} times as long")
    print(
        f"jaxtransfer: {ours['seconds']:.1f} s for {epochs} epochs of {count} images "
        f"({ours['said']})"
    )
    if theirs is None:
        return
    if timed < epochs:
        print(
            f"PyTorch: {theirs['seconds'] / timed:.1f} s an epoch, measured over {timed} of "
            f"{epochs}; all of them would take {whole:.1f} s"
        )
    else:
        print(f"PyTorch: {whole:.1f} s for {epochs} epochs")
    pairs = list(zip(ours["losses"], theirs["losses"], strict=False))
    worst = max(abs(a - b) / max(abs(b), 1e-6) for a, b in pairs)
    print(
        f"losses of the {len(pairs)} steps that both took differ by at most {worst:.1e} of theirs"
    )


if __name__ == "__main__":
    main()
