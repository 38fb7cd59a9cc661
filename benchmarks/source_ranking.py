"""Do scores find the source that fine-tuning would find? Real weights, three targets.

    python3 -m benchmarks.source_ranking DATA ANTS_AND_BEES [--quick] [--out source_ranking.json]

DATA has the folders `weights` and `datasets` with the files named below, ANTS_AND_BEES the folders
`train/ants`, `train/bees`, `val/ants` and `val/bees`. For each target `jt.rank` scores the sources
on 200 training images; then each source is fine-tuned on the same images: all of it trains, from a
head that `jt.linear_probe` fitted, in the same number of steps. The statistics of its BatchNorm are
computed anew on these images, and it is measured on up to 500 others. What is compared is the
order: weighted Kendall tau between each score and the accuracy after fine-tuning, 1 for the same
order.

Sources that were trained on CIFAR-10, of whose training images the CIFAR target is made, are left
out there. Expected: about 25 minutes on two cores; `--quick` runs a few steps of few sources.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import jaxtransfer as jt
from benchmarks.markdown import head, line
from benchmarks.mnist import read_mnist
from benchmarks.starts import tested, with_fitted_head
from jaxtransfer.evaluate.environment import environment
from jaxtransfer.ranking.table import agreement
from jaxtransfer.transfer.probing import with_random_weights
from jaxtransfer.transfer.ranking import SCORES

SQUEEZENET = "squeezenet_v1.1_keras_notop/squeezenet_weights_tf_dim_ordering_tf_kernels_notop.h5"
SOURCES = {
    "SqueezeNet 1.1": SQUEEZENET,
    "SqueezeNet 1.0": "squeezenet_v1.0_deepcompression/decoded_float32.npz",
    "MobileNet 0.25": "mobilenet_v1_0.25_224_keras_notop/mobilenet_2_5_224_tf_no_top.h5",
    "MobileNet wake words": "mlperf_tiny_keras/vww_96.h5",
    "ResNet-20": "cifar10_resnet/resnet20-12fca82f.th",
    "ResNet-32": "cifar10_resnet/resnet32-d509ac18.th",
    "ResNet-8": "mlperf_tiny_keras/pretrainedResnet.h5",
    "glyphs": "checkpoints/glyphs",
}
TRAINED_ON_CIFAR = ("ResNet-20", "ResNet-32", "ResNet-8")
QUICK = ("MobileNet wake words", "ResNet-8", "glyphs")
BASELINE = "random weights"

# For AdamW, among those that the benchmark of ants and bees chooses from.
LEARNING_RATE = 1e-4


def main() -> None:
    """Rank, fine-tune, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("ants_and_bees", type=Path)
    parser.add_argument("--quick", action="store_true", help="a few steps of few sources")
    parser.add_argument("--steps", type=int, default=50, help="of each run, of 16 images each")
    parser.add_argument("--out", type=Path, default=Path("source_ranking.json"))
    options = parser.parse_args()
    steps, sizes = (4, (40, 60)) if options.quick else (options.steps, (200, 500))
    targets = {
        "ants and bees": _ants_and_bees(options.ants_and_bees, *sizes),
        "MNIST": _mnist(options.data / "datasets/mnist", *sizes),
        "CIFAR-10": _cifar(options.data / "datasets/cifar10_lossless_4k", *sizes),
    }
    rows: dict[str, Any] = {}
    for target, (train, test) in targets.items():
        names = [name for name in SOURCES if not options.quick or name in QUICK]
        if target == "CIFAR-10":
            names = [name for name in names if name not in TRAINED_ON_CIFAR]
        sources = {name: _reference(options.data, name) for name in names}
        rows[target] = _compare(target, sources, train, test, steps, options.quick)
        print(_table(target, rows[target]), flush=True)
        found = {
            "environment": environment(),
            "steps": steps,
            "learning_rate": LEARNING_RATE,
            "targets": rows,
        }
        options.out.write_text(json.dumps(found, indent=2) + "\n")
    print(_summary(rows))


def _reference(data: Path, name: str) -> str:
    file = SOURCES[name]
    return file if file.startswith("checkpoints/") else str(data / "weights" / file)


def _compare(
    target: str, sources: Mapping[str, str], train: Any, test: Any, steps: int, quick: bool
) -> dict[str, Any]:
    """Scores, accuracies after fine-tuning, and how far their orders agree."""
    begun = time.perf_counter()
    ranking = jt.rank(sources, train, target=target, resamples=10 if quick else 100)
    ranked_in = time.perf_counter() - begun
    tuned: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for name in ranking.candidates:
        begun = time.perf_counter()
        if name == BASELINE:
            source = with_random_weights(jt.load(next(iter(sources.values()))), seed=0)
        else:
            source = jt.load(sources[name])
        tuned[name] = _finetune(source, train, test, steps)
        seconds[name] = time.perf_counter() - begun
    return {
        "ranking": ranking.to_dict(),
        "ranked_in_seconds": ranked_in,
        "accuracy": tuned,
        "finetune_seconds": seconds,
        "tau": {score: _tau(row, tuned) for score, row in ranking.scores.items()},
    }


def _finetune(source: jt.Model, train: Any, test: Any, steps: int) -> float:
    result = jt.finetune(
        with_fitted_head(source, train, seed=0),
        train,
        plan="full",
        steps=steps,
        batch_size=16,
        learning_rate=LEARNING_RATE,
        clip_norm=1.0,
        progress=False,
    )
    return tested(result.model, train, test)


def _tau(scores: Mapping[str, float | None], accuracies: Mapping[str, float]) -> float | None:
    pairs = [(s, accuracies[name]) for name, s in scores.items() if s is not None]
    return agreement([score for score, _ in pairs], [value for _, value in pairs])


# ---------------------------------------------------------------------------------------------
# The targets


def _ants_and_bees(folder: Path, train: int, test: int) -> tuple[Any, Any]:
    parts = jt.image_folder(folder, split="train"), jt.image_folder(folder, split="val")
    return _some(parts[0], train), _some(parts[1], test)


def _mnist(folder: Path, train: int, test: int) -> tuple[Any, Any]:
    parts = read_mnist(folder)
    return _some(parts[0], train), _some(parts[1], test)


def _cifar(folder: Path, train: int, test: int) -> tuple[Any, Any]:
    """The first 4,000 training images; a row of a sprite is one image."""
    from PIL import Image

    sprites = [np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))]
    images = np.concatenate(sprites).reshape(-1, 32, 32, 3)
    labels = np.array((folder / "labels.txt").read_text().split(), np.int32)
    data = jt.ArrayData(images, labels, tuple(map(str, range(10))))
    parts = jt.stratified_split(labels, (0.5, 0.5), seed=0)
    return _some(data.take(parts[0]), train), _some(data.take(parts[1]), test)


def _some(data: Any, count: int) -> Any:
    """So many examples, each class with its share; all where there are no more."""
    if len(data) <= count:
        return data
    share = count / len(data)
    return data.take(jt.stratified_split(np.asarray(data.labels), (share, 1 - share), seed=1)[0])


# ---------------------------------------------------------------------------------------------
# Markdown


def markdown(found: dict[str, Any]) -> str:
    """The tables of a JSON file: one a target, and what they come to."""
    tables = [_table(target, row) for target, row in found["targets"].items()]
    return "\n\n".join([*tables, _summary(found["targets"])])


def _table(target: str, row: Mapping[str, Any]) -> str:
    ranking, accuracies = row["ranking"], row["accuracy"]
    header = [target, "accuracy", *ranking["scores"]]
    lines = [head(header)]
    for name in sorted(ranking["candidates"], key=lambda name: -accuracies[name]):
        scores = [column[name] for column in ranking["scores"].values()]
        shown = ["-" if score is None else f"{score:.3g}" for score in scores]
        lines.append(line([name, f"{100 * accuracies[name]:.1f}", *shown]))
    lines.append(line(["tau", "", *map(_shown, row["tau"].values())]))
    spent = sum(row["finetune_seconds"].values())
    lines.append(f"\nRanked in {row['ranked_in_seconds']:.0f} s, fine-tuned in {spent:.0f} s.")
    return "\n".join(lines)


def _summary(rows: Mapping[str, Any]) -> str:
    """The mean tau of each score over the targets."""
    taus = [[row["tau"][score] for row in rows.values()] for score in SCORES]
    means = [None if None in each else float(np.mean(each)) for each in taus]
    return f"{head(['', *SCORES])}\n{line(['mean tau', *map(_shown, means)])}"


def _shown(tau: float | None) -> str:
    return "-" if tau is None else f"{tau:.2f}"


if __name__ == "__main__":
    main()
