from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxtransfer.data import ArrayData, k_folds, slice_split, stratified_split
from jaxtransfer.data.splits import slice_indices, split_names
from jaxtransfer.errors import DataError

LABELS = st.lists(st.integers(0, 4), min_size=2, max_size=80).map(np.array)

# ---------------------------------------------------------------------------------------------
# Slices by name


def terms(spec: str, **counts: int) -> list[tuple[str, list[int]]]:
    return [(name, positions.tolist()) for name, positions in slice_indices(counts, spec)]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("train", [("train", [0, 1, 2, 3, 4])]),
        ("train[:2]", [("train", [0, 1])]),
        ("train[3:]", [("train", [3, 4])]),
        ("train[-2:]", [("train", [3, 4])]),
        ("train[:-2]", [("train", [0, 1, 2])]),
        ("train[20%:60%]", [("train", [1, 2])]),
        ("train[:50%]", [("train", [0, 1])]),  # 2.5: the even one
        ("train[-20%:]", [("train", [4])]),
        ("train[:30.5%]", [("train", [0, 1])]),
        ("train[1_0%:]", [("train", [0, 1, 2, 3, 4])]),  # 0.5: the even one
        ("train[:20%] + test[1:]", [("train", [0]), ("test", [1])]),
        ("train[:20%]+train[-40%:]", [("train", [0]), ("train", [3, 4])]),
        ("all", [("train", [0, 1, 2, 3, 4]), ("test", [0, 1])]),
    ],
)
def test_slices_are_those_that_are_written(spec: str, expected: Any) -> None:
    assert terms(spec, train=5, test=2) == expected


@given(
    st.integers(1, 300),
    st.one_of(st.none(), st.integers(-100, 100)),
    st.one_of(st.none(), st.integers(-100, 100)),
    st.booleans(),
)
def test_slices_are_those_of_tfds(
    count: int, first: int | None, last: int | None, percent: bool
) -> None:
    import tensorflow_datasets as tfds

    unit = "%" if percent else ""
    if first is None and last is None:
        return  # TFDS wants a bound
    bounds = ["" if bound is None else f"{bound}{unit}" for bound in (first, last)]
    spec = f"train[{bounds[0]}:{bounds[1]}]"
    info = tfds.core.SplitInfo(
        name="train", shard_lengths=[count], num_bytes=0, filename_template=None
    )
    try:
        (found,) = tfds.core.ReadInstruction.from_spec(spec).to_absolute({"train": info})
    except ValueError:
        with pytest.raises(DataError, match="expected bounds within"):
            slice_indices({"train": count}, spec)
        return
    expected = list(range(count))[found.from_ : found.to]
    if not expected:
        with pytest.raises(DataError, match="expected at least one example"):
            slice_indices({"train": count}, spec)
        return
    assert terms(spec, train=count) == [("train", expected)]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "expected names with or without a slice"),
        ("train[", "found 'train['"),
        ("train[5]", "found 'train[5]'"),
        ("train[a:]", "found 'train[a:]'"),
        ("train[:1.5]", "found 'train[:1.5]'"),
        ("train+", "found 'train+'"),
        ("val", "expected among ['test', 'train'], found 'val'"),
        ("train[:6]", "expected bounds within 5 examples, found 6"),
        ("train[-101%:]", "expected bounds within 5 examples, found -101%"),
        ("train[3:2]", "expected at least one example of {'train': 5, 'test': 2}, found none"),
    ],
)
def test_what_is_no_slice_is_an_error(spec: str, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        slice_indices({"train": 5, "test": 2}, spec)


def test_examples_are_sliced() -> None:
    data = ArrayData(np.arange(10).reshape(10, 1), np.arange(10))
    assert slice_split(data, "train[:20%]+train[-1:]").labels.tolist() == [0, 1, 9]
    splits = {"train": data, "test": data.take(np.arange(4, 6))}
    assert slice_split(splits, "test[1:]").labels.tolist() == [5]
    assert split_names("test[1:]+train") == ("test", "train")
    with pytest.raises(DataError, match="expected slices of one split"):
        slice_split(splits, "train+test")


# ---------------------------------------------------------------------------------------------
# Stratified parts


@given(LABELS, st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 2**32))
def test_stratified_parts_are_disjoint_complete_and_balanced(
    labels: np.ndarray, weights: list[int], seed: int
) -> None:
    shares = np.array(weights) / sum(weights)
    parts = stratified_split(labels, shares.tolist(), seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    for label in np.unique(labels):
        wanted = (labels == label).sum() * shares
        counts = np.array([(labels[part] == label).sum() for part in parts])
        # Whole shares are kept; others are off by less than one.
        assert np.all(np.abs(counts - wanted) < 1 - 1e-9)
    for part, again in zip(parts, stratified_split(labels, shares.tolist(), seed), strict=True):
        assert part.tolist() == again.tolist()


def test_many_small_classes_do_not_add_up_to_lopsided_parts() -> None:
    labels = np.repeat(np.arange(40), 3)  # 1.5 of each class in each half
    parts = stratified_split(labels, (0.5, 0.5), seed=0)
    assert [len(part) for part in parts] == [60, 60]


def test_another_seed_gives_other_parts() -> None:
    labels = np.repeat(np.arange(2), 50)
    parts = {tuple(sorted(stratified_split(labels, (0.3, 0.7), s)[0].tolist())) for s in range(4)}
    assert len(parts) == 4
    first = stratified_split(labels, (0.3, 0.7), 0)[0]
    assert len(set(labels[first[:15]])) == 2  # shuffled, not one class after the other


@pytest.mark.parametrize("fractions", [(), (0.5, 0.6), (1.2, -0.2), (1.0, 0.0), (0.5, 0.4)])
def test_fractions_must_be_shares_of_a_whole(fractions: Any) -> None:
    with pytest.raises(DataError, match="expected fractions above 0 with a sum of 1, found"):
        stratified_split(np.array([0, 1]), fractions, 0)


@given(LABELS, st.integers(2, 7), st.integers(0, 2**32))
def test_folds_are_disjoint_complete_and_balanced(labels: np.ndarray, k: int, seed: int) -> None:
    if k > len(labels):
        with pytest.raises(DataError, match=f"expected k from 2 to {len(labels)} examples"):
            k_folds(labels, k, seed)
        return
    folds = k_folds(labels, k, seed)
    assert len(folds) == k
    everything = list(range(len(labels)))
    assert sorted(np.concatenate([fold for _, fold in folds]).tolist()) == everything
    for train, validation in folds:
        assert sorted([*train.tolist(), *validation.tolist()]) == everything
    for label in np.unique(labels):
        counts = [(labels[fold] == label).sum() for _, fold in folds]
        assert max(counts) - min(counts) <= 1
    sizes = [len(fold) for _, fold in folds]
    assert max(sizes) - min(sizes) <= 1


def test_parts_are_of_classes_alone() -> None:
    for labels in (np.zeros((3, 2), int), np.array([0.5, 1.5])):
        with pytest.raises(DataError, match="expected classes as integers of shape"):
            stratified_split(labels, (0.5, 0.5), 0)
    with pytest.raises(DataError, match="expected k from 2 to 3 examples, found 1"):
        k_folds(np.array([0, 1, 0]), 1, 0)
