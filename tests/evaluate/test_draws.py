import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.data import few_shot_split
from jaxtransfer.errors import DataError
from jaxtransfer.evaluate.draws import classes_of, draw_examples


def data(count, classes=4, names=None):
    """Examples whose images tell their number."""
    images = np.arange(count, dtype=np.float32).reshape(count, 1, 1, 1)
    return jt.ArrayData(images, (np.arange(count) % classes).astype(np.int32), names)


def numbers(part):
    return set(part.images.ravel().astype(int).tolist())


def test_a_draw_of_the_digits_is_the_embedded_split():
    digits = jt.load_digits()
    split = few_shot_split(digits, 5, seed=3)
    for is_search in (False, True):
        draw = draw_examples(digits, 5, 3, is_search=is_search)
        for mine, theirs in zip(draw, split, strict=True):
            np.testing.assert_array_equal(mine.images, theirs.images)


@pytest.mark.parametrize("per_class", [3, None])
@pytest.mark.parametrize("has_test", [False, True])
@pytest.mark.parametrize("has_validation", [False, True])
@pytest.mark.parametrize("is_search", [False, True])
def test_no_example_is_in_two_parts(per_class, has_test, has_validation, is_search):
    whole = data(100)
    test, validation = data(7), data(5)
    draw = draw_examples(
        whole,
        per_class,
        0,
        test=test if has_test else None,
        validation=validation if has_validation else None,
        is_search=is_search,
    )
    assert (draw.test is test) == has_test
    assert (draw.validation is validation) == has_validation
    own = [numbers(draw.train)]
    own += [] if has_test else [numbers(draw.test)]
    own += [] if has_validation else [numbers(draw.validation)]
    assert sum(map(len, own)) == len(set().union(*own)) <= 100
    expected = {True: 100, False: 80}[has_test]
    if is_search and not has_validation:
        expected = expected * 4 // 5
    assert len(draw.train) == (expected if per_class is None else 12)
    counts = np.bincount(draw.train.labels)
    assert counts.max() - counts.min() <= 1
    if is_search:
        assert len(draw.validation) > 0
    again = draw_examples(
        whole,
        per_class,
        0,
        test=test if has_test else None,
        validation=validation if has_validation else None,
        is_search=is_search,
    )
    assert numbers(again.train) == numbers(draw.train)


def test_another_seed_draws_other_examples():
    one, other = (draw_examples(data(100), 3, seed) for seed in (0, 1))
    assert numbers(one.train) != numbers(other.train)


def test_of_few_examples_half_of_the_others_are_for_testing():
    draw = draw_examples(data(20), 3, 0)
    assert [len(part) for part in draw] == [12, 4, 4]


def test_all_examples_with_a_test_part_are_trained_on_as_they_are():
    whole = data(20)
    assert draw_examples(whole, None, 0, test=data(3)).train is whole


@pytest.mark.parametrize(
    ("count", "per_class", "message"),
    [(12, 3, "lower per_class"), (1, None, "a fifth of each class"), (12, 4, "few_shot")],
)
def test_too_few_examples_are_told(count, per_class, message):
    with pytest.raises(DataError, match=message):
        draw_examples(data(count, classes=min(4, count)), per_class, 0)


def test_classes_are_names_or_a_number():
    assert classes_of(data(5), None, data(8, classes=3)) == 4
    names = ("a", "b", "c", "d")
    assert classes_of(data(5, names=names), data(5, names=names)) == names


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([data(5, names=("a",)), data(5)], "the same classes in all parts, found .*a.* and None"),
        ([data(5), data(8, classes=7)], "labels below 4, .*, found 6; give classes="),
        ([jt.ArrayData(np.zeros((2, 1)), np.zeros(2, np.float32))], "one class an example"),
        ([jt.ArrayData(np.zeros((2, 1)), np.zeros((2, 3), np.int32))], "one class an example"),
        ([jt.ArrayData(np.zeros((2, 1)), {"a": np.zeros(2, np.int32)})], "one class an example"),
    ],
)
def test_labels_that_are_no_classes_are_refused(parts, message):
    with pytest.raises(DataError, match=message):
        classes_of(*parts)
