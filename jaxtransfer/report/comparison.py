"""A comparison as four files: `report.json`, `report.md`, `report.html` and `curves.png`."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

from jaxtransfer.evaluate.arms import NAIVE
from jaxtransfer.evaluate.metrics import Interval
from jaxtransfer.evaluate.results import ArmResult, Comparison
from jaxtransfer.formats.output import make_folder, write_text
from jaxtransfer.report.curves import plot_curves
from jaxtransfer.report.page import Block, Figure, Heading, Table, Text, to_markdown, write_page
from jaxtransfer.tree.summary import format_bytes

CURVES = "curves.png"

HEADER = ("arm", "start", "slope", "asymptote", "learning rate")
CAPTION = (
    "Start and asymptote are test accuracies in percent, slope is in points gained a step; after "
    "each mean comes half the width of its 95 % interval over the seeds."
)
COST_HEADER = ("arm", "GFLOP", "seconds", "memory", "trained", "parameters", "optimizer state")
COST_CAPTION = (
    "Of one run: operations of all its training steps as the compiler counts them, wall time "
    "without evaluation on this machine (the median over the seeds), the memory of its largest "
    "step, the numbers that train, their bytes, and those of the optimizer's state."
)
DIFFERENCE_HEADER = ("asymptote", "against", "points", "95 % interval", "over examples, too")
DIFFERENCE_CAPTION = (
    "In percentage points, paired by seed. The interval is Student's t over the seeds; the last "
    "column, where there is one, a bootstrap over seeds and test examples, which knows that the "
    "test set is a sample as well, but of few seeds is too narrow. An interval without 0 in it "
    "tells the two arms apart."
)
READING = (
    "Start is the accuracy before any training on the target, asymptote the mean over the last "
    "fifth of the steps, slope the gain a step until nine tenths of the way from start to "
    'asymptote are done (after Torrey & Shavlik 2009, "Transfer Learning"). An arm that starts '
    "high has little left to gain, so its slope is to be read beside its start. Transfer helped "
    "where the best transfer arm ends above scratch by more than the 95 % interval of the "
    "difference, and did harm where it ends below by more than that; in between nothing is shown. "
    "Few seeds make wide intervals: run more of them before you conclude that nothing helps."
)


def write_comparison(comparison: Comparison, folder: str | Path) -> list[Path]:
    """Write a comparison's reports to a folder, each as a whole or not at all.

    `report.html` is one page with its style and its figure in it; `report.md` shows `curves.png`
    from beside it; `report.json` has all figures.

    Args:
        comparison: what `jt.compare` returned.
        folder: is made if it does not exist; reports that are there are replaced.

    Returns:
        The paths of `report.json`, `curves.png`, `report.md` and `report.html`.

    Raises:
        OutputError: the folder cannot be made or written.
    """
    folder = make_folder(folder)
    names = ("report.json", CURVES, "report.md", "report.html")
    data, curves, markdown, page = (folder / name for name in names)
    write_text(json.dumps(comparison.to_dict(), indent=2, ensure_ascii=False) + "\n", data)
    plot_curves(comparison, curves)
    blocks = report_blocks(comparison, curves.read_bytes())
    write_text(to_markdown(_title(comparison), blocks, [CURVES]), markdown)
    write_page(page, _title(comparison), blocks)
    return [data, curves, markdown, page]


def report_blocks(comparison: Comparison, png: bytes) -> list[Block]:
    """The report of a comparison: the verdict first, then what it rests on.

    Args:
        comparison: what `jt.compare` returned.
        png: its learning curves, as `plot_curves` draws them.
    """
    sentences = [CAPTION, starts_sentence(comparison), edge_sentence(comparison)]
    blocks: list[Block] = [
        Text(comparison.verdict, is_lead=True),
        Table(HEADER, table_rows(comparison)),
        *(Text(sentence) for sentence in sentences if sentence),
        Figure(png, _figure_caption(comparison)),
    ]
    if differences := difference_rows(comparison):
        blocks += [
            Heading("Which arms differ"),
            Table(DIFFERENCE_HEADER, differences),
            Text(DIFFERENCE_CAPTION),
        ]
    if costs := cost_rows(comparison):
        blocks += [Heading("Cost"), Table(COST_HEADER, costs), Text(COST_CAPTION)]
    blocks += [
        Heading("How to read it"),
        Text(READING),
        Heading("Method"),
        Text(_method(comparison)),
        Table(("arm", "kind", "plan", "learning rates tried"), _setting_rows(comparison)),
        Heading("Environment"),
        Table(("what", "version"), list(comparison.environment.items())),
    ]
    return blocks


def table_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """The table's cells as text, a row an arm, in the columns of `HEADER`."""
    return [
        (name, _percent(arm.start), _slope(arm), _percent(arm.asymptote), _rate(arm))
        for name, arm in comparison.arms.items()
    ]


def cost_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """What one run of each arm costs, as text, in the columns of `COST_HEADER`."""
    return [
        (
            name,
            f"{arm.cost.flops / 1e9:.3g}",
            "-" if math.isnan(arm.cost.seconds) else f"{arm.cost.seconds:.1f}",
            "-" if arm.cost.memory is None else format_bytes(arm.cost.memory),
            format_bytes(arm.cost.trainable_bytes),
            f"{arm.cost.trainable_parameters:,}",
            format_bytes(arm.cost.optimizer_bytes),
        )
        for name, arm in comparison.arms.items()
        if arm.cost is not None
    ]


def difference_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """The differences between the asymptotes of each two arms, as text, better arms first."""
    ranked = sorted(comparison.arms, key=lambda name: -comparison.arms[name].asymptote.mean)
    rows = []
    for better, other in itertools.combinations(ranked, 2):
        found = comparison.difference(better, other)
        over_examples = comparison.bootstrap_difference(better, other)
        bounds = "-" if over_examples is None else _bounds(over_examples)
        rows.append((better, other, f"{100 * found.mean:+.1f}", _bounds(found), bounds))
    return rows


def starts_sentence(comparison: Comparison) -> str:
    """Both starts: with the head rows of known classes reused, and with a new head."""
    if not comparison.starts:
        return ""
    reused, new = (_percent(comparison.starts[kind]) for kind in ("reused_head", "new_head"))
    if not comparison.reused:
        return f"Before training: {new} % with a new head; the source knows none of the classes."
    return (
        f"Before training: {reused} % with the head rows of {len(comparison.reused)} known classes "
        f"reused, {new} % with a new head."
    )


def edge_sentence(comparison: Comparison) -> str:
    """Which arms' best learning rates are the lowest or highest tried; nothing where none is."""
    found = [
        f"{name} ({arm.learning_rate:g}, the {arm.search_edge})"
        for name, arm in comparison.arms.items()
        if arm.search_edge is not None
    ]
    if not found:
        return ""
    return (
        f"The best learning rate is the last one that was tried for {', '.join(found)}: one beyond "
        "it may be better still, so that these arms may be better than shown."
    )


def _title(comparison: Comparison) -> str:
    return f"Does transfer help? {comparison.source} to {comparison.target}"


def _figure_caption(comparison: Comparison) -> str:
    ends = ", ".join(f"{name} {100 * _end(arm):.1f} %" for name, arm in comparison.arms.items())
    return (
        f"Test accuracy over {comparison.steps} training steps, mean and 95 % interval of "
        f"{len(comparison.seeds)} seeds. It ends at: {ends}."
    )


def _end(arm: ArmResult) -> float:
    return sum(curve[-1] for curve in arm.curves) / len(arm.curves)


def _method(comparison: Comparison) -> str:
    budget = comparison.budget
    count = comparison.examples.get("train")
    images = (
        f"{budget.per_class} labelled images a class"
        if budget.per_class is not None
        else f"all {'' if count is None else f'{count} '}labelled training images"
    )
    seeds = ", ".join(map(str, comparison.seeds))
    rates = ", ".join(f"{rate:g}" for rate in budget.learning_rates)
    search = (
        f"Each tries {len(budget.learning_rates)} learning rates (by default {rates}) on a draw "
        "of its own and keeps the one with the highest validation accuracy; where that is the "
        f"lowest or highest tried, up to {budget.extensions} more beyond it follow, one by one."
        if len(budget.learning_rates) > 1
        else f"The learning rate is {rates} unless an arm has its own."
    )
    return (
        f"Every arm but the naive one trains on {images}, drawn anew for each seed ({seeds}) "
        f"where there is a choice and the same for all arms, for {comparison.steps} steps of "
        f"{budget.batch_size} examples. {search} The naive arm answers the most frequent class; "
        "a scratch arm is the same network with random weights."
    )


def _setting_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    return [
        (name, arm.kind, arm.plan, _tried(arm) or _rate(arm))
        for name, arm in comparison.arms.items()
    ]


def _tried(arm: ArmResult) -> str:
    return ", ".join(
        f"{rate:g} ({'not finite' if score is None else f'{100 * score:.1f} %'})"
        for rate, score in arm.search
    )


def _percent(interval: Interval) -> str:
    return _with_spread(interval, 100, ".1f")


def _slope(arm: ArmResult) -> str:
    return "0" if arm.kind == NAIVE else _with_spread(arm.slope, 100, ".2f")


def _with_spread(interval: Interval, factor: float, how: str) -> str:
    mean = format(factor * interval.mean, how)
    half = factor * (interval.high - interval.low) / 2
    return mean if math.isnan(half) else f"{mean} ± {format(half, how)}"


def _bounds(interval: Interval) -> str:
    if math.isnan(interval.low):
        return "-"
    return f"{100 * interval.low:+.1f} to {100 * interval.high:+.1f}"


def _rate(arm: ArmResult) -> str:
    return "-" if arm.learning_rate is None else f"{arm.learning_rate:g}"
