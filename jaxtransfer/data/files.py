"""Images from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jaxtransfer.errors import DataError


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
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I"):
                image = _eight_bits(image)
            if image.mode == "F":
                raise ValueError("an image of floats, whose range is not known")
            grey = channels == 1 or (channels is None and image.mode in ("1", "L", "LA"))
            array = np.asarray(image.convert("L" if grey else "RGB"))
    # Pillow's readers also raise SyntaxError and ValueError for files that are cut off.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: expected an image file, found: {error}") from error
    return array[..., np.newaxis] if grey else array


def _eight_bits(image: Any) -> Any:
    """A grey image of 16 bits a pixel as one of 8; Pillow would cut off what is above 255."""
    from PIL import Image

    values = np.asarray(image).astype(np.float64)
    if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise ValueError("an image of more than 16 bits a pixel")
    return Image.fromarray(np.round(values / 257).astype(np.uint8))
