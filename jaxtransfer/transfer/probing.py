"""Labelled images and what networks make of them, as `rank` and `advise` need it."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from jaxtransfer.data import Data, as_data, stratified_split
from jaxtransfer.errors import DataError
from jaxtransfer.evaluate.arms import reinitialise
from jaxtransfer.evaluate.probe import linear_probe
from jaxtransfer.models import Model, families
from jaxtransfer.surgery import truncate

ridge_probe = functools.partial(linear_probe, method="ridge")
"""A linear probe in closed form, so that one for each stage, network and fold costs little."""


def labelled_images(data: Any, most: int, seed: int, where: str) -> tuple[Data, np.ndarray]:
    """At most `most` examples, each class with its share of them, and their classes from 0.

    Classes without examples do not count, so that the numbers have no gaps.

    Raises:
        DataError: labels are not one class an example, `most` is too small, or the data cannot be
            read.
    """
    examples = as_data(data)
    labels = examples.labels
    if (
        isinstance(labels, dict)
        or np.ndim(labels) != 1
        or np.asarray(labels).dtype.kind not in "iu"
    ):
        raise DataError(
            f"{where}: expected one class an example, found labels of another kind; give integers "
            "from 0 of shape (count,)"
        )
    classes = np.unique(labels)
    if most < 2 * len(classes):
        raise DataError(
            f"{where}: expected max_examples of at least 2 for each of {len(classes)} classes, "
            f"found {most}"
        )
    if len(examples) > most:
        share = most / len(examples)
        chosen = stratified_split(np.asarray(labels), (share, 1 - share), seed)[0]
        examples = examples.take(np.sort(chosen))
    return examples, np.unique(np.asarray(examples.labels), return_inverse=True)[1]


def with_random_weights(model: Model, seed: int) -> Model:
    """The same network, cut off at the same stage, with random weights.

    Those of a network that is not in the catalog, whose random weights nobody described, are its
    own in random order, leaf by leaf.
    """
    if model.spec.name not in families():
        rng = np.random.default_rng(seed)
        mixed = jax.tree.map(
            lambda leaf: rng.permutation(np.asarray(leaf).ravel()).reshape(np.shape(leaf)),
            (model.params, model.stats),
        )
        return replace(model, params=mixed[0], stats=mixed[1])
    fresh = reinitialise(model, seed)
    cut = model.spec.truncated_after
    return fresh if cut is None else truncate(fresh, cut)
