"""Which source model for this target? Scores that need no training, in one call."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from jaxtransfer.data import Data, load_digits
from jaxtransfer.errors import DataError, JaxTransferError, ModelError
from jaxtransfer.evaluate.folds import Fit, Fold, held_out_correct, probe_folds
from jaxtransfer.evaluate.neighbours import nearest_neighbours
from jaxtransfer.evaluate.stages import OUTPUTS, stage_features
from jaxtransfer.models import Model
from jaxtransfer.ranking import leep, logme, n_leep, nce, parc, regularised_h_score, transrate
from jaxtransfer.ranking.table import Measured, Ranking, stratified_resamples, summarise
from jaxtransfer.surgery import has_head
from jaxtransfer.transfer.comparing import DIGITS
from jaxtransfer.transfer.loading import load
from jaxtransfer.transfer.probing import (
    labelled_images,
    ridge_probe,
    with_random_weights,
)

RANDOM_WEIGHTS = "random weights"

NO_HEAD = "the network has no classifier head"

OnCandidate = Callable[[str, int, int], None]
"""Called with a candidate's name, how many are done, and their number in all."""


@dataclass(frozen=True)
class _Evidence:
    """What one candidate makes of the target's images.

    Attributes:
        features: what enters the head, shape (count, channels).
        probabilities: of the source's classes, shape (count, source classes); `None` where it has
            no head.
        labels: the target's classes, shape (count,).
        seed: of what a score draws.
    """

    features: np.ndarray
    probabilities: Any
    labels: np.ndarray
    seed: int

    @property
    def classes(self) -> int:
        return int(self.labels.max()) + 1

    def take(self, indices: np.ndarray) -> _Evidence:
        rows = None if self.probabilities is None else self.probabilities[indices]
        return replace(
            self, features=self.features[indices], probabilities=rows, labels=self.labels[indices]
        )


def _nce(evidence: _Evidence) -> Any:
    probabilities = evidence.probabilities
    # The number of classes is said, since not every resample has an answer of the last one.
    return nce(
        probabilities.argmax(axis=1), evidence.labels, num_source_classes=probabilities.shape[1]
    )


def _n_leep(evidence: _Evidence) -> Any:
    # Five components a class, as its paper has it; fewer where they would have fewer than five
    # examples each, since a mixture that knows each example by heart says nothing.
    components = min(5 * evidence.classes, max(len(evidence.labels) // 5, 2))
    key = jax.random.key(evidence.seed)
    return n_leep(evidence.features, evidence.labels, key=key, components=components)


# Of features alone, of the source's probabilities, and by cross-validation.
_OF_FEATURES: Mapping[str, Callable[[_Evidence], Any]] = MappingProxyType(
    {
        "logme": lambda e: logme(e.features, e.labels),
        "h_score": lambda e: regularised_h_score(e.features, e.labels),
        "transrate": lambda e: transrate(e.features, e.labels),
        "n_leep": _n_leep,
    }
)
_OF_PROBABILITIES: Mapping[str, Callable[[_Evidence], Any]] = MappingProxyType(
    {
        "leep": lambda e: leep(e.probabilities, e.labels),
        "nce": _nce,
        "parc": lambda e: parc(e.probabilities, e.labels, key=jax.random.key(e.seed)),
    }
)
_ACCURACIES: Mapping[str, Fit] = MappingProxyType(
    {"linear_probe": ridge_probe, "knn": nearest_neighbours}
)

SCORES = (*_OF_FEATURES, *_OF_PROBABILITIES, *_ACCURACIES)


def rank(
    sources: Mapping[str, str | Path | Model] | Sequence[str | Path | Model],
    data: Any = None,
    *,
    scores: Sequence[str] = SCORES,
    random_weights: bool = True,
    target: str | None = None,
    folds: int = 5,
    resamples: int = 100,
    max_examples: int = 1000,
    seed: int = 0,
    batch_size: int = 64,
    on_candidate: OnCandidate | None = None,
) -> Ranking:
    """Rank source models for a target by scores that need a forward pass and no training.

    Each candidate computes the images once. From what enters its head come `logme`, `h_score` (with
    a shrunk covariance), `transrate`, `n_leep`, and the cross-validated accuracies of a
    `linear_probe` (ridge regression) and of the nearest neighbours, `knn`; from the
    probabilities of its own classes `leep`, `nce` and `parc`, which a candidate without a head does
    not have. See `jaxtransfer.ranking` for the scores' sources.

    How sure a rank is, the bootstrap tells: the ranks of all candidates are taken anew on resamples
    of the images, the same for all. Accuracies are not fitted again: the held-out answers are
    resampled.

    Args:
        sources: candidates, models or references that `load` takes, by name; of a sequence the
            names are the references, and of models those of their networks.
        data: labelled images of the target: `(images, labels)` or a `Data`; by default
            scikit-learn's handwritten digits.
        scores: which of `SCORES`.
        random_weights: whether the first candidate's network with random weights is ranked too, as
            the baseline that every useful source beats.
        target: what the data is called.
        folds: of the cross-validation; fewer where a class has fewer examples.
        resamples: of the bootstrap; 0 for none.
        max_examples: at most so many images are looked at, drawn with each class's share; time and
            memory of some scores grow with the square of their number.
        seed: of the draw, the folds, the resamples and random weights.
        batch_size: images that are computed at a time.
        on_candidate: called before each candidate and at the end.

    Raises:
        DataError: labels are not one class an example, there are too few examples of a class, an
            argument is out of range, or the images do not fit a candidate's preprocessing.
        ModelError: a score is unknown, two candidates have one name, or some cannot be loaded; all
            candidates are tried before the first is computed.

    Example:
        `print(jt.rank(["checkpoints/glyphs", "runs/mine"], (images, labels)).best)`
    """
    unknown = [score for score in scores if score not in SCORES]
    if unknown or not scores or resamples < 0:
        raise ModelError(
            f"rank: expected scores among {', '.join(SCORES)} and resamples of at least 0, found "
            f"{', '.join(unknown) or f'{len(scores)} scores'} and {resamples}"
        )
    given = load_digits() if data is None else data
    examples, labels = labelled_images(given, max_examples, seed, "rank")
    parts = probe_folds(labels, folds, seed)
    candidates = _candidates(sources, random_weights)
    _check(candidates, examples)
    drawn = stratified_resamples(labels, resamples, seed)
    measured, seconds = {}, {}
    for number, (name, source) in enumerate(candidates.items()):
        if on_candidate is not None:
            on_candidate(name, number, len(candidates))
        begun = time.perf_counter()
        evidence = _evidence(_loaded(source, seed), examples, labels, seed, batch_size)
        seconds[name] = time.perf_counter() - begun
        measured[name] = {score: _measure(score, evidence, parts, drawn) for score in scores}
    if on_candidate is not None:
        on_candidate("done", len(candidates), len(candidates))
    return summarise(
        measured,
        target=target or (DIGITS if data is None else "target"),
        examples=len(labels),
        classes=int(labels.max()) + 1,
        seconds=seconds,
        baseline=RANDOM_WEIGHTS if random_weights else None,
        seed=seed,
    )


@dataclass(frozen=True)
class _Random:
    """A network with random weights instead of those of a source."""

    source: str | Path | Model


_Source = str | Path | Model | _Random


def _candidates(sources: Any, random_weights: bool) -> dict[str, _Source]:
    if isinstance(sources, (str, Path, Model)):
        sources = [sources]
    if isinstance(sources, Mapping):
        named = list(sources.items())
    else:
        named = [(s.spec.name if isinstance(s, Model) else str(s), s) for s in sources]
    names = [name for name, _ in named] + [RANDOM_WEIGHTS] * random_weights
    twice = sorted({name for name in names if names.count(name) > 1})
    if not named or twice:
        raise ModelError(
            "rank: expected at least one candidate, each with a name of its own, found "
            f"{f'several called {twice}' if twice else 'none'}; give a mapping from names to models"
        )
    found: dict[str, _Source] = dict(named)
    if random_weights:
        found[RANDOM_WEIGHTS] = _Random(named[0][1])
    return found


def _check(candidates: Mapping[str, _Source], data: Data) -> None:
    """Load each candidate once, one at a time, so that none ends a long run with an error."""
    problems = []
    for name, source in candidates.items():
        if isinstance(source, _Random):
            continue
        try:
            data.take(np.arange(1)).ready(_loaded(source, 0).preprocess)
        except JaxTransferError as error:
            problems.append((name, error))
    if problems:
        kind = DataError if all(isinstance(e, DataError) for _, e in problems) else ModelError
        lines = [f" - {name}: {error}" for name, error in problems]
        raise kind("\n".join(["rank: expected candidates that take the images, found", *lines]))


def _loaded(source: _Source, seed: int) -> Model:
    if isinstance(source, _Random):
        return with_random_weights(_loaded(source.source, seed), seed)
    return source if isinstance(source, Model) else load(source)


def _evidence(
    model: Model, data: Data, labels: np.ndarray, seed: int, batch_size: int
) -> _Evidence:
    classifies = has_head(model) and not model.spec.task_heads
    head = model.spec.stages[-1]
    found = stage_features(model, data, stages=[head], outputs=classifies, batch_size=batch_size)
    probabilities = _softmax(found[OUTPUTS]) if classifies else None
    return _Evidence(np.asarray(found[head], np.float32), probabilities, labels, seed)


def _softmax(logits: np.ndarray) -> np.ndarray:
    exact = logits.astype(np.float64)
    powers = np.exp(exact - exact.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _measure(score: str, evidence: _Evidence, folds: Sequence[Fold], drawn: np.ndarray) -> Measured:
    """A score's value, its values on the resamples, and its seconds."""
    if score in _OF_PROBABILITIES and evidence.probabilities is None:
        return Measured(None, reason=NO_HEAD)
    if score in _ACCURACIES:
        begun = time.perf_counter()
        correct = held_out_correct(evidence.features, evidence.labels, _ACCURACIES[score], folds)
        seconds = time.perf_counter() - begun
        return Measured(float(correct.mean()), correct[drawn].mean(axis=1), seconds)
    compute = {**_OF_FEATURES, **_OF_PROBABILITIES}[score]
    value = float(compute(evidence))  # compiles
    begun = time.perf_counter()
    compute(evidence)
    seconds = time.perf_counter() - begun
    resampled = np.array([float(compute(evidence.take(at))) for at in drawn])
    return Measured(value, resampled, seconds)
