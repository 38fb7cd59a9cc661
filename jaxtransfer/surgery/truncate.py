"""Cut a network off after one of its stages, whose features it then gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax

from jaxtransfer.errors import ModelError
from jaxtransfer.surgery.head import HeadedApply
from jaxtransfer.surgery.network import AnyModel, check_that_it_runs
from jaxtransfer.tree import is_below, nearest
from jaxtransfer.types import PyTree


@dataclass(frozen=True)
class TruncatedApply:
    """A network's forward pass up to a stage, as that of a network without a head.

    Attributes:
        body: the forward pass of the whole network.
        path: where a head's parameters would lie; stopping there is the end.
        dropped: the stages that are no more, in order, the head's own last.
    """

    body: Callable[..., Any]
    path: str
    dropped: tuple[str, ...]

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
    ) -> tuple[Any, PyTree]:
        """The forward pass of `Model.apply`."""
        gone = [s for s in (start, stop) if s in self.dropped and not self._is_end(s)]
        if gone:
            raise ModelError(
                f"start, stop: expected stages before {self.dropped[0]}, where the network was cut "
                f"off, found {gone}"
            )
        if start is not None and self._is_end(start):
            return inputs, stats
        return self.body(
            params,
            stats,
            inputs,
            train=train,
            rngs=rngs,
            start=start,
            stop=self.dropped[0] if stop is None or self._is_end(stop) else stop,
            frozen_modules=frozen_modules,
        )

    def _is_end(self, stage: str) -> bool:
        return is_below(self.path, {stage})


def truncate(model: AnyModel, stage: str) -> AnyModel:
    """The network up to and including a stage: its outputs are that stage's features.

    The parameters and statistics of later stages are left out, those before are the same arrays.
    The model is one without a head, as the catalog builds it with `num_classes=0`: `replace_head`
    puts one after the last stage that is left.

    Args:
        model: a `Model`; it stays as it is.
        stage: one of `model.spec.stages`, before that of the head.

    Raises:
        ModelError: there is no such stage before the head, or the network cannot stop there.

    Example:
        `replace_head(truncate(model, "layer3"), 10)`
    """
    spec = model.spec
    where = f"truncate({spec.name})"
    end = spec.head.split("/")[0]
    before = spec.stages[: spec.stages.index(end)] if end in spec.stages else spec.stages
    if stage not in before:
        likely = ", ".join(nearest(stage, before)) or "none"
        raise ModelError(
            f"{where}: expected a stage before the head, one of {', '.join(before)}, found "
            f"{stage!r}; the nearest are {likely}"
        )
    body = model.apply.body if isinstance(model.apply, HeadedApply) else model.apply
    if not getattr(body, "can_stop", True):
        raise ModelError(
            f"{where}: expected a network that can stop after {stage!r}, found a function without "
            "start= and stop=; let it take them"
        )
    kept = before[: before.index(stage) + 1]
    dropped = (*before[len(kept) :], end)
    if isinstance(body, TruncatedApply):
        dropped = (*before[len(kept) :], *body.dropped)
        body = body.body
    changed = replace(
        model,
        spec=replace(
            spec, stages=(*kept, end), head_layers=(), task_heads=(), truncated_after=stage
        ),
        apply=TruncatedApply(body, spec.head, dropped),
        params=_without(model.params, dropped),
        stats=_without(model.stats, dropped),
        # An output for the background, which labels leave out, belonged to the head.
        preprocess=replace(model.preprocess, label_offset=0),
        labels=None,
        receipt=model.receipt.with_note(f"truncate: the network ends after {stage}"),
    )
    remedy = f"is {stage!r} right before {dropped[0]!r}? give the model its stages= in order"
    check_that_it_runs(where, changed, remedy)
    return changed


def _without(tree: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in tree.items() if key not in keys}
