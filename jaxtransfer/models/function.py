"""The forward pass of a user's own function, whatever part of the contract it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from jaxtransfer.errors import ModelError
from jaxtransfer.models.calling import keywords_of, mode_values, positional_count
from jaxtransfer.types import PyTree


@dataclass(frozen=True)
class FunctionApply:
    """`Model.apply` of a function `(params, inputs) -> outputs` or `(params, stats, inputs) -> (outputs, stats)`.

    Of `train` (or its usual other names), `rngs`, `start`, `stop` and `frozen_modules` the function is
    given those that it takes by keyword.
    """

    function: Callable[..., Any]

    @property
    def can_stop(self) -> bool:
        """Whether the function can cut its forward pass at a stage."""
        return {"start", "stop"} <= keywords_of(self.function)

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
        name = getattr(self.function, "__name__", str(self.function))
        if (start is not None or stop is not None) and not self.can_stop:
            raise ModelError(
                f"{name}: expected a function that takes start= and stop=, found {sorted(keywords)}; add "
                "them (run the stages from `start` up to, without, `stop`), or replace the head by one "
                "dense layer, which needs no cut"
            )
        if stats and train and frozen_modules and "frozen_modules" not in keywords:
            raise ModelError(
                f"{name}: expected a function that takes frozen_modules=, since the plan freezes the "
                f"statistics of {sorted(frozen_modules)}, found {sorted(keywords)}; add the argument and "
                "let these modules normalise by their stored statistics, or write a plan with "
                "stats='update'"
            )
        offered = {
            **mode_values(train),
            "rngs": rngs,
            "start": start,
            "stop": stop,
            "frozen_modules": frozen_modules,
        }
        arguments = {name: value for name, value in offered.items() if name in keywords}
        if positional_count(self.function) >= 3:
            return self.function(params, stats, inputs, **arguments)
        return self.function(params, inputs, **arguments), stats
