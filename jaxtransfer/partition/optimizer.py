"""An Optax transformation from per-leaf settings: optimizer, weight decay, learning-rate scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from jaxtransfer.errors import PlanError
from jaxtransfer.partition.decay import is_decayed
from jaxtransfer.partition.optimizers import Build, Optimizer, Parts, Transformation
from jaxtransfer.tree import leaf_names, map_with_names, named_leaves
from jaxtransfer.types import PyTree


@dataclass(frozen=True)
class Settings:
    """How one leaf is trained; the fields are those of a `Group`, with the defaults filled in."""

    optimizer: str
    weight_decay: float | jax.Array
    lr_scale: float | tuple[float, ...]
    decay_all: bool

    @property
    def has_blocks(self) -> bool:
        """Whether the first axis is one of blocks."""
        return isinstance(self.lr_scale, tuple)

    def decay(self, name: str, ndim: int) -> float | jax.Array:
        """The weight decay of a leaf of this name and so many axes, that of blocks not counted."""
        return self.weight_decay if self.decay_all or is_decayed(name, ndim) else 0.0


SettingsOf: TypeAlias = Callable[[Sequence[str]], Mapping[str, Settings]]
"""The settings of the leaves of these names; it raises where it has none for them."""


class LeafwiseState(NamedTuple):
    """The state of an optimizer that keeps one for each leaf, steps counted included.

    Attributes:
        inner: the state's own structure, with a tree of the leaves' values for each value.
    """

    inner: Any


def build_optimizer(
    settings: SettingsOf,
    used: Mapping[str, Optimizer],
    learning_rate: float | optax.Schedule,
    schedule: optax.Schedule | None,
    clip_norm: float | None,
) -> optax.GradientTransformationExtraArgs:
    """Sharpness, clipping by the common norm, then each leaf's optimizer at the learning rate.

    Args:
        settings: how leaves are trained.
        used: the optimizers in use.
        learning_rate: a number, or a schedule from the step to one.
        schedule: a factor on the learning rate, from the step.
        clip_norm: upper bound of the norm of all gradients together, or `None`.

    Raises:
        PlanError: `clip_norm` is not above 0.
    """
    if clip_norm is not None and not (math.isfinite(clip_norm) and clip_norm > 0):
        raise PlanError(f"clip_norm: expected a number above 0 or None, found {clip_norm}")
    variants = {
        (name, has_blocks, is_other): _label(name, has_blocks, is_other)
        for name, optimizer in used.items()
        for has_blocks in ((False, True) if optimizer.by_block else (False,))
        for is_other in ((False, True) if optimizer.others is not None else (False,))
    }

    def labels(tree: PyTree) -> PyTree:
        by_name = settings(leaf_names(tree))
        _check_blocks(by_name, tree)

        def label(name: str, leaf: Any) -> str:
            mine = by_name[name]
            optimizer = used[mine.optimizer]
            has_blocks = optimizer.by_block and mine.has_blocks
            is_other = optimizer.others is not None and leaf.ndim - mine.has_blocks != 2
            return variants[mine.optimizer, has_blocks, is_other]

        return map_with_names(label, tree)

    def at(learning_rate: Any, factor: Any = None) -> Transformation:
        rate = learning_rate if factor is None else learning_rate * factor
        transforms = {}
        for (name, has_blocks, is_other), label in variants.items():
            optimizer = used[name]
            build = optimizer.others if is_other and optimizer.others else optimizer.build
            if optimizer.shared:
                transforms[label] = _all_leaves(build, rate, settings)
            else:
                transforms[label] = _each_leaf(build, rate, settings, has_blocks)
        return optax.partition(transforms, labels)

    injected = optax.inject_hyperparams(at, hyperparam_dtype=jnp.float32)
    return optax.chain(
        _sharpness_aware(settings, used),
        optax.clip_by_global_norm(clip_norm) if clip_norm is not None else optax.identity(),
        injected(_injectable(learning_rate), _injectable(schedule)),
    )


def _injectable(value: Any) -> Any:
    """A number as one that is kept in the state, or a schedule as one that any promotion allows."""
    if value is None or isinstance(value, Tracer):
        return value
    if not callable(value):
        # Of the host, since a step donates the array that each state makes of it.
        return np.asarray(value, np.float32)

    def schedule(step: Any) -> Any:
        # Those of Optax multiply integers by floats, which strict promotion forbids.
        with jax.numpy_dtype_promotion("standard"):
            return value(step)

    return schedule


def block_problems(scales: Mapping[str, Any], tree: PyTree) -> list[str]:
    """The leaves whose first axis is not as long as their tuple of learning-rate scales."""
    return [
        f" - {name}: {len(scales[name])} factors in lr_scale for a leaf of shape "
        f"{tuple(leaf.shape)}; give one for each block along the first axis, or one number"
        for name, leaf in named_leaves(tree)
        if isinstance(scales.get(name), tuple) and leaf.shape[:1] != (len(scales[name]),)
    ]


def _check_blocks(by_name: Mapping[str, Settings], tree: PyTree) -> None:
    problems = block_problems({name: mine.lr_scale for name, mine in by_name.items()}, tree)
    if problems:
        raise PlanError("\n".join(["lr_scale: expected a factor for each block, found", *problems]))


def _label(name: str, has_blocks: bool, is_other: bool) -> str:
    return name + (" of blocks" if has_blocks else "") + (", not matrices" if is_other else "")


def _parts(rate: Any, name: str, mine: Settings, leaf: Any) -> Parts:
    scale: Any = mine.lr_scale
    if mine.has_blocks:
        scale = np.asarray(scale, np.float32).reshape(-1, *[1] * (leaf.ndim - 1))
    return Parts(rate, mine.decay(name, leaf.ndim - mine.has_blocks), scale)


def _all_leaves(build: Build, rate: Any, settings: SettingsOf) -> Transformation:
    """One transformation of all leaves."""

    def built(tree: PyTree) -> optax.GradientTransformationExtraArgs:
        by_name = settings(leaf_names(tree))
        parts = {n: _parts(rate, n, by_name[n], leaf) for n, leaf in named_leaves(tree)}
        decays = map_with_names(lambda name, _: parts[name].decays, tree)
        scales = map_with_names(lambda name, _: parts[name].scales, tree)
        return optax.with_extra_args_support(build(Parts(rate, decays, scales)))

    def init(params: PyTree) -> Any:
        # Some keep where they started: the step donates the parameters and the state, so these
        # must not be the same arrays.
        own = {id(leaf) for leaf in jax.tree.leaves(params)}
        return jax.tree.map(
            lambda leaf: jnp.array(leaf, copy=True) if id(leaf) in own else leaf,
            built(params).init(params),
        )

    def update(
        updates: PyTree, state: Any, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, Any]:
        return built(updates).update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(init, update)


def _each_leaf(
    build: Build, rate: Any, settings: SettingsOf, has_blocks: bool
) -> optax.GradientTransformation:
    """A transformation for each leaf, or for each block of each leaf.

    What starts to train later so counts its own steps, which the correction of moments needs.
    """

    def init_one(leaf: jax.Array) -> Any:
        return build(Parts(rate, 0.0, 1.0)).init(leaf)

    def update_one(name: str, mine: Settings, *arguments: Any) -> tuple[Any, Any]:
        if not has_blocks:
            update, state, value = arguments
            return build(_parts(rate, name, mine, value)).update(update, state, value)

        def block(scale: jax.Array, update: jax.Array, state: Any, value: jax.Array) -> Any:
            parts = Parts(rate, mine.decay(name, value.ndim), scale)
            return build(parts).update(update, state, value)

        return jax.vmap(block)(jnp.asarray(mine.lr_scale, jnp.float32), *arguments)

    def init(params: PyTree) -> LeafwiseState:
        leaves, structure = jax.tree.flatten(params)
        start = jax.vmap(init_one) if has_blocks else init_one
        return LeafwiseState(_gather(list(map(start, leaves)), structure))

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, LeafwiseState]:
        leaves, structure = jax.tree.flatten(updates)
        names = leaf_names(updates)
        by_name = settings(names)
        states = _scatter(state.inner, structure)
        moved = [
            update_one(name, by_name[name], leaf, state, value)
            for name, leaf, state, value in zip(
                names, leaves, states, jax.tree.leaves(params), strict=True
            )
        ]
        after = LeafwiseState(_gather([state for _, state in moved], structure))
        return structure.unflatten([update for update, _ in moved]), after

    return optax.GradientTransformation(init, update)


def _gather(states: Sequence[Any], structure: Any) -> Any:
    """States of leaves, all of one structure, as one of trees of leaves."""
    if not states:
        return ()
    return jax.tree.map(lambda *values: structure.unflatten(values), *states)


def _scatter(state: Any, structure: Any) -> list[Any]:
    """The other half of `_gather`."""
    if not structure.num_leaves:
        return []
    trees, inner = jax.tree.flatten(
        state, is_leaf=lambda node: jax.tree.structure(node) == structure
    )
    values = zip(*map(jax.tree.leaves, trees), strict=True)
    return [inner.unflatten(mine) for mine in values] if trees else [state] * structure.num_leaves


def _sharpness_aware(
    settings: SettingsOf, used: Mapping[str, Optimizer]
) -> optax.GradientTransformation:
    """For leaves whose optimizer has a radius, the gradient uphill of where they are.

    It is before all else, so that clipping, moments and decay see the gradient that counts.

    Source: Foret et al. 2021, "Sharpness-Aware Minimization", arXiv 2010.01412, algorithm 1 and
    equation 2 with p = 2.
    """
    if not any(optimizer.radius for optimizer in used.values()):
        return optax.identity()

    def update(
        updates: PyTree, state: Any, params: PyTree = None, *, grad_fn: Any = None, **extra: Any
    ) -> tuple[PyTree, Any]:
        if grad_fn is None:
            raise PlanError(
                "sam: expected tx.update(gradients, state, params, grad_fn=…) with a function from "
                "the trainable tree and a number to gradients, found none; make_train_step gives it"
            )
        by_name = settings(leaf_names(updates))
        radii = {name: used[mine.optimizer].radius for name, mine in by_name.items()}
        norm = optax.tree.norm([leaf for name, leaf in named_leaves(updates) if radii[name]])
        norm = jnp.maximum(norm, jnp.finfo(norm.dtype).tiny)

        def uphill(name: str, value: jax.Array, gradient: jax.Array) -> jax.Array:
            if not radii[name]:
                return value
            return value + (radii[name] / norm * gradient).astype(value.dtype)

        again = grad_fn(map_with_names(uphill, params, updates), 0)
        return map_with_names(
            lambda name, here, there: there if radii[name] else here, updates, again
        ), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
