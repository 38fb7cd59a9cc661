"""Images from files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from jaxtransfer.errors import DataError

ORIENTATION = 0x0112
"""The Exif tag that says how an image is turned. Source: Exif 2.32, table 4."""


def read_image(path: str | Path, channels: int | None = None) -> np.ndarray:
    """An image file as an array of bytes.

    Args:
        path: any format that Pillow reads; turned as its orientation tag says.
        channels: 1 for grey, 3 for colour; `None` for grey where the file is grey, else colour.
            Transparency is left out; 16 bits a pixel are scaled to 8.

    Returns:
        uint8, shape (height, width, channels).

    Raises:
        DataError: there is no such file, it is no image or one of floats, or `channels` is none of
            these.
    """
    if channels not in (None, 1, 3):
        raise DataError(f"{path}: expected channels of 1, 3 or None, found {channels}")
    with as_data_error(str(path)):
        return as_bytes(with_channels(upright(open_image(Path(path).read_bytes())), channels))


class as_data_error:
    """A context that turns what Pillow raises for a damaged file into a `DataError`.

    A class and no generator, as it is entered for every image of an epoch.
    """

    def __init__(self, where: str):
        self.where = where

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        from PIL import Image

        # Pillow's readers also raise SyntaxError and ValueError for files that are cut off.
        damage = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
        if isinstance(error, damage):
            raise DataError(f"{self.where}: expected an image file, found: {error}") from error


def open_image(content: bytes) -> Any:
    """A Pillow image whose header is read and whose pixels are not."""
    from PIL import Image

    return Image.open(io.BytesIO(content))


def upright(image: Any) -> Any:
    """The image turned as its orientation tag says; the very image where it says nothing."""
    from PIL import ImageOps

    # The function of Pillow copies images that need no turning.
    return image if image.getexif().get(ORIENTATION, 1) == 1 else ImageOps.exif_transpose(image)


def with_channels(image: Any, channels: int | None) -> Any:
    """A Pillow image as one of mode "L" or "RGB"."""
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.mode == "F":
        raise ValueError("an image of floats, whose range is not known")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns where transparency is dropped without this
    grey = channels == 1 or (channels is None and image.mode in ("1", "L", "LA"))
    mode = "L" if grey else "RGB"
    return image if image.mode == mode else image.convert(mode)  # which copies where it is the same


def as_bytes(image: Any) -> np.ndarray:
    """A Pillow image of mode "L" or "RGB" as uint8, shape (height, width, channel)."""
    array = np.asarray(image)
    return array if array.ndim == 3 else array[..., np.newaxis]


def _eight_bits(image: Any) -> Any:
    """A grey image of 16 bits a pixel as one of 8; Pillow would cut off what is above 255."""
    from PIL import Image

    values = np.asarray(image).astype(np.float64)
    if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise ValueError("an image of more than 16 bits a pixel")
    return Image.fromarray(np.round(values / 257).astype(np.uint8))
