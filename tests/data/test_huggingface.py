"""Against a stand-in with the few methods of `datasets.Dataset` that are used."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage

from jaxtransfer.data import huggingface_data
from jaxtransfer.errors import DataError
from jaxtransfer.models import Preprocess
from tests.data.conftest import encoded

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3)).astype(np.uint8)


@dataclass
class Image:
    decode: bool = True


@dataclass
class ClassLabel:
    names: list[str]


@dataclass
class List:
    feature: Any


class Dataset:
    """Columns with features; images are kept as files or paths and decoded when asked for."""

    def __init__(self, columns: dict[str, list[Any]], features: dict[str, Any]):
        self.columns, self.features = columns, features

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return self.columns[key]
        return {name: self._cell(name, key) for name in self.columns}

    def _cell(self, name: str, index: int) -> Any:
        cell = self.columns[name][index]
        if self.features[name] == Image(decode=True):
            return PillowImage.open(io.BytesIO(cell["bytes"]))
        return cell

    def select_columns(self, names: list[str]) -> Dataset:
        return Dataset({n: self.columns[n] for n in names}, {n: self.features[n] for n in names})

    def cast_column(self, name: str, feature: Any) -> Dataset:
        return Dataset(self.columns, {**self.features, name: feature})


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    images = [{"bytes": encoded(pixels, "PNG"), "path": None} for pixels in PIXELS[:3]]
    (tmp_path / "3.png").write_bytes(encoded(PIXELS[3], "PNG"))
    images.append({"bytes": None, "path": str(tmp_path / "3.png")})
    columns = {
        "image": images,
        "label": [1, 0, 1, 0],
        "tags": [[0], [], [0, 2], [1]],
        "text": ["no", "yes", "no", "no"],
        "size": [0.5, 1.0, 2.0, 3.0],
    }
    features = {
        "image": Image(),
        "label": ClassLabel(["cat", "dog"]),
        "tags": List(ClassLabel(["x", "y", "z"])),
        "text": object(),
        "size": object(),
    }
    return Dataset(columns, features)


def test_images_and_labels_are_those_of_the_columns(dataset: Dataset) -> None:
    data = huggingface_data(dataset)
    assert data.classes == ("cat", "dog") and data.labels.tolist() == [1, 0, 1, 0]
    np.testing.assert_array_equal(data.read(np.array([3, 0]))["image"], PIXELS[[3, 0]])
    ready = data.ready(Preprocess(size=(4, 4), channels=3))
    assert ready.read(np.arange(4))["image"].shape == (4, 4, 4, 3)
    assert data.store[0] == encoded(PIXELS[0], "PNG")  # the file, to be decoded at reduced size


def test_labels_may_be_of_any_kind(dataset: Dataset) -> None:
    tags = huggingface_data(dataset, label="tags", targets="multi_label")
    assert tags.classes == ("x", "y", "z")
    assert tags.labels.tolist() == [[1, 0, 0], [0, 0, 0], [1, 0, 1], [0, 1, 0]]
    dataset.features["tags"] = [ClassLabel(["x", "y", "z"])]  # as older versions write lists
    assert huggingface_data(dataset, label="tags", targets="multi_label").classes == tags.classes
    assert huggingface_data(dataset, label="text").classes == ("no", "yes")
    sizes = huggingface_data(dataset, label="size", targets="values")
    assert sizes.labels.tolist() == [0.5, 1, 2, 3] and sizes.classes is None
    named = huggingface_data(dataset, classes=["chat", "chien"])
    assert named.classes == ("chat", "chien")


def test_images_that_are_arrays_are_taken_as_they_are() -> None:
    columns = {"image": list(PIXELS.tolist()), "label": [0, 0, 0, 0]}
    data = huggingface_data(Dataset(columns, {"image": object(), "label": object()}))
    np.testing.assert_array_equal(data.image(1), PIXELS[1])


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (
            lambda d: {"train": d, "test": d},
            {},
            "found dict with the splits train, test; choose one",
        ),
        (lambda d: iter([]), {}, "found list_iterator; choose one"),
        (
            lambda d: d,
            {"image": "img", "label": "y"},
            "expected columns ['img', 'y'], found ['image'",
        ),
        (lambda d: d, {"targets": {"a": "classes"}}, "tasks ['a'], found 'label'"),
    ],
)
def test_what_is_no_data_set_is_an_error(
    make: Any, options: Any, message: str, dataset: Dataset
) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        huggingface_data(make(dataset), **options)
