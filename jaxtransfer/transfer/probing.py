"""Labelled images and what networks make of them, as `rank` and `advise` need it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from jaxtransfer.data import Data, as_data, stratified_split
from jaxtransfer.errors import DataError
from jaxtransfer.evaluate.arms import reinitialise
from jaxtransfer.evaluate.probe import linear_probe
from jaxtransfer.models import Model, Preprocess, families
from jaxtransfer.surgery import truncate
from jaxtransfer.train.evaluation import forward_pass, run_batches

OUTPUTS = "outputs"


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


def stage_features(
    model: Model,
    data: Data,
    stages: Sequence[str],
    *,
    outputs: bool = False,
    batch_size: int = 64,
) -> dict[str, np.ndarray]:
    """What enters each of several stages, averaged over space or tokens, in one pass of the images.

    Args:
        model: a `Model`.
        data: images; labels are not looked at.
        stages: of `model.spec.stages`.
        outputs: whether the network's outputs are wanted too, under `OUTPUTS`.
        batch_size: images that are computed at a time.

    Returns:
        For each stage float32 of shape (count, channels).

    Raises:
        DataError: the images cannot be read, or preprocessed for the model.
        ModelError: the network cannot stop at a stage.
    """
    forward = _stages_forward(model.apply, model.preprocess, tuple(stages), outputs)
    ready = data.ready(model.preprocess)
    found = run_batches(forward, model.params, model.stats, ready, batch_size=batch_size)
    return {name: np.asarray(rows, np.float32) for name, rows in found.items()}


@functools.lru_cache(maxsize=32)
def _stages_forward(
    apply: Callable[..., Any], preprocess: Preprocess, stages: tuple[str, ...], outputs: bool
) -> Callable[..., dict[str, jax.Array]]:
    """One program for all stages: what they share, the compiler computes once."""
    passes = {stage: forward_pass(apply, preprocess, stage, True) for stage in stages}
    if outputs:
        passes[OUTPUTS] = forward_pass(apply, preprocess)

    @jax.jit
    def forward(params: Any, stats: Any, images: jax.Array) -> dict[str, jax.Array]:
        return {name: one(params, stats, images) for name, one in passes.items()}

    return forward


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
