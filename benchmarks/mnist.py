"""The images of MNIST as data, for the benchmarks that take them."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

import jaxtransfer as jt

DIGITS = tuple("0123456789")


def read_mnist(folder: Path) -> tuple[jt.ArrayData, jt.ArrayData]:
    """The 60,000 training and 10,000 test images, bytes of shape (count, 28, 28, 1)."""
    parts = []
    for name in ("train", "t10k"):
        images = read_idx(folder / f"{name}-images-idx3-ubyte.gz")[..., np.newaxis]
        labels = read_idx(folder / f"{name}-labels-idx1-ubyte.gz").astype(np.int32)
        parts.append(jt.ArrayData(images, labels, DIGITS))
    return parts[0], parts[1]


def read_idx(path: Path) -> np.ndarray:
    """The bytes of a compressed idx file: two zeros, the type, the axes and their lengths first.

    Source: the format's description at http://yann.lecun.com/exdb/mnist/; type 8 is unsigned bytes.
    """
    with gzip.open(path) as file:
        content = file.read()
    if content[:3] != b"\0\0\x08":
        raise ValueError(f"{path}: expected an idx file of bytes, found {content[:4]!r}")
    axes = content[3]
    shape = np.frombuffer(content, ">u4", axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)
