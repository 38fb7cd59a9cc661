"""A group as a row of the table that a plan prints."""

from __future__ import annotations

from jaxtransfer.partition.group import Group, pattern_text

HEADER = ("match", "rate", "decay", "optimizer", "statistics")

_WIDEST = 40
"""Characters of the patterns that a row shows; the others are counted."""


def row(group: Group) -> list[str]:
    """What the columns of `HEADER` say of a group."""
    return [
        _match_text(group),
        "frozen" if group.frozen else _rate_text(group),
        "-" if group.frozen else _decay_text(group),
        "-" if group.frozen else group.optimizer or "default",
        "frozen" if group.freezes_stats else "update",
    ]


def _match_text(group: Group) -> str:
    texts = [pattern_text(pattern) for pattern in group.patterns]
    shown = [texts[0]]
    for text in texts[1:]:
        if len(" | ".join([*shown, text])) > _WIDEST:
            return f"{' | '.join(shown)}, {len(texts) - len(shown)} more"
        shown.append(text)
    return " | ".join(shown)


def _rate_text(group: Group) -> str:
    if not isinstance(group.lr_scale, tuple):
        return f"{group.lr_scale:.3g}x"
    ends = group.scales[0], group.scales[-1]
    if list(group.scales) not in (sorted(group.scales), sorted(group.scales, reverse=True)):
        ends = min(group.scales), max(group.scales)
    blocks = f"{len(group.scales)} blocks"
    if ends[0] == ends[1]:
        return f"{ends[0]:.3g}x, {blocks}"
    return f"{ends[0]:.3g}x to {ends[1]:.3g}x, {blocks}"


def _decay_text(group: Group) -> str:
    text = "default" if group.weight_decay is None else f"{group.weight_decay:.3g}"
    return f"{text}, all leaves" if group.decay_all else text
