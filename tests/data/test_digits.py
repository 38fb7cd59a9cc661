from __future__ import annotations

import numpy as np
import pytest
from sklearn import datasets

from jaxtransfer.data import ArrayData, few_shot_split, load_digits
from jaxtransfer.errors import DataError


@pytest.fixture(scope="module")
def digits() -> ArrayData:
    return load_digits()


def numbered(data: ArrayData) -> ArrayData:
    """The same labels, with the position of each example for its image."""
    return ArrayData(np.arange(len(data))[:, None], data.labels, data.classes)


def test_the_digits_are_those_of_scikit_learn(digits: ArrayData) -> None:
    images, labels = datasets.load_digits(return_X_y=True)
    assert digits.images.shape == (1797, 8, 8, 1) and digits.images.dtype == np.float32
    np.testing.assert_array_equal(digits.images.reshape(1797, 64) * 16, images)
    np.testing.assert_array_equal(digits.labels, labels)
    assert digits.labels.dtype == np.int32 and digits.classes == tuple("0123456789")
    assert digits.images.min() == 0 and digits.images.max() == 1


def test_the_parts_have_no_example_in_common_and_leave_none_out(digits: ArrayData) -> None:
    split = few_shot_split(numbered(digits), 5, seed=0)
    parts = [set(part.images[:, 0].tolist()) for part in split]
    assert [len(part) for part in parts] == [50, 300, 1447]
    assert set.union(*parts) == set(range(1797))
    for part in split:
        np.testing.assert_array_equal(part.labels, digits.labels[part.images[:, 0]])
        assert part.classes == digits.classes


@pytest.mark.parametrize("per_class", [1, 7, 20])
def test_the_training_part_has_as_many_of_each_class(digits: ArrayData, per_class: int) -> None:
    split = few_shot_split(digits, per_class, seed=3, validation=10)
    assert np.bincount(split.train.labels).tolist() == [per_class] * 10
    assert len(split.validation) == 10


def test_one_seed_gives_one_split_and_another_seed_another(digits: ArrayData) -> None:
    first, again, other = (few_shot_split(numbered(digits), 5, seed) for seed in (0, 0, 1))
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a.images, b.images)
        assert a.images.tolist() != c.images.tolist()


def test_there_may_be_no_validation(digits: ArrayData) -> None:
    split = few_shot_split(digits, 1, seed=0, validation=0)
    assert [len(part) for part in split] == [10, 0, 1787]


def test_the_test_part_must_not_be_empty(digits: ArrayData) -> None:
    few = digits.take(np.arange(100))
    assert len(few_shot_split(few, 1, 0, validation=89).test) == 1
    with pytest.raises(DataError, match="more than 100 examples, found 100; lower per_class"):
        few_shot_split(few, 1, 0, validation=90)
    with pytest.raises(DataError, match="validation of at least 0, found -1"):
        few_shot_split(few, 1, 0, validation=-1)
