from __future__ import annotations

import re
from typing import Any

import grain
import numpy as np
import pytest
from PIL import Image

from jaxtransfer.data import Loader, grain_data
from jaxtransfer.errors import DataError
from jaxtransfer.models import Preprocess
from tests.data.conftest import encoded

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3)).astype(np.uint8)
RECORDS = [
    {"image": pixels, "label": i % 3, "name": "abc"[i % 3], "size": i / 2}
    for i, pixels in enumerate(PIXELS)
]


def test_records_are_read_by_key() -> None:
    data = grain_data(grain.MapDataset.source(RECORDS), classes=["x", "y", "z"])
    assert data.classes == ("x", "y", "z") and data.labels.tolist() == [0, 1, 2, 0, 1, 2]
    np.testing.assert_array_equal(data.read(np.array([4, 1]))["image"], PIXELS[[4, 1]])
    assert grain_data(RECORDS, label="name").classes == ("a", "b", "c")
    sizes = grain_data(RECORDS, label="size", targets="values")
    assert sizes.labels.tolist() == [0, 0.5, 1, 1.5, 2, 2.5]
    tasks = grain_data(
        RECORDS, label={"n": "name", "s": "size"}, targets={"n": "classes", "s": "values"}
    )
    assert tasks.labels["n"].tolist() == [0, 1, 2] * 2 and tasks.classes["n"] == ("a", "b", "c")


def test_records_are_read_by_function_and_by_position() -> None:
    def image(record: Any) -> Any:
        return Image.fromarray(record["image"])

    data = grain_data(RECORDS, image=image, label=lambda record: record["label"] + 1)
    assert data.labels.tolist() == [1, 2, 3, 1, 2, 3]
    np.testing.assert_array_equal(data.image(2), PIXELS[2])
    pairs = [(encoded(pixels, "PNG"), i) for i, pixels in enumerate(PIXELS)]
    data = grain_data(pairs, image=0, label=1)
    np.testing.assert_array_equal(data.image(5), PIXELS[5])


def test_transformed_records_are_loaded_in_order() -> None:
    source = grain.MapDataset.source(RECORDS).map(lambda r: {**r, "image": 255 - r["image"]})
    data = grain_data(source).ready(Preprocess(size=(4, 4), channels=3))
    with Loader(data, 4, 0, 2).batches(0, 3) as batches:
        read = [batch["image"] for batch in batches]
    with Loader(data.load(), 4, 0).batches(0, 3) as batches:
        for found, batch in zip(read, batches, strict=True):
            np.testing.assert_array_equal(found, batch["image"])


def test_known_labels_need_no_reading() -> None:
    class Unread:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Any:
            raise AssertionError("nothing is to be read")

    assert grain_data(Unread(), labels=[1, 0]).labels.tolist() == [1, 0]
    given = grain_data(Unread(), label={"a": 0}, labels={"a": [1.5, 2]}, targets={"a": "values"})
    assert given.labels["a"].tolist() == [1.5, 2]
    with pytest.raises(DataError, match="found 2 images and 3 labels"):
        grain_data(Unread(), labels=[1, 0, 1])


def test_a_fingerprint_tells_records_apart() -> None:
    other = [{**RECORDS[0], "image": PIXELS[1]}, *RECORDS[1:]]
    data = grain_data(RECORDS)
    assert data.fingerprint() == grain_data(list(RECORDS)).fingerprint()
    prints = {grain_data(x).fingerprint() for x in (RECORDS, other, RECORDS[:5])}
    assert len(prints) == 3


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (
            iter(RECORDS),
            {},
            "source: expected records by number, found list_iterator; give the MapD",
        ),
        (grain.MapDataset.source(RECORDS).repeat(), {}, "leave out repeat()"),
        ([], {}, "expected a number of records from 1, found 0"),
        (
            grain.MapDataset.source(RECORDS).filter(lambda record: record["label"] > 0),
            {},
            "source: expected a record at 0, found none; leave out filter()",
        ),
        (
            RECORDS,
            {"label": "y"},
            "records with ['y'], found ['image', 'label', 'name', 'size'] at 0",
        ),
        (RECORDS, {"targets": {"a": "classes"}}, "labels for the tasks ['a'], found 'label'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_has_no_records_by_number_is_an_error(source: Any, options: Any, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        grain_data(source, **options)


def test_what_is_no_image_is_named() -> None:
    data = grain_data([{"image": "a.png", "label": 0}])
    with pytest.raises(DataError, match="source, record 0: expected an image as bytes of a file"):
        data.image(0)
    data = grain_data([{"image": np.zeros((2, 2)), "label": 0}, {"image": b"torn", "label": 0}])
    with pytest.raises(DataError, match="source, record 1: expected an image file, found"):
        data.image(1)
    with pytest.raises(DataError, match="record 0: expected an image, found .*: no 'picture'"):
        grain_data([{"image": b"", "label": 0}], image="picture").image(0)
