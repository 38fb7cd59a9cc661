"""The embedded source task: characters of printed fonts, drawn to look like handwriting.

`load_glyphs` renders each character once, as a field of distances to its ink; `draw` is a pure
function of a key that deforms such fields and re-inks them, so that there are as many different
images as there are keys. Most images go through what made the target, the UCI digits: a 32x32
bitmap of which the ink in 4x4 blocks is counted.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxtransfer.errors import DataError

# Digits first: rows 0 to 9 of a head trained on this task stand for the classes of the target.
CLASSES: tuple[str, ...] = tuple(string.digits + string.ascii_uppercase + string.ascii_lowercase)

# The fonts that matplotlib ships and that draw all of CLASSES, apart from HELD_OUT_FONTS.
TRAINING_FONTS: tuple[str, ...] = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-BoldOblique.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSansMono-Bold.ttf",
    "DejaVuSansMono-BoldOblique.ttf",
    "DejaVuSansMono-Oblique.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "DejaVuSerif-BoldItalic.ttf",
    "DejaVuSerif-Italic.ttf",
    "STIXGeneral.ttf",
    "STIXGeneralBol.ttf",
    "STIXGeneralBolIta.ttf",
    "STIXGeneralItalic.ttf",
    "cmb10.ttf",
    "cmmi10.ttf",
    "cmr10.ttf",
    "cmti10.ttf",
)

# One sans and one serif, neither of which has a bolder or slanted sibling in TRAINING_FONTS.
HELD_OUT_FONTS: tuple[str, ...] = ("cmss10.ttf", "cmtt10.ttf")

# A field holds two styles: 0, the printed outline; 1, its skeleton, along which a pen may run.
STYLES = 2
# Side of a field in pixels, and of the square inside it that each character fills: the rest is room
# for thick pens and for what a slant or a rotation pushes outwards.
FIELD_SIZE = 56
GLYPH_SIZE = 40
# Characters are rendered this large and then shrunk, so that hinting does not bend them.
RENDER_SIZE = 160
# The narrowest that a character is squeezed to by being scaled to full height, in field pixels.
NARROWEST = 4
# A field stores INK_LEVEL + LEVELS_PER_PIXEL * (distance to the edge, positive inside) in a byte.
INK_LEVEL = 128
LEVELS_PER_PIXEL = 16

# The deformed character is inked on a canvas of this side, before it is cut out and scaled.
CANVAS_SIZE = 40
# As in the UCI digits: the bitmap, and how many blocks of it a side has once ink is counted.
BITMAP_SIZE = 32
BLOCK_COUNT = 8
# Side of the images: twice that of the counts, which leaves a strided network something to stride.
IMAGE_SIZE = 16

# How often a character is drawn along its skeleton, as a pen would; outlines bring variety.
SKELETON_SHARE = 0.6
# The most by which a character is rotated, in radians, and sheared, a sideways shift per height;
# both are uniform, for beyond these bounds little is left that anyone could read.
ROTATION = 0.35
SHEAR = 0.7
# Elastic deformation: shifts on a coarse grid, made smooth, with a standard deviation of up to so
# many field pixels.
ELASTIC_GRID = 4
ELASTIC = 3.0
# In canvas pixels: half the width of the pen and how much ink is put around an outline (or taken
# off), both uniform; and the standard deviation by which either wobbles along a stroke.
PEN_RADIUS = (1.7, 3.6)
OUTLINE_OFFSET = (-0.2, 2.0)
PEN_WOBBLE = 0.5
# Width of the ink in bitmap pixels: digits of the target are scaled to full height and most of the
# width whatever their shape. Narrow characters are widened, relative to their height, but not more
# than by MOST_WIDENING.
INK_WIDTH = (18.4, 28.0)
MOST_WIDENING = 1.8
# The ink's middle lies up to so many bitmap pixels left or right of the centre.
INK_SHIFT = 1.5
# How many images are reduced to counts of ink in blocks; the others stay sharp.
LOW_RESOLUTION_SHARE = 0.8
# How many images are clean; the others lose contrast, down to LOWEST_CONTRAST at most, and gain
# noise of this standard deviation.
CLEAN_SHARE = 0.7
LOWEST_CONTRAST = 0.6
NOISE = 0.05


def load_glyphs(fonts: Sequence[str] = TRAINING_FONTS) -> np.ndarray:
    """All characters of some fonts, each as two fields of distances to its ink.

    Args:
        fonts: file names, out of `TRAINING_FONTS` and `HELD_OUT_FONTS`. Twenty take about three
            seconds, so load once and keep.

    Returns:
        uint8, shape (style, font, class, height, width): style 0 is the printed outline, style 1
        its skeleton. Ink is where a value is at least 128, and 16 levels are one pixel of distance.

    Raises:
        DataError: no font is named, a font is unknown, or the installed matplotlib lacks it.

    >>> load_glyphs(["cmss10.ttf"]).shape
    (2, 1, 62, 56, 56)
    """
    _check_fonts(fonts)
    folder = _font_folder()
    masks = np.stack([mask for font in fonts for mask in _render(folder / font)])
    fields = np.stack([_signed_distances(masks), _signed_distances(_thin(masks))])
    return fields.reshape(STYLES, len(fonts), len(CLASSES), FIELD_SIZE, FIELD_SIZE)


def draw(key: jax.Array, glyphs: jax.Array, batch_size: int) -> tuple[jax.Array, jax.Array]:
    """Draw random characters of random fonts, each deformed in its own way; the key says how.

    Pure and cheap, so it may be part of a jitted training step; `batch_size` is static.

    Args:
        key: a JAX key; the same key gives the same images.
        glyphs: what `load_glyphs` returns.
        batch_size: how many images, at least 1.

    Returns:
        Images, float32 in [0, 1] with ink 1 on background 0, shape (batch, 16, 16, 1), and labels,
        int32 indices into `CLASSES`, shape (batch,).

    Raises:
        DataError: `glyphs` is not what `load_glyphs` returns, or `batch_size` is below 1.

    >>> images, labels = draw(jax.random.key(0), jnp.asarray(load_glyphs(["cmss10.ttf"])), 3)
    >>> images.shape, labels.shape
    ((3, 16, 16, 1), (3,))
    """
    _check_drawable(glyphs, batch_size)
    key_choice, key_warp, key_ink, key_fit, key_degrade = jax.random.split(key, 5)
    styles, fonts, labels = _choose(key_choice, glyphs.shape[1], batch_size)
    rows, columns = _warp(key_warp, batch_size)
    distances = _sample(glyphs, (styles, fonts, labels), rows, columns)
    bitmaps = _fit(key_fit, _ink(key_ink, distances, styles))
    return _degrade(key_degrade, bitmaps)[..., jnp.newaxis], labels


def _check_fonts(fonts: Sequence[str]) -> None:
    known = TRAINING_FONTS + HELD_OUT_FONTS
    if isinstance(fonts, str) or not fonts:
        raise DataError(f"load_glyphs: expected a sequence of one font or more, found {fonts!r}")
    unknown = [font for font in fonts if font not in known]
    if unknown:
        raise DataError(
            f"load_glyphs: unknown {', '.join(map(repr, unknown))}; expected fonts among "
            f"{', '.join(known)}"
        )


def _check_drawable(glyphs: jax.Array, batch_size: int) -> None:
    end = (len(CLASSES), FIELD_SIZE, FIELD_SIZE)
    fits = glyphs.ndim == 5 and glyphs.shape[0] == STYLES and glyphs.shape[2:] == end
    if not fits or glyphs.shape[1] == 0 or glyphs.dtype != jnp.uint8:
        expected = ", ".join(map(str, (STYLES, "fonts", *end)))
        raise DataError(
            f"draw: expected glyphs of shape ({expected}), uint8, as load_glyphs returns them; "
            f"found {glyphs.shape}, {glyphs.dtype}"
        )
    if batch_size < 1:
        raise DataError(f"draw: expected a batch_size of at least 1, found {batch_size}")


def _font_folder() -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def _render(path: Path) -> list[np.ndarray]:
    """One boolean mask for each class, the character filling the inner square."""
    from PIL import ImageFont

    try:
        font = ImageFont.truetype(str(path), RENDER_SIZE)
    except OSError as error:
        raise DataError(
            f"load_glyphs: cannot read the font {path}; install a matplotlib that ships it"
        ) from error
    return [_fill_frame(_ink_box(font.getmask(character))) for character in CLASSES]


def _ink_box(rendered: object) -> np.ndarray:
    """The smallest rectangle of a rendered character that has all its ink, uint8."""
    width, height = rendered.size  # pyright: ignore[reportAttributeAccessIssue]
    pixels = np.asarray(rendered, np.uint8).reshape(height, width)
    rows, columns = (np.flatnonzero(pixels.any(axis=axis)) for axis in (1, 0))
    return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _fill_frame(pixels: np.ndarray) -> np.ndarray:
    """Scale to the inner square's height; keep the aspect unless the width would not fit."""
    from PIL import Image

    height, width = pixels.shape
    width = min(max(round(width * GLYPH_SIZE / height), NARROWEST), GLYPH_SIZE)
    scaled = Image.fromarray(pixels).resize((width, GLYPH_SIZE), Image.Resampling.BOX)
    top, left = (FIELD_SIZE - GLYPH_SIZE) // 2, (FIELD_SIZE - width) // 2
    mask = np.zeros((FIELD_SIZE, FIELD_SIZE), bool)
    mask[top : top + GLYPH_SIZE, left : left + width] = np.asarray(scaled) > 127
    return mask


def _thin(masks: np.ndarray) -> np.ndarray:
    """Peel masks of shape (count, height, width) down to lines one pixel wide, all at once.

    Source: T. Y. Zhang and C. Y. Suen, "A Fast Parallel Algorithm for Thinning Digital Patterns",
    Communications of the ACM 27(3), 1984, https://doi.org/10.1145/357994.358023.
    """
    while True:
        thinner = masks & ~_peelable(masks, first=True)
        thinner &= ~_peelable(thinner, first=False)
        if np.array_equal(thinner, masks):
            return masks
        masks = thinner


def _peelable(masks: np.ndarray, first: bool) -> np.ndarray:
    """Border pixels that can go without cutting or shortening a line, in one of two sub-steps."""
    height, width = masks.shape[1:]
    padded = np.pad(masks, ((0, 0), (1, 1), (1, 1))).view(np.uint8)
    # Clockwise from north, so that neighbours in the list are neighbours around the pixel.
    offsets = ((0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0), (0, 0))
    ring = [padded[:, row : row + height, column : column + width] for row, column in offsets]
    north, east, south, west = ring[::2]
    neighbours = np.sum(ring, axis=0, dtype=np.uint8)
    starts = [(1 - ring[i]) * ring[(i + 1) % 8] for i in range(8)]
    is_end_or_bridge = np.sum(starts, axis=0, dtype=np.uint8) != 1
    sides = (east * south * (north | west)) if first else (north * west * (east | south))
    return (neighbours >= 2) & (neighbours <= 6) & ~is_end_or_bridge & (sides == 0)


def _signed_distances(masks: np.ndarray) -> np.ndarray:
    """Distances to the edge of the ink as levels, uint8."""
    from scipy.ndimage import distance_transform_edt

    inside, outside = np.empty(masks.shape), np.empty(masks.shape)
    for i, mask in enumerate(masks):
        distance_transform_edt(mask, distances=inside[i])
        distance_transform_edt(~mask, distances=outside[i])
    levels = INK_LEVEL + LEVELS_PER_PIXEL * (inside - outside)
    return np.clip(np.round(levels), 0, 255).astype(np.uint8)


def _choose(key: jax.Array, fonts: int, batch: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Style, font and class of each image, int32."""
    style, font, label = _uniform(key, (batch,), (0.0, 1.0), (0.0, fonts), (0.0, len(CLASSES)))
    styles = (style < SKELETON_SHARE).astype(jnp.int32)
    return styles, font.astype(jnp.int32), label.astype(jnp.int32)


def _warp(key: jax.Array, batch: int) -> tuple[jax.Array, jax.Array]:
    """Rows and columns of a field at which canvas pixels lie, each (batch, height, width)."""
    key_image, key_shift = jax.random.split(key)
    angle, shear, strength = _uniform(
        key_image, (batch, 1, 1), (-ROTATION, ROTATION), (-SHEAR, SHEAR), (0.0, ELASTIC)
    )
    centred = FIELD_SIZE * ((jnp.arange(CANVAS_SIZE, dtype=jnp.float32) + 0.5) / CANVAS_SIZE - 0.5)
    y = centred[:, jnp.newaxis]
    x = centred + shear * y
    shift_rows, shift_columns = _smooth_noise(key_shift, (2, batch))
    middle = (FIELD_SIZE - 1) / 2
    rows = jnp.sin(angle) * x + jnp.cos(angle) * y + strength * shift_rows + middle
    columns = jnp.cos(angle) * x - jnp.sin(angle) * y + strength * shift_columns + middle
    return rows, columns


def _smooth_noise(key: jax.Array, leading: tuple[int, ...]) -> jax.Array:
    """Noise of unit variance that varies slowly over the canvas, (*leading, height, width)."""
    coarse = _unit_noise(key, (*leading, ELASTIC_GRID, ELASTIC_GRID))
    return jax.image.resize(coarse, (*leading, CANVAS_SIZE, CANVAS_SIZE), "cubic")


def _uniform(
    key: jax.Array, shape: tuple[int, ...], *bounds: tuple[float, float]
) -> list[jax.Array]:
    """For each (low, high) uniform numbers of this shape, all drawn at once."""
    numbers = jax.random.uniform(key, (len(bounds), *shape), jnp.float32)
    return [low + (high - low) * one for one, (low, high) in zip(numbers, bounds, strict=True)]


def _unit_noise(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Uniform noise of mean 0 and variance 1."""
    return _uniform(key, shape, (-(3**0.5), 3**0.5))[0]


def _sample(
    glyphs: jax.Array,
    choice: tuple[jax.Array, jax.Array, jax.Array],
    rows: jax.Array,
    columns: jax.Array,
) -> jax.Array:
    """Distances to the chosen glyphs' edges in canvas pixels, positive inside the ink.

    The nearest value will do: fields are smooth and finer than the images they end in.
    """
    row = jnp.clip(jnp.round(rows), 0, FIELD_SIZE - 1).astype(jnp.int32)
    column = jnp.clip(jnp.round(columns), 0, FIELD_SIZE - 1).astype(jnp.int32)
    style, font, label = (index[:, jnp.newaxis, jnp.newaxis] for index in choice)
    levels = glyphs[style, font, label, row, column].astype(jnp.float32)
    return (levels - INK_LEVEL) * (CANVAS_SIZE / FIELD_SIZE / LEVELS_PER_PIXEL)


def _ink(key: jax.Array, distances: jax.Array, styles: jax.Array) -> jax.Array:
    """Canvases on which ink is 1.0 wherever the pen reaches, else 0.0."""
    key_reach, key_wobble = jax.random.split(key)
    radius, offset = _uniform(key_reach, (len(styles),), PEN_RADIUS, OUTLINE_OFFSET)
    reach = jnp.where(styles == 1, radius, offset)[:, jnp.newaxis, jnp.newaxis]
    wobble = PEN_WOBBLE * _smooth_noise(key_wobble, (len(styles),))
    return (distances + reach + wobble > 0).astype(jnp.float32)


def _fit(key: jax.Array, canvases: jax.Array) -> jax.Array:
    """Cut out the ink and scale it into binary bitmaps: full height, most of the width."""
    width, shift = _uniform(key, (len(canvases),), INK_WIDTH, (-INK_SHIFT, INK_SHIFT))
    top, bottom = _extent(canvases.max(axis=2))
    left, right = _extent(canvases.max(axis=1))
    row_step = (bottom - top) / BITMAP_SIZE
    column_step = jnp.maximum((right - left) / width, row_step / MOST_WIDENING)
    rows = _resampling((top + bottom) / 2, row_step)
    columns = _resampling((left + right) / 2 - shift * column_step, column_step)
    fitted = jnp.einsum("bih,bhw,bjw->bij", rows, canvases, columns)
    return (fitted > 0.5).astype(jnp.float32)


def _extent(profile: jax.Array) -> tuple[jax.Array, jax.Array]:
    """First position with ink and first position after it, of profiles (batch, length)."""
    first = jnp.argmax(profile, axis=1)
    last = profile.shape[1] - jnp.argmax(profile[:, ::-1], axis=1)
    return first.astype(jnp.float32), last.astype(jnp.float32)


def _resampling(centre: jax.Array, step: jax.Array) -> jax.Array:
    """Matrices (batch, bitmap, canvas) that take a pixel every `step` around `centre`, linearly."""
    offsets = jnp.arange(BITMAP_SIZE, dtype=jnp.float32) + (0.5 - BITMAP_SIZE / 2)
    positions = centre[:, jnp.newaxis] + offsets * step[:, jnp.newaxis] - 0.5
    canvas = jnp.arange(CANVAS_SIZE, dtype=jnp.float32)
    return jnp.maximum(1 - jnp.abs(positions[..., jnp.newaxis] - canvas), 0)


def _degrade(key: jax.Array, bitmaps: jax.Array) -> jax.Array:
    """Images in [0, 1], most of them enlarged from counts of ink, some faint and noisy."""
    key_image, key_noise = jax.random.split(key)
    low, clean, contrast = _uniform(
        key_image, (len(bitmaps), 1, 1), (0.0, 1.0), (0.0, 1.0), (LOWEST_CONTRAST, 1.0)
    )
    counts = _enlarge(_block_means(bitmaps, BLOCK_COUNT))
    sharp = _block_means(bitmaps, IMAGE_SIZE)
    images = jnp.where(low < LOW_RESOLUTION_SHARE, counts, sharp)
    faint = contrast * images + NOISE * _unit_noise(key_noise, images.shape)
    return jnp.where(clean < CLEAN_SHARE, images, jnp.clip(faint, 0, 1))


def _block_means(bitmaps: jax.Array, count: int) -> jax.Array:
    side = BITMAP_SIZE // count
    return bitmaps.reshape(-1, count, side, count, side).mean(axis=(2, 4))


def _enlarge(images: jax.Array) -> jax.Array:
    return jax.image.resize(images, (len(images), IMAGE_SIZE, IMAGE_SIZE), "linear")
