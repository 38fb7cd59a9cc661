"""How long LogME of 10,000 x 2,048 features with 100 classes takes.

    python3 -m benchmarks.logme [--pairs 3] [--count 10000] [--size 2048] [--classes 100]

Expected: at least three times faster than the published algorithm in NumPy, with compilation or
without, and to a ten-thousandth the value that the algorithm reaches where it runs until it has
settled. Ours always does; after 11 steps, where the authors' code stops, it can be a thousandth
away.

The published algorithm is written here from You et al. 2022 (arXiv 2110.10545, algorithm 3): a
singular value decomposition, then for each class a fixed point that stops after 11 steps or where
α/β moves by less than a thousandth, with 1e-5 added to what α and β are divided by. It is timed in
two forms: with the decomposition of the features, and, as the authors' code does where examples
outnumber features, with that of X'X and the left vectors recovered from it. All run in one process
by turns, in float64, with as many threads as each takes by itself; `taskset -c 0` gives each one.
Features are float32, have a large mean and a spectrum over four decades, as those behind a ReLU
have.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np

from jaxtransfer.ranking import logme


def make_data(count: int, size: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features with a large mean, scales from 1 to 1e-4 and a class mean in each, with labels."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % classes)
    latent = rng.normal(size=(count, size)) + rng.normal(size=(classes, size))[labels] / 4
    mixing = rng.normal(size=(size, size)) / size**0.5
    features = 0.5 + (latent * np.logspace(0, -4, size)) @ mixing
    return features.astype(np.float32), labels


def decompose_features(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The left singular vectors and squared singular values, by decomposing the features."""
    left, values, _ = np.linalg.svd(features, full_matrices=False)
    return left, values**2


def decompose_gram(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same by decomposing X'X, as the authors' code does."""
    _, sigma, right = np.linalg.svd(features.T @ features)
    kept = np.sqrt(sigma) > 1e-10
    return (features @ right[kept].T) / np.sqrt(sigma[kept]), sigma[kept]


def published(
    features: np.ndarray,
    labels: np.ndarray,
    decompose: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    most_steps: int = 11,
    tolerance: float = 1e-3,
    guard: float = 1e-5,
) -> float:
    """LogME by the fixed point of each class in a loop."""
    features = features.astype(np.float64)
    count, size = features.shape
    left, sigma = decompose(features)
    evidences = []
    for number in range(int(labels.max()) + 1):
        target = (labels == number).astype(np.float64)
        parts = (left.T @ target) ** 2
        outside = np.sum(target**2) - np.sum(parts)
        alpha = beta = 1.0
        for _ in range(most_steps):
            ratio = alpha / beta
            gamma = np.sum(sigma / (sigma + ratio))
            weights = np.sum(sigma * parts / (sigma + ratio) ** 2)
            residual = outside + np.sum(parts / (1 + sigma / ratio) ** 2)
            alpha, beta = gamma / (weights + guard), (count - gamma) / (residual + guard)
            if abs(alpha / beta - ratio) <= tolerance * ratio:
                break
        evidences.append(
            size / 2 * np.log(alpha)
            + count / 2 * np.log(beta / (2 * np.pi))
            - np.sum(np.log(alpha + beta * sigma)) / 2
            - (beta * residual + alpha * weights) / 2
        )
    return float(np.mean(evidences)) / count


def timed(function: Callable[[], float]) -> tuple[float, tuple[float, float]]:
    """What a function gives, and the seconds that it took: the clock's and the processor's."""
    clock, processor = time.perf_counter(), time.process_time()
    value = function()
    return value, (time.perf_counter() - clock, time.process_time() - processor)


def main() -> None:
    """Measure, and print the ratios."""
    parser = argparse.ArgumentParser(description="Measure LogME.")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each")
    parser.add_argument("--count", type=int, default=10_000, help="examples")
    parser.add_argument("--size", type=int, default=2_048, help="features")
    parser.add_argument("--classes", type=int, default=100, help="classes")
    options = parser.parse_args()
    features, labels = make_data(options.count, options.size, options.classes)
    cases: dict[str, Callable[[], float]] = {
        "jaxtransfer, with compilation": lambda: float(logme(features, labels)),
        "jaxtransfer, compiled": lambda: float(logme(features, labels)),
        "NumPy, X'X decomposed": lambda: published(features, labels, decompose_gram),
        "NumPy, features decomposed": lambda: published(features, labels, decompose_features),
    }
    values: dict[str, float] = {}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for _ in range(options.pairs):
        jax.clear_caches()
        for name, case in cases.items():
            values[name], took = timed(case)
            seconds[name].append(took)
            print(f"  {name}: {took[0]:.1f} s, {took[1]:.1f} processor s", flush=True)
    values["NumPy, settled"] = published(
        features, labels, decompose_gram, most_steps=1_000, tolerance=1e-7, guard=0.0
    )
    for peer in list(cases)[2:]:
        for name in list(cases)[:2]:
            print(f"{peer} / {name}: {ratio(seconds[peer], seconds[name])}")
    for name, value in values.items():
        print(f"{name}: {value:.8f}")


def ratio(longer: list[tuple[float, float]], shorter: list[tuple[float, float]]) -> str:
    """The median ratio of each pair's seconds, by the clock and by the processor."""
    clock, processor = (
        statistics.median(a[kind] / b[kind] for a, b in zip(longer, shorter, strict=True))
        for kind in (0, 1)
    )
    return f"{clock:.1f} ({processor:.1f} in processor seconds, {len(longer)} pairs)"


if __name__ == "__main__":
    main()
