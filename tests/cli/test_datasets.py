from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxtransfer.cli.datasets import read_parts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two parts of two classes; each image has a grey of its own."""
    for part, count in (("train", 5), ("val", 2)):
        for number, name in enumerate(("ants", "bees")):
            place = tmp_path / part / name
            place.mkdir(parents=True)
            for i in range(count):
                grey = np.full((2, 2), 40 * i + 10 * number, np.uint8)
                Image.fromarray(grey).save(place / f"{i}.png")
    return tmp_path


def test_few_of_a_folder_are_trained_on_and_others_are_for_validation(folder: Path) -> None:
    parts = read_parts(str(folder), 2, seed=0)
    assert parts.validation is not None
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (4, 6, 4)
    assert np.bincount(parts.train.labels).tolist() == [2, 2]
    seen = [
        part.read(np.arange(len(part)))["image"].max(axis=(1, 2, 3))
        for part in (parts.train, parts.validation)
    ]
    assert len(set(np.concatenate(seen).tolist())) == 10


@pytest.mark.parametrize("per_class", [None, 5])
def test_where_no_other_is_left_there_is_no_validation_part(
    folder: Path, per_class: int | None
) -> None:
    parts = read_parts(str(folder), per_class, seed=0)
    assert parts.validation is None and len(parts.train) == 10
