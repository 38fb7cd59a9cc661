"""What every arm of a comparison gets: examples, steps, and a fair search for a learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jaxtransfer.errors import NonFiniteLossError, TrainingError


@dataclass(frozen=True)
class Budget:
    """What every arm gets, the naive one excepted, which needs none.

    Attributes:
        per_class: labelled training images of each class; `None` for all there are.
        steps: training steps of each run.
        epochs: passes over the training images, instead of `steps`.
        batch_size: examples a step.
        learning_rates: each is tried, on training images of their own, and the one with the highest
            validation accuracy at the end of its run is taken for all seeds.
        extensions: how often an arm whose best rate is the highest or the lowest of those tried may
            try one beyond it, as far from it as the rate before; the same rule for all arms.
        weight_decay: decoupled weight decay of kernels.
        label_smoothing: share of the target spread over all classes.
    """

    per_class: int | None = 5
    steps: int = 120
    batch_size: int = 32
    learning_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    weight_decay: float = 1e-4
    label_smoothing: float = 0.0
    epochs: float | None = None
    extensions: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "learning_rates", tuple(self.learning_rates))
        problems = []
        if self.per_class is not None and self.per_class < 1:
            problems.append(f"per_class of at least 1 or None, found {self.per_class}")
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            problems.append(f"epochs above 0 or None, found {self.epochs}")
        if self.steps < 1 or self.batch_size < 1:
            problems.append(
                f"steps and batch_size of at least 1, found {self.steps} and {self.batch_size}"
            )
        if not is_grid(self.learning_rates):
            problems.append(f"learning_rates above 0, each once, found {self.learning_rates}")
        if self.extensions < 0:
            problems.append(f"extensions of at least 0, found {self.extensions}")
        if problems:
            raise TrainingError(f"budget: expected {'; '.join(problems)}")

    def steps_for(self, examples: int) -> int:
        """How many steps a run on so many training examples has.

        >>> Budget(epochs=2, batch_size=32).steps_for(100)
        7
        """
        if self.epochs is None:
            return self.steps
        return max(1, math.ceil(self.epochs * examples / self.batch_size))

    def to_dict(self) -> dict[str, Any]:
        """The budget as JSON can hold it."""
        return {**asdict(self), "learning_rates": list(self.learning_rates)}


def is_grid(rates: Sequence[float]) -> bool:
    """Whether learning rates can be searched: above 0, each once, at least one."""
    return bool(rates) and len(set(rates)) == len(rates) and all(0 < r < math.inf for r in rates)


@dataclass(frozen=True)
class Search:
    """A search for a learning rate.

    Attributes:
        rate: the one that was chosen.
        tried: rates, rising, and the validation accuracy of each; `None` where the loss did not
            stay finite. Empty where there was nothing to choose.
        edge: "lowest" or "highest" where the chosen rate is that of all tried and better than its
            neighbour, so that one beyond it may be better still.
    """

    rate: float
    tried: tuple[tuple[float, float | None], ...] = ()
    edge: str | None = None


def search_rate(rates: Sequence[float], score: Callable[[float], float], extensions: int) -> Search:
    """The learning rate of the highest score, of equal ones the lowest rate.

    Where that is the highest or the lowest rate tried, and better than its neighbour, another one
    beyond it is tried, `extensions` times at most.

    Args:
        rates: the grid.
        score: from a rate to a validation accuracy; may raise `NonFiniteLossError`.
        extensions: how many rates beyond the grid may be tried.

    Raises:
        NonFiniteLossError: the loss stayed finite at none of the rates.

    >>> search_rate((1.0, 2.0), {1.0: 0.5, 2.0: 0.6, 4.0: 0.4}.get, extensions=2)
    Search(rate=2.0, tried=((1.0, 0.5), (2.0, 0.6), (4.0, 0.4)), edge=None)
    """
    if len(rates) == 1:
        return Search(rates[0])
    scores: dict[float, float | None] = {}
    for rate in sorted(rates):
        _try(rate, score, scores)
    for _ in range(extensions):
        beyond = _beyond(scores)
        if beyond is None:
            break
        _try(beyond, score, scores)
    best = _best(scores)
    if scores[best] is None:
        raise NonFiniteLossError(
            f"search: expected a learning rate at which the loss stays finite, found none among "
            f"{', '.join(f'{rate:g}' for rate in sorted(scores))}; give lower ones"
        )
    return Search(best, tuple(sorted(scores.items())), _edge(scores))


def _try(rate: float, score: Callable[[float], float], scores: dict[float, float | None]) -> None:
    try:
        scores[rate] = score(rate)
    except NonFiniteLossError:
        scores[rate] = None


def _value(score: float | None) -> float:
    return -math.inf if score is None else score


def _best(scores: Mapping[float, float | None]) -> float:
    return max(sorted(scores), key=lambda rate: _value(scores[rate]))


def _edge(scores: Mapping[float, float | None]) -> str | None:
    rates, best = sorted(scores), _best(scores)
    if best == rates[0] and _value(scores[best]) > _value(scores[rates[1]]):
        return "lowest"
    if best == rates[-1]:  # lower rates of the same score would have been chosen
        return "highest"
    return None


def _beyond(scores: Mapping[float, float | None]) -> float | None:
    """The rate beyond the edge at which the best one lies, by the same factor again."""
    rates, edge = sorted(scores), _edge(scores)
    if edge is None:
        return None
    last, before = (rates[0], rates[1]) if edge == "lowest" else (rates[-1], rates[-2])
    return float(f"{last * last / before:.3g}")
