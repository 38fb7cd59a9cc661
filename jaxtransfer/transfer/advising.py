"""Should one transfer from this model to this data, and how? The answer and its evidence."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from jaxtransfer.data import Data, load_digits
from jaxtransfer.errors import DataError
from jaxtransfer.evaluate.advice import Advice, advice_from
from jaxtransfer.evaluate.conditions import (
    ImageFacts,
    Probes,
    check_amount,
    check_features,
    check_input,
)
from jaxtransfer.evaluate.folds import Fold, held_out_correct, probe_folds
from jaxtransfer.evaluate.stages import stage_features
from jaxtransfer.models import AS_THEY_COME, Model, Preprocess
from jaxtransfer.transfer.comparing import DIGITS
from jaxtransfer.transfer.loading import EMBEDDED_SOURCE, load
from jaxtransfer.transfer.probing import (
    labelled_images,
    ridge_probe,
    with_random_weights,
)

DATASETS = MappingProxyType(
    {
        "ImageNet-1k": 1_281_167,
        "ImageNet-12k": 12_129_687,
        "ImageNet-21K-P": 11_060_223,
        "ImageNet-21k": 14_197_122,
        "ImageNet-22K": 14_197_122,
        "LVD-142M": 142_000_000,
        "JFT-300M": 300_000_000,
        "400 million pictures": 400_000_000,
        "a billion images": 940_000_000,
        "3.6 billion images": 3_600_000_000,
        "WebLI": 10_000_000_000,
        "CIFAR-10": 50_000,
    }
)
"""How many training images a data set has, by words in what is known of published weights.

Sources: Russakovsky et al. 2015, "ImageNet Large Scale Visual Recognition Challenge" (arXiv
1409.0575), table 2; https://huggingface.co/datasets/timm/imagenet-12k-wds; Ridnik et al. 2021,
"ImageNet-21K Pretraining for the Masses" (arXiv 2104.10972); https://www.image-net.org for all of
ImageNet, which is called 21k and 22K; Yalniz et al. 2019, "Billion-scale semi-supervised learning"
(arXiv 1905.00546), for a billion; Chen et al. 2022, "PaLI" (arXiv 2209.06794), for WebLI;
Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images"; the others' names say it.
"""

DRAWN = re.compile(r"pretrain: (\d+) steps of (\d+) drawn characters")
"""The note that `pretrain` leaves: every image of every step is a new one."""

LOOKED_AT = 64
"""Images whose sizes and values are looked at; they are decoded in full."""


def advise(
    model: str | Path | Model = EMBEDDED_SOURCE,
    data: Any = None,
    *,
    target: str | None = None,
    source_examples: int | None = None,
    folds: int = 5,
    random_networks: int = 3,
    max_examples: int = 1000,
    seed: int = 0,
    batch_size: int = 64,
) -> Advice:
    """Should one transfer from this model to this data, and how? Three conditions, with evidence.

    The images are compared with what the network expects, the amounts of data with each other, and
    linear probes, cross-validated, on the features of each stage with probes on the same network
    with random weights and with the majority answer. See `jaxtransfer.evaluate.advice` for what
    follows from them, the thresholds, and the sources.

    Args:
        model: a model, or a reference to one.
        data: labelled images of the target, those that training would have: `(images, labels)` or a
            `Data`; by default scikit-learn's handwritten digits.
        target: what the data is called.
        source_examples: how many images the source was trained on, where the receipt does not tell.
        folds: of the cross-validation; fewer where a class has fewer examples.
        random_networks: how many of the same network with random weights to compare with.
        max_examples: the probes take at most so many images, drawn with each class's share.
        seed: of the folds, of the draw and of random weights.
        batch_size: images that are computed at a time.

    Raises:
        DataError: labels are not one class an example, there are too few examples of a class, an
            argument is out of range, or images cannot be preprocessed for the model.
        ModelError: the network cannot stop at its stages.

    Example:
        `print(jt.advise("checkpoints/glyphs", (images, labels)))`
    """
    if random_networks < 0 or (source_examples is not None and source_examples < 0):
        raise DataError(
            "advise: expected random_networks and source_examples of at least 0, found "
            f"{random_networks} and {source_examples}"
        )
    source = model if isinstance(model, Model) else load(model)
    given = load_digits() if data is None else data
    examples, labels = labelled_images(given, max_examples, seed, "advise")
    count = len(given) if isinstance(given, Data) else len(given[1])
    known, where = (source_examples, "") if source_examples is not None else _known_data(source)
    probes = _probe(
        source,
        examples,
        labels,
        probe_folds(labels, folds, seed),
        random_networks,
        seed,
        batch_size,
    )
    how = source.preprocess
    checks = (
        check_input(
            _facts(examples, how),
            _resized_to(how) or source.spec.input_size,
            how.channels or source.spec.in_channels,
            _brightness(how),
        ),
        check_amount(known, count, where),
        check_features(probes),
    )
    return advice_from(
        source.spec.name if isinstance(model, Model) else str(model),
        target or (DIGITS if data is None else "target"),
        int(labels.max()) + 1,
        checks,
        probes,
        count,
    )


def _probe(
    source: Model,
    data: Data,
    labels: np.ndarray,
    folds: Sequence[Fold],
    random_networks: int,
    seed: int,
    batch_size: int,
) -> Probes:
    """Accuracies of probes on all stages of the source, and of networks with random weights."""
    # What enters the first stage is the image itself; a stage without parameters, such as a
    # pooling, gets what the next one gets, since maps are averaged.
    *body, head = source.spec.stages
    stages = [*(stage for stage in body[1:] if stage in source.params), head]

    def correct(model: Model) -> dict[str, np.ndarray]:
        found = stage_features(model, data, stages=stages, batch_size=batch_size)
        return {
            stage: held_out_correct(np.asarray(rows, np.float32), labels, ridge_probe, folds)
            for stage, rows in found.items()
        }

    # Seeds of their own: the model may itself be one with random weights of a small seed.
    random = [
        correct(with_random_weights(source, RANDOM_SEED + seed * random_networks + number))
        for number in range(random_networks)
    ]
    majority = held_out_correct(np.zeros((len(labels), 1)), labels, _Majority, folds)
    return Probes(correct(source), random, majority, folds)


class _Majority:
    """The naive answer: the most frequent class, the lowest of equal ones."""

    def __init__(self, features: np.ndarray, labels: np.ndarray) -> None:
        self.answer = np.bincount(labels).argmax()

    def predict(self, features: np.ndarray) -> np.ndarray:
        return np.full(len(features), self.answer)


RANDOM_SEED = 20_000
"""Where the seeds of random weights begin."""


def _known_data(model: Model) -> tuple[int | None, str]:
    """How many images the weights were trained on, and their name, as the receipt tells."""
    for note in model.receipt.notes:
        if match := DRAWN.match(note):
            return int(match[1]) * int(match[2]), "drawn characters"
    receipt = model.receipt
    published = [w for w in model.spec.weights if w.source == receipt.rules_name]
    exact = [w for w in published if _is_file(w.reference, receipt.file, receipt.sha256)]
    kinds = {w.data for w in exact or published}
    if len(kinds) != 1:
        return None, ""
    (data,) = kinds
    counts = [count for name, count in DATASETS.items() if name in data]
    return (max(counts), data) if counts else (None, "")


def _is_file(reference: str, file: str, sha256: str) -> bool:
    address, _, digest = reference.partition("#sha256=")
    return bool(digest and sha256.startswith(digest)) or address.rsplit("/", 1)[-1] == file


def _facts(data: Data, how: Preprocess) -> ImageFacts:
    """What some of the images are like before any preprocessing; each is read by itself."""
    at = np.linspace(0, len(data) - 1, min(LOOKED_AT, len(data))).round().astype(int)
    raw = data.ready(AS_THEY_COME)
    images = [np.asarray(raw.read(at[i : i + 1])["image"])[0] for i in range(len(at))]
    # Bytes are always out of 255; other integers out of what the network's preprocessing says.
    shares = [
        image / (255.0 if image.dtype == np.uint8 else how.scale or 255.0)
        if image.dtype.kind in "iub"
        else np.asarray(image, np.float64)
        for image in images
    ]
    pixels = np.concatenate([share.ravel() for share in shares])
    channels = [image.shape[2] if image.ndim == 3 else 1 for image in images]
    return ImageFacts(
        sizes=tuple((i.shape[0], i.shape[1]) for i in images if i.ndim >= 2),
        channels=int(np.bincount(channels).argmax()),
        low=float(pixels.min()),
        high=float(pixels.max()),
        brightness=float(pixels.mean()),
        contrast=float(pixels.std()),
    )


def _resized_to(how: Preprocess) -> tuple[int, int] | None:
    """(height, width) that an image must cover before its centre is cut out."""
    if how.size is None:
        return None
    return round(how.size[0] / how.crop_fraction), round(how.size[1] / how.crop_fraction)


def _brightness(how: Preprocess) -> float | None:
    """The mean of the images that the network was trained on, as far as it is taken away."""
    return float(np.mean(how.mean)) / (how.scale and 1.0 or 255.0) if any(how.mean) else None
