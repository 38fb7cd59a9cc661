from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxtransfer.data import Loader, tfds_data
from jaxtransfer.errors import DataError
from jaxtransfer.models import Preprocess

TAGS = [[], [0], [0, 2]]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set "blobs", prepared in files of ArrayRecord without TensorFlow."""
    import tensorflow_datasets as tfds

    with tfds.core.registered.skip_registration():  # it is found by its files

        class Blobs(tfds.core.GeneratorBasedBuilder):
            code_path = None  # what it is for needs a library that TFDS does not ask for
            VERSION = tfds.core.Version("1.0.0")

            def _info(self) -> Any:
                label = tfds.features.ClassLabel(names=["a", "b"])
                tags = tfds.features.Sequence(tfds.features.ClassLabel(names=["x", "y", "z"]))
                features = {
                    "image": tfds.features.Image(shape=(8, 8, 1)),
                    "raw": tfds.features.Tensor(shape=(2, 2, 1), dtype=np.uint8),
                    "label": label,
                    "tags": tags,
                    "number": np.int64,
                    "name": tfds.features.Text(),
                }
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features)
                )

            def _split_generators(self, dl_manager: Any) -> Any:
                return {"train": self._examples(0, 10), "test": self._examples(10, 14)}

            def _examples(self, first: int, last: int) -> Iterator[tuple[int, Any]]:
                for i in range(first, last):
                    yield (
                        i,
                        {
                            "image": Image.fromarray(np.full((8, 8), 10 * i, np.uint8)),
                            "raw": np.full((2, 2, 1), i, np.uint8),
                            "label": i % 2,
                            "tags": TAGS[i % 3],
                            "number": i,
                            "name": f"n{i % 4}",
                        },
                    )

            def _generate_examples(self) -> Any:
                raise AssertionError("the generators of the splits are used")

    root = tmp_path_factory.mktemp("tfds")
    Blobs(data_dir=str(root), file_format="array_record").download_and_prepare()
    return root


def numbers(split: str, data_dir: Path) -> list[int]:
    data = tfds_data("blobs", split, data_dir=data_dir, label="number", targets="values")
    for i in range(len(data)):
        assert np.all(data.image(i) == 10 * data.labels[i]) and data.image(i).shape == (8, 8, 1)
    return data.labels.astype(int).tolist()


def test_images_and_labels_by_name_and_by_folder(data_dir: Path) -> None:
    data = tfds_data("blobs", data_dir=data_dir)
    assert data.classes == ("a", "b") and len(data) == 10
    order = numbers("train", data_dir)
    assert sorted(order) == list(range(10))
    assert data.labels.tolist() == [number % 2 for number in order]
    by_folder = tfds_data(data_dir / "blobs/1.0.0")
    assert by_folder.fingerprint() == data.fingerprint()
    assert by_folder.name(2) == "blobs/1.0.0 train, record 2"
    assert "tensorflow" not in sys.modules


def test_splits_are_sliced(data_dir: Path) -> None:
    order = numbers("train", data_dir)
    assert numbers("train[:30%]", data_dir) == order[:3]
    assert numbers("train[-2:]+test", data_dir) == order[-2:] + numbers("test", data_dir)


def test_labels_and_images_may_be_of_any_kind(data_dir: Path) -> None:
    order = numbers("train", data_dir)
    tags = tfds_data("blobs", data_dir=data_dir, label="tags", targets="multi_label")
    assert tags.classes == ("x", "y", "z")
    for number, row in zip(order, tags.labels, strict=True):
        assert np.flatnonzero(row).tolist() == TAGS[number % 3]
    names = tfds_data("blobs", data_dir=data_dir, label="name", image="raw")
    assert names.classes == ("n0", "n1", "n2", "n3")
    assert names.labels.tolist() == [number % 4 for number in order]
    assert names.image(1).tolist() == [[[order[1]]] * 2] * 2


def test_batches_are_read_by_threads(data_dir: Path) -> None:
    data = tfds_data("blobs", data_dir=data_dir).ready(Preprocess(size=(4, 4), channels=3))
    with Loader(data, 5, 0, 2).batches(0, 2) as batches:
        read = np.concatenate([batch["image"] for batch in batches])
    assert read.shape == (10, 4, 4, 3)
    assert sorted(read[:, 0, 0, 0].tolist()) == list(range(0, 100, 10))


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_what_is_not_prepared_says_how_to_prepare_it(data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        tfds_data("mnist", data_dir=tmp_path)
    message = str(error.value)
    assert f"mnist: expected it in {tmp_path}/mnist/3.0.1, found none" in message
    assert "tfds.builder('mnist', file_format='array_record', data_dir=DIR)" in message
    assert list(tmp_path.iterdir()) == []  # nothing is begun


def test_files_that_need_tensorflow_are_refused(data_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "blobs/1.0.0"
    folder.mkdir(parents=True)
    for file in (data_dir / "blobs/1.0.0").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    info = json.loads((folder / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    (folder / "dataset_info.json").write_text(json.dumps(info).replace("array_record", "tfrecord"))
    with pytest.raises(
        DataError, match=r"expected files of array_record.* found tfrecord; prepare"
    ):
        tfds_data(folder)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("no_such_set", {}, "no_such_set: expected a data set of TensorFlow Datasets, found: Data"),
        ("blobs:9.9.9", {}, "blobs:9.9.9: expected a data set of TensorFlow Datasets, found: "),
        ("/no/such/folder", {}, "/no/such/folder: expected the folder of a version of a data set"),
        ("blobs", {"split": "tran"}, "expected slices of ['test', 'train'], found 'tran'"),
        ("blobs", {"split": "train[:1"}, "expected slices of ['test', 'train'], found 'train[:1'"),
        (
            "blobs",
            {"image": "x", "label": "y"},
            "expected features ['x', 'y'], found ['image', 'la",
        ),
        ("blobs", {"targets": {"a": "classes"}}, "labels for the tasks ['a'], found 'label'"),
    ],
)
def test_what_is_not_there_is_an_error(
    name: str, options: Any, message: str, data_dir: Path
) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        tfds_data(name, data_dir=data_dir, **options)


def test_a_folder_without_a_version_is_an_error(data_dir: Path) -> None:
    with pytest.raises(DataError, match=r"such as \.\.\./mnist/3\.0\.1"):
        tfds_data(data_dir / "blobs")
