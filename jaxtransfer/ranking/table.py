"""What a ranking of source models says: scores, ranks, how sure they are, and who agrees."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxtransfer.errors import DataError
from jaxtransfer.ranking.agreement import weighted_kendall

CONFIDENCE = 0.95

LEAST_COMMON = 3
"""Candidates that two scores must both have for their agreement to say anything."""


@dataclass(frozen=True)
class Measured:
    """What one score says of one candidate.

    Attributes:
        value: the score on all examples, higher for better; `None` where it is not available.
        resampled: the score on each bootstrap resample of the examples, shape (resamples,); the
            same resamples for all candidates.
        seconds: what the score took beyond the features.
        reason: why there is no value.
    """

    value: float | None
    resampled: np.ndarray = field(default_factory=lambda: np.zeros(0))
    seconds: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Ranking:
    """Source models in the order in which scores would take them for a target.

    Tables are mappings by score, then by candidate; what is not available is `None`.

    Attributes:
        candidates: their names, in the order in which they were given.
        target: what the data is called.
        examples, classes: how many labelled images there were, and of how many classes.
        scores: on all examples, higher for better; only candidates compare, not scores.
        ranks: 1 for the best; equal ones share the mean of their ranks.
        rank_intervals: what 95 % of the bootstrap resamples of the examples give.
        seconds: what each score took, compilation left out; `features` for loading and the forward
            pass, which all scores share, compilation included.
        agreement: weighted Kendall tau between two scores, over the candidates that have both.
        unavailable: by score and candidate, why there is none.
        best: the candidate with the lowest mean rank over the scores that all candidates have; if
            there is none, over those that each one has.
        baseline: the candidate with random weights, which every useful source beats; may be `None`.
        resamples, seed: of the bootstrap.
    """

    candidates: tuple[str, ...]
    target: str
    examples: int
    classes: int
    scores: Mapping[str, Mapping[str, float | None]]
    ranks: Mapping[str, Mapping[str, float | None]]
    rank_intervals: Mapping[str, Mapping[str, tuple[float, float] | None]]
    seconds: Mapping[str, Mapping[str, float | None]]
    agreement: Mapping[str, Mapping[str, float | None]]
    unavailable: Mapping[str, Mapping[str, str]]
    best: str
    baseline: str | None
    resamples: int
    seed: int

    @property
    def mean_ranks(self) -> dict[str, float]:
        """Each candidate's mean rank; NaN for one that has no score."""
        return _mean_ranks(self.ranks, self.candidates)

    @property
    def order(self) -> tuple[str, ...]:
        """The candidates, the lowest mean rank first."""
        means = self.mean_ranks
        return tuple(sorted(self.candidates, key=lambda name: _last_if_nan(means[name])))

    def shown_mean(self, name: str) -> str:
        """A candidate's mean rank as text."""
        mean = self.mean_ranks[name]
        return "-" if math.isnan(mean) else f"{mean:.1f}"

    @property
    def fooled(self) -> tuple[str, ...]:
        """The scores that put random weights first, and so are not to be trusted here."""
        return tuple(
            score for score, row in self.ranks.items() if self.baseline and row[self.baseline] == 1
        )

    def table(self) -> list[tuple[str, ...]]:
        """The header and a row a candidate, the best mean rank first: score, rank and interval."""
        header = ("candidate", *self.scores, "mean rank")
        rows = [
            (name, *(self._cell(score, name) for score in self.scores), self.shown_mean(name))
            for name in self.order
        ]
        return [header, *rows]

    def _cell(self, score: str, name: str) -> str:
        value, interval = self.scores[score][name], self.rank_intervals[score][name]
        if value is None:
            return "-"
        text = f"{value:.3g} (rank {self.ranks[score][name]:g}"
        return f"{text})" if interval is None else f"{text}, {interval[0]:g} to {interval[1]:g})"

    def to_dict(self) -> dict[str, Any]:
        """The ranking as JSON can hold it."""
        tables = ("scores", "ranks", "rank_intervals", "seconds", "agreement", "unavailable")
        plain = ("target", "examples", "classes", "best", "baseline", "resamples", "seed")
        return {
            "candidates": list(self.candidates),
            **{name: getattr(self, name) for name in plain},
            "mean_ranks": {n: None if math.isnan(m) else m for n, m in self.mean_ranks.items()},
            "fooled": list(self.fooled),
            **{name: {k: _plain(row) for k, row in getattr(self, name).items()} for name in tables},
        }


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(v) if isinstance(v, tuple) else v for name, v in row.items()}


def summarise(
    measured: Mapping[str, Mapping[str, Measured]],
    *,
    target: str,
    examples: int,
    classes: int,
    seconds: Mapping[str, float],
    baseline: str | None,
    seed: int,
) -> Ranking:
    """The ranking that the scores of all candidates give.

    Args:
        measured: by candidate, then by score; all candidates have the same scores.
        target: what the data is called.
        examples: how many labelled images there were.
        classes: of how many classes.
        seconds: by candidate, what its features took.
        baseline: the candidate with random weights, if there is one.
        seed: of the bootstrap.

    Raises:
        DataError: there is no candidate, or no score of any.
    """
    if not measured:
        raise DataError("rank: expected at least one candidate, found none")
    names = tuple(measured)
    columns = {score: {n: measured[n][score] for n in names} for score in measured[names[0]]}
    scores = {s: {n: m.value for n, m in column.items()} for s, column in columns.items()}
    ranks = {score: _among(row, rank_of) for score, row in scores.items()}
    drawn = {s: {n: m.resampled for n, m in column.items()} for s, column in columns.items()}
    means = _mean_ranks(ranks, names)
    if all(math.isnan(mean) for mean in means.values()):
        reasons = {m.reason for column in columns.values() for m in column.values()}
        raise DataError(
            f"rank: expected a candidate with one of the scores {', '.join(scores)}, found none: "
            f"{'; '.join(sorted(reasons))}"
        )
    return Ranking(
        candidates=names,
        target=target,
        examples=examples,
        classes=classes,
        scores=scores,
        ranks=ranks,
        rank_intervals={s: _intervals(scores[s], drawn[s]) for s in scores},
        seconds={
            "features": dict(seconds),
            **{s: {n: m.seconds for n, m in column.items()} for s, column in columns.items()},
        },
        agreement={a: {b: _agree(scores[a], scores[b]) for b in scores} for a in scores},
        unavailable={
            s: {n: m.reason for n, m in column.items() if m.value is None}
            for s, column in columns.items()
            if any(m.value is None for m in column.values())
        },
        best=min(names, key=lambda name: _last_if_nan(means[name])),
        baseline=baseline,
        resamples=max(len(m.resampled) for m in columns[next(iter(columns))].values()),
        seed=seed,
    )


def _mean_ranks(
    ranks: Mapping[str, Mapping[str, float | None]], names: Sequence[str]
) -> dict[str, float]:
    """Mean ranks over the scores that all have; where there is none, over those each one has."""
    shared = [row for row in ranks.values() if None not in row.values()] or list(ranks.values())
    own = {name: [rank for row in shared if (rank := row[name]) is not None] for name in names}
    return {name: sum(some) / len(some) if some else math.nan for name, some in own.items()}


def _last_if_nan(value: float) -> float:
    return math.inf if math.isnan(value) else value


def rank_of(values: np.ndarray) -> np.ndarray:
    """Ranks along the last axis, 1 for the highest value; equal ones share their mean.

    >>> rank_of(np.array([0.2, 0.9, 0.2])).tolist()
    [2.5, 1.0, 2.5]
    """
    from scipy import stats

    return stats.rankdata(-np.asarray(values), method="average", axis=-1)


def stratified_resamples(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Bootstrap resamples that keep the number of examples of each class.

    Args:
        labels: classes, shape (examples,), integers.
        count: how many resamples.
        seed: the same seed gives the same resamples.

    Returns:
        Positions drawn with replacement within each class, shape (count, examples).

    Source: Davison & Hinkley 1997, "Bootstrap Methods and their Application", section 3.2, for
    several samples. Without strata a rare class could be missing from a resample.

    >>> stratified_resamples(np.array([0, 1, 0]), 2, seed=0)[:, 1].tolist()
    [1, 1]
    """
    labels = np.asarray(labels)
    rng = np.random.default_rng(seed)
    drawn = np.empty((count, len(labels)), int)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        drawn[:, members] = rng.choice(members, (count, len(members)))
    return drawn


def _among(row: Mapping[str, float | None], rank: Any) -> dict[str, float | None]:
    """Ranks among those that have a value."""
    there = [name for name, value in row.items() if value is not None]
    ranked = dict(zip(there, rank(np.array([row[name] for name in there])).tolist(), strict=True))
    return {name: ranked.get(name) for name in row}


def _intervals(
    row: Mapping[str, float | None], drawn: Mapping[str, np.ndarray]
) -> dict[str, tuple[float, float] | None]:
    there = [name for name, value in row.items() if value is not None]
    none: dict[str, tuple[float, float] | None] = dict.fromkeys(row)
    if not there or not len(drawn[there[0]]):
        return none
    ranks = rank_of(np.stack([drawn[name] for name in there], axis=-1))
    tails = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
    # Ranks that occur, nothing between them.
    bounds = np.quantile(ranks, tails, axis=0, method="inverted_cdf")
    return {**none, **{n: (float(bounds[0, i]), float(bounds[1, i])) for i, n in enumerate(there)}}


def _agree(first: Mapping[str, float | None], second: Mapping[str, float | None]) -> float | None:
    pairs = [(a, second[name]) for name, a in first.items()]
    both = [(a, b) for a, b in pairs if a is not None and b is not None]
    return agreement([a for a, _ in both], [b for _, b in both])


def agreement(first: Sequence[float], second: Sequence[float]) -> float | None:
    """How far two scores agree on the order: `weighted_kendall`, where that says anything.

    `None` for fewer than three candidates, or where a score is the same for all. You et al. 2021,
    "LogME" (arXiv 2102.11005), section 5, compare scores by the same measure.

    >>> agreement([0.1, 0.5, 0.9], [1.0, 2.0, 3.0])
    1.0
    """
    if len(first) < LEAST_COMMON or len(set(first)) == 1 or len(set(second)) == 1:
        return None
    return round(weighted_kendall(first, second), 12)
