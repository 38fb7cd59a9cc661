"""What recipes ask of a model: its stages, and which of them scan over blocks."""

from __future__ import annotations

from typing import Any

import jax

from jaxtransfer.tree import leaf_names, subtree
from jaxtransfer.tree.names import SEPARATOR

SCANNED = "blocks"
"""The stage that `jaxtransfer.stack` puts in the place of a network's blocks."""


def below(path: str) -> str:
    """The pattern of all leaves below a path."""
    return f"{path}{SEPARATOR}**"


def stages_with_parameters(model: Any) -> tuple[str, ...]:
    """The stages from input to head, those without parameters left out."""
    top_level = {name.split(SEPARATOR)[0] for name in leaf_names(model.params)}
    return tuple(stage for stage in model.spec.stages if stage in top_level)


def scanned_blocks(model: Any, stage: str) -> int:
    """How many blocks a stage scans over; 0 for one that is not as `jaxtransfer.stack` makes it."""
    if stage != SCANNED or stage not in stages_with_parameters(model):
        return 0
    leaves = jax.tree.leaves(subtree(model.params, stage))
    lengths = {leaf.shape[0] if leaf.ndim > 1 else 0 for leaf in leaves}
    return lengths.pop() if len(lengths) == 1 else 0
