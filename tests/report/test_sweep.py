import json
import math
import re

import numpy as np
import pytest
from PIL import Image

import jaxtransfer as jt
from jaxtransfer.errors import OutputError
from jaxtransfer.report import plot_sweep, write_sweep
from jaxtransfer.report.sweep import draw_sweep
from jaxtransfer.train.grid import configurations_of, halving_rungs, survivors
from jaxtransfer.train.sweep import Rung, Sweep

STEPS = 8


def found(grid, *, halving=None, diverged=()) -> Sweep:
    """A sweep whose scores are a function of what was tried."""
    configurations = configurations_of(grid)

    def score(i: int) -> float:
        one = configurations[i]
        if i in diverged:
            return math.nan
        far = abs(math.log10(one.learning_rate) + 2) + one.weight_decay + one.label_smoothing
        return round(0.95 - 0.1 * far - 0.01 * (one.seed % 3), 4)

    left, rungs = list(range(len(configurations))), []
    for steps in halving_rungs(len(left), STEPS, halving):
        scores = tuple(map(score, left))
        rungs.append(Rung(steps, tuple(left), scores, tuple(1.0 for _ in left)))
        if halving:
            left = sorted(rungs[-1].order()[: survivors(len(left), halving)])
    done = {i: rung.steps for rung in rungs for i in rung.configurations}
    model = jt.Model.from_function(lambda params, x: x @ params["head"], {"head": np.zeros((1, 2))})
    return Sweep(
        configurations,
        tuple(score(i) for i in range(len(configurations))),
        tuple((1.0,) * done[i] for i in range(len(configurations))),
        tuple(rungs),
        model,
        "accuracy",
        "probe",
    )


RATES = [1e-4, 1e-3, 1e-2, 1e-1]
GRIDS = {
    "one": {"lr": RATES},
    "seeds": {"seed": [0, 1, 2]},
    "two": {"lr": RATES, "weight_decay": [0.0, 0.1, 0.5]},
    "three": {
        "lr": RATES,
        "weight_decay": [0.0, 0.1, 0.5],
        "label_smoothing": [0.0, 0.1],
        "seed": [0, 1, 2],
    },
}


@pytest.mark.parametrize(("name", "panels", "lines"), [
    ("one", 1, 1), ("seeds", 1, 1), ("two", 1, 3), ("three", 2, 3),
])  # fmt: skip
def test_what_varies_has_an_axis_lines_and_panels(name, panels, lines):
    sweep = found(GRIDS[name])
    figure = draw_sweep(sweep)
    assert len(figure.axes) == panels
    for axes in figure.axes:
        assert len(axes.containers) == lines
        assert axes.get_xlabel() == ("seed" if name == "seeds" else "learning rate")
    assert figure.axes[0].get_ylabel() == "validation accuracy, %"
    means = figure.axes[0].containers[0][0].get_ydata()
    # Without decay and smoothing: the mean over the seeds.
    expected = {"seeds": [85, 84, 83], "three": [74, 84, 94, 84]}
    assert list(means) == pytest.approx(expected.get(name, [75, 85, 95, 85]))


def test_intervals_are_those_of_student():
    sweep = found({"lr": RATES, "seed": [0, 1, 2]})
    (container,) = draw_sweep(sweep).axes[0].containers
    low, high = container[2][0].get_segments()[0][:, 1]
    # t(2) = 4.303; the deviation of 75, 74 and 73 is 1.
    assert (high - low) / 2 == pytest.approx(4.3027 / 3**0.5, rel=1e-4)


def test_the_best_what_diverged_and_what_was_left_behind_are_marked():
    sweep = found(GRIDS["one"], diverged={3}, halving=2)
    (axes,) = draw_sweep(sweep).axes
    labels = axes.get_legend_handles_labels()[1]
    assert labels == ["best", "diverged"]
    line, *_ = axes.containers[0]
    assert list(line.get_xdata()) == [1e-2]  # the one that came to the end
    places = {round(float(x), 6) for one in axes.lines for x in one.get_xdata()}
    assert places == set(RATES)


def test_three_files_are_written(tmp_path):
    sweep = found(GRIDS["two"], diverged={0})
    paths = write_sweep(sweep, tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["sweep.json", "sweep.png", "sweep.html"]
    read = json.loads(paths[0].read_text())
    assert read["best"] == sweep.best.to_dict() and read["validation"][0] is None
    with Image.open(paths[1]) as picture:
        assert picture.size[0] >= 1000
    page = paths[2].read_text()
    assert page.count("<img") == 1 and "diverged" in page and str(sweep) in page
    assert len(re.findall("<tr>", page)) == 13


def test_a_picture_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(OutputError):
        plot_sweep(found(GRIDS["one"]), tmp_path / "missing" / "sweep.png")
