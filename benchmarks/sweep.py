"""How much longer 64 configurations of a head take than one, and than 64 of scikit-learn's.

    python3 -m benchmarks.sweep [--pairs 3] [--epochs 10] [--peer-fits 64] [--sizes 2000x512x10 …]

Features come as they are, so that nothing but heads is measured: N features of 512 numbers, of some
classes, with noise, a fifth as many again to compare by. A sweep tries 16 learning rates, two
decays and two label smoothings with one seed, on one device; the second case has 4 seeds instead,
each of which has batches of its own. Both run whole, and with successive halving by 4, by which the
best 16, 4 and 1 go on. One configuration is a sweep of one. Each is timed from the call to the
table: the first call with what is compiled, then calls that take turns. scikit-learn fits its
`LogisticRegression` (L-BFGS, at most 100 iterations) with 64 strengths of the penalty, one after
the other on the same features; where `--peer-fits` is lower, every n-th of them, and the seconds
are multiplied. Without scikit-learn that case is left out.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxtransfer as jt
from jaxtransfer.data import ArrayData

COUNT = 64
SIZES = ("2000x512x10", "10000x512x10", "2000x512x100")
GRIDS = {
    "one seed": {
        "lr": np.geomspace(1e-4, 1e-1, 16),
        "weight_decay": [0.0, 1e-2],
        "label_smoothing": [0.0, 0.1],
    },
    "four seeds": {
        "lr": np.geomspace(1e-4, 1e-1, 8),
        "weight_decay": [0.0, 1e-2],
        "seed": [0, 1, 2, 3],
    },
}
ONE = {"lr": [1e-2]}
HALVING = 4


def make_features(count: int, width: int, classes: int, seed: int = 0) -> tuple[Any, Any]:
    """Features to train on and to compare by, whose classes overlap."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, 0.16, (classes, width))
    labels = rng.integers(0, classes, count + count // 5).astype(np.int32)
    rows = (centres[labels] + rng.normal(size=(len(labels), width))).astype(np.float32)
    return (rows[:count], labels[:count]), (rows[count:], labels[count:])


def head_of(width: int, classes: int) -> jt.Model:
    """A model that is a head alone."""

    def apply(params: Any, inputs: Any) -> Any:
        return inputs @ params["head"]["kernel"] + params["head"]["bias"]

    kernel, bias = jnp.zeros((width, classes)), jnp.zeros(classes)
    return jt.Model.from_function(apply, {"head": {"kernel": kernel, "bias": bias}})


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what came out."""
    began = time.perf_counter()
    found = action()
    return time.perf_counter() - began, found


def fit_peers(train: Any, held_out: Any, fits: int) -> tuple[float, float] | None:
    """Seconds of 64 fits of scikit-learn, and the best accuracy; `None` where it is not there."""
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        return None
    strengths = np.geomspace(1e-4, 1e1, COUNT)[:: COUNT // fits]
    began, best = time.perf_counter(), 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for strength in strengths:
            fitted = LogisticRegression(C=strength).fit(*train)
            best = max(best, float(np.mean(fitted.predict(held_out[0]) == held_out[1])))
    return (time.perf_counter() - began) * COUNT / len(strengths), best


def measure(size: str, pairs: int, epochs: float, batch_size: int, fits: int) -> None:
    """Print the ratios of one size."""
    count, width, classes = map(int, size.split("x"))
    train, held_out = make_features(count, width, classes)
    model, data = head_of(width, classes), ArrayData(*train)
    validation = ArrayData(*held_out)

    def run(grid: Any, halving: int | None) -> jt.Sweep:
        return jt.sweep(
            model,
            data,
            grid,
            validation=validation,
            plan="full",  # of a head alone
            epochs=epochs,
            batch_size=batch_size,
            halving=halving,
            devices=jax.devices()[:1],
        )

    whole = {name: (grid, None) for name, grid in GRIDS.items()}
    halved = {f"{name}, halving": (grid, HALVING) for name, grid in GRIDS.items()}
    cases = {"one": (ONE, None), **whole, **halved}
    first = {name: timed(lambda case=case: run(*case))[0] for name, case in cases.items()}
    warm: dict[str, list[float]] = {name: [] for name in cases}
    best = {}
    for _ in range(pairs):
        for name, case in cases.items():
            seconds, found = timed(lambda case=case: run(*case))
            warm[name].append(seconds)
            best[name] = max(found.validation)
    peers = fit_peers(train, held_out, fits)
    middle = {name: statistics.median(values) for name, values in warm.items()}
    for name in (*whole, *halved):
        text = f"{size}, {name}: {COUNT} take {middle[name] / middle['one']:.1f}x the time of one"
        text += f" ({first[name] / first['one']:.1f}x with what is compiled)"
        if peers is not None:
            text += f"; scikit-learn's {COUNT} take {peers[0] / middle[name]:.1f}x theirs"
            text += f" ({peers[0] / first[name]:.1f}x)"
        print(text)
    for name in cases:
        print(
            f"    {name}: {middle[name]:.2f} s, {first[name]:.2f} s with what is compiled, best "
            f"accuracy {best[name]:.4f}"
        )
    if peers is not None:
        print(f"    scikit-learn: {peers[0]:.1f} s for {COUNT} fits, best accuracy {peers[1]:.4f}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all sizes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--peer-fits", type=int, default=COUNT, help="a divisor of 64")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES))
    options = parser.parse_args(arguments)
    for size in options.sizes:
        measure(size, options.pairs, options.epochs, options.batch_size, options.peer_fits)


if __name__ == "__main__":
    main()
