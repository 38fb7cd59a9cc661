"""The names of ImageNet's classes."""

from __future__ import annotations

import functools
from pathlib import Path

BACKGROUND = "background"
"""What output 0 of a network with 1001 classes stands for."""


@functools.cache
def imagenet_classes() -> tuple[str, ...]:
    """The names of the 1,000 classes of ImageNet-1k, in the order of their synsets.

    That is the order of the outputs of all published networks that are known here. Each name occurs
    once: where two synsets have the same word, such as the crane, another word tells them apart.

    Source: https://www.image-net.org/challenges/LSVRC/2012, with the words of
    https://docs.pytorch.org/vision/stable/models.html, `meta["categories"]`.

    >>> imagenet_classes()[0], len(set(imagenet_classes()))
    ('tench', 1000)
    """
    text = Path(__file__).with_name("imagenet_classes.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())
