from __future__ import annotations

import io
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageOps
from PIL.JpegImagePlugin import JpegImageFile

import jaxtransfer as jt
from jaxtransfer.data import augment, preprocess_images
from jaxtransfer.data.decode import REDUCING_GAP, canvas_size, decode_image, decode_part, fit
from jaxtransfer.data.preprocess import INTERPOLATIONS
from jaxtransfer.errors import DataError
from jaxtransfer.models import AS_THEY_COME, Preprocess
from tests.data.conftest import encoded

SIDES = st.integers(1, 60)


def photo(height: int, width: int) -> np.ndarray:
    """Gradients, edges and fine texture, as photographs have them."""
    y, x = np.mgrid[0:height, 0:width]
    image = Image.fromarray(
        np.stack([255 * y / height, 255 * x / width, 128 + 99 * np.sin(x / 9)], -1).astype(np.uint8)
    )
    draw = ImageDraw.Draw(image)
    draw.ellipse((width * 0.2, height * 0.3, width * 0.7, height * 0.9), fill=(200, 40, 30))
    draw.line((0, 0, width, height), fill=(0, 0, 0), width=max(2, width // 80))
    noise = np.random.default_rng(0).normal(0, 4, (height, width, 3))
    return np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)


def on_device(images: np.ndarray, how: Preprocess) -> np.ndarray:
    """What the network gets, in levels of 0 to 255."""
    return 255 * np.asarray(preprocess_images(jnp.asarray(images[None]), how))[0]


# ---------------------------------------------------------------------------------------------
# The canvas


@given(SIDES, SIDES, SIDES, SIDES, st.floats(0.2, 1))
def test_the_device_only_crops_what_lies_on_the_canvas(
    height: int, width: int, wanted_height: int, wanted_width: int, share: float
) -> None:
    how = Preprocess(size=(wanted_height, wanted_width), crop_fraction=share)
    placing = fit((height, width), how)
    assert placing is not None and placing.canvas == canvas_size(how)
    of_canvas = fit(placing.canvas, how)
    assert of_canvas is not None and of_canvas.resized == placing.canvas  # it stays as it is
    for wanted, canvas, resized, corner in zip(
        how.size or (), placing.canvas, placing.resized, placing.corner, strict=True
    ):
        assert wanted <= canvas <= resized and 0 <= corner <= resized - canvas
        # The centre of the canvas is the centre of the resized image, to the pixel.
        assert corner + (canvas - wanted) // 2 == (resized - wanted) // 2


def test_without_a_size_there_is_no_canvas() -> None:
    assert canvas_size(Preprocess()) is None and fit((3, 4), Preprocess()) is None


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("shape", [(31, 40), (7, 9)], ids=str)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_the_network_gets_what_resizing_on_the_device_gives(
    interpolation: str, shape: tuple[int, int], antialias: bool
) -> None:
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]] / 30
    smooth = np.stack([0.5 + 0.4 * np.sin(3 * y + 2 * x), x / 2, y / 2], -1)
    image = np.round(255 * smooth).astype(np.uint8)
    how = Preprocess(
        size=(16, 16),
        channels=3,
        interpolation=interpolation,
        antialias=antialias,
        crop_fraction=0.8,
    )
    canvas = decode_image(encoded(image, "PNG"), how, "image")
    assert canvas.shape == (20, 20, 3) and canvas.dtype == np.uint8
    difference = np.abs(on_device(canvas, how) - on_device(image, how))
    # One level for rounding; filters of several pixels differ a little at the border.
    assert difference.max() <= (2.5 if interpolation in ("bicubic", "lanczos3") else 1)


# ---------------------------------------------------------------------------------------------
# Reduced decoding


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos3"])
@pytest.mark.parametrize(("size", "reduction"), [(48, 2), (24, 4), (12, 8), (101, 1)])
def test_a_jpeg_decoded_at_reduced_size_hardly_differs(
    size: int, reduction: int, interpolation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = photo(301, 403)
    file = encoded(image, "JPEG", quality=90)
    how = Preprocess(size=(size, size), channels=3, interpolation=interpolation)
    sizes: list[tuple[int, int]] = []
    load = Image.Image.resize

    def resize(self: Any, *arguments: Any, **options: Any) -> Any:
        sizes.append(self.size)
        return load(self, *arguments, **options)

    monkeypatch.setattr(Image.Image, "resize", resize)
    reduced = decode_image(file, how, "image")
    whole = decode_image(np.asarray(Image.open(io.BytesIO(file))), how, "image")
    assert sizes == [(-(-403 // reduction), -(-301 // reduction)), (403, 301)]
    assert min(sizes[0]) >= REDUCING_GAP * size or reduction == 1
    difference = np.abs(reduced.astype(int) - whole)
    # What `REDUCING_GAP` states of photographs.
    assert difference.max() <= 11 and difference.mean() <= 0.7


def test_reduced_images_give_the_same_predictions() -> None:
    rng = np.random.default_rng(1)
    shapes = [(200, 260), (333, 301)] * 2
    files = [encoded(np.roll(photo(*s), rng.integers(0, 90), 1), "JPEG") for s in shapes]
    model = jt.init("cifar_resnet8", width=4, input_size=(24, 24), num_classes=5)
    how = model.preprocess
    assert how.size == (24, 24)
    reduced = np.stack([decode_image(file, how, "image") for file in files])
    pixels = [np.asarray(Image.open(io.BytesIO(file))) for file in files]
    whole = np.concatenate([jt.predict(model, one[None]) for one in pixels])
    found = jt.predict(model, reduced)
    spread = whole.std()
    np.testing.assert_allclose(found, whole, atol=0.05 * spread)
    assert found.argmax(1).tolist() == whole.argmax(1).tolist()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_jpeg_is_decoded_as_it_is_meant_to_be_seen(orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    turned = photo(240, 320)
    file = encoded(turned, "JPEG", exif=exif, quality=95)
    ways = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: np.swapaxes(a, 0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(np.swapaxes(a, 0, 1), 2),
        8: np.rot90,
    }
    how = Preprocess(size=(30, 40), channels=3, crop_fraction=0.8)
    seen = np.ascontiguousarray(ways[orientation](np.asarray(Image.open(io.BytesIO(file)))))
    expected = decode_image(seen, how, "image").astype(int)
    difference = np.abs(decode_image(file, how, "image") - expected)
    assert difference.max() <= 16 and difference.mean() <= 0.7


# ---------------------------------------------------------------------------------------------
# Parts


def drawn_part(stored: Any, crop: augment.RandomResizedCrop, channels: int | None = 3) -> Any:
    """The part that the first seed draws, and its box in an image of this size."""
    return decode_part(
        stored, Preprocess(channels=channels), "image", crop, np.random.default_rng(0)
    )


def part_on_device(image: np.ndarray, crop: augment.RandomResizedCrop) -> np.ndarray:
    """The same part, cut out by the device, in levels of 0 to 255."""
    height, width = image.shape[:2]
    box = np.array(crop.box(np.random.default_rng(0), (height, width)))
    images = jnp.asarray(image[None], jnp.float32) / 255
    return 255 * np.asarray(augment.resized_crop(images, box, crop.size, crop.interpolation))[0]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("kind", ["PNG", "array", "Pillow"])
def test_a_part_is_what_the_device_cuts_out_of_the_whole_image(
    kind: str, interpolation: Any
) -> None:
    image = photo(61, 83)
    crop = augment.RandomResizedCrop((24, 30), interpolation=interpolation)
    forms = {"PNG": encoded(image, "PNG"), "array": image, "Pillow": Image.fromarray(image)}
    found = drawn_part(forms[kind], crop)
    assert found.shape == (24, 30, 3) and found.dtype == np.uint8
    # Pillow rounds after each of two passes, and bicubic ones are cut off at 0 and 255 in between.
    difference = np.abs(found - part_on_device(image, crop))
    assert difference.max() <= (1.01 if interpolation == "bilinear" else 3), difference.max()


def test_parts_of_arrays_of_other_numbers_keep_them() -> None:
    floats = np.random.default_rng(0).random((20, 16, 5)).astype(np.float32)
    crop = augment.RandomResizedCrop(8)
    found = drawn_part(floats, crop, channels=None)
    assert found.dtype == np.float32
    np.testing.assert_allclose(255 * found, part_on_device(255 * floats, crop), atol=1e-3)


@pytest.mark.parametrize(("orientation", "width"), [(1, 400), (6, 200), (8, 200)])
def test_a_large_part_of_a_jpeg_is_decoded_smaller_and_hardly_differs(
    orientation: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    file = encoded(photo(600, 800), "JPEG", quality=90, exif=exif)
    crop = augment.RandomResizedCrop(40, scale=(0.5, 1.0))
    drafts: list[Any] = []
    draft = JpegImageFile.draft

    def reduced(self: Any, mode: Any, size: Any) -> Any:
        drafts.append(draft(self, mode, size))
        return drafts[-1]

    monkeypatch.setattr(JpegImageFile, "draft", reduced)
    found = drawn_part(file, crop)
    assert drafts == [("RGB", (0, 0, width, 3 * width // 4))]
    pixels = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(file))))
    difference = np.abs(found - part_on_device(pixels, crop))
    assert difference.max() <= 11.5 and difference.mean() <= 0.7  # what `REDUCING_GAP` states


@pytest.mark.parametrize("stored", [b"no image", encoded(photo(40, 40), "JPEG")[:-300]])
def test_a_part_of_a_damaged_image_is_an_error_that_names_it(stored: bytes) -> None:
    with pytest.raises(DataError, match="^image: expected an image file, found: ."):
        drawn_part(stored, augment.RandomResizedCrop(8))


# ---------------------------------------------------------------------------------------------
# Channels and kinds of images


def test_channels_are_those_of_the_preprocessing() -> None:
    grey, colour = photo(20, 20)[..., 0], photo(20, 20)
    for channels in (1, 3):
        how = Preprocess(size=(10, 10), channels=channels)
        for array in (grey, colour):
            for kind in ("PNG", "JPEG"):
                image = decode_image(encoded(array, kind), how, "image")
                assert image.shape == (10, 10, channels)
    luma = (colour * [0.299, 0.587, 0.114]).sum(-1, keepdims=True)
    as_grey = Preprocess(channels=1)
    assert np.abs(decode_image(encoded(colour, "PNG"), as_grey, "image") - luma).max() <= 1
    np.testing.assert_array_equal(
        decode_image(encoded(grey, "PNG"), AS_THEY_COME, "x")[..., 0], grey
    )


def test_palettes_with_transparency_and_alpha_are_read_without_a_warning() -> None:
    image = Image.fromarray(photo(12, 12)).quantize(8)
    file = io.BytesIO()
    image.save(file, "PNG", transparency=bytes([0, 128, 255]))
    expected = np.asarray(image.convert("RGB"))
    found = decode_image(file.getvalue(), Preprocess(channels=3), "image")
    np.testing.assert_array_equal(found, expected)
    alpha = np.dstack([photo(12, 12), np.full((12, 12), 7, np.uint8)])
    np.testing.assert_array_equal(
        decode_image(encoded(alpha, "PNG"), Preprocess(channels=3), "image"), photo(12, 12)
    )


def test_arrays_and_pillow_images_are_read_as_files_are() -> None:
    how = Preprocess(size=(10, 12), channels=3, crop_fraction=0.9)
    pixels = photo(33, 40)
    expected = decode_image(encoded(pixels, "PNG"), how, "image")
    np.testing.assert_array_equal(decode_image(pixels, how, "image"), expected)
    np.testing.assert_array_equal(decode_image(Image.fromarray(pixels), how, "image"), expected)
    grey = decode_image(pixels[..., 0], how, "image")
    assert grey.shape == expected.shape


def test_arrays_of_other_numbers_keep_them() -> None:
    how = Preprocess(size=(8, 8))
    floats = np.random.default_rng(0).random((20, 16, 3)).astype(np.float32)
    found = decode_image(floats, how, "image")
    assert found.dtype == np.float32 and found.shape == (8, 8, 3)
    np.testing.assert_allclose(255 * found, on_device(floats, how), atol=1e-3)
    spectral = photo(16, 16)[..., [0, 1, 2, 0, 1]]
    assert decode_image(spectral, how, "image").shape == (8, 8, 5)
    vector = np.arange(5.0)
    np.testing.assert_array_equal(decode_image(vector, AS_THEY_COME, "x"), vector)


@pytest.mark.parametrize("stored", [b"", b"no image", encoded(photo(40, 40), "JPEG")[:-300]])
def test_a_damaged_image_is_an_error_that_names_it(stored: bytes) -> None:
    with pytest.raises(DataError, match="^some/where: expected an image file, found: ."):
        decode_image(stored, Preprocess(size=(8, 8), channels=3), "some/where")


def test_an_array_that_does_not_fit_is_an_error_that_names_it() -> None:
    with pytest.raises(DataError, match=r"^record 3: images: expected floats in \[0, 1\]"):
        decode_image(np.full((4, 4, 3), 9.0), Preprocess(size=(2, 2)), "record 3")
    with pytest.raises(DataError, match=r"^record 3: images: expected .* drop alpha"):
        decode_image(np.zeros((9, 9, 4), np.uint8), Preprocess(channels=3), "record 3")
