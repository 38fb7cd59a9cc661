"""Decode an image on the host to the canvas of which the device cuts out the centre."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from jaxtransfer.data.augment.base import as_size
from jaxtransfer.data.augment.crop import RandomResizedCrop
from jaxtransfer.data.files import (
    ORIENTATION,
    as_bytes,
    as_data_error,
    open_image,
    upright,
    with_channels,
)
from jaxtransfer.data.preprocess import check_images
from jaxtransfer.data.resample import resample
from jaxtransfer.errors import DataError
from jaxtransfer.models import Preprocess

REDUCING_GAP = 3
"""How many times larger than needed a JPEG is decoded at least, where it is not decoded in full.

Largest and mean difference, of 255 levels, from what the whole image gives; the worst of 80
photographs, five sizes and three filters:

| gap | largest | mean |
|---|---|---|
| 1 | 48 | 6.3 |
| 2 | 16 | 2.7 |
| 3 | 11 | 0.7 |
| 4 | 10 | 0.6 |
"""


class Fit(NamedTuple):
    """How an image is brought onto its canvas: resized, and a rectangle of the result kept."""

    resized: tuple[int, int]
    corner: tuple[int, int]
    canvas: tuple[int, int]


@functools.lru_cache(maxsize=64)
def canvas_size(how: Preprocess) -> tuple[int, int] | None:
    """(height, width) of images that `preprocess_images` crops and does not resize any more.

    That is `size / crop_fraction`. The longest side is rounded, as the device rounds it; the other
    one is rounded up, so that it never asks for a larger image.

    >>> canvas_size(Preprocess(size=(224, 224), crop_fraction=0.875))
    (256, 256)
    """
    if how.size is None:
        return None
    longest = max(how.size)
    height, width = (
        max((round if side == longest else math.ceil)(side / how.crop_fraction), side)
        for side in how.size
    )
    return height, width


def fit(shape: tuple[int, int], how: Preprocess) -> Fit | None:
    """What brings an image of this height and width onto the canvas, or `None` where none is asked.

    The rectangle lies so that the device's central crop takes the very pixels that it would take
    from the whole resized image.
    """
    canvas = canvas_size(how)
    if canvas is None or how.size is None:
        return None
    sides = tuple(zip(how.size, shape, canvas, strict=True))
    ratio = max(wanted / side for wanted, side, _ in sides) / how.crop_fraction
    height, width = (max(round(side * ratio), least) for _, side, least in sides)
    top, left = (
        (side - wanted) // 2 - (least - wanted) // 2
        for side, (wanted, _, least) in zip((height, width), sides, strict=True)
    )
    return Fit((height, width), (top, left), canvas)


def decode_image(stored: Any, how: Preprocess, where: str) -> np.ndarray:
    """An image in the form that batches for this preprocessing have on the host.

    Files of JPEG are decoded at a half, a quarter or an eighth of their size where that is still
    `REDUCING_GAP` times what they are resized to.

    Args:
        stored: the bytes of an image file, a Pillow image, or an array of shape (height, width) or
            (height, width, channel).
        how: what the network expects.
        where: the name of the image, for messages.

    Returns:
        Shape (*canvas, channel), or the image's own size where `how` asks for none; uint8, or the
        dtype of the array.

    Raises:
        DataError: it is no image, or an array that does not fit `how`.
    """
    if isinstance(stored, np.ndarray):
        return _from_array(stored, how, where)
    with as_data_error(where):
        image, shape = _opened(stored)
        placing = fit(shape, how)
        if placing is not None and _is_filtered(how):
            shape = _reduce(image, shape, placing.resized, how.channels)
        image = with_channels(upright(image), how.channels)
        return as_bytes(image) if placing is None else _place(image, shape, placing, how)


def decode_part(
    stored: Any,
    how: Preprocess,
    where: str,
    crop: RandomResizedCrop,
    generator: np.random.Generator,
) -> np.ndarray:
    """A part of an image, drawn at random, in the size that the crop gives it.

    What is cut out is cut out of the whole image, not of the canvas that `decode_image` brings it
    to; a part of a JPEG file that is large enough is decoded smaller, as it does.

    Args:
        stored: as for `decode_image`.
        how: what the network expects; of its channels alone is made use here.
        where: the name of the image, for messages.
        crop: the law of the part, and its size.
        generator: draws the part.

    Returns:
        Shape (*crop.size, channel); uint8, or the dtype of the array.

    Raises:
        DataError: it is no image, or an array that does not fit `how`.
    """
    size = as_size(crop.size)
    if isinstance(stored, np.ndarray):
        array = _checked(stored, how, where)
        if not _is_for_pillow(array):
            top, left, height, width = crop.box(generator, (array.shape[0], array.shape[1]))
            part = array[top : top + height, left : left + width]
            return resample(part, size, (0, 0), size, crop.interpolation, antialias=True)
        stored = _as_pillow(array)
    with as_data_error(where):
        image, shape = _opened(stored)
        top, left, height, width = crop.box(generator, shape)
        resized = (shape[0] * size[0] / height, shape[1] * size[1] / width)
        whole = _reduce(image, shape, resized, how.channels)
        image = with_channels(upright(image), how.channels)
        down, across = whole[0] / shape[0], whole[1] / shape[1]
        # Rounding must not lead beyond the image, where all is black.
        right, bottom = min((left + width) * across, whole[1]), min((top + height) * down, whole[0])
        box = (left * across, top * down, right, bottom)
        # Cut out first, for what lies outside to have no influence.
        outer = (*map(math.floor, box[:2]), *(map(math.ceil, box[2:])))
        inner = tuple(side - outer[i % 2] for i, side in enumerate(box))
        part = image.crop(outer).resize(size[::-1], _filters()[crop.interpolation], box=inner)
        return as_bytes(part)


def _opened(stored: Any) -> tuple[Any, tuple[int, int]]:
    """A Pillow image, maybe turned still, and its (height, width) once it is upright."""
    image = open_image(stored) if isinstance(stored, bytes) else stored
    return image, image.size if _is_turned(image) else image.size[::-1]


def _is_turned(image: Any) -> bool:
    """Whether its rows are its columns once it is upright."""
    return image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)


def _is_filtered(how: Preprocess) -> bool:
    """Whether a pixel is an average of all that it covers, as a reduced decoding makes it too."""
    return how.antialias and how.interpolation != "nearest"


def _reduce(
    image: Any, shape: tuple[int, int], resized: tuple[float, float], channels: int | None
) -> tuple[float, float]:
    """Let the decoder of a JPEG file leave out frequencies that resizing would leave out anyway.

    Args:
        image: a Pillow image; one that is no JPEG file stays as it is.
        shape: its (height, width) once it is upright.
        resized: what they become.
        channels: that are wanted.

    Returns:
        (height, width) that the whole image has in the pixels of the reduced one, which may hold
        a part of a pixel more.
    """
    if image.format not in ("JPEG", "MPO"):
        return shape
    turned = _is_turned(image)
    high, wide = (math.ceil(REDUCING_GAP * side) for side in resized)
    least = (high, wide) if turned else (wide, high)  # (width, height) as the file has them
    reduced = image.draft("L" if channels == 1 else None, least)
    width, height = image.size if reduced is None else reduced[1][2:]
    return (width, height) if turned else (height, width)


def _place(image: Any, shape: tuple[float, float], placing: Fit, how: Preprocess) -> np.ndarray:
    """Resize a Pillow image of this height and width, and keep the rectangle."""
    if not (_is_filtered(how) or how.interpolation == "nearest"):
        return resample(as_bytes(image), *placing, how.interpolation, antialias=False)
    (top, left), (height, width) = placing.corner, placing.canvas
    down, across = shape[0] / placing.resized[0], shape[1] / placing.resized[1]
    # Rounding must not lead beyond the image, which Pillow refuses.
    right = min((left + width) * across, image.size[0])
    bottom = min((top + height) * down, image.size[1])
    box = (left * across, top * down, right, bottom)
    return as_bytes(image.resize((width, height), _filters()[how.interpolation], box=box))


@functools.cache
def _filters() -> dict[str, Any]:
    """Pillow's by the names of interpolations."""
    from PIL import Image

    return {
        "nearest": Image.Resampling.NEAREST,
        "bilinear": Image.Resampling.BILINEAR,
        "bicubic": Image.Resampling.BICUBIC,
        "lanczos3": Image.Resampling.LANCZOS,
    }


def _from_array(array: np.ndarray, how: Preprocess, where: str) -> np.ndarray:
    image = _checked(array, how, where)
    placing = fit((image.shape[0], image.shape[1]), how) if image.ndim == 3 else None
    if _is_for_pillow(image) and (placing is not None or how.channels is not None):
        return decode_image(_as_pillow(image), how, where)
    if placing is None or placing.resized == image.shape[:2] == placing.canvas:
        return image
    return resample(image, *placing, how.interpolation, how.antialias)


def _checked(array: np.ndarray, how: Preprocess, where: str) -> np.ndarray:
    try:
        return check_images(array[np.newaxis], how)[0]
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _is_for_pillow(image: np.ndarray) -> bool:
    return image.dtype == np.uint8 and image.ndim == 3 and image.shape[-1] in (1, 3)


def _as_pillow(image: np.ndarray) -> Any:
    from PIL import Image

    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
