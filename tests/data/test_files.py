from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxtransfer.data.files import read_image
from jaxtransfer.errors import DataError

COLOUR = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
GREY = COLOUR[..., 0]


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff"])
def test_colour_and_grey_files_are_read_as_they_are(suffix: str, tmp_path: Path) -> None:
    for array in (COLOUR, GREY):
        path = tmp_path / f"image.{suffix}"
        Image.fromarray(array).save(path)
        found = read_image(path)
        assert found.dtype == np.uint8 and found.ndim == 3
        np.testing.assert_array_equal(found, array.reshape(5, 7, -1))


def test_channels_are_converted_as_asked(tmp_path: Path) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "colour.png")
    Image.fromarray(GREY).save(tmp_path / "grey.png")
    luma = (COLOUR * [0.299, 0.587, 0.114]).sum(axis=-1, keepdims=True)
    assert np.abs(read_image(tmp_path / "colour.png", channels=1) - luma).max() <= 1
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png", 3), np.stack([GREY] * 3, -1))


def test_an_image_is_turned_as_its_orientation_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6  # to be turned by a quarter, clockwise
    Image.fromarray(COLOUR).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "turned.png"), np.rot90(COLOUR, -1))


def test_transparency_is_left_out(tmp_path: Path) -> None:
    Image.fromarray(np.dstack([COLOUR, GREY])).save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.png"), COLOUR)


def test_sixteen_bits_become_eight(tmp_path: Path) -> None:
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png")[..., 0], GREY)
    assert read_image(tmp_path / "deep.png", channels=3).shape == (5, 7, 3)


def cut_off(path: Path) -> None:
    Image.fromarray(COLOUR).save(path, "png")
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    "write",
    [
        lambda path: None,
        lambda path: path.mkdir(),
        lambda path: path.write_text("no image"),
        lambda path: path.write_bytes(b""),
        lambda path: Image.fromarray(GREY.astype(np.float32)).save(path, "tiff"),
        cut_off,
    ],
    ids=["absent", "folder", "text", "empty", "floats", "cut off"],
)
def test_what_is_no_image_is_an_error(write: Any, tmp_path: Path) -> None:
    path = tmp_path / "image"
    write(path)
    with pytest.raises(DataError, match=f"^{path}: expected an image file, found: ."):
        read_image(path)


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_only_grey_and_colour_can_be_asked_for(channels: int, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"channels of 1, 3 or None, found {channels}"):
        read_image(tmp_path / "any.png", channels)
