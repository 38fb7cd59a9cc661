"""Tables of what the suite measured, the ratio first."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.markdown import head, line

RATES = ("what", "GFLOP/s", "of the largest product", "GB/s", "of a copy")
HEADER = ("ratio", "asked", "what", "jaxtransfer", "the best peer", "others")


def table(cases: Iterable[Mapping[str, Any]]) -> str:
    """A row for each figure of each case: medians, with their ranges in parentheses."""
    rows = [_row(case, figure) for case in cases for figure in case["figures"] if figure["medians"]]
    return "\n".join([head(HEADER), *map(line, rows)])


def rates(cases: Iterable[Mapping[str, Any]], peaks: Mapping[str, float]) -> str:
    """Operations and bytes a second of our steps, and their shares of what was measured at best.

    Both are counted by the compiler's analysis of the program: bytes are those that its parts read
    and write, in memory or in caches, and are more than what a memory sees.

    Args:
        cases: as the suite found them; those without such counts are left out.
        peaks: as `benchmarks.ours.peaks` measures them.
    """
    rows = []
    for case in cases:
        runs = [run for run in case["runs"][case["ours"]] if run.get("gigaflop")]
        if not runs:
            continue
        seconds = statistics.median(statistics.median(run["seconds"]) for run in runs)
        operations, read = runs[0]["gigaflop"] / seconds, runs[0]["gigabytes"] / seconds
        shares = operations / peaks[f"{runs[0]['dtype']}_gigaflops"], read / peaks["copy_gigabytes"]
        rows.append(
            [
                case["title"],
                f"{operations:.0f}",
                f"{shares[0]:.2f}",
                f"{read:.1f}",
                f"{shares[1]:.2f}",
            ]
        )
    return "\n".join([head(RATES), *map(line, rows)]) if rows else ""


def _row(case: Mapping[str, Any], figure: Mapping[str, Any]) -> list[str]:
    ours, peer = case["ours"], figure["peer"]
    others = [name for name in figure["medians"] if name not in (ours, peer)]
    return [
        _ratio(figure),
        _asked(figure),
        f"{case['title']}, {figure['label']}",
        _value(figure, ours),
        f"{peer}: {_value(figure, peer)}" if peer else "",
        "; ".join(f"{name}: {_value(figure, name)}" for name in others),
    ]


def _ratio(figure: Mapping[str, Any]) -> str:
    if "ratio" not in figure:
        return ""
    is_reached = figure.get("is_reached", True)
    digits = _digits(
        figure["ratio"], 2, apart_from=[0.0] if is_reached else [0.0, figure["target"]]
    )
    low, high = figure["ratios"]
    text = f"{figure['ratio']:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
    return text if is_reached else f"**{text}**"


def _asked(figure: Mapping[str, Any]) -> str:
    if figure["target"] is None:
        return ""
    sign = "≥" if figure["more_is_better"] else "≤"
    return f"{sign} {figure['target']:.2f}"


def _value(figure: Mapping[str, Any], name: str) -> str:
    if name not in figure["medians"]:
        return ""
    middle, low, high = (figure[which][name] for which in ("medians", "lowest", "highest"))
    digits = _digits(middle, figure["decimals"], apart_from=[0.0])
    return f"{middle:.{digits}f} {figure['unit']} ({low:.{digits}f} to {high:.{digits}f})"


def _digits(value: float, at_least: int, apart_from: Iterable[float]) -> int:
    """How many decimals tell a value from others: a miss does not look as if it were none."""
    others = [other for other in apart_from if other != value]
    enough = (n for n in range(at_least, 10) if all(round(value, n) != round(o, n) for o in others))
    return next(enough, 10)
