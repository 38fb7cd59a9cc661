"""How long depthwise and 1x1 convolutions take in the package's form and in XLA's own.

    python3 -m benchmarks.convolutions [--batch-size 16] [--rounds 5]

For convolutions of ResNet-50, MobileNet v1 and v2 and ConvNeXt at 224: the forward pass, the
gradient by what enters and the gradient by the kernel, in milliseconds, each the median over rounds
in which both forms take turns. Expected on a CPU: depthwise forward passes in a tenth of the time
and less; gradients by 1x1 kernels in a third. On other devices both forms are the same.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

from benchmarks.markdown import line
from jaxtransfer.models.convolution import convolve
from jaxtransfer.models.fast_forms import plain_layers

# Side of the maps, channels that enter and leave, side of the kernel, stride, depthwise or not.
CASES = (
    (56, 64, 256, 1, 1, False),
    (28, 128, 512, 1, 1, False),
    (14, 256, 1024, 1, 1, False),
    (56, 256, 512, 1, 2, False),
    (112, 8, 8, 3, 1, True),
    (112, 96, 96, 3, 2, True),
    (56, 32, 32, 3, 1, True),
    (14, 128, 128, 3, 1, True),
    (7, 256, 256, 3, 1, True),
    (56, 96, 96, 7, 1, True),
    (14, 384, 384, 7, 1, True),
)
HEADER = ("convolution", "forward", "by images", "by kernel")


def main() -> None:
    """Time all cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(line(HEADER), line(["---"] * len(HEADER)), sep="\n")
    for case in CASES:
        cells = [
            f"{1e3 * theirs:.1f} -> {1e3 * ours:.1f} ms ({theirs / ours:.1f}x)"
            for ours, theirs in timed(case, options.batch_size, options.rounds)
        ]
        side, entering, leaving, size, stride, is_depthwise = case
        name = f"{size}x{size}{' depthwise' if is_depthwise else ''}, {side}x{side}, "
        name += f"{entering} to {leaving}{f', stride {stride}' if stride > 1 else ''}"
        print(line([name, *cells]), flush=True)


def timed(case: tuple[Any, ...], batch_size: int, rounds: int) -> list[tuple[float, float]]:
    """Seconds of the package's form and of XLA's: forward, by images and by kernel."""
    side, entering, leaving, size, stride, is_depthwise = case
    groups = entering if is_depthwise else 1
    keys = jax.random.split(jax.random.key(0))
    images = jax.random.normal(keys[0], (batch_size, side, side, entering))
    kernel = jax.random.normal(keys[1], (size, size, entering // groups, leaving))
    pads = [(size // 2, size // 2)] * 2
    ours, theirs = (programs(images, kernel, stride, pads, groups, plain) for plain in (0, 1))
    found = []
    for pair in zip(ours, theirs, strict=True):
        seconds = [[_seconds(run) for run in pair] for _ in range(rounds)]
        found.append(tuple(map(statistics.median, zip(*seconds, strict=True))))
    return found


def programs(
    images: jax.Array, kernel: jax.Array, stride: int, pads: Any, groups: int, plain: bool
) -> list[Callable[[], Any]]:
    """Compiled: forward, by images and by kernel."""
    run = functools.partial(
        convolve,
        strides=(stride, stride),
        padding=pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )

    def forward(images: jax.Array, kernel: jax.Array, _: jax.Array) -> jax.Array:
        return run(images, kernel)

    def by_images(images: jax.Array, kernel: jax.Array, outputs: jax.Array) -> jax.Array:
        return jax.vjp(lambda images: run(images, kernel), images)[1](outputs)[0]

    def by_kernel(images: jax.Array, kernel: jax.Array, outputs: jax.Array) -> jax.Array:
        return jax.vjp(lambda kernel: run(images, kernel), kernel)[1](outputs)[0]

    outputs = run(images, kernel)
    found = []
    for function in (forward, by_images, by_kernel):
        with plain_layers() if plain else contextlib.nullcontext():
            program = jax.jit(function).lower(images, kernel, outputs).compile()
        found.append(functools.partial(program, images, kernel, outputs))
    return found


def _seconds(run: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
