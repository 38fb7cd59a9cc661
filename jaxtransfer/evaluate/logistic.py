"""Multinomial logistic regression by L-BFGS with an exact line search, one program for a path."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

MEMORY = 10
"""How many of the last steps tell of the curvature, as in scikit-learn and SciPy."""
MAX_STEPS = 1000
TOLERANCE = 1e-6
"""Share of the loss that the next step may still promise where the iteration ends."""
# A step ends where the slope along it has risen to between these shares of minus the first one.
CURVATURE, OVERSHOOT = 0.5, 0.1
SEARCHES = 12


class Fit(NamedTuple):
    """Coefficients of shape (columns, classes), their objective, and how many steps it took."""

    coefficients: jax.Array
    objective: jax.Array
    steps: jax.Array


class _State(NamedTuple):
    point: jax.Array
    logits: jax.Array
    gradient: jax.Array
    value: jax.Array
    moves: jax.Array  # the last steps, and how the gradient changed by them, the newest last
    changes: jax.Array
    step: jax.Array
    promised: jax.Array


@jax.jit
def fit_logistic(
    features: jax.Array,
    labels: jax.Array,
    penalties: jax.Array,
    scales: jax.Array,
    start: jax.Array,
) -> Fit:
    """The minimum of mean cross-entropy + ½ Σ penalties V².

    Algorithm 7.4 (two-loop recursion) of Nocedal & Wright 2006, "Numerical Optimization". Logits
    are linear in the coefficients, so along a direction they are known from one product; the line
    search costs no more of them.

    Args:
        features: shape (count, columns), floats.
        labels: shape (count,), integers below the number of classes.
        penalties: of each column, shape (columns,).
        scales: about the inverse root of each column's curvature, shape (columns,): the iteration
            runs on V / scales. They change how fast the minimum is found, not what it is.
        start: coefficients to begin with, shape (columns, classes).
    """
    features = features * scales
    penalties = (penalties * jnp.square(scales))[:, jnp.newaxis]
    targets = jax.nn.one_hot(labels, start.shape[1], dtype=features.dtype)

    def value_and_gradient(point: jax.Array, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        log_probabilities = jax.nn.log_softmax(logits)
        loss = -jnp.sum(targets * log_probabilities) / len(labels)
        residuals = (jnp.exp(log_probabilities) - targets) / len(labels)
        penalty = jnp.sum(penalties * jnp.square(point)) / 2
        return loss + penalty, features.T @ residuals + penalties * point

    def goes_on(state: _State) -> jax.Array:
        worthwhile = state.promised > TOLERANCE * jnp.abs(state.value)
        return worthwhile & (state.step < MAX_STEPS)

    def advance(state: _State) -> _State:
        direction = _direction(state)
        slope = jnp.vdot(direction, state.gradient)
        change = features @ direction
        length = _line_search(state, direction, change, slope, targets, penalties)
        point, logits = state.point + length * direction, state.logits + length * change
        value, gradient = value_and_gradient(point, logits)
        better = value < state.value
        moved = _State(
            point,
            logits,
            gradient,
            value,
            _appended(state.moves, point - state.point),
            _appended(state.changes, gradient - state.gradient),
            state.step + 1,
            -slope / 2,
        )
        # Where rounding hides any progress, the last point is as good as it gets.
        stopped = state._replace(promised=jnp.zeros_like(slope), step=state.step + 1)
        return jax.tree.map(lambda new, old: jnp.where(better, new, old), moved, stopped)

    point = start / scales[:, jnp.newaxis]
    logits = features @ point
    value, gradient = value_and_gradient(point, logits)
    memory = jnp.zeros((MEMORY, *point.shape), point.dtype)
    zero = jnp.zeros((), jnp.int32)
    begun = _State(
        point, logits, gradient, value, memory, memory, zero, jnp.sum(jnp.square(gradient)) / 2
    )
    last = jax.lax.while_loop(goes_on, advance, begun)
    return Fit(last.point * scales[:, jnp.newaxis], last.value, last.step)


def _appended(memory: jax.Array, newest: jax.Array) -> jax.Array:
    return jnp.concatenate([memory[1:], newest[jnp.newaxis]])


def _direction(state: _State) -> jax.Array:
    """Minus the gradient times the inverse curvature that the last steps tell of."""
    moves = state.moves.reshape(MEMORY, -1)
    changes = state.changes.reshape(MEMORY, -1)
    # One product of all with all, instead of passes over the memory one after the other.
    curvatures = jnp.sum(moves * changes, axis=1)
    known = curvatures > 0
    inverse = jnp.where(known, 1 / jnp.where(known, curvatures, 1), 0)
    vector = state.gradient.reshape(-1)

    def backward(i: Any, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        at = MEMORY - 1 - i
        vector, shares = carry
        share = inverse[at] * jnp.vdot(moves[at], vector)
        return vector - share * changes[at], shares.at[at].set(share)

    def forward(at: Any, vector: jax.Array) -> jax.Array:
        share = inverse[at] * jnp.vdot(changes[at], vector)
        return vector + (shares[at] - share) * moves[at]

    shares = jnp.zeros(MEMORY, vector.dtype)
    vector, shares = jax.lax.fori_loop(0, MEMORY, backward, (vector, shares))
    squares = jnp.vdot(changes[-1], changes[-1])
    vector = vector * jnp.where(known[-1], curvatures[-1] / jnp.where(known[-1], squares, 1), 1)
    vector = jax.lax.fori_loop(0, MEMORY, forward, vector)
    return -vector.reshape(state.gradient.shape)


def _line_search(
    state: _State,
    direction: jax.Array,
    change: jax.Array,
    slope: jax.Array,
    targets: jax.Array,
    penalties: jax.Array,
) -> jax.Array:
    """A step length with the strong Wolfe conditions, by Newton's method kept within brackets."""
    linear = jnp.sum(penalties * state.point * direction) - jnp.sum(targets * change) / len(change)
    square = jnp.sum(penalties * jnp.square(direction))

    def derivatives(length: jax.Array) -> tuple[jax.Array, jax.Array]:
        probabilities = jax.nn.softmax(state.logits + length * change)
        mean = jnp.sum(probabilities * change, axis=1, keepdims=True)
        spread = jnp.sum(probabilities * jnp.square(change - mean)) / len(change)
        return jnp.mean(mean) + linear + length * square, spread + square

    def goes_on(search: tuple[jax.Array, ...]) -> jax.Array:
        tries, _, _, _, first, _ = search
        # Along a convex function a flat place is the lowest one.
        return (tries < SEARCHES) & ((first < CURVATURE * slope) | (first > OVERSHOOT * -slope))

    def advance(search: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        tries, length, low, high, first, second = search
        low, high = jnp.where(first < 0, length, low), jnp.where(first < 0, high, length)
        newton = length - first / second
        middle = jnp.where(jnp.isinf(high), 4 * length, (low + high) / 2)
        inside = (newton > low) & (newton < jnp.where(jnp.isinf(high), 4 * length, high))
        length = jnp.where(inside, newton, middle)
        return tries + 1, length, low, high, *derivatives(length)

    one = jnp.ones_like(slope)
    begun = (jnp.zeros((), jnp.int32), one, 0 * one, jnp.inf * one, *derivatives(one))
    return jax.lax.while_loop(goes_on, advance, begun)[1]
