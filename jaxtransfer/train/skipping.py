"""Steps whose loss or gradient is not finite: they change nothing, and too many of them end a run.

A loss or a gradient that is NaN or infinite would spoil every parameter that it reaches. The step
leaves all as it was; the caller counts, since one such batch may be bad luck, and many are not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from jaxtransfer.errors import NonFiniteLossError
from jaxtransfer.types import PyTree

MAX_SKIPPED = 10
"""Steps in a row that may be left out. The factor on a float16 loss finds its size in fewer."""

Tree = TypeVar("Tree", bound=PyTree)


def keep_unless(finite: jax.Array, new: Tree, old: Tree) -> Tree:
    """The new tree where `finite` is true, else the old one, bit for bit; inside jit.

    >>> float(keep_unless(jnp.array(False), jnp.float32(jnp.nan), jnp.float32(1)))
    1.0
    """
    return jax.tree.map(lambda after, before: jnp.where(finite, after, before), new, old)


def check_skipped(
    records: Iterable[Mapping[str, Any]], before: int = 0, *, max_skipped: int = MAX_SKIPPED
) -> int:
    """Count the steps that were left out, and raise where there are too many in a row.

    Args:
        records: the metrics of one step after the other: `skipped`, `loss`, `gradient_norm`, and
            `step`, its number, where there is one.
        before: steps that were left out just before the first of these.
        max_skipped: how many in a row are too many, from 1.

    Returns:
        How many were left out at the end: `before` of the next call.

    Raises:
        NonFiniteLossError: `max_skipped` steps in a row were left out.

    >>> good, bad = {"skipped": 0.0}, {"skipped": 1.0}
    >>> check_skipped([bad, good, bad, bad])
    2
    >>> check_skipped([good], before=2)
    0
    """
    row = before
    for record in records:
        row = row + 1 if record["skipped"] else 0
        if row >= max_skipped:
            raise NonFiniteLossError(
                f"step {record.get('step', '?')}: expected a finite loss and a finite gradient, "
                f"found a loss of {float(record.get('loss', float('nan'))):g} and a gradient norm "
                f"of {float(record.get('gradient_norm', float('nan'))):g}, and so for {row} steps "
                "in a row; none of them changed anything: lower the learning rate, set clip_norm, "
                "or look for extreme values in the images and labels that the head does not have"
            )
    return row
