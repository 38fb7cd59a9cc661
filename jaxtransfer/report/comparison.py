"""A comparison as three files: `report.json`, `report.md` and `curves.png`."""

from __future__ import annotations

import json
import math
from pathlib import Path

from jaxtransfer.evaluate.comparison import NAIVE, Arm, Comparison
from jaxtransfer.evaluate.metrics import Interval
from jaxtransfer.formats.output import make_folder, write_text
from jaxtransfer.report.curves import plot_curves

HEADER = ("arm", "start", "slope", "asymptote", "learning rate")
CAPTION = (
    "Start and asymptote are test accuracies in percent, slope is in points gained a step; after "
    "each mean "
    "comes half the width of its 95 % interval over the seeds."
)


def write_comparison(comparison: Comparison, folder: str | Path) -> list[Path]:
    """Write `report.json`, `curves.png` and `report.md` to a folder, each as a whole or not at all.

    Args:
        comparison: what `jt.compare` returned.
        folder: is made if it does not exist; reports that are there are replaced.

    Returns:
        The paths of the three files.

    Raises:
        OutputError: the folder cannot be made or written.
    """
    folder = make_folder(folder)
    paths = [folder / name for name in ("report.json", "curves.png", "report.md")]
    write_text(json.dumps(comparison.to_dict(), indent=2, ensure_ascii=False) + "\n", paths[0])
    plot_curves(comparison, paths[1])
    write_text(to_markdown(comparison), paths[2])
    return paths


def table_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """The table's cells as text, a row an arm, in the columns of `HEADER`."""
    return [
        (name, _percent(arm.start), _slope(name, arm), _percent(arm.asymptote), _rate(arm))
        for name, arm in comparison.arms.items()
    ]


def starts_sentence(comparison: Comparison) -> str:
    """Both starts: with the head rows of known classes reused, and with a new head."""
    reused, new = (_percent(comparison.starts[kind]) for kind in ("reused_head", "new_head"))
    if not comparison.reused:
        return f"Before training: {new} % with a new head; the source knows none of the classes."
    return (
        f"Before training: {reused} % with the head rows of {len(comparison.reused)} known classes "
        f"reused, {new} % with a new head."
    )


def to_markdown(comparison: Comparison) -> str:
    """The report as a Markdown page, which shows `curves.png` from beside it."""
    budget = comparison.budget
    rows = [HEADER, tuple("---" for _ in HEADER), *table_rows(comparison)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    seeds = ", ".join(map(str, comparison.seeds))
    rates = ", ".join(f"{rate:g}" for rate in budget.learning_rates)
    environment = "\n".join(f"- {name}: {value}" for name, value in comparison.environment.items())
    return f"""# Does transfer help? {comparison.source} to {comparison.target}

**{comparison.verdict}**

![Learning curves](curves.png)

{table}

{CAPTION}

{starts_sentence(comparison)}

## Method

Every arm but the naive one trains on {budget.per_class} labelled images a class, drawn anew for
each seed ({seeds}) and the same for all arms, for {budget.steps} steps of {budget.batch_size}
examples. Each tries the learning rates {rates} on a draw of its own and keeps the one with the
highest validation accuracy. *Naive* answers the most frequent class; *scratch* is the same network
with random weights; *probe* trains the head on the frozen network; *full* trains everything;
*lp_ft* trains the head first, then everything.

Start is the accuracy before any training on the target, asymptote the mean over the last fifth of
the steps, slope the gain a step until nine tenths of the way from start to asymptote are done
(after Torrey & Shavlik 2009, "Transfer Learning").

## Environment

{environment}
"""


def _percent(interval: Interval) -> str:
    return _with_spread(interval, 100, ".1f")


def _slope(name: str, arm: Arm) -> str:
    return "0" if name == NAIVE else _with_spread(arm.slope, 100, ".2f")


def _with_spread(interval: Interval, factor: float, how: str) -> str:
    mean = format(factor * interval.mean, how)
    half = factor * (interval.high - interval.low) / 2
    return mean if math.isnan(half) else f"{mean} ± {format(half, how)}"


def _rate(arm: Arm) -> str:
    return "-" if arm.learning_rate is None else f"{arm.learning_rate:g}"
