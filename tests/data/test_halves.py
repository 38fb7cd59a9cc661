import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.errors import DataError


def data(labels, classes=None):
    labels = np.asarray(labels, np.int32)
    # The image tells its own label, so that one sees which example it is.
    return jt.ArrayData(labels.astype(np.float32)[:, None], labels, classes)


@hypothesis.given(
    st.lists(st.integers(0, 6), min_size=1), st.lists(st.integers(0, 6)), st.integers(0, 9)
)
def test_each_example_is_in_the_half_of_its_class_under_its_name(first, second, seed):
    names = tuple("abcdefg")
    halves = jt.split_classes(data(first, names), data(second, names), seed=seed)
    assert {*halves[0][0].classes, *halves[1][0].classes} == set(names)
    assert len(halves[0][0].classes) == 4 and len(halves[1][0].classes) == 3
    for number, whole in enumerate((first, second)):
        found = [
            half[number].classes[label] == names[int(image[0])]
            for half in halves
            for label, image in zip(half[number].labels, half[number].images, strict=True)
        ]
        assert len(found) == len(whole) and all(found)


def test_halves_are_drawn_anew_for_each_seed():
    digits = data(range(10), tuple(map(str, range(10))))
    drawn = {jt.split_classes(digits, seed=seed)[0][0].classes for seed in range(8)}
    assert len(drawn) > 1
    again = jt.split_classes(digits, seed=3)[0][0].classes
    assert again == jt.split_classes(digits, seed=3)[0][0].classes


def test_without_names_labels_of_all_parts_count():
    (train_a, test_a), (train_b, test_b) = jt.split_classes(data([0, 1]), data([3, 2]), seed=1)
    assert len(train_a) + len(train_b) == 2 and len(test_a) + len(test_b) == 2
    assert train_a.classes is None and {*train_a.labels, *test_a.labels} == {0, 1}
    assert train_a.labels.dtype == np.int32


def test_files_are_divided_as_arrays_are(tmp_path):
    from PIL import Image

    for name in "abcd":
        (tmp_path / name).mkdir()
        Image.new("RGB", (2, 2)).save(tmp_path / name / "0.png")
    (first,), (second,) = jt.split_classes(jt.image_folder(tmp_path), seed=0)
    assert isinstance(first, jt.StoredData) and len(first.classes) == len(second.classes) == 2
    for half in (first, second):
        for i, label in enumerate(half.labels):
            assert f"/{half.classes[label]}/" in half.name(i).replace("\\", "/")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((), "found no data"),
        ((data([0, 0]),), "found 1 classes"),
        ((data([0, 1], "ab"), data([0, 1], "ac")), "2 different lists"),
        ((jt.ArrayData(np.zeros((2, 2)), np.zeros((2, 2), np.float32)),), "labels float32"),
        (((np.zeros((2, 2)), np.zeros(2, int)),), "tuple with labels"),
    ],
)
def test_what_cannot_be_divided_is_refused(parts, message):
    with pytest.raises(DataError, match=message):
        jt.split_classes(*parts, seed=0)
