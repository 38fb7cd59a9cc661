"""What a classifier does on labelled images, as a page with its pictures and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxtransfer.data import Data, as_data
from jaxtransfer.errors import DataError
from jaxtransfer.evaluate.interpret import Interpretation
from jaxtransfer.evaluate.saliency import can_explain, grad_cam, seen_images
from jaxtransfer.evaluate.similar import nearest_images
from jaxtransfer.formats.output import make_folder, write_text
from jaxtransfer.models import Model
from jaxtransfer.report.calibration import plot_reliability
from jaxtransfer.report.confusion import plot_confusion, plot_most_confused
from jaxtransfer.report.images import plot_grad_cam, plot_nearest_images, plot_top_losses
from jaxtransfer.report.page import Block, Figure, Heading, Table, Text, write_page
from jaxtransfer.train import features

PAGE, JSON = "report.html", "report.json"
NEAREST = 4
"""Source images beside each image."""
ROWS = 6
"""Images with source images beside them."""


def write_interpretation(
    interpretation: Interpretation,
    folder: str | Path,
    model: Model | None = None,
    data: Any = None,
    *,
    source_data: Any = None,
    title: str = "What the classifier does",
) -> list[Path]:
    """Write `report.html`, `report.json` and the pictures of the page to a folder.

    Args:
        interpretation: what `jt.interpret` returned.
        folder: is made if it does not exist; reports that are there are replaced.
        model: the classifier; with `data`, the page shows the images of the highest losses and,
            where the network can be cut, Grad-CAM of their predictions.
        data: the labelled images that were interpreted, `(images, labels)` or a `Data`.
        source_data: labelled images such as those that were trained on; the page then shows which
            of them are most similar to those of the highest losses.
        title: of the page.

    Returns:
        The paths of the files, the page first.

    Raises:
        DataError: the data are not those that were interpreted.
        OutputError: the folder cannot be made or written.
    """
    folder = make_folder(folder)
    figures: dict[str, str] = {}

    def draw(name: str, caption: str, plot: Callable[[Path], None]) -> None:
        plot(folder / name)
        figures[name] = caption

    _draw_numbers(interpretation, draw)
    if model is not None and data is not None:
        _draw_images(interpretation, model, _checked(interpretation, data), source_data, draw)
    text = json.dumps(interpretation.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(text + "\n", folder / JSON)
    blocks = [
        Text(summary(interpretation), is_lead=True),
        *(Figure((folder / name).read_bytes(), caption) for name, caption in figures.items()),
        Heading("Classes"),
        class_table(interpretation),
        Heading("Calibration"),
        *calibration_blocks(interpretation),
    ]
    write_page(folder / PAGE, title, blocks)
    return [folder / PAGE, folder / JSON, *(folder / name for name in figures)]


def _checked(found: Interpretation, data: Any) -> Data:
    data = as_data(data)
    if len(data) != len(found.labels):
        raise DataError(
            f"write_interpretation: expected the {len(found.labels)} images that were interpreted, "
            f"found {len(data)}"
        )
    return data


def _draw_numbers(found: Interpretation, draw: Callable[..., None]) -> None:
    draw(
        "confusion.png",
        "Confusion matrix: each row is a label, each column a prediction.",
        lambda path: plot_confusion(found.confusion, path, classes=found.classes),
    )
    if found.most_confused:
        draw(
            "most_confused.png",
            "The most frequent errors.",
            lambda path: plot_most_confused(found.most_confused, path),
        )
    draw(
        "reliability.png",
        "How often answers of each confidence are right.",
        lambda path: plot_reliability(found.calibration, path),
    )


def _draw_images(
    found: Interpretation,
    model: Model,
    data: Data,
    source_data: Any,
    draw: Callable[..., None],
) -> None:
    top = found.top_losses
    labels = found.labels[top.indices]
    chosen = data.take(top.indices)
    images = seen_images(model, chosen)
    draw(
        "top_losses.png",
        "The images with the highest losses, as the network sees them.",
        lambda path: plot_top_losses(images, top, labels, path, classes=found.classes),
    )
    captions = [
        f"{found.classes[label]} taken for {found.classes[predicted]}"
        if label != predicted
        else f"{found.classes[label]}, right"
        for label, predicted in zip(labels, top.predictions, strict=True)
    ]
    if can_explain(model, chosen):
        maps = grad_cam(model, chosen, classes=top.predictions)
        draw(
            "grad_cam.png",
            "What spoke for the prediction in the same images (Grad-CAM).",
            lambda path: plot_grad_cam(images, maps, captions, path),
        )
    if source_data is None:
        return
    source = as_data(source_data)
    nearest = nearest_images(
        features(model, chosen.take(np.arange(min(ROWS, len(chosen))))),
        features(model, source),
        NEAREST,
    )
    shown, places = np.unique(nearest.indices, return_inverse=True)
    nearest = nearest._replace(indices=places.reshape(nearest.indices.shape))
    count, few = len(nearest.indices), source.take(shown)
    names = source.classes or found.classes
    source_captions = [names[int(label)] for label in np.asarray(few.labels)]
    draw(
        "nearest.png",
        "The same images, left, and the training images whose features are most similar.",
        lambda path: plot_nearest_images(
            images[:count],
            captions[:count],
            seen_images(model, few),
            source_captions,
            nearest,
            path,
        ),
    )


# ---------------------------------------------------------------------------------------------
# In words and tables


def summary(found: Interpretation) -> str:
    """The most important in a few sentences."""
    count, scores = len(found.labels), found.scores
    parts = [
        f"{100 * scores.accuracy:.1f} % of {count:,} examples of {len(found.classes):,} classes "
        f"are right; macro F1 {100 * scores.macro.f1:.1f} %."
    ]
    if found.most_confused:
        worst = found.most_confused[0]
        parts.append(
            f"The most frequent error: {worst.label} is taken for {worst.prediction}, "
            f"{worst.count:,} times."
        )
    else:
        parts.append("There is no error.")
    measured = found.calibration
    gap = measured.confidence - measured.accuracy
    parts.append(
        f"On average the classifier is {100 * measured.confidence:.1f} % sure, "
        f"{abs(100 * gap):.1f} points {'more' if gap > 0 else 'less'} than it is right."
    )
    return " ".join(parts)


def class_table(found: Interpretation) -> Table:
    """Precision, recall and F1 of each class in percent, and the averages."""
    scores = found.scores
    columns = (scores.precision, scores.recall, scores.f1)
    rows = [
        [name, *(f"{100 * column[i]:.1f}" for column in columns), f"{scores.support[i]:,}"]
        for i, name in enumerate(found.classes)
    ]
    for name, mean in (("macro mean", scores.macro), ("weighted mean", scores.weighted)):
        total = f"{scores.support.sum():,}"
        rows.append([name, *(f"{100 * value:.1f}" for value in mean), total])
    return Table(("class", "precision, %", "recall, %", "F1, %", "examples"), rows)


def calibration_blocks(found: Interpretation) -> list[Block]:
    """The calibration as it is, and with the temperature of the highest likelihood."""
    header = ["logits", "ECE, %", "MCE, %", "Brier score", "negative log-likelihood"]
    rows = [
        [
            name,
            f"{100 * measured.expected_calibration_error:.2f}",
            f"{100 * measured.maximum_calibration_error:.1f}",
            f"{measured.brier_score:.4f}",
            f"{measured.negative_log_likelihood:.4f}",
        ]
        for name, measured in (
            ("as they are", found.calibration),
            ("with the temperature", found.calibrated),
        )
        if measured is not None
    ]
    if found.temperature is None:
        text = "No temperature is best: all answers are right, or they are no better than chance."
    else:
        text = (
            f"Divided by the temperature {found.temperature:.3f}, the logits give these labels the "
            "highest likelihood. It was found on the same examples, so that on others the gain is "
            "a little smaller; with_temperature(model, temperature) makes it part of the weights."
        )
    return [Table(header, rows), Text(text)]
