"""MNIST from few labels: what each source and each way to use it reaches, over several seeds.

    python3 -m benchmarks.mnist_few_shot MNIST CIFAR_RESNET20_FILE [--glyphs checkpoints/glyphs]

MNIST is the folder of the four idx files, the other a file of weights of the ResNet-20 that
https://github.com/akamaster/pytorch_resnet_cifar10 trained on CIFAR-10. Sources are this network,
the embedded one that was trained on drawn characters, and for both the same network with random
weights. For each number of labels a class, and each source and way, the learning rate (for the
probe its regulariser) is the one with the highest accuracy on as many other labelled images as were
drawn to train on. Then the seeds draw training images anew, the same ones for all rows. The test
images are 2,000 of the 10,000, 200 a class, or with `--all` all of them.

Prints Markdown, writes JSON. Expected: about twenty minutes on two cores; with `--quick` two.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import jaxtransfer as jt
from benchmarks.markdown import head, line
from benchmarks.mnist import DIGITS, read_mnist
from jaxtransfer.evaluate.arms import reinitialise
from jaxtransfer.evaluate.environment import environment
from jaxtransfer.evaluate.metrics import accuracy, mean_interval

# The learning rates that each way may choose from.
RATES = {"full": (1e-3, 3e-3, 1e-2), "lp_ft": (3e-3, 1e-2, 3e-2)}
SCRATCH = "random weights"
SEARCH_SEED = 1000
TEST_PER_CLASS = 200
HEADER = (
    "labels a class",
    "network",
    "weights",
    "way",
    "accuracy, %",
    "95 % interval",
    "against random weights",
    "chosen",
)


@dataclass(frozen=True)
class Source:
    """A network to begin with.

    Attributes:
        network: its name in the table.
        weights: where they come from.
        model: the network with them.
        ways: what is done with it.
    """

    network: str
    weights: str
    model: jt.Model
    ways: tuple[str, ...] = ("probe", "lp_ft", "full")

    def start(self, seed: int) -> jt.Model:
        """The network with a new head; of random weights, those of the seed."""
        if self.weights != SCRATCH:
            return jt.replace_head(self.model, classes=DIGITS, reuse=False, key=seed)
        return jt.replace_head(reinitialise(self.model, seed), classes=DIGITS, key=seed)


@dataclass(frozen=True)
class Draw:
    """Labelled images to train on and others of the same number to choose by."""

    train: jt.ArrayData
    other: jt.ArrayData


def main() -> None:
    """Search, train, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mnist", type=Path)
    parser.add_argument("cifar_resnet20", type=Path)
    parser.add_argument("--glyphs", default="checkpoints/glyphs")
    parser.add_argument("--per-class", type=int, nargs="+", default=[1, 5, 10, 25])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--all", action="store_true", help="test on all 10,000 images")
    parser.add_argument(
        "--quick", action="store_true", help="two seeds, 5 labels, 20 steps, one rate, 300 images"
    )
    parser.add_argument("--out", type=Path, default=Path("mnist_few_shot.json"))
    options = parser.parse_args()
    if options.quick:
        options.per_class, options.seeds, options.steps = [5], 2, 20
    train, test = read_mnist(options.mnist)
    if not options.all:
        count = 30 if options.quick else TEST_PER_CLASS
        test = test.take(jt.few_shot(test.labels, count, seed=0))
    rates = {way: found[1:2] if options.quick else found for way, found in RATES.items()}
    rows: list[dict[str, Any]] = []
    print(head(HEADER))
    for per_class in options.per_class:
        for row in study(
            sources(options.cifar_resnet20, options.glyphs),
            train,
            test,
            per_class,
            range(options.seeds),
            options.steps,
            rates,
        ):
            rows.append(row)
            print(line(_cells(row)), flush=True)  # a row takes a minute
            found = {
                "environment": environment(),
                "steps": options.steps,
                "test_images": len(test),
                "rows": rows,
            }
            options.out.write_text(json.dumps(found, indent=2) + "\n")


def markdown(found: dict[str, Any]) -> str:
    """The table of a JSON file."""
    rows = [line(_cells(row)) for row in found["rows"]]
    return "\n".join([head(HEADER), *rows])


def sources(cifar_resnet20: Path, glyphs: str) -> tuple[Source, ...]:
    """The networks, each with random weights first, which its other rows are compared with."""
    networks = (
        ("ResNet-20", "CIFAR-10", jt.load("cifar_resnet20", cifar_resnet20)),
        ("glyph ResNet-8", "drawn characters", jt.load(glyphs)),
    )
    return tuple(
        source
        for network, weights, model in networks
        for source in (
            Source(network, SCRATCH, model, ("full",)),
            Source(network, weights, model),
        )
    )


def study(
    sources: Sequence[Source],
    data: jt.ArrayData,
    test: jt.ArrayData,
    per_class: int,
    seeds: Sequence[int],
    steps: int,
    rates: dict[str, tuple[float, ...]],
) -> Any:
    """A row for each source and way, for one number of labels."""
    scratch: list[float] = []
    search = draw(data, per_class, SEARCH_SEED)
    draws = [draw(data, per_class, seed) for seed in seeds]
    for source in sources:
        for way in source.ways:
            begun = time.perf_counter()
            if way == "probe":
                chosen, tried, scores = _probes(source, search, draws, test)
            else:
                chosen, tried, scores = _tuned(source, way, search, draws, test, steps, rates[way])
            scratch = scores if source.weights == SCRATCH else scratch
            yield {
                "per_class": per_class,
                "network": source.network,
                "weights": source.weights,
                "way": way,
                "chosen": chosen,
                "tried": tried,
                "accuracies": scores,
                "interval": mean_interval(scores).to_dict(),
                "versus_scratch": None
                if source.weights == SCRATCH
                else mean_interval(np.subtract(scores, scratch).tolist()).to_dict(),
                "seconds": time.perf_counter() - begun,
            }


def draw(data: jt.ArrayData, per_class: int, seed: int) -> Draw:
    """Two parts without a common image, `per_class` of each class in both."""
    both = data.take(jt.few_shot(data.labels, 2 * per_class, seed))
    first, second = jt.stratified_split(both.labels, (0.5, 0.5), seed)
    return Draw(both.take(first), both.take(second))


def _tuned(
    source: Source,
    way: str,
    search: Draw,
    draws: Sequence[Draw],
    test: jt.ArrayData,
    steps: int,
    rates: Sequence[float],
) -> tuple[float, list[tuple[float, float]], list[float]]:
    """The chosen learning rate, all that were tried, and the test accuracy for each draw."""

    def run(train: jt.ArrayData, judge: jt.ArrayData, rate: float, seed: int) -> float:
        start = source.start(seed)
        options: dict[str, Any] = {"plan": way, "steps": steps, "batch_size": 32, "seed": seed}
        result = jt.finetune(start, train, learning_rate=rate, progress=False, **options)
        return accuracy(jt.predict(result.model, judge), judge.labels)

    tried = [(rate, run(search.train, search.other, rate, SEARCH_SEED)) for rate in rates]
    chosen = max(tried, key=lambda one: one[1])[0]
    scores = [run(one.train, test, chosen, seed) for seed, one in enumerate(draws)]
    return chosen, tried, scores


def _probes(
    source: Source, search: Draw, draws: Sequence[Draw], test: jt.ArrayData
) -> tuple[float, list[tuple[float, float]], list[float]]:
    """The same for a logistic probe, whose features are computed once; chosen is its l2."""

    def seen(data: jt.ArrayData) -> tuple[np.ndarray, np.ndarray]:
        return jt.features(source.model, data), data.labels

    found = jt.linear_probe(*seen(search.train), validation=seen(search.other))
    features, labels = seen(test)
    scores = [
        accuracy(jt.linear_probe(*seen(one.train), l2=found.l2).logits(features), labels)
        for one in draws
    ]
    return found.l2, list(found.path), scores


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    mean, low, high = (
        "" if value is None else f"{100 * value:.1f}" for value in row["interval"].values()
    )
    versus = "" if row["versus_scratch"] is None else _difference(row["versus_scratch"])
    return (
        str(row["per_class"]),
        row["network"],
        row["weights"],
        row["way"],
        mean,
        f"{low} to {high}",
        versus,
        f"{row['chosen']:.2g}",
    )


def _difference(found: dict[str, float | None]) -> str:
    mean, low, high = ("" if value is None else f"{100 * value:+.1f}" for value in found.values())
    return f"{mean} ({low} to {high})"


if __name__ == "__main__":
    main()
