"""A ranking of source models as files: `ranking.json`, two pictures and `ranking.html`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxtransfer.formats import atomic_write
from jaxtransfer.formats.output import make_folder, write_text
from jaxtransfer.ranking.table import Ranking
from jaxtransfer.report.curves import INK
from jaxtransfer.report.page import Block, Figure, Heading, Table, Text, png_bytes, write_page

# Okabe & Ito 2008, "Color Universal Design", as in `curves`.
CANDIDATE, BASELINE = "#0072B2", "#D55E00"
NOTHING = "#F0F0F0"

NAMES = {
    "logme": "LogME",
    "h_score": "H-score",
    "transrate": "TransRate",
    "n_leep": "N-LEEP",
    "leep": "LEEP",
    "nce": "NCE",
    "parc": "PARC",
    "linear_probe": "linear probe",
    "knn": "neighbours",
}

CAPTION = (
    "Rank by each score, 1 for the best; lines hold what 95 % of the bootstrap resamples of the "
    "images give. A score that a candidate does not have is left out."
)
AGREEMENT_CAPTION = (
    "How far two scores agree on the order: weighted Kendall tau, 1 for the same order, -1 for the "
    "reverse; a dash, or no row, where they share fewer than three candidates."
)


def write_ranking(ranking: Ranking, folder: str | Path) -> list[Path]:
    """Write JSON, pictures and page to a folder, each as a whole or not at all.

    Args:
        ranking: what `jt.rank` returned.
        folder: is made if it does not exist; files that are there are replaced.

    Returns:
        The paths of `ranking.json`, `ranks.png`, `agreement.png` and `ranking.html`.

    Raises:
        OutputError: the folder cannot be made or written.
    """
    folder = make_folder(folder)
    names = ("ranking.json", "ranks.png", "agreement.png", "ranking.html")
    paths = [folder / name for name in names]
    ranks, agreement = png_bytes(ranks_figure(ranking)), png_bytes(agreement_figure(ranking))
    write_text(json.dumps(ranking.to_dict(), indent=2, ensure_ascii=False) + "\n", paths[0])
    for path, png in zip(paths[1:3], (ranks, agreement), strict=True):
        atomic_write(path, lambda temporary, png=png: temporary.write_bytes(png))
    write_page(paths[3], f"Which source for {ranking.target}?", _blocks(ranking, ranks, agreement))
    return paths


def sentence(ranking: Ranking) -> str:
    """What the ranking says, in words."""
    mean = ranking.shown_mean(ranking.best)
    text = f"{ranking.best} comes out first, with a mean rank of {mean}"
    text += f" of {len(ranking.candidates)} candidates."
    if ranking.baseline == ranking.best:
        return (
            "Random weights come out first: no candidate has features that help with "
            f"{ranking.target}."
        )
    if ranking.fooled:
        names = ", ".join(NAMES.get(score, score) for score in ranking.fooled)
        text += f" Not to be trusted here, since random weights are first by it: {names}."
    return text


def ranks_figure(ranking: Ranking) -> Any:
    """Ranks with their intervals, a panel a score, as a matplotlib figure."""
    from matplotlib.figure import Figure as Canvas

    scores, order = list(ranking.scores), ranking.order
    columns = min(len(scores), 5)
    rows = -(-len(scores) // columns)
    # Names take room by their length, so that panels keep theirs.
    width = 1.2 + 0.085 * max(map(len, order)) + 1.5 * columns
    figure = Canvas(
        figsize=(width, 0.9 + rows * (0.75 + 0.28 * len(order))),
        dpi=150,
        layout="constrained",
    )
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axes, score in zip(panels.flat, scores, strict=False):
        _draw_ranks(axes, ranking, score, order)
    for axes in list(panels.flat)[len(scores) :]:
        axes.set_visible(False)
    for axes in list(panels.flat)[max(len(scores) - columns, 0) : len(scores)]:
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("rank", color=INK, fontsize=9)
    _title(figure, f"Ranks of sources for {ranking.target}, {ranking.examples} images")
    return figure


def _draw_ranks(axes: Any, ranking: Ranking, score: str, order: tuple[str, ...]) -> None:
    for height, name in enumerate(order):
        rank, interval = ranking.ranks[score][name], ranking.rank_intervals[score][name]
        if rank is None:
            axes.text(1, height, "not available", fontsize=7, color="#767676", va="center")
            continue
        colour = BASELINE if name == ranking.baseline else CANDIDATE
        if interval is not None:
            axes.plot(interval, [height] * 2, color=colour, linewidth=3, alpha=0.35)
        axes.plot(rank, height, "s" if name == ranking.baseline else "o", color=colour)
    axes.set_title(NAMES.get(score, score), fontsize=10, color=INK)
    axes.set_yticks(range(len(order)), order, fontsize=9, color=INK)
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.set_xlim(0.5, len(order) + 0.5)
    step = 1 if len(order) <= 8 else 2
    axes.set_xticks(range(1, len(order) + 1, step))
    axes.grid(axis="x", color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=0, labelsize=8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def agreement_figure(ranking: Ranking) -> Any:
    """The matrix of agreement between scores, as a matplotlib figure."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure as Canvas

    # A score that few candidates have agrees with none, not even with itself.
    known = [score for score, row in ranking.agreement.items() if row[score] is not None]
    scores = known or list(ranking.agreement)
    names = [NAMES.get(score, score) for score in scores]
    values = [[ranking.agreement[a][b] for b in scores] for a in scores]
    side = 1.8 + 0.62 * len(scores)
    figure = Canvas(figsize=(max(side, 4.5), side), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    numbers = np.array([[np.nan if v is None else v for v in row] for row in values])
    colours = LinearSegmentedColormap.from_list("agreement", (BASELINE, "#FFFFFF", CANDIDATE))
    colours = colours.with_extremes(bad=NOTHING)
    axes.imshow(numbers, cmap=colours, vmin=-1, vmax=1)
    for row, column in np.ndindex(numbers.shape):
        value = values[row][column]
        strong = value is not None and abs(value) > 0.6
        text = "–" if value is None else f"{value:.2f}"
        colour = "white" if strong else INK
        axes.text(column, row, text, ha="center", va="center", fontsize=9, color=colour)
    axes.set_xticks(range(len(scores)), names, rotation=45, ha="right", color=INK)
    axes.set_yticks(range(len(scores)), names, color=INK)
    axes.tick_params(length=0, labelsize=9)
    for spine in axes.spines.values():
        spine.set_visible(False)
    _title(figure, "Agreement of scores")
    return figure


def _title(figure: Any, text: str) -> None:
    figure.suptitle(text, x=0.01, ha="left", fontsize=11, color=INK, weight="bold")


def _blocks(ranking: Ranking, ranks: bytes, agreement: bytes) -> list[Block]:
    rows = [
        (name, *(_number(row[name]) for row in ranking.scores.values()), ranking.shown_mean(name))
        for name in ranking.order
    ]
    seconds_header = ("candidate", *ranking.seconds)
    seconds = [
        (name, *(_number(row[name]) for row in ranking.seconds.values()))
        for name in ranking.candidates
    ]
    missing = [
        f"{NAMES.get(score, score)} of {', '.join(names)}: {next(iter(names.values()))}."
        for score, names in ranking.unavailable.items()
    ]
    return [
        Text(sentence(ranking), is_lead=True),
        Figure(ranks, CAPTION),
        Heading("Scores"),
        Table(
            ["candidate", *(NAMES.get(name, name) for name in ranking.scores), "mean rank"], rows
        ),
        Text(
            f"{ranking.examples} labelled images of {ranking.classes} classes; ranks over "
            f"{ranking.resamples} resamples, seed {ranking.seed}. Higher scores are better; "
            "numbers compare between candidates, not between scores."
        ),
        *[Text("\n".join(missing)) for _ in missing[:1]],
        Heading("Agreement"),
        Figure(agreement, AGREEMENT_CAPTION),
        Heading("Seconds"),
        Table([NAMES.get(name, name) for name in seconds_header], seconds),
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
