"""Classify images with a saved model; without images, some handwritten digits."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from jaxtransfer.cli.common import add_json, print_json
from jaxtransfer.data import load_digits
from jaxtransfer.data.files import read_image
from jaxtransfer.errors import ModelError
from jaxtransfer.evaluate.predict import predict
from jaxtransfer.models import Model
from jaxtransfer.transfer import EMBEDDED_SOURCE, load

EXAMPLES = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `jaxtransfer predict`."""
    parser.add_argument(
        "model",
        nargs="?",
        default=EMBEDDED_SOURCE,
        help="a folder with a model, or checkpoints/NAME",
    )
    parser.add_argument("images", nargs="*", help="image files (default: some handwritten digits)")
    parser.add_argument(
        "--top", type=int, default=3, help="how many classes to name for each image"
    )
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Print the most likely classes of each image."""
    model = load(options.model)
    if model.spec.task_heads:
        tasks = ", ".join(head.task for head in model.spec.task_heads)
        raise ModelError(
            f"{options.model}: expected a model with one head, found heads for the tasks {tasks}; "
            "jaxtransfer.predict gives the logits of each"
        )
    if options.images:
        names = options.images
        # Images may have sizes of their own, so each is a batch.
        logits = np.concatenate(
            [predict(model, read_image(name, model.preprocess.channels)[None]) for name in names]
        )
    else:
        digits = load_digits()
        names = [f"handwritten {digits.labels[i]}" for i in range(EXAMPLES)]
        logits = predict(model, digits.images[:EXAMPLES])
    answers = [_most_likely(model, row, options.top) for row in logits]
    if options.json:
        print_json([{"image": n, "classes": dict(a)} for n, a in zip(names, answers, strict=True)])
        return
    width = max(map(len, names))
    for name, answer in zip(names, answers, strict=True):
        text = "  ".join(f"{label} {100 * share:.1f} %" for label, share in answer)
        print(f"{Path(name).name if options.images else name:<{width}}  {text}")


def _most_likely(model: Model, logits: np.ndarray, count: int) -> list[tuple[str, float]]:
    """The classes of the highest probabilities, by softmax, highest first."""
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    best = np.argsort(-shares)[:count]
    return [(model.labels[i] if model.labels else str(i), float(shares[i])) for i in best]
