"""Parts of labelled examples: slices by name, stratified parts, folds."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from jaxtransfer.data.source import Data
from jaxtransfer.errors import DataError

BOUND = r"(?:-?\d[\d_]*(?:\.\d+)?%|-?\d[\d_]*)?"
SLICE = re.compile(rf"(?P<name>[\w-]+)(?:\[(?P<first>{BOUND}):(?P<last>{BOUND})\])?")


def split_names(spec: str) -> tuple[str, ...]:
    """The names of the splits that a text such as `train[:80%]+test` takes examples of.

    Raises:
        DataError: the text cannot be read.
    """
    return tuple(match["name"] for match in _parse(spec))


def slice_indices(counts: Mapping[str, int], spec: str) -> list[tuple[str, np.ndarray]]:
    """Which examples of which splits a text such as `train[10%:20%]+test[:100]` stands for.

    A bound is a number of examples or a percentage, below 0 counted from the end; a percentage is
    rounded to the closest example, of two equally close ones to the even one. `all` stands for
    every split. These are the rules of TensorFlow Datasets:
    https://www.tensorflow.org/datasets/splits.

    Args:
        counts: how many examples each split has.
        spec: names of splits with or without a slice, joined by `+`.

    Returns:
        For each term the split's name and the positions in it.

    Raises:
        DataError: the text cannot be read, names a split that there is not, reaches beyond one, or
            stands for no example.

    >>> [(name, at.tolist()) for name, at in slice_indices({"train": 4}, "train[:25%]+train[-1:]")]
    [('train', [0]), ('train', [3])]
    """
    chosen = []
    for match in _parse(spec):
        if match["name"] == "all" and "all" not in counts and match["first"] is None:
            chosen += [(name, np.arange(count)) for name, count in counts.items()]
            continue
        if match["name"] not in counts:
            raise DataError(
                f"split {spec!r}: expected among {sorted(counts)}, found {match['name']!r}"
            )
        count = counts[match["name"]]
        first = _bound(match["first"], count, 0, spec)
        last = _bound(match["last"], count, count, spec)
        chosen.append((match["name"], np.arange(first, max(first, last))))
    if not sum(len(positions) for _, positions in chosen):
        raise DataError(
            f"split {spec!r}: expected at least one example of {dict(counts)}, found none"
        )
    return chosen


def slice_split(data: Data | Mapping[str, Data], spec: str) -> Data:
    """The examples that a text such as `train[:80%]` stands for.

    Args:
        data: examples, which are called "train" whatever they are, or a dict of splits by name.
        spec: as `slice_indices` says; all its slices are of one split.

    Raises:
        DataError: as `slice_indices` says, or there are slices of several splits.

    Example:
        `slice_split(data, "train[:80%]")` and `slice_split(data, "train[80%:]")`
    """
    splits = data if isinstance(data, Mapping) else {"train": data}
    terms = slice_indices({name: len(one) for name, one in splits.items()}, spec)
    parts: dict[str, list[np.ndarray]] = {}
    for name, positions in terms:
        parts.setdefault(name, []).append(positions)
    if len(parts) > 1:
        raise DataError(
            f"split {spec!r}: expected slices of one split, found {sorted(parts)}; name several to "
            "the function that reads the data"
        )
    ((name, positions),) = parts.items()
    return splits[name].take(np.concatenate(positions))


def _parse(spec: str) -> list[re.Match[str]]:
    matches = [SLICE.fullmatch(term.strip()) for term in spec.split("+")]
    found = [match for match in matches if match is not None]
    if len(found) < len(matches):
        raise DataError(
            f"split: expected names with or without a slice, such as 'train', 'train[:80%]' or "
            f"'train[100:200]+test', found {spec!r}"
        )
    return found


def _bound(text: str | None, count: int, default: int, spec: str) -> int:
    if not text:
        return default
    is_share = text.endswith("%")
    value = float(text[:-1]) if is_share else int(text)
    if abs(value) > (100 if is_share else count):
        raise DataError(f"split {spec!r}: expected bounds within {count} examples, found {text}")
    position = round(value * count / 100) if is_share else int(value)
    return position + count if position < 0 else position


def stratified_split(
    labels: np.ndarray, fractions: Sequence[float], seed: int
) -> tuple[np.ndarray, ...]:
    """Positions of several parts without a common example, each with its share of every class.

    Args:
        labels: classes, shape (count,), integers.
        fractions: the share of each part, above 0, in all 1.
        seed: the same seed gives the same parts.

    Returns:
        For each part its positions, shuffled. Together they are all positions; of each class, a
        part has its share to within one example, and none too many where the share is whole.

    Raises:
        DataError: the fractions are not above 0 with a sum of 1, or labels are no classes.

    >>> [sorted(np.array([0, 0, 1, 1])[part].tolist())
    ...  for part in stratified_split(np.array([0, 0, 1, 1]), (0.5, 0.5), seed=0)]
    [[0, 1], [0, 1]]
    """
    shares = np.asarray(fractions, np.float64)
    if (
        shares.ndim != 1
        or not len(shares)
        or shares.min() <= 0
        or not math.isclose(shares.sum(), 1)
    ):
        raise DataError(
            f"stratified_split: expected fractions above 0 with a sum of 1, found {fractions}"
        )
    return _parts(labels, shares / shares.sum(), seed)


def k_folds(labels: np.ndarray, k: int, seed: int) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Training and validation positions of a stratified k-fold cross-validation.

    Args:
        labels: classes, shape (count,), integers.
        k: number of folds, from 2 to the number of examples.
        seed: the same seed gives the same folds.

    Returns:
        `k` pairs; each example is in the validation part of one of them, and the folds have as many
        examples of each class to within one.

    Raises:
        DataError: `k` is out of range, or labels are no classes.
    """
    if not 2 <= k <= len(labels):
        raise DataError(f"k_folds: expected k from 2 to {len(labels)} examples, found {k}")
    folds = _parts(labels, np.full(k, 1 / k), seed)
    return tuple(
        (np.concatenate([*folds[:i], *folds[i + 1 :]]), fold) for i, fold in enumerate(folds)
    )


def _parts(labels: np.ndarray, shares: np.ndarray, seed: int) -> tuple[np.ndarray, ...]:
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            f"labels: expected classes as integers of shape (count,), found {labels.dtype} of "
            f"shape {labels.shape}"
        )
    rng = np.random.default_rng(seed)
    parts: list[list[np.ndarray]] = [[] for _ in shares]
    owed = np.zeros(len(shares))  # what each part has got too little so far
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        counts, owed = _whole(len(members) * shares, owed)
        for part, chosen in zip(parts, np.split(members, np.cumsum(counts)[:-1]), strict=True):
            part.append(chosen)
    return tuple(
        rng.permutation(np.concatenate([np.zeros(0, int), *part]).astype(int)) for part in parts
    )


def _whole(wanted: np.ndarray, owed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares as whole numbers of the same sum; what is left goes to those to whom most is owed."""
    counts = np.floor(np.round(wanted, 9)).astype(int)
    rest = np.round(wanted - counts, 9)
    left = round(wanted.sum()) - counts.sum()
    first = np.argsort(np.where(rest > 0, -(owed + rest), np.inf), kind="stable")[:left]
    counts[first] += 1
    return counts, owed + wanted - counts
