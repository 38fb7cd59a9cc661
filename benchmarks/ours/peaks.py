"""Tells versions and device, and measures what this can do at best: matrix products, and copies.

    python3 -m benchmarks.ours.peaks

It prints the environment and the highest rates found: of products of square matrices in float32,
at JAX's default precision, and in bfloat16, in GFLOP/s, and of a copy that reads and writes, in
GB/s.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxtransfer.compiling import jit
from jaxtransfer.evaluate.environment import environment

SIDES = {"cpu": (1024, 2048), "other": (4096, 8192)}
COPIED = {"cpu": 2**28, "other": 2**30}
ROUNDS = 5


def fastest(run: Callable[[], jax.Array]) -> float:
    """The fewest seconds of a few runs, the first left out."""
    run().block_until_ready()
    seconds = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        run().block_until_ready()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def product_rate(side: int, dtype: jnp.dtype) -> float:
    """GFLOP/s of the product of two matrices."""
    matrix = jax.random.normal(jax.random.key(0), (side, side)).astype(dtype)
    multiply = jit(lambda a, b: a @ b)
    return 2 * side**3 / fastest(lambda: multiply(matrix, matrix)) / 1e9


def copy_rate(size: int) -> float:
    """GB/s of bytes that are read and written, into memory that is there already."""
    add = jax.jit(lambda values: values + 1, donate_argnums=0)
    held = [jnp.zeros(size // 4, jnp.float32)]

    def run() -> jax.Array:
        held[0] = add(held[0])
        return held[0]

    return 2 * size / fastest(run) / 1e9


def main() -> None:
    """Tell, and measure all three."""
    kind = "cpu" if jax.default_backend() == "cpu" else "other"
    found = {
        f"{jnp.dtype(dtype).name}_gigaflops": max(product_rate(n, dtype) for n in SIDES[kind])
        for dtype in (jnp.float32, jnp.bfloat16)
    }
    found["copy_gigabytes"] = copy_rate(COPIED[kind])
    told = {"environment": environment(), "backend": jax.default_backend(), "peaks": found}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
