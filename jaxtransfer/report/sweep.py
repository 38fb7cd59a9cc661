"""A sweep as a picture and as files: the score over the learning rate, or what else varies."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxtransfer.evaluate.metrics import mean_interval
from jaxtransfer.formats import atomic_write
from jaxtransfer.formats.output import make_folder, write_text
from jaxtransfer.report.curves import INK
from jaxtransfer.report.page import Figure, Heading, Table, Text, write_page
from jaxtransfer.train.grid import Configuration
from jaxtransfer.train.sweep import Sweep

# Told apart with all common kinds of colour vision: Okabe & Ito 2008, "Color Universal Design".
# Shapes tell lines apart, too.
STYLES = (
    ("#0072B2", "o"),
    ("#D55E00", "^"),
    ("#009E73", "s"),
    ("#CC79A7", "D"),
    ("#56B4E9", "v"),
    ("#E69F00", "P"),
    ("#999999", "X"),
)
ON_AXIS = ("learning_rate", "weight_decay", "label_smoothing", "seed")
"""What is on the axis: the first of these that varies; the next ones are lines, then panels."""

NO_LINES = ("best", "diverged")
"""What the legend names beside lines."""

COLUMNS = 3
"""How many panels there are side by side."""

MOST_ROWS = 40
"""How many configurations the table of a page has."""


def plot_sweep(found: Sweep, path: str | Path) -> None:
    """Draw the validation scores of a sweep, as a PNG.

    The learning rate, or what else varies first in the order of `ON_AXIS`, is on the axis. The next
    name has a line for each value, the one after it a panel. Seeds are runs of the same: the line
    is their mean, and bars are Student's t interval of 95 % for it. The best configuration has a
    ring. What has diverged, or was left behind by halving, has no part in a line: the former is a
    cross at the bottom, the latter a faint dot at the score that it had when it was left behind.

    Args:
        found: what `jt.sweep` returned.
        path: of the file; one that is there already is replaced.

    Raises:
        OutputError: the file cannot be written there.
    """
    figure = draw_sweep(found)
    atomic_write(path, lambda temporary: figure.savefig(temporary, format="png"))


def draw_sweep(found: Sweep) -> Any:
    """The matplotlib figure that `plot_sweep` writes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    x, line, panel = _roles(found.configurations)
    panels = sorted({_of(one, panel) for one in found.configurations})
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    size = (2.2 + max(3.6 * columns, 5.4), 0.9 + 3.6 * rows)
    canvas = Canvas(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(canvas)
    grid = canvas.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for empty in grid[len(panels) :]:
        empty.remove()
    values = sorted({_of(one, line) for one in found.configurations})
    for axes, value in zip(grid, panels, strict=False):
        chosen = [i for i, one in enumerate(found.configurations) if _of(one, panel) == value]
        for number, each in enumerate(values):
            mine = [i for i in chosen if _of(found.configurations[i], line) == each]
            _draw_line(axes, found, mine, x, number, None if line is None else f"{each:g}")
        _mark(axes, found, chosen, x)
        _dress(axes, found, x)
        if panel is not None:
            axes.set_title(f"{_words(panel)} {value:g}", fontsize=10, color=INK)
    for axes in grid[: len(panels) : columns]:
        axes.set_ylabel(f"validation {_words(found.score)}{_unit(found)}", color=INK)
    marks: dict[str, Any] = {}
    for axes in grid[: len(panels)]:
        handles, labels = axes.get_legend_handles_labels()
        marks |= dict(zip(labels, handles, strict=True))
    # Lines first, in the order of their values.
    marks = {name: marks[name] for name in sorted(marks, key=lambda name: name in NO_LINES)}
    if marks:
        grid[columns - 1].legend(
            list(marks.values()),
            list(marks),
            title=None if line is None else _words(line),
            frameon=False,
            loc="upper left",
            bbox_to_anchor=(1.0, 1.0),
            labelcolor=INK,
        )
    canvas.suptitle(_title(found), x=0.01, ha="left", fontsize=11, color=INK)
    return canvas


def _roles(configurations: Sequence[Configuration]) -> tuple[str, str | None, str | None]:
    """What is on the axis, what has lines and what has panels; seeds only where they alone vary."""
    varied = [name for name in ON_AXIS if len({_of(one, name) for one in configurations}) > 1]
    shown = [name for name in varied if name != "seed"] or varied or list(ON_AXIS[:1])
    x, line, panel = (*shown, None, None)[:3]
    return str(x), line, panel


def _of(one: Configuration, name: str | None) -> float:
    return 0.0 if name is None else getattr(one, name)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _unit(found: Sweep) -> str:
    return ", %" if found.score == "accuracy" else ""


def _height(found: Sweep, i: int) -> float:
    return (100 if found.score == "accuracy" else 1) * found.validation[i]


def _finished(found: Sweep, i: int) -> bool:
    return len(found.losses[i]) == found.rungs[-1].steps and not math.isnan(found.validation[i])


def _draw_line(
    axes: Any, found: Sweep, chosen: Sequence[int], x: str, number: int, label: str | None
) -> None:
    """The mean over seeds of those that came to the end, at each place on the axis."""
    colour, shape = STYLES[number % len(STYLES)]
    ended = [i for i in chosen if _finished(found, i)]
    places = sorted({_of(found.configurations[i], x) for i in ended})
    means, spans = [], []
    for place in places:
        heights = [_height(found, i) for i in ended if _of(found.configurations[i], x) == place]
        interval = mean_interval(heights)
        means.append(interval.mean)
        spans.append(0.0 if math.isnan(interval.low) else interval.mean - interval.low)
    axes.errorbar(
        places,
        means,
        yerr=spans if any(spans) else None,
        color=colour,
        marker=shape,
        markersize=6,
        linestyle="none" if x == "seed" else "-",
        linewidth=1.8,
        elinewidth=1,
        capsize=3,
        label=label,
        zorder=3,
    )
    left = [i for i in chosen if i not in ended and not math.isnan(found.validation[i])]
    axes.plot(
        [_of(found.configurations[i], x) for i in left],
        [_height(found, i) for i in left],
        shape,
        color=colour,
        alpha=0.35,
        markersize=5,
        zorder=2,
    )


def _mark(axes: Any, found: Sweep, chosen: Sequence[int], x: str) -> None:
    """A ring for the best configuration, crosses for those that diverged."""
    best = found.order[0]
    if best in chosen:
        axes.plot(
            _of(found.configurations[best], x),
            _height(found, best),
            "o",
            markersize=14,
            markerfacecolor="none",
            markeredgecolor=INK,
            markeredgewidth=1.5,
            label=NO_LINES[0],
            linestyle="none",
            zorder=4,
        )
    lost = sorted(
        {_of(found.configurations[i], x) for i in chosen if math.isnan(found.validation[i])}
    )
    if lost:
        axes.plot(
            lost,
            [0.02] * len(lost),
            "x",
            color="#B00020",
            markersize=8,
            markeredgewidth=2,
            transform=axes.get_xaxis_transform(),
            label=NO_LINES[1],
            linestyle="none",
            zorder=4,
        )


def _dress(axes: Any, found: Sweep, x: str) -> None:
    places = sorted({_of(one, x) for one in found.configurations})
    spread = places[-1] / places[0] if places[0] > 0 else 0
    if spread > 20:
        axes.set_xscale("log")
    elif places[0] == 0 and len(places) > 2 and places[-1] / places[1] > 20:
        axes.set_xscale("symlog", linthresh=places[1])
    axes.set_xticks(
        places, [f"{place:g}" for place in places], rotation=45 if len(places) > 6 else 0
    )
    axes.set_xticks([], minor=True)
    axes.margins(x=0.08)
    axes.set_xlabel(_words(x), color=INK)
    axes.grid(axis="y", color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _title(found: Sweep) -> str:
    seeds = len({one.seed for one in found.configurations})
    others = any(name != "seed" for name in _varied(found))
    text = f"Sweep of plan {found.plan}: {len(found.configurations)} configurations"
    return text + (f", mean and 95 % interval of {seeds} seeds" if seeds > 1 and others else "")


def _varied(found: Sweep) -> list[str]:
    return [n for n in ON_AXIS if len({_of(one, n) for one in found.configurations}) > 1]


def write_sweep(found: Sweep, folder: str | Path) -> list[Path]:
    """Write `sweep.json`, `sweep.png` and `sweep.html` to a folder, each as a whole or not at all.

    Args:
        found: what `jt.sweep` returned.
        folder: is made if it does not exist; files that are there are replaced.

    Returns:
        The paths of the three files.

    Raises:
        OutputError: the folder cannot be made or written.
    """
    folder = make_folder(folder)
    paths = [folder / name for name in ("sweep.json", "sweep.png", "sweep.html")]
    write_text(json.dumps(found.to_dict(), indent=1, allow_nan=False) + "\n", paths[0])
    plot_sweep(found, paths[1])
    header, rows = found.rows(MOST_ROWS)
    blocks = [
        Text(str(found)),
        Figure(paths[1].read_bytes(), _caption(found)),
        Heading("Configurations"),
        Text(_table_note(found)),
        Table(header, rows),
    ]
    write_page(paths[2], f"Sweep of plan {found.plan}", blocks)
    return paths


def _caption(found: Sweep) -> str:
    text = f"Validation {_words(found.score)} of the configurations; the ring is the best."
    if len(found.rungs) > 1:
        text += " Faint marks were left behind by successive halving."
    return text


def _table_note(found: Sweep) -> str:
    count = len(found.configurations)
    text = f"The best {MOST_ROWS} of {count}" if count > MOST_ROWS else f"All {count}"
    return text + ", the best first; the loss is that of the last step on the training examples."
