"""How long convolutions and max poolings take in the package's form and in XLA's own.

    python3 -m benchmarks.convolutions [--batch-size 16] [--rounds 5]

For convolutions of ResNet-50, MobileNet v1 and v2 and ConvNeXt at 224: the forward pass, the
gradient by what enters and the gradient by the kernel, in milliseconds, each the median over rounds
in which both forms take turns. Expected on a CPU: depthwise forward passes in a tenth of the time
and less; gradients by 1x1 kernels in a third; gradients of poolings in a third. On other devices
both forms are the same.
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

from benchmarks.markdown import head, line
from jaxtransfer.models.convolution import convolve
from jaxtransfer.models.fast_forms import plain_layers
from jaxtransfer.models.pooling import window_max

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
# Side of the maps, channels, side of the windows, stride and padding of the poolings of SqueezeNet,
# ResNet, VGG and GoogLeNet.
POOLINGS = ((111, 64, 3, 2, 0), (112, 64, 3, 2, 1), (112, 128, 2, 2, 0), (28, 192, 3, 1, 1))
HEADER = ("layer", "forward", "by images", "by kernel")


def main() -> None:
    """Time all cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(head(HEADER))
    for case in CASES:
        cells = _cells(timed_convolution(case, options.batch_size, options.rounds))
        side, entering, leaving, size, stride, is_depthwise = case
        name = f"{size}x{size}{' depthwise' if is_depthwise else ''}, {side}x{side}, "
        name += f"{entering} to {leaving}{f', stride {stride}' if stride > 1 else ''}"
        print(line([name, *cells]), flush=True)
    for pooling in POOLINGS:
        side, channels, size, stride, padding = pooling
        name = f"{size}x{size} maximum, {side}x{side}, {channels}, stride {stride}"
        cells = _cells(timed_pooling(pooling, options.batch_size, options.rounds))
        print(line([name + (f", padding {padding}" if padding else ""), *cells, ""]), flush=True)


def timed_convolution(
    case: tuple[Any, ...], batch_size: int, rounds: int
) -> list[tuple[float, float]]:
    """Seconds of the package's form and of XLA's: forward, by images and by kernel."""
    side, entering, leaving, size, stride, is_depthwise = case
    groups = entering if is_depthwise else 1
    keys = jax.random.split(jax.random.key(0))
    images = jax.random.normal(keys[0], (batch_size, side, side, entering))
    kernel = jax.random.normal(keys[1], (size, size, entering // groups, leaving))
    pads = [(size // 2, size // 2)] * 2
    run = functools.partial(
        convolve,
        strides=(stride, stride),
        padding=pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    return timed(run, (images, kernel), rounds)


def timed_pooling(
    pooling: tuple[int, ...], batch_size: int, rounds: int
) -> list[tuple[float, float]]:
    """Seconds of the package's form and of XLA's: forward and by images, half of them zeros."""
    side, channels, size, stride, padding = pooling
    images = jax.nn.relu(jax.random.normal(jax.random.key(0), (batch_size, side, side, channels)))
    pads = ((padding, padding),) * 2
    run = functools.partial(window_max, size=size, stride=stride, pads=pads)
    return timed(run, (images,), rounds)


def timed(
    run: Callable[..., jax.Array], inputs: tuple[jax.Array, ...], rounds: int
) -> list[tuple[float, float]]:
    """Seconds of the package's form and of XLA's: forward, and the gradient by each input."""
    ours, theirs = (programs(run, inputs, plain) for plain in (False, True))
    found = []
    for pair in zip(ours, theirs, strict=True):
        seconds = [[_seconds(run) for run in pair] for _ in range(rounds)]
        found.append(tuple(map(statistics.median, zip(*seconds, strict=True))))
    return found


def programs(
    run: Callable[..., jax.Array], inputs: tuple[jax.Array, ...], plain: bool
) -> list[Callable[[], Any]]:
    """Compiled: forward, and the gradient by each input."""

    def gradient(number: int) -> Callable[..., jax.Array]:
        def by_input(outputs: jax.Array, *inputs: jax.Array) -> jax.Array:
            def of_input(value: jax.Array) -> jax.Array:
                return run(*inputs[:number], value, *inputs[number + 1 :])

            return jax.vjp(of_input, inputs[number])[1](outputs)[0]

        return by_input

    def forward(_: jax.Array, *inputs: jax.Array) -> jax.Array:
        return run(*inputs)

    outputs = run(*inputs)
    found = []
    for function in (forward, *map(gradient, range(len(inputs)))):
        with plain_layers() if plain else contextlib.nullcontext():
            program = jax.jit(function).lower(outputs, *inputs).compile()
        found.append(functools.partial(program, outputs, *inputs))
    return found


def _cells(seconds: list[tuple[float, float]]) -> list[str]:
    return [
        f"{1e3 * theirs:.1f} -> {1e3 * ours:.1f} ms ({theirs / ours:.1f}x)"
        for ours, theirs in seconds
    ]


def _seconds(run: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
