from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxtransfer.data import image_table
from jaxtransfer.errors import DataError
from tests.data.conftest import Write


@pytest.fixture
def table(tmp_path: Path, write_image: Write) -> Path:
    """Four rows with an image each, whose brightness is ten times the number of the row."""
    for number, name in enumerate(["a.png", "sub/b c.png", "d.JPG", "ü.png"]):
        write_image(f"images/{name}", 10 * number)
    path = tmp_path / "images/table.csv"
    path.write_text(
        "image,label,age,tags,wet,cold\n"
        'a.png,10,1.5,"sea sky",1,0\n'
        '"sub/b c.png",9,2,"",0,0\n'
        "d.JPG,10,-3,sky,1,1\n"
        "\n"
        "ü.png,9,4,sea,0,1\n",
        encoding="utf-8-sig",
    )
    return path


def test_rows_name_images_and_labels(table: Path) -> None:
    data = image_table(table)
    assert data.classes == ("9", "10")  # as numbers
    assert data.labels.tolist() == [1, 0, 1, 0]
    brightness = data.read(np.arange(4))["image"][:, 0, 0, 0]
    assert np.abs(brightness - np.array([0, 10, 20, 30])).max() <= 1
    assert [Path(data.name(i)).name for i in range(4)] == ["a.png", "b c.png", "d.JPG", "ü.png"]
    assert image_table(table, classes=["10", "9", "8"]).labels.tolist() == [0, 1, 0, 1]
    assert image_table(table, label="wet", split="train[50%:]").labels.tolist() == [1, 0]
    assert image_table(table, label="tags").classes == ("", "sea", "sea sky", "sky")


def test_labels_of_other_kinds(table: Path) -> None:
    tags = image_table(table, label="tags", targets="multi_label")
    assert tags.classes == ("sea", "sky")
    assert tags.labels.tolist() == [[1, 1], [0, 0], [0, 1], [1, 0]]
    hot = image_table(table, label=("wet", "cold"), targets="multi_label")
    assert hot.classes == ("wet", "cold")
    assert hot.labels.tolist() == [[1, 0], [0, 0], [1, 1], [0, 1]]
    ages = image_table(table, label="age", targets="values")
    assert ages.labels.tolist() == [1.5, 2, -3, 4] and ages.classes is None
    both = image_table(table, label=["age", "cold"], targets="values", split="train[2:]")
    assert both.labels.tolist() == [[-3, 1], [4, 1]]
    tasks = image_table(
        table,
        label={"kind": "label", "age": "age"},
        targets={"kind": "classes", "age": "values"},
        classes={"kind": ["10", "9"]},
        split="train[-1:]+train[:1]",
    )
    assert {task: x.tolist() for task, x in tasks.labels.items()} == {
        "kind": [1, 0],
        "age": [4, 1.5],
    }
    assert tasks.classes == {"kind": ("10", "9"), "age": None}


def test_paths_may_lack_their_suffix_and_start_elsewhere(table: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("id;x,breed\na,dog\nü,cat\n")
    data = image_table(other, image="id;x", label="breed", root=table.parent, suffix=".png")
    assert data.classes == ("cat", "dog") and data.labels.tolist() == [1, 0]
    assert Path(data.name(1)) == table.parent / "ü.png"


def test_unreadable_images_are_refused_or_left_out(table: Path) -> None:
    (table.parent / "sub/b c.png").unlink()
    (table.parent / "d.JPG").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"expected 4 image files, found 2 unreadable(.|\n)*d\.JPG"):
        image_table(table)
    with pytest.warns(UserWarning, match=r"2 of 4 files are left out:(.|\n)*b c\.png"):
        data = image_table(table, label="age", targets="values", unreadable="skip")
    assert data.labels.tolist() == [1.5, 4] and len(data.skipped) == 2


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "found 0 rows"),
        ("image,label\n", {}, "found 1 rows with the names ['image', 'label']"),
        ("image,label,label\na,b,c\n", {}, "each once"),
        ("image,label\na.png\nb,c\nd,e,f\n", {}, "other lengths have the rows [2, 4]"),
        ('image,label\n"a.png,b\n', {}, "expected a table in UTF-8, found: "),
        ("image,label\na.png,1\n", {"image": "file"}, "a column 'file', found image, label"),
        ("image,label\na.png,1\n", {"label": "y"}, "a column 'y', found image, label"),
        ("image,label\na.png,x\n", {"targets": "values"}, "numbers as labels, found 'x'"),
        ("image,label\na.png,1\n", {"label": ["label"]}, None),
        (
            "image,a,b\na.png,1,2\n",
            {"label": ["a", "b"]},
            "one column for classes, found ['a', 'b']",
        ),
        ("image,label\na.png,1\n", {"classes": ["2"]}, "names among 2, found ['1']"),
        ("image,label\na.png,1\n", {"split": "test"}, "among ['train'], found 'test'"),
        (
            "image,label\na.png,1\n",
            {"targets": {"a": "classes"}},
            "columns for ['a'], found 'label'",
        ),
        ("image,label\na.png,1\n", {"targets": "labels"}, "targets: expected one of classes"),
    ],
)
def test_what_is_no_table_is_an_error(
    text: str, options: Any, message: str | None, table: Path
) -> None:
    table.write_text(text)
    if message is None:
        assert image_table(table, **options).labels.tolist() == [0]
        return
    with pytest.raises(DataError, match=re.escape(message)):
        image_table(table, **options)


def test_a_table_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.csv: expected a table in UTF-8, found: "):
        image_table(tmp_path / "none.csv")
