"""The procedural source task: what the fonts draw, and what a key draws from them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtransfer.data import glyphs
from jaxtransfer.errors import DataError

# Same shape in print once both fill the frame, apart from details of the font.
LOOKALIKES = [{*"0Oo"}, {*"1Iil|"}, *({letter, letter.upper()} for letter in "cjkpsuvwxyz")]


@functools.cache
def fields(fonts: tuple[str, ...] = glyphs.HELD_OUT_FONTS) -> np.ndarray:
    return glyphs.load_glyphs(fonts)


@functools.cache
def drawn(seed: int = 0, batch_size: int = 512) -> tuple[np.ndarray, np.ndarray]:
    images, labels = jit_draw(jax.random.key(seed), jnp.asarray(fields()), batch_size)
    return np.asarray(images), np.asarray(labels)


jit_draw = jax.jit(glyphs.draw, static_argnums=2)


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Shared ink as a share of all ink."""
    return float((one & other).sum() / (one | other).sum())


def test_classes_are_the_62_characters_digits_first() -> None:
    assert len(set(glyphs.CLASSES)) == 62
    assert "".join(glyphs.CLASSES[:10]) == "0123456789"
    assert all(len(character) == 1 for character in glyphs.CLASSES)


def test_held_out_fonts_are_no_training_fonts() -> None:
    assert not set(glyphs.TRAINING_FONTS) & set(glyphs.HELD_OUT_FONTS)
    assert len(set(glyphs.TRAINING_FONTS)) == len(glyphs.TRAINING_FONTS)


def test_fields_have_one_entry_for_each_style_font_and_class() -> None:
    assert fields().shape == (2, len(glyphs.HELD_OUT_FONTS), 62, 56, 56)
    assert fields().dtype == np.uint8


def test_outlines_fill_the_frame_from_top_to_bottom() -> None:
    ink = fields()[0] >= glyphs.INK_LEVEL
    margin = (glyphs.FIELD_SIZE - glyphs.GLYPH_SIZE) // 2
    rows = ink.any(axis=-1)
    assert not rows[..., :margin].any() and not rows[..., -margin:].any()
    # Half a pixel of rounding at a thin end, such as the foot of a v.
    assert rows[..., margin + 1].all() and rows[..., -margin - 2].all()


def test_skeletons_are_thin_lines_inside_the_outlines() -> None:
    outline, skeleton = fields() >= glyphs.INK_LEVEL
    assert not (skeleton & ~outline).any()
    ink = skeleton.sum(axis=(-2, -1))
    assert (ink >= 10).all()
    assert (ink < 0.5 * outline.sum(axis=(-2, -1))).all()
    squares = skeleton[..., :-1, :-1] & skeleton[..., 1:, :-1]
    squares = squares & skeleton[..., :-1, 1:] & skeleton[..., 1:, 1:]
    assert squares.sum(axis=(-2, -1)).max() <= 3, (
        "only where strokes meet may two pixels lie abreast"
    )


def test_skeletons_keep_holes() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    skeletons = fields()[1] >= glyphs.INK_LEVEL
    for character, holes in {"8": 2, "B": 2, "A": 1, "e": 1, "L": 0, "S": 0, "W": 0}.items():
        for skeleton in skeletons[:, glyphs.CLASSES.index(character)]:
            assert ndimage.label(~skeleton)[1] == holes + 1, character


def test_values_are_distances_in_sixteenths_of_a_pixel() -> None:
    outline = fields()[0].astype(int) - glyphs.INK_LEVEL
    assert (np.abs(outline) >= glyphs.LEVELS_PER_PIXEL).all(), "no pixel lies on the edge itself"
    steps = np.abs(np.diff(outline, axis=-1))
    # A distance changes by at most one pixel per pixel, and by two where the sign changes.
    assert steps.max() <= 2 * glyphs.LEVELS_PER_PIXEL


@pytest.mark.parametrize("font", range(len(glyphs.HELD_OUT_FONTS)))
def test_held_out_fonts_draw_different_characters(font: int) -> None:
    ink = fields()[0, font] >= glyphs.INK_LEVEL
    for i, one in enumerate(glyphs.CLASSES):
        for j, other in enumerate(glyphs.CLASSES[:i]):
            if not any({one, other} <= group for group in LOOKALIKES):
                assert overlap(ink[i], ink[j]) < 0.85, (one, other)


def test_fonts_draw_the_same_characters() -> None:
    sans, typewriter = fields()[1] >= glyphs.INK_LEVEL - 3 * glyphs.LEVELS_PER_PIXEL
    own = [overlap(one, other) for one, other in zip(sans, typewriter, strict=True)]
    others = [overlap(sans[i], typewriter[(i + 31) % 62]) for i in range(62)]
    assert np.mean(own) > np.mean(others) + 0.15


def test_images_and_labels_have_the_promised_shape_dtype_and_range() -> None:
    images, labels = drawn()
    assert images.shape == (512, 16, 16, 1) and images.dtype == np.float32
    assert labels.shape == (512,) and labels.dtype == np.int32
    assert images.min() >= 0 and images.max() <= 1
    assert labels.min() >= 0 and labels.max() < 62


def test_every_image_has_ink_from_top_to_bottom_and_background() -> None:
    images, _ = drawn()
    rows = images[..., 0].max(axis=2)
    assert (rows[:, :2].max(axis=1) > 0).all() and (rows[:, -2:].max(axis=1) > 0).all()
    assert (images.max(axis=(1, 2, 3)) > 0.15).all()
    assert 0.15 < images.mean() < 0.45, "the handwritten digits have 0.31"


def test_most_images_are_sixteenths_enlarged() -> None:
    """Undo the enlargement of clean low-resolution images: counts of ink come out."""
    images, _ = drawn()
    enlarge = jax.image.resize(jnp.eye(8), (16, 8), "linear")
    shrink = np.linalg.pinv(np.asarray(enlarge))
    counts = 16 * np.einsum("ij,bjk,lk->bil", shrink, images[..., 0], shrink)
    is_count = np.abs(counts - counts.round()).max(axis=(1, 2)) < 1e-3
    rebuilt = np.einsum("ij,bjk,lk->bil", enlarge, counts / 16, enlarge)
    is_enlarged = np.abs(rebuilt - images[..., 0]).max(axis=(1, 2)) < 1e-4
    expected = glyphs.LOW_RESOLUTION_SHARE * glyphs.CLEAN_SHARE
    assert abs((is_count & is_enlarged).mean() - expected) < 0.1


def test_all_classes_appear_about_equally_often() -> None:
    counts = np.bincount(np.concatenate([drawn(seed)[1] for seed in range(6)]), minlength=62)
    mean = 6 * 512 / 62
    assert counts.min() > 0.4 * mean and counts.max() < 1.7 * mean


def test_a_key_decides_the_images() -> None:
    images, labels = jit_draw(jax.random.key(0), jnp.asarray(fields()), 512)
    np.testing.assert_array_equal(images, drawn()[0])
    np.testing.assert_array_equal(labels, drawn()[1])
    other_images, other_labels = drawn(seed=1)
    assert (other_labels != drawn()[1]).any()
    assert np.abs(other_images - drawn()[0]).mean() > 0.1


def test_images_of_one_class_and_font_differ() -> None:
    images, labels = drawn()
    same = images[labels == labels[0]]
    assert len(same) > 1
    assert min(np.abs(one - same[0]).max() for one in same[1:]) > 0.1


def test_a_label_names_the_character_that_is_drawn() -> None:
    """The mean image of a class resembles its printed form more than that of any other class."""
    images, labels = map(np.concatenate, zip(*map(drawn, range(6)), strict=True))
    outlines = (fields()[0] >= glyphs.INK_LEVEL)[..., 8:-8, 8:-8].mean(axis=0)
    classes = [glyphs.CLASSES.index(character) for character in "035678AELTW"]
    printed = np.stack([outlines[i].reshape(8, 5, 8, 5).mean(axis=(1, 3)) for i in classes])
    means = np.stack([images[labels == i].mean(axis=0) for i in classes])
    found = means.reshape(-1, 8, 2, 8, 2).mean(axis=(2, 4))
    # What all characters have in common says nothing about which is which.
    printed, found = ((x - x.mean(axis=0)).reshape(len(classes), -1) for x in (printed, found))
    alike = np.corrcoef(found, printed)[: len(classes), len(classes) :]
    assert alike.argmax(axis=1).tolist() == list(range(len(classes)))


@pytest.mark.parametrize("fonts", [(), [], "cmss10.ttf"])
def test_no_fonts_are_an_error(fonts: object) -> None:
    with pytest.raises(DataError, match="expected a sequence of one font or more"):
        glyphs.load_glyphs(fonts)  # pyright: ignore[reportArgumentType]


def test_an_unknown_font_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"unknown 'Comic\.ttf'.*DejaVuSans\.ttf.*cmtt10\.ttf"):
        glyphs.load_glyphs(["cmss10.ttf", "Comic.ttf"])


def test_a_missing_font_file_is_an_error_that_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.setattr(glyphs, "_font_folder", lambda: tmp_path)
    with pytest.raises(DataError, match=r"cannot read the font .*cmss10\.ttf; install"):
        glyphs.load_glyphs(["cmss10.ttf"])


@pytest.mark.parametrize(
    "wrong", [lambda f: f[0], lambda f: f[:, :0], lambda f: f[..., :32], lambda f: f / 255.0]
)
def test_other_arrays_than_fields_are_an_error(wrong) -> None:
    with pytest.raises(DataError, match=r"expected glyphs of shape \(2, fonts, 62, 56, 56\)"):
        glyphs.draw(jax.random.key(0), wrong(fields()), 4)


def test_an_empty_batch_is_an_error() -> None:
    with pytest.raises(DataError, match="batch_size of at least 1, found 0"):
        glyphs.draw(jax.random.key(0), jnp.asarray(fields()), 0)
