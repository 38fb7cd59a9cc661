"""What becomes of an optimizer's state when a plan changes, and which parameters it evaluates."""

from __future__ import annotations

from typing import Any

import jax
import optax

from jaxtransfer.errors import PlanError
from jaxtransfer.partition.optimizer import LeafwiseState
from jaxtransfer.tree import flatten, map_with_names
from jaxtransfer.types import PyTree

_RESTARTS = ("weight_sum", "step_count", "max_lr", "z")
"""What a schedule-free state averages with; each plan averages its own steps."""


def carry_opt_state(old: Any, new: Any) -> Any:
    """The state of a new plan's optimizer with the moments that the old plan's has, by name.

    A parameter that trains in both plans by the same optimizer keeps its moments, and the count of
    its steps with them; one that starts to train has a fresh state and counts from 0. So the
    correction of Adam's moments is right for both, which it is not where all share one count: with
    that of the old ones, the first steps of new ones are 3.2 times too long, and with a fresh one,
    old ones stand almost still for a hundred steps.

    The learning rate is the new one, and schedules start again, so the new plan warms up. An
    optimizer whose state its leaves share (Prodigy, or one of your own) keeps it where it has no
    leaf that is new, and starts afresh otherwise. A schedule-free optimizer keeps its second
    moments and averages anew: start the new plan from `evaluation_params`, which end the old one.

    Args:
        old: the state at the end of the old plan, of a `Plan.optimizer`.
        new: what `init` of the new plan's optimizer gives.

    Returns:
        A state of the structure of `new`, which shares arrays with both.

    Raises:
        PlanError: one of them is not the state of a `Plan.optimizer`.

    Example:
        `state = replace(state, opt_state=carry_opt_state(before.opt_state, tx.init(trainable)))`
    """
    before, after = _partition("old", old).inner_states, _partition("new", new)
    carried = optax.PartitionState(
        {
            label: _carry(before[label], state) if label in before else state
            for label, state in after.inner_states.items()
        }
    )
    return jax.tree.map(
        lambda node: carried if node is after else node, new, is_leaf=lambda node: node is after
    )


def evaluation_params(opt_state: Any, trainable: PyTree) -> PyTree:
    """The parameters to evaluate and to keep: averages where the optimizer is schedule-free.

    Such an optimizer takes gradients at points between its average and the sequence that runs
    ahead; `trainable` holds these points.

    Args:
        opt_state: any Optax state that belongs to `trainable`.
        trainable: the parameters that train, `None` in the holes.

    Returns:
        A tree like `trainable`; where no optimizer is schedule-free, the very same tree.

    Source: Defazio et al. 2024, "The Road Less Scheduled", arXiv 2405.15682, equation 5, solved for
    x; as `optax.contrib.schedule_free_eval_params` has it.
    """
    ahead: dict[str, tuple[Any, Any]] = {}
    for state in jax.tree.leaves(opt_state, is_leaf=_is_schedule_free):
        if _is_schedule_free(state):
            weights = flatten(state.b1)  # one for each leaf, or one for all
            for name, z in flatten(state.z).items():
                ahead[name] = weights[name] if name in weights else weights[""], z
    if not ahead:
        return trainable

    def average(name: str, y: jax.Array) -> jax.Array:
        if name not in ahead:
            return y
        b1, z = ahead[name]
        return schedule_free_average(y, z, b1)

    return map_with_names(average, trainable)


def schedule_free_average(y: jax.Array, z: jax.Array, b1: jax.Array) -> jax.Array:
    """The average x of a schedule-free optimizer: y, where it trains, is b1 x + (1 - b1) z."""
    return (y - (1.0 - b1) * z) / b1


def _partition(which: str, state: Any) -> optax.PartitionState:
    for node in jax.tree.leaves(state, is_leaf=_is_partition):
        if _is_partition(node):
            return node
    raise PlanError(
        f"carry_opt_state: expected the {which} state to be that of a Plan.optimizer, found "
        f"{type(state).__name__}; give what tx.init(trainable) or a step gave"
    )


def _carry(old: Any, new: Any) -> Any:
    """The state of one label with what the old one has of it."""
    have = {path: leaf for path, leaf in jax.tree_util.tree_leaves_with_path(old)}

    def fits(path: Any, leaf: Any) -> bool:
        found = have.get(path)
        return found is not None and (found.shape, found.dtype) == (leaf.shape, leaf.dtype)

    leaves = jax.tree_util.tree_leaves_with_path(new)
    is_leafwise = any(map(_is_leafwise, jax.tree.leaves(new, is_leaf=_is_leafwise)))
    if not is_leafwise and not all(fits(path, leaf) for path, leaf in leaves):
        return new
    restarting = _restarting(new)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: have[path] if fits(path, leaf) and path not in restarting else leaf, new
    )


def _restarting(state: Any) -> set[Any]:
    """The paths of the values of schedule-free states that a new plan starts afresh."""
    return {
        path + (jax.tree_util.GetAttrKey(field),) + below
        for path, node in jax.tree_util.tree_leaves_with_path(state, is_leaf=_is_schedule_free)
        if _is_schedule_free(node)
        for field in _RESTARTS
        for below, _ in jax.tree_util.tree_leaves_with_path(getattr(node, field))
    }


def _is_partition(node: Any) -> bool:
    return isinstance(node, optax.PartitionState)


def _is_leafwise(node: Any) -> bool:
    return isinstance(node, LeafwiseState)


def _is_schedule_free(node: Any) -> bool:
    return isinstance(node, optax.contrib.ScheduleFreeState)
