"""A forward pass in pieces: what enters a stage is seen, or a stage's activations are recomputed.

`Model.apply` cuts its forward pass at the entrance of a stage by `start` and `stop`. Pieces that
follow each other are the whole, so features cost nothing beyond the pass itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from jaxtransfer.errors import TrainingError
from jaxtransfer.models.calling import can_start
from jaxtransfer.types import PyTree

ALL = "all"
"""For `remat`: every stage."""


@dataclass(frozen=True)
class Segment:
    """The stages from `start` on, and before `stop`; `None` for the ends of the network.

    Attributes:
        start: the first stage.
        stop: the stage before which it ends.
        recomputes: whether the backward pass computes the activations inside anew, instead of
            keeping them (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost",
            arXiv 1604.06174).
    """

    start: str | None
    stop: str | None
    recomputes: bool


def segments(
    stages: Sequence[str], features: Sequence[str] = (), remat: Sequence[str] | str = ()
) -> tuple[Segment, ...]:
    """How a row of stages is cut so that features are seen and stages recomputed.

    Args:
        stages: all stages from input to head.
        features: the stages whose entering features are wanted.
        remat: the stages whose activations are recomputed, or "all".

    Raises:
        TrainingError: some are no stages.

    >>> for segment in segments(("stem", "layer1", "layer2", "head"), remat=("layer1",)):
    ...     print(segment)
    Segment(start=None, stop='layer1', recomputes=False)
    Segment(start='layer1', stop='layer2', recomputes=True)
    Segment(start='layer2', stop=None, recomputes=False)
    """
    recomputed = tuple(stages) if remat == ALL else (remat,) if isinstance(remat, str) else remat
    unknown = [stage for stage in (*features, *recomputed) if stage not in stages]
    if unknown:
        known = ", ".join(stages) or "no stages, since none were given: pass model.spec.stages"
        raise TrainingError(
            f"remat, regularisers: expected stages among {known}, found {', '.join(unknown)}"
        )
    after = {stage: following for stage, following in zip(stages, stages[1:], strict=False)}
    begins = {*features, *recomputed, *(after[s] for s in recomputed if s in after)}
    cuts = [stage for stage in stages[1:] if stage in begins]
    firsts = [None, *cuts]
    return tuple(
        Segment(start, stop, (stages[0] if start is None and stages else start) in recomputed)
        for start, stop in zip(firsts, [*cuts, None], strict=True)
    )


def run_segments(
    apply: Callable[..., tuple[Any, PyTree]],
    pieces: Sequence[Segment],
    params: PyTree,
    stats: PyTree,
    inputs: Any,
    rngs: Mapping[str, jax.Array],
    frozen_modules: frozenset[str],
) -> tuple[Any, PyTree, dict[str, jax.Array]]:
    """A forward pass in training, a piece at a time.

    Args:
        apply: a network's forward pass.
        pieces: one after the other, as `segments` gives them.
        params: all parameters.
        stats: running statistics.
        inputs: what enters the network.
        rngs: random keys by the name of their stream.
        frozen_modules: paths of the modules that run as in evaluation.

    Returns:
        What comes out, the statistics, and what entered each piece, by the name of its stage.
    """
    entered: dict[str, jax.Array] = {}
    for piece in pieces:
        if piece.start is not None:
            entered[piece.start] = inputs
        # The cuts are left away where there are none: a function of a user's own may not know them.
        cuts = {"start": piece.start, "stop": piece.stop}
        cuts = {name: stage for name, stage in cuts.items() if stage is not None}

        def run(params: PyTree, stats: PyTree, inputs: Any, rngs: Any, cuts: Any = cuts) -> Any:
            return apply(
                params,
                stats,
                inputs,
                train=True,
                rngs=rngs,
                frozen_modules=frozen_modules,
                **cuts,
            )

        run = jax.checkpoint(run) if piece.recomputes else run
        inputs, stats = run(params, stats, inputs, rngs)
    return inputs, stats, entered


def forward(
    apply: Callable[..., tuple[Any, PyTree]],
    stages: Sequence[str],
    features: Sequence[str],
    remat: Sequence[str] | str,
    *arguments: Any,
) -> tuple[Any, PyTree, dict[str, jax.Array]]:
    """A forward pass in training that also gives what enters some stages.

    A network that cannot begin at a stage is run once more for each of them, up to it.

    Args:
        apply: a network's forward pass.
        stages: all stages from input to head; not needed where nothing is asked for.
        features: the stages whose entering features are wanted.
        remat: the stages whose activations are recomputed, or "all".
        *arguments: parameters, statistics, inputs, random keys and frozen modules.

    Returns:
        Outputs, statistics, and the features by stage.

    Raises:
        TrainingError: stages are unknown, or shall be recomputed in a network that cannot be cut.
    """
    if can_start(apply):
        pieces = segments(stages, features, remat) if features or remat else segments(())
        outputs, stats, entered = run_segments(apply, pieces, *arguments)
        first = {stage: arguments[2] for stage in features if stage == stages[0]}
        return (
            outputs,
            stats,
            first | {stage: entered[stage] for stage in features if stage in entered},
        )
    if remat:
        raise TrainingError(
            "remat: expected a network whose forward pass can begin at a stage, by start=, found "
            "one that cannot; let its call take start and stop, use flax.linen.remat inside it, or "
            "leave remat out"
        )
    outputs, stats, _ = run_segments(apply, segments(()), *arguments)
    seen = {
        stage: run_segments(apply, (Segment(None, stage, False),), *arguments)[0]
        for stage in features
    }
    return outputs, stats, seen
