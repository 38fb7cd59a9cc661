"""Ants and bees from ImageNet weights and from random ones: what each way to train reaches.

    python3 -m benchmarks.ants_and_bees IMAGES SQUEEZENET_FILE MOBILENET_FILE

IMAGES has the folders `train/ants`, `train/bees`, `val/ants` and `val/bees`. For each network and
plan the learning rate is chosen by the accuracy on a fifth of the training images, which is not
trained on then; the runs that count train on all of them, over several seeds, and are measured on
`val` once, after their last step; where BatchNorm followed the data, its statistics are computed
anew on the training images first. `fitted` is `full` from a head that `jt.linear_probe` fitted to
the features of the images that are trained on, and leaves the source's statistics of BatchNorm as
they are. The same networks with random weights, all of which train, get the same search and the
same steps. Writes a JSON file and prints the table as Markdown. Expected: about an hour on two
cores, or half an hour where each network has a process and a core.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

import jaxtransfer as jt
from benchmarks.markdown import head, line
from benchmarks.starts import tested, with_fitted_head
from jaxtransfer.evaluate.arms import reinitialise
from jaxtransfer.evaluate.environment import environment
from jaxtransfer.evaluate.metrics import accuracy, mean_interval

NETWORKS = {"SqueezeNet 1.1": "squeezenet1_1", "MobileNet v1 0.25": "mobilenet_v1_025"}
# The learning rates that each plan may choose from; a new head takes higher ones than a network.
RATES = {
    "probe": (1e-2, 3e-2, 1e-1),
    "lp_ft": (1e-2, 3e-2, 1e-1),
    "full": (1e-4, 3e-4, 1e-3),
    "fitted": (1e-5, 3e-5, 1e-4),
    "scratch": (1e-3, 3e-3, 1e-2),
}
# Of `lp_ft` the head gets half of the steps: there are few. The network then trains at 3e-5, 1e-4
# or 3e-4.
HEAD_SHARE, NETWORK_SCALE = 0.5, 0.003
# A head that was fitted to features with the source's statistics needs them to stay.
FITTED = jt.Plan((jt.Group("**", stats="frozen"),), name="full")
SEARCH_SEED = 100
HEADER = ("network", "way", "accuracy, %", "95 % interval", "each seed", "learning rate")


def main() -> None:
    """Search, train and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("weights", type=Path, nargs=len(NETWORKS), metavar="WEIGHTS")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--plans", nargs="+", choices=RATES, default=list(RATES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--quick", action="store_true", help="two seeds, one epoch, two ways")
    parser.add_argument("--out", type=Path, default=Path("ants_and_bees.json"))
    options = parser.parse_args()
    if options.quick:
        options.plans, options.seeds, options.epochs = ["probe", "fitted"], 2, 1
    train = jt.image_folder(options.images, split="train")
    test = jt.image_folder(options.images, split="val")
    rows = []
    print(head(HEADER))
    for (title, name), file in zip(NETWORKS.items(), options.weights, strict=True):
        if title not in options.networks:
            continue
        source = jt.load(name, file, num_classes=2)
        for plan in options.plans:
            rows.append(
                {"network": title, **_arm(source, plan, train, test, options.seeds, options.epochs)}
            )
            print(_row(rows[-1]), flush=True)  # a run takes minutes
            found = {"environment": environment(), "epochs": options.epochs, "rows": rows}
            options.out.write_text(json.dumps(found, indent=2) + "\n")


def _arm(
    source: jt.Model, plan: str, train: Any, test: Any, seeds: int, epochs: float
) -> dict[str, Any]:
    begun = time.perf_counter()
    kept, held_out = jt.stratified_split(train.labels, (0.8, 0.2), seed=SEARCH_SEED)
    search = {
        rate: _run(source, plan, train.take(kept), train.take(held_out), rate, SEARCH_SEED, epochs)
        for rate in RATES[plan]
    }
    best = max(search, key=lambda rate: search[rate])
    scores = [_run(source, plan, train, test, best, seed, epochs) for seed in range(seeds)]
    return {
        "plan": plan,
        "learning_rate": best,
        "search": search,
        "accuracies": scores,
        "interval": mean_interval(scores),
        "seconds": time.perf_counter() - begun,
    }


def _run(
    source: jt.Model, plan: str, train: Any, test: Any, rate: float, seed: int, epochs: float
) -> float:
    start = _start(source, plan, train, seed)
    lp_ft = jt.lp_ft(start, HEAD_SHARE, NETWORK_SCALE)
    result = jt.finetune(
        start,
        train,
        plan={"probe": "probe", "lp_ft": lp_ft, "fitted": FITTED}.get(plan, "full"),
        epochs=epochs,
        batch_size=32,
        learning_rate=rate,
        clip_norm=1.0,
        augment=jt.augment.standard_augment(224),
        seed=seed,
    )
    if plan in ("probe", "fitted"):  # whose statistics are the source's
        return accuracy(jt.predict(result.model, test), np.asarray(test.labels))
    return tested(result.model, train, test)


def _start(source: jt.Model, plan: str, train: Any, seed: int) -> jt.Model:
    if plan == "fitted":
        return with_fitted_head(source, train, seed)
    start = reinitialise(source, seed) if plan == "scratch" else source
    return jt.replace_head(start, classes=train.classes, reuse=False, key=seed)


def markdown(found: dict[str, Any]) -> str:
    """The table of a JSON file."""
    return "\n".join([head(HEADER), *map(_row, found["rows"])])


def _row(row: dict[str, Any]) -> str:
    mean, low, high = (f"{100 * value:.1f}" for value in row["interval"])
    each = ", ".join(f"{100 * value:.1f}" for value in row["accuracies"])
    rate = f"{row['learning_rate']:g}"
    return line([row["network"], row["plan"], mean, f"{low} to {high}", each, rate])


if __name__ == "__main__":
    main()
