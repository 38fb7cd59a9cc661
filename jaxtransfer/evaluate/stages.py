"""Which stage of a network transfers best: a classifier on what enters each of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxtransfer.compiling import jit
from jaxtransfer.data import as_data, as_examples, preprocess_images
from jaxtransfer.errors import DataError, ModelError
from jaxtransfer.evaluate.classifiers import CLASSIFIERS, check_method
from jaxtransfer.evaluate.metrics import Interval, binomial_interval
from jaxtransfer.models import Model, Preprocess
from jaxtransfer.models.calling import can_start
from jaxtransfer.train.evaluation import run_batches
from jaxtransfer.types import PyTree


@dataclass(frozen=True)
class StageScore:
    """How well what enters a stage tells the classes apart.

    Attributes:
        stage: the stage, as `jt.features(stage=…)` takes it.
        channels: how many features enter it.
        accuracy: share of the test examples and its 95 % interval.
    """

    stage: str
    channels: int
    accuracy: Interval


@dataclass(frozen=True)
class StageProbes:
    """The scores of a network's stages, in order; see `probe_stages`.

    Attributes:
        method: the classifier's name.
        scores: one a stage.
    """

    method: str
    scores: tuple[StageScore, ...]

    @property
    def best(self) -> StageScore:
        """The stage with the highest accuracy; of equal ones the first."""
        return max(self.scores, key=lambda score: score.accuracy.mean)

    def to_dict(self) -> dict[str, Any]:
        """The scores as JSON can hold them."""
        rows = [
            {"stage": s.stage, "channels": s.channels, **s.accuracy._asdict()} for s in self.scores
        ]
        return {"method": self.method, "best": self.best.stage, "scores": rows}


OUTPUTS = "outputs"


def stage_features(
    model: Model,
    images: Any,
    *,
    stages: Sequence[str] | None = None,
    outputs: bool = False,
    batch_size: int = 64,
) -> dict[str, np.ndarray]:
    """What enters several stages of a network, from one pass over the images.

    Args:
        model: a `Model`.
        images: as for `predict`: shape (batch, height, width, channel), or a `Data`.
        stages: some of `model.spec.stages`; by default all but the first, which images enter.
        outputs: whether the network's outputs are wanted too, as `jt.predict` gives them.
        batch_size: images that are computed at a time; the last ones are padded.

    Returns:
        By stage, in their order, what `jt.features` gives for it: shape (batch, channels), averaged
        over space or tokens. The outputs stand under "outputs".

    Raises:
        DataError: there are no images, or they cannot be read or preprocessed.
        ModelError: there is no such stage, or the network cannot stop at it.
    """
    known = model.spec.stages
    unknown = [stage for stage in stages or () if stage not in known]
    if unknown or not (known[1:] if stages is None else stages):
        raise ModelError(
            f"stage_features({model.spec.name}): expected stages among {', '.join(known)}, by "
            f"default all but the first, found {', '.join(unknown) or 'none'}"
        )
    wanted = tuple(known[1:]) if stages is None else tuple(s for s in known if s in stages)
    data = as_examples(images).ready(model.preprocess)
    if not len(data):
        raise DataError("stage_features: expected at least one image, found none")
    forward = _forward(model.apply, model.preprocess, wanted, outputs)
    found = run_batches(forward, model.params, model.stats, data, batch_size=batch_size)
    # A program returns the entries of a dict by name.
    return {name: found[name] for name in (*wanted, *([OUTPUTS] if outputs else []))}


def probe_stages(
    model: Model,
    data: Any,
    test: Any,
    *,
    stages: Sequence[str] | None = None,
    method: str = "ridge",
    batch_size: int = 64,
    seed: int = 0,
) -> StageProbes:
    """A classifier on what enters each stage: which layer's features transfer best.

    Args:
        model: a `Model`.
        data: `(images, labels)` or a `Data` to fit on; labels are integers, or names.
        test: the same to score on, with the same classes.
        stages: some of `model.spec.stages`; by default all but the first, which images enter.
        method: a name in `CLASSIFIERS`: "logistic", "ridge", "neighbours" or "mean".
        batch_size: images that are computed at a time.
        seed: of what the classifier's regulariser is chosen on.

    Raises:
        DataError: images or labels cannot be read, or there is no such method.
        ModelError: there is no such stage, or the network cannot stop at it.
    """
    fit = CLASSIFIERS[check_method("probe_stages", method)]
    train = as_data(data)
    # Names of classes get their numbers from what is trained on.
    test = as_data(test, train.classes)
    labels, test_labels = np.asarray(train.labels), np.asarray(test.labels)
    how = {"stages": stages, "batch_size": batch_size}
    fitted_on, scored_on = stage_features(model, train, **how), stage_features(model, test, **how)
    classes = int(max(labels.max(), test_labels.max())) + 1
    scores = []
    for stage, rows in fitted_on.items():
        classifier = fit(rows, labels, num_classes=classes, seed=seed)
        right = int(np.sum(classifier.predict(scored_on[stage]) == test_labels))
        interval = binomial_interval(right, len(test_labels), confidence=0.95)
        scores.append(StageScore(stage, rows.shape[1], interval))
    return StageProbes(method, tuple(scores))


@functools.lru_cache(maxsize=32)
def _forward(
    apply: Callable[..., Any], preprocess: Preprocess, stages: tuple[str, ...], outputs: bool
) -> Callable[..., dict[str, jax.Array]]:
    """A jitted function from parameters, statistics and images to what enters the stages."""

    @jit
    def forward(params: PyTree, stats: PyTree, images: jax.Array) -> dict[str, jax.Array]:
        prepared = preprocess_images(images, preprocess)
        entering, start, found = prepared, {}, {}
        for stage in stages:
            entering, _ = apply(params, stats, entering, train=False, stop=stage, **start)
            found[stage] = entering.mean(axis=tuple(range(1, entering.ndim - 1)))
            if can_start(apply):
                start = {"start": stage}
            else:  # run anew up to each stage, as far as the compiler does not see that it is equal
                entering = prepared
        if outputs:
            found[OUTPUTS], _ = apply(params, stats, entering, train=False, **start)
        return found

    return forward
