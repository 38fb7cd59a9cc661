"""Small folders of images, and images that say which they are."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Write = Callable[..., Path]


@pytest.fixture
def write_image(tmp_path: Path) -> Write:
    """Writes a grey 4x4 image of one brightness to a path below the temporary folder."""

    def write(name: str, brightness: int = 0) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = "JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else None
        Image.fromarray(np.full((4, 4), brightness, np.uint8)).save(path, kind)
        return path

    return write


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes in two splits: train/{ant,bee} with 6 images each, val/{ant,bee} with 2 each."""
    root = tmp_path_factory.mktemp("folder")
    number = 0
    for split, count in (("train", 6), ("val", 2)):
        for label in ("ant", "bee"):
            (root / split / label).mkdir(parents=True)
            for i in range(count):
                image = Image.fromarray(np.full((4, 4), 10 * number, np.uint8))
                image.save(root / split / label / f"{i}.png")
                number += 1
    return root


def encoded(array: np.ndarray, kind: str, **options: Any) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()
