from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxtransfer.errors import DataError, OutputError
from jaxtransfer.evaluate.similar import NearestImages
from jaxtransfer.evaluate.top_losses import top_losses
from jaxtransfer.report.images import (
    as_shown,
    overlay,
    plot_grad_cam,
    plot_nearest_images,
    plot_top_losses,
)

RED, GREEN, BLUE = np.eye(3)


def of_colour(*colours: np.ndarray) -> np.ndarray:
    return np.stack([np.broadcast_to(colour, (6, 6, 3)) for colour in colours])


def share(path: Path, colour: np.ndarray) -> float:
    """The part of a picture that has exactly this colour."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    return float(np.all(pixels == np.round(255 * colour), axis=-1).mean())


@pytest.mark.parametrize("count", [1, 2, 7])
def test_each_image_is_drawn(count, tmp_path):
    images = of_colour(*[RED] * (count - 1), BLUE)
    logits, labels = np.tile([[2.0, 0.0, 0.0]], (count, 1)), np.arange(count) % 3
    found = top_losses(logits, labels, count)
    names = ("a", "a name that is much longer than an image is wide, and then some", "c")
    path = tmp_path / "losses.png"
    plot_top_losses(images, found, labels[found.indices], path, classes=names)
    assert share(path, BLUE) > 0.5 / (count + 5)
    assert share(path, RED) == pytest.approx((count - 1) * share(path, BLUE), rel=0.05)


def test_heat_lies_upon_the_image(tmp_path):
    heat = np.zeros((2, 6, 6), np.float32)
    heat[0, :3] = 1
    plot_grad_cam(of_colour(RED, BLUE), heat, ["a", "b"], tmp_path / "cam.png")
    assert share(tmp_path / "cam.png", RED) > 0.05
    cold, hot = overlay(of_colour(RED)[0], heat[0])[[5, 0], 0]
    # A third of the light is what red has of grey; black and pale yellow end the scale.
    np.testing.assert_allclose(
        cold, 0.45 / 3 + 0.55 * np.array([0.0015, 0.0005, 0.0139]), atol=1e-3
    )
    np.testing.assert_allclose(hot, 0.45 / 3 + 0.55 * np.array([0.988, 0.998, 0.645]), atol=1e-3)


def test_neighbours_stand_in_the_row_of_their_image(tmp_path):
    nearest = NearestImages(np.array([[2, 0]]), np.array([[0.9, 0.5]], np.float32))
    path = tmp_path / "near.png"
    sources = of_colour(GREEN, RED, BLUE)
    plot_nearest_images(of_colour(GREEN)[:1], ["query"], sources, ["x", "y", "z"], nearest, path)
    assert share(path, GREEN) == pytest.approx(2 * share(path, BLUE), rel=0.05)
    assert share(path, RED) == 0
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    middle = pixels.shape[1] // 2
    assert np.all(pixels[:, middle] == [0, 0, 255], axis=-1).any()  # the nearest comes first


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (np.full((2, 2, 1), 51, np.uint8), 0.2),
        (np.full((2, 2), 0.25, np.float32), 0.25),
        (np.full((2, 2, 3), 1.2), 1.0),
        (np.full((2, 2, 5), 0.5), 0.5),
    ],
)
def test_images_of_any_kind_are_shown_in_colours(image, expected):
    shown = as_shown(image)
    assert shown.shape == (2, 2, 3)
    np.testing.assert_allclose(shown, expected, atol=1e-6)


def test_normalised_images_are_stretched():
    shown = as_shown(np.array([[-2.0, 0.0, 2.0]]))
    np.testing.assert_allclose(shown[0, :, 0], [0, 0.5, 1])


def test_what_does_not_belong_together_is_told(tmp_path):
    images, path = of_colour(RED, BLUE), tmp_path / "x.png"
    found = top_losses(np.zeros((2, 3)), [0, 1])
    with pytest.raises(DataError, match="found 2 losses, 1 images, 2 labels"):
        plot_top_losses(images[:1], found, [0, 1], path)
    with pytest.raises(DataError, match=r"images' size \(6, 6\), found \(2, 2\)"):
        plot_grad_cam(images, np.zeros((2, 2, 2)), ["a", "b"], path)
    nearest = NearestImages(np.array([[2], [0]]), np.ones((2, 1), np.float32))
    with pytest.raises(DataError, match="the 3 source images that were searched, found 2"):
        plot_nearest_images(images, ["a", "b"], images, ["c", "d"], nearest, path)
    assert not path.exists()
    with pytest.raises(OutputError):
        plot_grad_cam(images, np.zeros((2, 6, 6)), ["a", "b"], tmp_path / "none" / "x.png")
