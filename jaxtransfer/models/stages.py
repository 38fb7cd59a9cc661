"""Networks as rows of stages, and what every family's builder checks of its options."""

from __future__ import annotations

import abc
from collections.abc import Sequence

import flax.linen as nn
import jax

from jaxtransfer.errors import ModelError


class StagedNetwork(nn.Module, abc.ABC):
    """A network that is a row of stages; a subclass names them, and runs one.

    A stage has the parameters of its name, or none.
    """

    @property
    @abc.abstractmethod
    def stages(self) -> tuple[str, ...]:
        """The stages from input to head."""

    @abc.abstractmethod
    def _run(self, stage: str, x: jax.Array, train: bool) -> jax.Array:
        """What leaves a stage, from what enters it."""

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, start: str | None = None, stop: str | None = None
    ) -> jax.Array:
        """Images (batch, height, width, channels) to logits (batch, num_classes).

        With `start`, `x` is what enters that stage; with `stop`, what would enter it comes out.
        """
        for stage in stages_between(self.stages, start, stop):
            x = self._run(stage, x, train)
        return x


def stages_between(stages: tuple[str, ...], start: str | None, stop: str | None) -> tuple[str, ...]:
    """The stages from `start` on, and before `stop`.

    Args:
        stages: all stages from input to head.
        start: the first stage that runs; by default the first of all.
        stop: the stage before which the forward pass ends; by default it runs to the end.

    Raises:
        ModelError: there are no such stages, or `start` comes after `stop`.

    >>> stages_between(("stem", "layer1", "head"), start="layer1", stop=None)
    ('layer1', 'head')
    """
    unknown = [stage for stage in (start, stop) if stage is not None and stage not in stages]
    if unknown:
        raise ModelError(f"start, stop: expected stages among {', '.join(stages)}, found {unknown}")
    first = 0 if start is None else stages.index(start)
    last = len(stages) if stop is None else stages.index(stop)
    if first > last:
        raise ModelError(f"expected start before stop, found {start!r} after {stop!r}")
    return stages[first:last]


def check_sizes(name: str, num_classes: int, **sizes: int) -> None:
    """Raise unless all sizes are integers of at least 1; `num_classes` may be 0, for no head.

    Raises:
        ModelError: some are not.

    >>> check_sizes("resnet18", num_classes=10, width=64)
    """
    wrong = {key: size for key, size in sizes.items() if not isinstance(size, int) or size < 1}
    if not isinstance(num_classes, int) or num_classes < 0:
        wrong["num_classes"] = num_classes
    if wrong:
        raise ModelError(
            f"{name}: expected integers of at least 1 (num_classes may be 0, for no head), "
            f"found {wrong}"
        )


def check_rates(name: str, **rates: float) -> None:
    """Raise unless all rates are at least 0 and below 1.

    Raises:
        ModelError: some are not.

    >>> check_rates("resnet18", drop_path=0.1)
    """
    wrong = {
        key: rate
        for key, rate in rates.items()
        if not (isinstance(rate, (int, float)) and 0 <= rate < 1)
    }
    if wrong:
        raise ModelError(f"{name}: expected rates of at least 0 and below 1, found {wrong}")


def check_choice(name: str, option: str, found: str | None, known: Sequence[str | None]) -> None:
    """Raise unless an option has one of the values that it can have.

    Raises:
        ModelError: it has not.

    >>> check_choice("resnet18", "biases", "stem", ("none", "stem", "all"))
    """
    if found not in known:
        *others, last = map(repr, known)
        values = f"{', '.join(others)} or {last}"
        raise ModelError(f"{name}: expected {option} {values}, found {found!r}")
