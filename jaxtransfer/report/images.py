"""Images in a grid, with what a network makes of them: errors, heat maps, nearest images."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxtransfer.errors import DataError
from jaxtransfer.evaluate.answers import check_names
from jaxtransfer.evaluate.similar import NearestImages
from jaxtransfer.evaluate.top_losses import TopLosses
from jaxtransfer.formats import atomic_write
from jaxtransfer.report.curves import INK

# Okabe & Ito 2008, "Color Universal Design", as in `curves`.
RIGHT, WRONG = "#0072B2", "#D55E00"
CELL = 1.75
"""Side of an image in inches."""
CAPTION_WIDTH = 24
"""Letters of a line that stand above an image."""
HEAT_SHARE = 0.55
"""How much of an overlay's colour the hottest places have from the map."""


class Cell(NamedTuple):
    """An image as it is drawn, with a caption; `None` leaves its place empty."""

    image: np.ndarray | None
    caption: str
    colour: str = INK


def plot_top_losses(
    images: Any,
    found: TopLosses,
    labels: Any,
    path: str | Path,
    *,
    classes: Sequence[str] | None = None,
) -> None:
    """Draw the images that a classifier is most wrong about, as a PNG.

    Args:
        images: those of `found.indices`, in this order: shape (count, height, width, channel).
        found: what `top_losses` returned.
        labels: of these images, shape (count,).
        path: of the file; one that is there already is replaced.
        classes: the names of the classes; by default their numbers.

    Raises:
        DataError: there are other than as many images and labels as losses.
        OutputError: the file cannot be written there.
    """
    _check_lengths("plot_top_losses", losses=found.losses, images=images, labels=labels)
    names = check_names("plot_top_losses", classes, len(classes or ())) if classes else None
    cells = [
        Cell(
            as_shown(image),
            f"{_name(names, label)} taken for {_name(names, predicted)}\n"
            f"at {_percent(probability)}, loss {loss:.2f}"
            if label != predicted
            else f"{_name(names, label)}, right\nat {_percent(probability)}, loss {loss:.2f}",
            RIGHT if label == predicted else WRONG,
        )
        for image, label, predicted, probability, loss in zip(
            np.asarray(images),
            np.asarray(labels).tolist(),
            found.predictions.tolist(),
            found.probabilities.tolist(),
            found.losses.tolist(),
            strict=True,
        )
    ]
    _draw(cells, _columns(len(cells)), path, "The highest losses")


def plot_grad_cam(
    images: Any, maps: Any, captions: Sequence[str], path: str | Path, title: str = "Grad-CAM"
) -> None:
    """Draw images, each beside itself with its heat map upon it, as a PNG.

    Args:
        images: shape (count, height, width, channel), as `seen_images` gives them.
        maps: shape (count, height, width), from 0 to 1, as `grad_cam` gives them.
        captions: what stands above each image, such as the class whose map it is.
        path: of the file; one that is there already is replaced.
        title: of the whole.

    Raises:
        DataError: there are other than as many maps and captions as images, or maps have another
            size than images.
        OutputError: the file cannot be written there.
    """
    _check_lengths("plot_grad_cam", images=images, maps=maps, captions=captions)
    cells = []
    for image, heat, caption in zip(np.asarray(images), np.asarray(maps), captions, strict=True):
        shown = as_shown(image)
        cells += [Cell(shown, caption), Cell(overlay(shown, heat), "")]
    columns = 2 * min(_columns(len(cells) // 2), 3)
    _draw(cells, columns, path, title, scale=("heat", "inferno"))


def plot_nearest_images(
    images: Any,
    captions: Sequence[str],
    sources: Any,
    source_captions: Sequence[str],
    nearest: NearestImages,
    path: str | Path,
) -> None:
    """Draw each image in a row with the source images that are most similar to it, as a PNG.

    Args:
        images: shape (count, height, width, channel).
        captions: what stands above each of them, such as its class.
        sources: all source images; only those that are drawn are looked at.
        source_captions: as many.
        nearest: what `nearest_images` returned for the images.
        path: of the file; one that is there already is replaced.

    Raises:
        DataError: there are other than as many rows and captions as images, or a source image that
            is to be drawn is not there.
        OutputError: the file cannot be written there.
    """
    _check_lengths("plot_nearest_images", images=images, captions=captions, nearest=nearest.indices)
    _check_lengths("plot_nearest_images", sources=sources, source_captions=source_captions)
    if nearest.indices.size and nearest.indices.max() >= len(sources):
        raise DataError(
            f"plot_nearest_images: expected the {nearest.indices.max() + 1} source images that "
            f"were searched, found {len(sources)}"
        )
    cells = []
    rows = zip(np.asarray(images), captions, *nearest, strict=True)
    for image, caption, indices, similarities in rows:
        cells.append(Cell(as_shown(image), caption, RIGHT))
        cells += [
            Cell(as_shown(sources[i]), f"{source_captions[i]}\ncosine {similarity:.2f}")
            for i, similarity in zip(indices, similarities, strict=True)
        ]
    title = "Each image (left) and the most similar source images"
    _draw(cells, 1 + nearest.indices.shape[1], path, title)


def as_shown(image: Any) -> np.ndarray:
    """An image as matplotlib draws it: float64 in [0, 1] of shape (height, width, 3).

    Integers are divided by 255; floats that reach far out of [0, 1], such as normalised ones, are
    stretched to it. Of other than 1 or 3 channels the mean is shown.
    """
    image = np.asarray(image)
    values = image.astype(np.float64)
    if image.dtype.kind in "iu":
        values = values / 255
    elif image.size and (values.min() < -0.5 or values.max() > 1.5):
        values = (values - values.min()) / max(np.ptp(values), 1e-12)
    values = values[..., np.newaxis] if values.ndim == 2 else values
    if values.shape[-1] != 3:
        values = np.repeat(values.mean(axis=-1, keepdims=True), 3, axis=-1)
    return np.clip(values, 0, 1)


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """An image in grey with a heat map's colours upon it, shape (height, width, 3).

    Raises:
        DataError: they have other sizes.
    """
    from matplotlib import colormaps

    if image.shape[:2] != heat.shape:
        raise DataError(
            f"overlay: expected maps of the images' size {image.shape[:2]}, found {heat.shape}; "
            "grad_cam gives them with upsample=True, and seen_images the images"
        )
    grey = image.mean(axis=-1, keepdims=True)
    warm = colormaps["inferno"](np.clip(heat, 0, 1))[..., :3]
    return (1 - HEAT_SHARE) * grey + HEAT_SHARE * warm


def _draw(
    cells: Sequence[Cell],
    columns: int,
    path: str | Path,
    title: str,
    scale: tuple[str, str] | None = None,
) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    captions = [_wrapped(cell.caption) for cell in cells]
    lines = max((caption.count("\n") + 1 for caption in captions), default=1)
    rows = -(-len(cells) // columns)
    size = (max(columns * CELL, 3.5), rows * (CELL + 0.15 * lines) + 0.5)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, cell, caption in zip(grid, cells, captions, strict=False):
        axes.set_title(caption, fontsize=7.5, color=cell.colour, linespacing=1.15, pad=3)
        if cell.image is not None:
            # Small images show their pixels.
            kind = "nearest" if max(cell.image.shape[:2]) <= 64 else "antialiased"
            axes.imshow(cell.image, interpolation=kind, vmin=0, vmax=1)
    if scale is not None:
        _add_scale(figure, grid, *scale)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, color=INK, weight="bold")
    atomic_write(path, lambda temporary: figure.savefig(temporary, format="png"))


def _add_scale(figure: Any, grid: Any, label: str, colours: str) -> None:
    from matplotlib.cm import ScalarMappable

    bar = figure.colorbar(ScalarMappable(cmap=colours), ax=list(grid), fraction=0.02, pad=0.02)
    bar.set_label(label, color=INK, fontsize=8)
    bar.ax.tick_params(labelsize=7, colors=INK)
    bar.outline.set_visible(False)


def _wrapped(caption: str) -> str:
    """Lines that are no wider than an image; of each given line at most two, the rest cut off."""
    return "\n".join(
        "\n".join(textwrap.wrap(line, CAPTION_WIDTH, max_lines=2, placeholder=" …"))
        for line in caption.split("\n")
    )


def _columns(count: int) -> int:
    """So many that a grid is about as wide as high, and at most six."""
    return max(1, min(6, int(np.ceil(np.sqrt(count * 1.3)))))


def _name(names: Sequence[str] | None, number: int) -> str:
    return str(number) if names is None else names[number]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _check_lengths(where: str, **parts: Any) -> None:
    lengths = {name: len(part) for name, part in parts.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        found = ", ".join(f"{count} {name}" for name, count in lengths.items())
        raise DataError(f"{where}: expected as many of each, and at least one, found {found}")
