"""Images from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jaxtransfer.errors import DataError


def read_image(path: str | Path, channels: int | None = None) -> np.ndarray:
    """An image file as an array of bytes.

    Args:
        path: any format that Pillow reads; turned as its orientation tag says.
        channels: 1 for grey, 3 for colour; `None` for grey where the file is grey, else colour.

    Returns:
        uint8, shape (height, width, channels).

    Raises:
        DataError: there is no such file, or it is no image.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            grey = channels == 1 or (channels is None and image.mode in ("1", "L", "LA"))
            array = np.asarray(image.convert("L" if grey else "RGB"))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: expected an image file, found: {error}") from error
    return array[..., np.newaxis] if grey else array
