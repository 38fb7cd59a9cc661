from __future__ import annotations

import re
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxtransfer.data import ArrayData, as_array_data, batch_indices, few_shot
from jaxtransfer.errors import DataError

IMAGES = np.random.default_rng(0).random((4, 2, 2, 1)).astype(np.float32)
NAMES = ["dog", "cat", "dog", "emu"]


# ---------------------------------------------------------------------------------------------
# Checked arrays


def test_integer_labels_are_kept() -> None:
    data = as_array_data((IMAGES, [2, 0, 1, 0]))
    assert data.images is IMAGES and data.classes is None and len(data) == 4
    assert data.labels.tolist() == [2, 0, 1, 0] and data.labels.dtype == np.int32


def test_names_become_positions_in_alphabetical_order() -> None:
    data = as_array_data((IMAGES, NAMES))
    assert data.classes == ("cat", "dog", "emu")
    assert data.labels.tolist() == [1, 0, 1, 2] and data.labels.dtype == np.int32


@pytest.mark.parametrize(
    "labels",
    [
        NAMES,
        np.array(NAMES),
        np.array(NAMES, dtype=object),
        np.array([name.encode() for name in NAMES]),
    ],
    ids=["list", "text", "objects", "bytes"],
)
def test_names_may_come_in_many_kinds_of_arrays(labels: Any) -> None:
    data = as_array_data((IMAGES, labels), classes=["emu", "dog", "cat"])
    assert data.classes == ("emu", "dog", "cat")
    assert data.labels.tolist() == [1, 2, 1, 0]


def test_names_in_bytes_may_be_any_text() -> None:
    data = as_array_data((IMAGES, np.array([name.encode() for name in ("ä", "b", "b", "ä")])))
    assert data.classes == ("b", "ä")


def test_integer_labels_may_have_names() -> None:
    data = as_array_data((IMAGES, [0, 1, 1, 0]), classes=("a", "b", "unseen"))
    assert data.classes == ("a", "b", "unseen")
    assert as_array_data(data).classes == data.classes
    assert as_array_data(data).labels.tolist() == [0, 1, 1, 0]
    assert as_array_data(ArrayData(IMAGES, data.labels), ["x", "y"]).classes == ("x", "y")
    assert as_array_data(data, ["a", "b", "unseen"]).classes == data.classes


def test_arrays_of_jax_and_lists_are_taken() -> None:
    data = as_array_data([jnp.asarray(IMAGES), jnp.arange(4)])
    assert isinstance(data.images, np.ndarray) and isinstance(data.labels, np.ndarray)


def test_taking_keeps_the_order_asked_for() -> None:
    data = as_array_data((IMAGES, NAMES)).take(np.array([3, 0]))
    assert data.labels.tolist() == [2, 1] and data.classes == ("cat", "dog", "emu")
    np.testing.assert_array_equal(data.images, IMAGES[[3, 0]])


def with_nan() -> np.ndarray:
    images = IMAGES.copy()
    images[2, 1, 0, 0] = np.nan
    return images


@pytest.mark.parametrize(
    ("data", "classes", "message"),
    [
        (IMAGES, None, "data: expected a pair (images, labels), found ndarray"),
        ((IMAGES,), None, "data: expected a pair (images, labels), found tuple"),
        ((IMAGES, [0, 1]), None, "found (4, 2, 2, 1) and (2,)"),
        ((IMAGES[:0], []), None, "found (0, 2, 2, 1) and (0,)"),
        ((np.arange(4), np.arange(4)), None, "found (4,) and (4,)"),
        ((IMAGES, np.eye(4)), None, "one-hot rows by labels.argmax(axis=1)"),
        ((with_nan(), NAMES), None, "found NaN or infinity in image 2"),
        ((jnp.asarray(with_nan(), jnp.bfloat16), NAMES), None, "NaN or infinity in image 2"),
        ((IMAGES.astype(str), NAMES), None, "images: expected numbers, found <U"),
        (([[[1, 2], [3]]] * 4, NAMES), None, "images: expected an array, found rows of several"),
        (
            (IMAGES, [0, 1, -1, 0]),
            None,
            "labels: expected integers from 0, or names, found int64 from",
        ),
        ((IMAGES, [0.0, 1.0, 2.0, 1.0]), None, "found float64 from 0.0"),
        ((IMAGES, [True, False, True, False]), None, "found bool;"),
        ((IMAGES, [0, 1, 2, 3]), ["a", "b", "c"], "expected less than 3, the number of classes"),
        ((IMAGES, NAMES), ["dog", "cat"], "names among dog, cat, found ['emu']"),
        ((IMAGES, [0, 1, 0, 1]), ["a", "b", "a"], "each name once, found ('a', 'b', 'a')"),
        (
            ArrayData(IMAGES, np.zeros(4, np.int32), ("a", "b")),
            ["b", "a"],
            "classes: expected those of the data, ('a', 'b'), found ('b', 'a')",
        ),
    ],
)
def test_what_is_no_labelled_image_is_an_error(data: Any, classes: Any, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        as_array_data(data, classes)


# ---------------------------------------------------------------------------------------------
# A few of each class


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 4), st.integers(0, 2**32)
)
def test_few_shot_draws_as_many_of_each_class(labels: list[int], count: int, seed: int) -> None:
    array = np.array(labels)
    present, counts = np.unique(array, return_counts=True)
    if counts.min() < count:
        with pytest.raises(DataError, match=f"found {count}"):
            few_shot(array, count, seed)
        return
    chosen = few_shot(array, count, seed)
    assert len(set(chosen.tolist())) == len(chosen)
    found, found_counts = np.unique(array[chosen], return_counts=True)
    assert found.tolist() == present.tolist() and set(found_counts) == {count}
    assert few_shot(array, count, seed).tolist() == chosen.tolist()


def test_another_seed_draws_others_in_another_order() -> None:
    labels = np.repeat(np.arange(3), 50)
    draws = [few_shot(labels, 5, seed).tolist() for seed in range(3)]
    assert len({frozenset(draw) for draw in draws}) == 3
    assert labels[draws[0]].tolist() != sorted(labels[draws[0]].tolist())


def test_a_class_with_too_few_examples_is_named() -> None:
    with pytest.raises(DataError, match=r"from 1 to the 1 examples .*found 2; .* \{1: 1\}"):
        few_shot(np.array([0, 0, 1]), 2, 0)
    with pytest.raises(DataError, match="from 1 to the 1 examples .*found 0"):
        few_shot(np.array([0, 0, 1]), 0, 0)


# ---------------------------------------------------------------------------------------------
# Batches

COUNTS = st.integers(1, 30)
SIZES = st.integers(1, 70)


@given(COUNTS, SIZES, st.integers(0, 50), st.integers(0, 2**32))
def test_a_batch_is_a_function_of_its_arguments_alone(
    count: int, size: int, step: int, seed: int
) -> None:
    batch = batch_indices(count, size, step, seed)
    assert batch.shape == (size,)
    batch_before = batch.copy()
    batch[:] = -1  # which must not reach what later calls give
    for other in (step + 7, 0, step + 1):
        batch_indices(count, size, other, seed)
    np.testing.assert_array_equal(batch_indices(count, size, step, seed), batch_before)


@given(COUNTS, SIZES, st.integers(0, 2**32))
def test_every_epoch_sees_each_example_once(count: int, size: int, seed: int) -> None:
    steps = -(-3 * count // size)
    stream = np.concatenate([batch_indices(count, size, step, seed) for step in range(steps)])
    for epoch in range(3):
        seen = stream[epoch * count : (epoch + 1) * count]
        assert sorted(seen.tolist()) == list(range(count))


def test_epochs_and_seeds_have_their_own_orders() -> None:
    orders = {tuple(batch_indices(20, 20, epoch, seed)) for epoch in range(3) for seed in range(3)}
    assert len(orders) == 9
