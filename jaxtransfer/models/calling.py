"""How functions and modules of many conventions are told to train or to evaluate."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

# The usual names of the argument that switches a network or a layer to training, and to evaluation.
TRAINING_KEYWORDS = ("train", "training", "is_training")
EVALUATION_KEYWORDS = ("deterministic", "use_running_average")


def mode_values(train: bool) -> dict[str, bool]:
    """What each of the usual mode arguments must be."""
    return {name: train for name in TRAINING_KEYWORDS} | {
        name: not train for name in EVALUATION_KEYWORDS
    }


def keywords_of(function: Callable[..., Any]) -> frozenset[str]:
    """The names of the arguments that a callable takes by keyword."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature
        return frozenset()
    return frozenset(
        p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    )


def positional_count(function: Callable[..., Any]) -> int:
    """How many arguments a callable needs by position."""
    parameters = inspect.signature(function).parameters.values()
    return sum(
        p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty
        for p in parameters
    )
