"""The forward pass of a user's own function, whatever part of the contract it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from jaxtransfer.errors import ModelError
from jaxtransfer.models.calling import keywords_of, mode_values, positional_count
from jaxtransfer.types import PyTree

MODES = tuple(mode_values(train=True))
OFFERED = (*MODES, "rngs", "start", "stop", "frozen_modules")


@dataclass(frozen=True)
class FunctionApply:
    """`Model.apply` of a user's own function.

    The function is `(params, inputs) -> outputs` or
    `(params, stats, inputs) -> (outputs, new_stats)`. Of `train` (or its usual other names),
    `rngs`, `start`, `stop` and `frozen_modules` it is given those that it takes by keyword.
    """

    function: Callable[..., Any]

    @property
    def name(self) -> str:
        """What the function is called in messages."""
        return getattr(self.function, "__name__", type(self.function).__name__)

    @property
    def can_stop(self) -> bool:
        """Whether the function can cut its forward pass at a stage."""
        return {"start", "stop"} <= keywords_of(self.function)

    @property
    def can_start(self) -> bool:
        """Whether the function can begin its forward pass at a stage."""
        return self.can_stop

    @property
    def takes_stats(self) -> bool:
        """Whether the function takes running statistics, as the second of three arguments."""
        return positional_count(self.function, others=OFFERED) >= 3

    def __call__(
        self,
        params: PyTree,
        stats: PyTree,
        inputs: jax.Array,
        *,
        train: bool,
        rngs: Mapping[str, jax.Array] | None = None,
        start: str | None = None,
        stop: str | None = None,
        frozen_modules: frozenset[str] = frozenset(),
    ) -> tuple[jax.Array, PyTree]:
        """The forward pass of `Model.apply`."""
        keywords = keywords_of(self.function)
        if (start is not None or stop is not None) and not self.can_stop:
            raise ModelError(
                f"{self.name}: expected a function that takes start= and stop=, found "
                f"{sorted(keywords)}; add them (run the stages from `start` up to, without, "
                "`stop`), or replace the head by one dense layer, which needs no cut"
            )
        if self.takes_stats and train and frozen_modules and "frozen_modules" not in keywords:
            raise ModelError(
                f"{self.name}: expected a function that takes frozen_modules=, since the plan "
                f"freezes the statistics of {sorted(frozen_modules)}, found {sorted(keywords)}; "
                "add the argument and let these modules normalise by their stored statistics, or "
                "write a plan with stats='update'"
            )
        offered = {
            **mode_values(train),
            "rngs": rngs,
            "start": start,
            "stop": stop,
            "frozen_modules": frozen_modules,
        }
        arguments = {name: value for name, value in offered.items() if name in keywords}
        if not self.takes_stats:
            return self.function(params, inputs, **arguments), stats
        result = self.function(params, stats, inputs, **arguments)
        if not isinstance(result, tuple) or len(result) != 2:
            raise ModelError(
                f"{self.name}: expected (outputs, new_stats) from a function of (params, stats, "
                f"inputs), found {type(result).__name__}; return `stats` as they are where nothing "
                "changes them"
            )
        return result
