"""The jitted programs of a sweep: many configurations of one plan over the same cached features.

Arrays of configurations have three axes in front: devices, rows and members, as `arrange` puts
them. The members of a row share the order of the examples, and so their batches.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.extend import core

from jaxtransfer.compiling import jit
from jaxtransfer.data import preprocess_images
from jaxtransfer.models import Preprocess
from jaxtransfer.partition import SCHEDULES, Plan, evaluation_params
from jaxtransfer.train.losses import Loss, smoothed_cross_entropy
from jaxtransfer.train.scores import KINDS, Target
from jaxtransfer.train.state import TrainState
from jaxtransfer.train.step import make_train_step
from jaxtransfer.train.targets import loss_for
from jaxtransfer.tree import count_bytes, merge
from jaxtransfer.types import PyTree


class Examples(NamedTuple):
    """Labelled examples on the devices.

    Attributes:
        inputs: what enters the part that trains, shape (count, …).
        labels: shape (count, …).
        weights: shape (count,), float32.
    """

    inputs: jax.Array
    labels: jax.Array
    weights: jax.Array

    def batch(self, positions: jax.Array) -> dict[str, jax.Array]:
        """The examples at these positions, as a step takes them."""
        inputs, labels, weights = (leaf[positions] for leaf in self)
        return {"image": inputs, "label": labels, "weight": weights}


class Varied(NamedTuple):
    """What the configurations differ in, beside their states.

    Attributes:
        weight_decay: float32, shape (devices, rows, members).
        label_smoothing: float32, shape (devices, rows, members).
        rng: random keys, shape (devices, rows).
    """

    weight_decay: jax.Array
    label_smoothing: jax.Array
    rng: jax.Array


_MEMBERS = Varied(0, 0, None)  # pyright: ignore[reportArgumentType]
"""Which of `Varied` the members of a row have each for itself, as `jax.vmap` takes it."""


class Recipe(NamedTuple):
    """What is compiled: the same for all configurations, and for sweeps that share a program.

    Attributes:
        apply: a network's forward pass.
        stage: the one at which it begins, `None` for the first.
        plan: what trains.
        preprocess: what happens to inputs first, `None` where they are features.
        optimizer: a name in `OPTIMIZERS`.
        schedule: a name in `SCHEDULES`, or a function from a number of steps to a schedule.
        steps: of a whole run, over which the schedule goes.
        clip_norm: upper bound of the norm of a configuration's gradients, or `None`.
        target: what labels are.
    """

    apply: Callable[..., tuple[Any, PyTree]]
    stage: str | None
    plan: Plan
    preprocess: Preprocess | None
    optimizer: str
    schedule: str | Callable[[int], Any]
    steps: int
    clip_norm: float | None
    target: Target

    def forward(self) -> Callable[..., tuple[Any, PyTree]]:
        """The part of the network that is not cached."""
        cut = {} if self.stage is None else {"start": self.stage}
        return functools.partial(self.apply, **cut)

    def prepare(self) -> Callable[[Any], Any] | None:
        """What happens to a batch of inputs before they enter it."""
        if self.preprocess is None:
            return None
        return functools.partial(preprocess_images, how=self.preprocess)

    def transformation(self, weight_decay: Any) -> optax.GradientTransformationExtraArgs:
        """The optimizer, for the learning rate that the state keeps."""
        build = SCHEDULES[self.schedule] if isinstance(self.schedule, str) else self.schedule
        return self.plan.optimizer(
            1.0,
            optimizer=self.optimizer,
            weight_decay=weight_decay,
            clip_norm=self.clip_norm,
            schedule=build(self.steps),
        )

    def loss(self, label_smoothing: Any) -> Loss:
        """The usual loss for the labels."""
        if self.target == "classes":
            return smoothed_cross_entropy(label_smoothing)
        return loss_for(self.target)


@functools.lru_cache(maxsize=16)
def start_program(recipe: Recipe) -> Callable[..., TrainState]:
    """A jitted `start(trainable, stats, rates) -> states`; frozen leaves and keys are left out.

    `trainable` and `rates` have the three axes of configurations in front, `stats` have none.
    """

    def one(trainable: PyTree, stats: PyTree, rate: jax.Array) -> TrainState:
        # Optax mixes dtypes in its states, which strict promotion, where it is set, forbids.
        with jax.numpy_dtype_promotion("standard"):
            opt_state = recipe.transformation(0.0).init(trainable)
        opt_state = optax.tree.set(opt_state, learning_rate=rate)
        step = jnp.zeros((), jnp.int32)
        return TrainState(step, trainable, None, stats, opt_state, None, rng=None)  # pyright: ignore[reportArgumentType]

    return jax.jit(_over_all(one, (0, None, 0)))


@functools.lru_cache(maxsize=16)
def step_program(recipe: Recipe) -> Callable[..., tuple[TrainState, tuple[jax.Array, jax.Array]]]:
    """A jitted step of all configurations: `step(states, frozen, varied, examples, positions)`.

    `positions` of examples have shape (devices, rows, batch). It returns the new states, and the
    losses and whether each was left out for not being finite, shape (devices, rows, members).
    """
    return jit(functools.partial(_step, recipe), donate_argnums=0)


@functools.lru_cache(maxsize=16)
def scan_program(recipe: Recipe) -> Callable[..., tuple[TrainState, tuple[jax.Array, jax.Array]]]:
    """As `step_program`, for many steps: positions and what is returned have one more axis first.

    Not for convolutions on CPUs, whose gradients take many times as long inside a loop.
    """

    def steps(
        states: TrainState, frozen: PyTree, varied: Varied, examples: Examples, positions: jax.Array
    ) -> Any:
        return jax.lax.scan(
            lambda states, one: _step(recipe, states, frozen, varied, examples, one),
            states,
            positions,
        )

    return jit(steps, donate_argnums=0)


def _step(
    recipe: Recipe,
    states: TrainState,
    frozen: PyTree,
    varied: Varied,
    examples: Examples,
    positions: jax.Array,
) -> tuple[TrainState, tuple[jax.Array, jax.Array]]:
    def one(state: TrainState, varied: Varied, batch: Any) -> Any:
        step = make_train_step(
            recipe.forward(),
            recipe.loss(varied.label_smoothing),
            recipe.transformation(varied.weight_decay),
            recipe.plan,
            prepare=recipe.prepare(),
        )
        moved, metrics = step(replace(state, frozen=frozen, rng=varied.rng), batch)
        moved = replace(moved, frozen=None, rng=None)  # pyright: ignore[reportArgumentType]
        return moved, (metrics["loss"], metrics["skipped"] > 0)

    row = jax.vmap(one, in_axes=(0, _MEMBERS, None))
    return jax.vmap(jax.vmap(row))(states, varied, examples.batch(positions))


@functools.lru_cache(maxsize=16)
def score_program(recipe: Recipe) -> Callable[..., dict[str, jax.Array]]:
    """A jitted `score(states, frozen, examples, positions, centre)` of all configurations.

    `positions` have shape (batches, batch), -1 for what fills the last one; `centre` is as for
    `KINDS`. It returns the weighted sums of each number of `KINDS`, and of `loss`, without label
    smoothing so that losses can be compared.
    """
    forward, prepare = recipe.forward(), recipe.prepare()
    loss, rows_of = recipe.loss(0.0), KINDS[recipe.target].rows

    def sums(state: TrainState, frozen: PyTree, batch: Any, centre: jax.Array) -> dict[str, Any]:
        params = merge(evaluation_params(state.opt_state, state.trainable), frozen)
        inputs = batch["image"] if prepare is None else prepare(batch["image"])
        outputs = forward(params, state.stats, inputs, train=False)[0].astype(jnp.float32)
        numbers = {"loss": loss(outputs, batch), **rows_of(outputs, batch["label"], centre)}
        weight = batch["weight"]
        return {
            name: jnp.tensordot(weight, rows.astype(jnp.float32), 1)
            for name, rows in numbers.items()
        }

    def score(states: Any, frozen: Any, examples: Examples, positions: Any, centre: Any) -> Any:
        def add(total: Any, some: jax.Array) -> tuple[Any, None]:
            batch = examples.batch(jnp.maximum(some, 0))
            batch["weight"] = batch["weight"] * (some >= 0).astype(jnp.float32)
            found = _over_all(sums, (0, None, None, None))(states, frozen, batch, centre)
            return jax.tree.map(jnp.add, total, found), None

        batch = examples.batch(positions[0])
        shapes = jax.eval_shape(
            _over_all(sums, (0, None, None, None)), states, frozen, batch, centre
        )
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return jax.lax.scan(add, zeros, positions)[0]

    return jit(score)


def _over_all(one: Callable[..., Any], in_axes: tuple[int | None, ...]) -> Callable[..., Any]:
    """A function of one configuration over devices, rows and members."""
    for _ in range(3):
        one = jax.vmap(one, in_axes=in_axes)
    return one


# ---------------------------------------------------------------------------------------------
# What a configuration costs


class Cost(NamedTuple):
    """What one configuration of a sweep is estimated to take.

    Attributes:
        memory: bytes.
        has_convolutions: whether the part that trains holds convolutions.
    """

    memory: int
    has_convolutions: bool


def cost_of(recipe: Recipe, params: PyTree, stats: PyTree, state: TrainState, inputs: Any) -> Cost:
    """What a configuration takes, estimated without compiling: more memory than it usually needs.

    Three times what it changes, before a step, after it, and as gradients and updates; twice what
    the forward pass gives on its way, kept for the gradient and for the gradients of it.

    Args:
        recipe: what is compiled.
        params: all parameters.
        stats: running statistics.
        state: of one configuration; shapes are enough.
        inputs: of one step's examples; shapes are enough.
    """
    prepare = recipe.prepare() or (lambda inputs: inputs)

    def forward(params: PyTree, inputs: Any) -> Any:
        return recipe.forward()(params, stats, prepare(inputs), train=False)[0]

    used, has_convolutions = _used(jax.make_jaxpr(forward)(params, inputs).jaxpr)
    return Cost(3 * count_bytes(state) + 2 * used, has_convolutions)


def _used(jaxpr: Any) -> tuple[int, bool]:
    """Bytes that a traced function gives operation by operation, and whether it convolves."""
    used, convolves = 0, False
    for equation in jaxpr.eqns:
        inner = [_used(one) for one in _inside(equation)]
        outputs = [variable.aval for variable in equation.outvars]
        own = sum(leaf.size * leaf.dtype.itemsize for leaf in outputs if hasattr(leaf, "dtype"))
        used += sum(count for count, _ in inner) if inner else own
        convolves |= equation.primitive.name == "conv_general_dilated" or any(c for _, c in inner)
    return used, convolves


def _inside(equation: Any) -> Iterator[Any]:
    """The traced functions that an operation calls."""
    for leaf in jax.tree.leaves(equation.params, is_leaf=lambda leaf: isinstance(leaf, _TRACED)):
        if isinstance(leaf, _TRACED):
            yield getattr(leaf, "jaxpr", leaf)


_TRACED = (core.Jaxpr, core.ClosedJaxpr)
