"""The few types that every floor of the package shares."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

PyTree: TypeAlias = Any
"""A nested dict of arrays inside the package; any registered pytree at its borders."""

Pattern: TypeAlias = str | re.Pattern[str]
"""A glob over the segments of a leaf's name, or a regular expression for the whole name."""


@runtime_checkable
class Selector(Protocol):
    """Something that chooses leaves by name, such as a plan that chooses what trains."""

    def chooses(self, names: Sequence[str]) -> Sequence[bool]:
        """For each of `names`, whether that leaf is chosen."""
        ...


Selection: TypeAlias = Pattern | Sequence[Pattern] | Callable[[str], bool] | Selector
"""Any way to choose leaves: patterns, a predicate on the name, or a `Selector`."""
