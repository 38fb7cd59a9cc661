"""Networks to begin with: random ones, and random ones with the first stages of others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from jaxtransfer.data import Data
from jaxtransfer.errors import ModelError
from jaxtransfer.evaluate.arms import Initialise, reinitialise
from jaxtransfer.models import Model
from jaxtransfer.partition import Plan, freeze_until, full
from jaxtransfer.partition.stages import stages_with_parameters
from jaxtransfer.surgery import replace_head
from jaxtransfer.tree import named_leaves
from jaxtransfer.types import PyTree


def random_network(
    model: Model, data: Data, seed: int, initialise: Initialise | None = None
) -> Model:
    """The network with random weights and an output for each class of the data.

    Args:
        model: the network; its weights are not looked at.
        data: labels are classes.
        seed: the same seed gives the same weights.
        initialise: as `reinitialise` says.

    Raises:
        ModelError: as `reinitialise` says, or the network of the catalog does not have the names
            and shapes of the model's leaves.
    """
    fresh = replace(reinitialise(model, seed, initialise), labels=None)
    check_same_network(model, fresh, "initialise=, since the network was changed by surgery")
    count = len(data.classes) if data.classes is not None else int(np.max(data.labels)) + 1
    if fresh.num_classes != count:
        key = jax.random.fold_in(jax.random.key(seed), 1)
        return replace_head(fresh, count, reuse=False, key=key)
    return fresh


def copy_stages(origin: Model, onto: Model, count: int) -> Model:
    """A model with the first stages of another one of the same network, statistics included.

    Args:
        origin: whose stages are copied; leaves are the same arrays.
        onto: where all else comes from.
        count: how many stages with parameters.

    Raises:
        ModelError: the leaves of these stages have other names or shapes.
    """
    copied = stages_with_parameters(onto)[:count]
    check_same_network(onto, origin, "models of one network", copied)

    def merged(theirs: PyTree, own: PyTree) -> dict[str, Any]:
        return {stage: theirs[stage] if stage in copied else own[stage] for stage in own}

    return replace(
        onto, params=merged(origin.params, onto.params), stats=merged(origin.stats, onto.stats)
    )


def treatment_plan(model: Model, depth: int, fine_tuned: bool) -> Plan:
    """What trains: everything, or what is above the first stages, whose statistics stay, too."""
    return full(model) if fine_tuned else freeze_until(model, stages_with_parameters(model)[depth])


def check_same_network(
    model: Model, other: Model, remedy: str, stages: Sequence[str] | None = None
) -> None:
    """Raise unless two models have the same leaves, in some stages, by default all but the head's.

    Raises:
        ModelError: they differ; the message names a few leaves.
    """
    wanted = stages_with_parameters(model)[:-1] if stages is None else tuple(stages)
    mine, theirs = _shapes(model, wanted), _shapes(other, wanted)
    # A network that was cut off lacks stages which the catalog's has.
    mine |= dict.fromkeys(stages_with_parameters(model), ())
    theirs |= dict.fromkeys(stages_with_parameters(other), ())
    differing = sorted(name for name in {*mine, *theirs} if mine.get(name) != theirs.get(name))
    if differing:
        shown = [f"{n}: {mine.get(n, 'none')} and {theirs.get(n, 'none')}" for n in differing[:4]]
        raise ModelError(
            f"transferability_by_layer({model.spec.name}): expected two models with the same "
            f"leaves in {', '.join(wanted)}, found {len(differing)} that differ, among them "
            f"{'; '.join(shown)}; give {remedy}"
        )


def _shapes(model: Model, stages: Sequence[str]) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(leaf.shape)
        for name, leaf in (*named_leaves(model.params), *named_leaves(model.stats))
        if name.split("/")[0] in stages
    }
