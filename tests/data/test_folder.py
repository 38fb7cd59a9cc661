from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jaxtransfer as jt
from jaxtransfer.data import image_folder, slice_split
from jaxtransfer.data.source import Data
from jaxtransfer.errors import DataError
from jaxtransfer.models import Preprocess
from tests.data.conftest import Write, encoded

# ---------------------------------------------------------------------------------------------
# What is found


def test_folders_of_classes_in_splits(folder: Path) -> None:
    train, val = image_folder(folder), image_folder(folder, "val")
    assert isinstance(train, Data) and not train.in_memory
    assert (len(train), len(val)) == (12, 4) and train.classes == val.classes == ("ant", "bee")
    for data in (train, val):
        for i in range(len(data)):
            assert Path(data.name(i)).parent.name == data.classes[data.labels[i]]
            expected = np.asarray(Image.open(data.name(i)))
            np.testing.assert_array_equal(data.image(i)[..., 0], expected)
    batch = train.read(np.array([3, 0]))
    assert batch["image"].shape == (2, 4, 4, 1) and batch["image"].dtype == np.uint8
    assert batch["label"].tolist() == train.labels[[3, 0]].tolist()


def test_a_folder_without_splits_is_called_train(folder: Path) -> None:
    data = image_folder(folder / "train")
    assert data.labels.tolist() == image_folder(folder).labels.tolist()
    assert len(image_folder(folder / "train", "train[:25%]")) == 3
    with pytest.raises(DataError, match=r"expected among \['train'\], found 'val'"):
        image_folder(folder / "train", "val")


def test_slices_and_sums_of_splits(folder: Path) -> None:
    whole = image_folder(folder)
    parts = [image_folder(folder, split) for split in ("train[:75%]", "train[75%:]")]
    assert [len(part) for part in parts] == [9, 3]
    names = [part.name(i) for part in parts for i in range(len(part))]
    assert names == [whole.name(i) for i in range(12)]
    assert set(parts[0].labels) == {0, 1}  # a slice has examples of all classes
    assert len(image_folder(folder, "train+val")) == 16
    assert len(image_folder(folder, "all")) == 16
    by_slice = slice_split(whole, "train[75%:]")
    assert isinstance(by_slice, jt.StoredData)
    assert by_slice.fingerprint() != parts[1].fingerprint()  # the same images of another store
    assert [by_slice.name(i) for i in range(3)] == [parts[1].name(i) for i in range(3)]


def test_a_class_may_be_absent_from_a_split(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy/val/ant")
    data = image_folder(tmp_path / "copy", "val")
    assert data.classes == ("ant", "bee") and data.labels.tolist() == [1, 1]
    fixed = image_folder(tmp_path / "copy", "val", classes=["bee", "cow", "ant"])
    assert fixed.classes == ("bee", "cow", "ant") and fixed.labels.tolist() == [0, 0]
    with pytest.raises(DataError, match=r"expected folders of bee, found \['ant', 'bee'\]"):
        image_folder(tmp_path / "copy", "val", classes=["bee"])


def test_names_of_all_kinds_are_found(tmp_path: Path, write_image: Write) -> None:
    kept = ["a b/with space.png", "a b/GREAT.JPG", "a b/deep/er/x.Jpeg", "Ωμ/ünï.png", "Ωμ/y.TIFF"]
    for number, name in enumerate(kept):
        write_image(f"root/{name}", 20 * number)
    for name in ("a b/notes.txt", "a b/.hidden.png", "Ωμ/._y.png", "README", ".git/x.png"):
        path = tmp_path / "root" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("no image")
    (tmp_path / "root/a b/.cache").mkdir()
    write_image("root/a b/.cache/x.png")
    data = image_folder(tmp_path / "root")
    found = {str(Path(data.name(i)).relative_to(tmp_path / "root")) for i in range(len(data))}
    assert found == set(kept) and data.classes == ("a b", "Ωμ")
    assert len(data.read(np.arange(5))["image"]) == 5


def test_links_are_followed_and_loops_are_not(tmp_path: Path, write_image: Write) -> None:
    write_image("elsewhere/x.png")
    write_image("root/a/y.png")
    (tmp_path / "root/a/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root/a/loop").symlink_to(tmp_path / "root/a")
    (tmp_path / "root/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root/a/z.png").symlink_to(tmp_path / "elsewhere/x.png")
    data = image_folder(tmp_path / "root")
    found = sorted(str(Path(data.name(i)).relative_to(tmp_path / "root")) for i in range(len(data)))
    assert found == ["a/linked/x.png", "a/y.png", "a/z.png", "b/x.png"]


def test_what_is_no_folder_of_images_is_an_error(tmp_path: Path, write_image: Write) -> None:
    with pytest.raises(DataError, match="nowhere: expected a folder of images, found none"):
        image_folder(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="found none in any"):
        image_folder(tmp_path / "empty")
    write_image("root/a/x.png")
    (tmp_path / "root/b").mkdir()
    (tmp_path / "root/c").mkdir()
    with pytest.raises(DataError, match="found none in b, c; delete folders"):
        image_folder(tmp_path / "root")
    write_image("stray/a/x.png")
    write_image("stray/y.png")
    with pytest.raises(DataError, match=r"found 1 beside these folders, such as y\.png"):
        image_folder(tmp_path / "stray")
    write_image("whole/a/x.png")
    with pytest.raises(DataError, match="expected 'refuse' or 'skip', found 'ignore'"):
        image_folder(tmp_path / "whole", unreadable="ignore")


# ---------------------------------------------------------------------------------------------
# Unreadable files


@pytest.fixture
def damaged(folder: Path, tmp_path: Path) -> Path:
    """A copy of the folder with five damaged files, each in its own way, and an odd whole one."""
    root = tmp_path / "damaged"
    shutil.copytree(folder, root)
    photo = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    jpeg, png = encoded(photo, "JPEG"), encoded(photo, "PNG")
    (root / "train/ant/empty.png").touch()
    (root / "train/ant/text.jpg").write_text("no image at all")
    (root / "train/bee/cut.jpg").write_bytes(jpeg[:-500])
    (root / "train/bee/cut.png").write_bytes(png[: len(png) // 2])
    (root / "train/bee/gone.png").symlink_to(root / "nowhere.png")
    (root / "train/bee/with more behind.jpg").write_bytes(jpeg + bytes(100))
    return root


BAD = ["ant/empty.png", "ant/text.jpg", "bee/cut.jpg", "bee/cut.png", "bee/gone.png"]


def test_damaged_files_are_refused_all_at_once(damaged: Path) -> None:
    with pytest.raises(DataError, match="expected 18 image files, found 5 unreadable") as error:
        image_folder(damaged)
    listed = re.findall(r"\n - (\S+?): expected an image file, found: .", str(error.value))
    assert sorted(listed) == [str(damaged / "train" / name) for name in BAD]


def test_damaged_files_are_left_out_and_named_where_that_is_asked_for(damaged: Path) -> None:
    with pytest.warns(UserWarning, match="5 of 18 files are left out:"):
        data = image_folder(damaged, unreadable="skip")
    assert len(data) == 13 and len(data.skipped) == 5
    assert sorted(text.split(":")[0] for text in data.skipped) == [
        str(damaged / "train" / name) for name in BAD
    ]
    for i in range(13):
        assert Path(data.name(i)).parent.name == data.classes[data.labels[i]]
    ready = data.ready(Preprocess(size=(4, 4), channels=3))
    assert ready.read(np.arange(13))["image"].shape == (13, 4, 4, 3)


def test_damage_within_a_file_is_found_by_decoding_alone(
    tmp_path: Path, write_image: Write
) -> None:
    write_image("root/a/good.png", 7)
    png = encoded(np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8), "PNG")
    middle = len(png) // 2
    (tmp_path / "root/a/torn.png").write_bytes(png[:middle] + b"XXXXXXXX" + png[middle + 8 :])
    data = image_folder(tmp_path / "root")
    torn = next(i for i in range(2) if data.name(i).endswith("torn.png"))
    with pytest.raises(DataError, match=r"^\S*a/torn\.png: expected an image file, found: ."):
        data.read(np.array([torn]))
    with pytest.warns(UserWarning, match=r"torn\.png"):
        assert len(image_folder(tmp_path / "root", unreadable="skip")) == 1
    (tmp_path / "root/a/good.png").unlink()
    with pytest.raises(DataError, match="expected 1 image files, found 1 unreadable"):
        image_folder(tmp_path / "root", unreadable="skip")
    with pytest.raises(DataError, match=r"good\.png: expected an image, found: No such file"):
        data.read(np.array([1 - torn]))


# ---------------------------------------------------------------------------------------------
# As training data


def test_the_form_of_images_is_that_of_the_preprocessing(folder: Path) -> None:
    data = image_folder(folder).ready(Preprocess(size=(6, 6), channels=3, crop_fraction=0.75))
    assert data.read(np.arange(3))["image"].shape == (3, 8, 8, 3)
    assert data.take(np.array([2])).read(np.array([0]))["image"].shape == (1, 8, 8, 3)


def test_images_of_several_shapes_want_a_size(tmp_path: Path, write_image: Write) -> None:
    write_image("root/a/x.png")
    Image.new("RGB", (5, 7)).save(tmp_path / "root/a/y.png")
    data = image_folder(tmp_path / "root").ready(Preprocess())
    shapes = r"\(\d, \d, \d\) uint8, found \(\d, \d, \d\) uint8; give a preprocessing with size"
    with pytest.raises(DataError, match=rf"[xy]\.png: expected .* {shapes}"):
        data.read(np.arange(2))
    with pytest.raises(DataError, match="give a preprocessing with size"):
        data.load()
    assert data.load(Preprocess(size=(4, 4), channels=1)).images.shape == (2, 4, 4, 1)


def test_a_folder_is_loaded_into_memory(folder: Path) -> None:
    stored = image_folder(folder)
    loaded = stored.load()
    assert loaded.in_memory and loaded.classes == stored.classes
    everything = stored.read(np.arange(len(stored)))
    np.testing.assert_array_equal(loaded.images, everything["image"])
    np.testing.assert_array_equal(loaded.labels, everything["label"])


def test_a_fingerprint_tells_data_apart_wherever_they_lie(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    data, copy = image_folder(folder), image_folder(tmp_path / "copy")
    assert data.fingerprint() == copy.fingerprint() == image_folder(folder).fingerprint()
    fingerprints = {
        data.fingerprint(),
        data.take(np.arange(11)).fingerprint(),
        data.take(np.arange(12)[::-1]).fingerprint(),
        image_folder(folder, "val").fingerprint(),
    }
    os.rename(tmp_path / "copy/train/ant/0.png", tmp_path / "copy/train/bee/other.png")
    fingerprints.add(image_folder(tmp_path / "copy").fingerprint())
    assert len(fingerprints) == 5


@pytest.mark.pretrained
def test_ants_and_bees(real_data: Path, tmp_path: Path) -> None:
    shutil.unpack_archive(real_data / "datasets" / "hymenoptera_short256.zip", tmp_path)
    train, val = image_folder(tmp_path), image_folder(tmp_path, "val", unreadable="skip")
    assert train.classes == val.classes == ("ants", "bees")
    assert np.bincount(train.labels).tolist() == [123, 121]
    assert np.bincount(val.labels).tolist() == [70, 83] and not val.skipped
    ready = val.ready(Preprocess(size=(224, 224), channels=3, crop_fraction=0.875))
    with jt.Loader(ready, 16, 0, workers=2).batches(0, 10) as batches:
        shapes = {batch["image"].shape for batch in batches}
    assert shapes == {(16, 256, 256, 3)}
