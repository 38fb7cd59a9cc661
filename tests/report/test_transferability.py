from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxtransfer.errors import OutputError
from jaxtransfer.evaluate.layerwise import TREATMENTS, Transferability
from jaxtransfer.report.transferability import STYLES, plot_transferability


def found(stages: int, seeds: int, name: str = "layer") -> Transferability:
    rng = np.random.default_rng(0)
    depths = tuple(range(1, stages))
    rows = {
        treatment: tuple(tuple((level + 0.01 * rng.normal(size=seeds)).tolist()) for _ in depths)
        for treatment, level in zip(TREATMENTS, (0.5, 0.6, 0.4, 0.7), strict=True)
    }
    names = tuple(f"{name}{i}" for i in range(stages))
    base = tuple((0.6 + 0.01 * rng.normal(size=seeds)).tolist())
    return Transferability("net", names, depths, tuple(range(seeds)), base, rows)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize(
    ("stages", "seeds", "name"), [(3, 1, "layer"), (10, 3, "a_long_name_of_a_stage")]
)
def test_the_picture_shows_all_treatments_within_its_margins(stages, seeds, name, tmp_path):
    plot_transferability(found(stages, seeds, name), tmp_path / "figure.png")
    image = pixels(tmp_path / "figure.png")
    for colour, *_ in STYLES.values():
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (image == wanted).all(axis=-1).sum() > 100
    # Nothing is cut off: the edges are empty.
    for edge in (image[:3], image[-3:], image[:, :3], image[:, -3:]):
        assert (edge == 255).all()


def test_accuracies_that_are_all_the_same_can_be_drawn(tmp_path):
    rows = {name: ((1.0, 1.0),) for name in TREATMENTS}
    same = Transferability("net", ("stem", "head"), (1,), (0, 1), (1.0, 1.0), rows)
    plot_transferability(same, tmp_path / "figure.png")
    assert pixels(tmp_path / "figure.png").std() > 0


def test_a_picture_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        plot_transferability(found(3, 2), tmp_path / "file" / "figure.png")
