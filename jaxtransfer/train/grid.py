"""Which configurations a sweep has, which of them go on, and how they lie side by side."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from jaxtransfer.errors import TrainingError

ROW_COST = 2
"""What a row of configurations with one order of examples is taken to cost beside its members: it
gathers a batch, and starts products of its own. An estimate, which only decides the arrangement."""


@dataclass(frozen=True)
class Configuration:
    """What a sweep varies; `finetune` takes the fields under the same names.

    Attributes:
        learning_rate: the highest one.
        weight_decay: decoupled weight decay of kernels.
        label_smoothing: share of the target spread over all classes.
        seed: of a new head, the order of the examples and dropout.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    label_smoothing: float = 0.0
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The keywords of `finetune`."""
        return asdict(self)

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:g}" for name, value in asdict(self).items())


SHORT = {"lr": "learning_rate"}
"""Other names of what can be varied."""

_EXPECTED = {
    "learning_rate": ("above 0", lambda value: 0 < value < math.inf),
    "weight_decay": ("from 0", lambda value: 0 <= value < math.inf),
    "label_smoothing": ("from 0, below 1", lambda value: 0 <= value < 1),
    "seed": ("whole, from 0, below 2**31", lambda value: 0 <= value < 2**31 and value % 1 == 0),
}


def configurations_of(grid: Mapping[str, Sequence[float]]) -> tuple[Configuration, ...]:
    """All combinations of the values of a grid, the last name's values changing fastest.

    Args:
        grid: by the name of a field of `Configuration`, or `lr`, the values to try; a field that
            is not named keeps its default.

    Raises:
        TrainingError: a name is unknown or given twice, or values are missing, out of range or
            given twice; the message lists all problems.

    >>> for one in configurations_of({"lr": [0.1, 0.2], "seed": [0, 1]}):
    ...     print(one.learning_rate, one.seed)
    0.1 0
    0.1 1
    0.2 0
    0.2 1
    """
    if not isinstance(grid, Mapping) or not grid:
        raise TrainingError(
            f"sweep: expected a dict from names among {', '.join((*SHORT, *_EXPECTED))} to lists "
            f"of values, found {grid!r}"
        )
    problems: list[str] = []
    values: dict[str, list[Any]] = {}
    for given, found in grid.items():
        name = SHORT.get(given, given)
        if name not in _EXPECTED:
            known = ", ".join((*SHORT, *_EXPECTED))
            problems.append(f" - {given!r}: no such name; the names are {known}")
        elif name in values:
            problems.append(f" - {given!r}: {name} is there under another name already")
        else:
            values[name], wrong = _read(given, found, name)
            problems += wrong
    if problems:
        raise TrainingError(
            "\n".join(["sweep: expected lists of values by name, found", *problems])
        )
    combinations = itertools.product(*values.values())
    return tuple(Configuration(**dict(zip(values, row, strict=True))) for row in combinations)


def _read(given: str, found: Any, name: str) -> tuple[list[Any], list[str]]:
    """The values under a name, and what is wrong with them."""
    text, fits = _EXPECTED[name]
    if not isinstance(found, (list, tuple, range, np.ndarray)) or not np.size(found):
        return [], [f" - {given!r}: expected a list of at least one number, found {found!r}"]
    listed = found.tolist() if isinstance(found, np.ndarray) else list(found)
    listed = [value.item() if isinstance(value, np.generic) else value for value in listed]
    numbers = [value for value in listed if _is_number(value)]
    wrong = [value for value in listed if not _is_number(value) or not fits(value)]
    if wrong:
        return [], [f" - {given!r}: expected numbers {text}, found {', '.join(map(repr, wrong))}"]
    if len(set(numbers)) < len(numbers):
        return [], [f" - {given!r}: expected each value once, found {numbers}"]
    return [int(value) if name == "seed" else float(value) for value in numbers], []


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# ---------------------------------------------------------------------------------------------
# Successive halving


def halving_rungs(count: int, steps: int, eta: int | None) -> tuple[int, ...]:
    """The numbers of steps after which configurations are compared; the last one is the end.

    With `eta` configurations are compared after about steps / eta^k steps, k from K down to 0, and
    at each rung but the last the best 1 / eta of those that are left go on. K is the number of
    times that `count` can be divided by `eta` until one is left, or smaller where the first rung
    would have less than one step. So each rung costs about as much as each other one.

    Source: Jamieson & Talwalkar 2016, "Non-stochastic Best Arm Identification and Hyperparameter
    Optimization" (arXiv 1502.07943), figure 3, with the steps of Li et al. 2018, "Hyperband" (arXiv
    1603.06560), algorithm 1, lines 4 to 7: r_i = R eta^(i - s) for a full run of R steps.

    Args:
        count: number of configurations.
        steps: of a whole run.
        eta: from 2, or `None` for a whole run of every configuration.

    >>> halving_rungs(9, 90, 3), halving_rungs(9, 90, None), halving_rungs(100, 5, 2)
    ((10, 30, 90), (90,), (1, 2, 5))
    """
    if eta is None:
        return (steps,)
    most = 0
    while survivors(count, eta) < count and steps // eta ** (most + 1):
        count, most = survivors(count, eta), most + 1
    rungs = [steps // eta**k for k in range(most, 0, -1)]
    return (*rungs, steps)


def survivors(count: int, eta: int) -> int:
    """How many of so many configurations go on: the best 1 / eta, rounded up.

    >>> survivors(9, 3), survivors(10, 3), survivors(1, 3)
    (3, 4, 1)
    """
    return -(-count // eta)


def ranked(scores: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Positions from the best to the worst.

    Args:
        scores: shape (count,), higher is better; NaN comes last.
        losses: shape (count,), which decide between equal scores: lower is better. Of equal ones
            the first counts.

    >>> ranked(np.array([0.5, np.nan, 0.9, 0.9]), np.array([1.0, 0.1, 0.4, 0.3])).tolist()
    [3, 2, 0, 1]
    """
    order = np.lexsort((np.nan_to_num(losses, nan=np.inf), -np.nan_to_num(scores, nan=-np.inf)))
    return np.asarray(order)


# ---------------------------------------------------------------------------------------------
# Side by side


def arrange(seeds: Sequence[int], devices: int) -> np.ndarray:
    """Places for configurations such that those in a row share the order of the examples.

    A batch is then gathered once for a row, and multiplied with the kernels of all its members as
    one matrix. Devices get equally many rows of equally many members: what is missing is filled by
    repeating a configuration.

    Args:
        seeds: of each configuration.
        devices: at most as many as there are configurations.

    Returns:
        Positions of configurations, int, shape (devices, rows, members).

    >>> arrange([7, 8, 7, 8], devices=1).tolist()
    [[[0, 2], [1, 3]]]
    >>> arrange([7, 7, 7, 8], devices=2).tolist()
    [[[0], [1]], [[2], [3]]]
    """
    order = np.argsort(np.asarray(seeds), kind="stable")
    parts = [_by_seed(part, seeds) for part in np.array_split(order, devices)]
    longest = max(len(group) for groups in parts for group in groups)

    def rows(members: int) -> int:
        return max(sum(-(-len(group) // members) for group in groups) for groups in parts)

    members = min(range(longest, 0, -1), key=lambda m: rows(m) * (m + ROW_COST))
    return np.array([_fill(groups, rows(members), members) for groups in parts])


def _by_seed(positions: np.ndarray, seeds: Sequence[int]) -> list[list[int]]:
    return [
        [int(position) for position in group]
        for _, group in itertools.groupby(positions, key=lambda position: seeds[position])
    ]


def _fill(groups: Sequence[Sequence[int]], rows: int, members: int) -> list[list[int]]:
    cut = [
        list(group[first : first + members])
        for group in groups
        for first in range(0, len(group), members)
    ]
    full = [row + [row[-1]] * (members - len(row)) for row in cut]
    return full + [full[-1]] * (rows - len(full))
