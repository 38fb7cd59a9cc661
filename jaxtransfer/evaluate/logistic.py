"""Multinomial logistic regression by L-BFGS with an exact line search, one program for a path."""

from __future__ import annotations

from typing import NamedTuple

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
    """Coefficients of shape (columns, classes), and how many steps they took."""

    coefficients: jax.Array
    steps: jax.Array


class _State(NamedTuple):
    point: jax.Array
    logits: jax.Array
    last_point: jax.Array
    last_gradient: jax.Array
    last_value: jax.Array
    moves: jax.Array  # the last steps, and how the gradient changed by them, the newest last
    changes: jax.Array
    step: jax.Array
    goes_on: jax.Array


@jax.jit
def fit_logistic(
    features: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
    penalties: jax.Array,
    scales: jax.Array,
    start: jax.Array,
) -> Fit:
    """The minimum of the weighted mean of the cross-entropy + ½ Σ penalties V².

    Algorithm 7.4 (two-loop recursion) of Nocedal & Wright 2006, "Numerical Optimization". Logits
    are linear in the coefficients, so along a direction they are known from one product; the line
    search costs no more of them.

    Args:
        features: shape (count, columns), floats.
        labels: shape (count,), integers below the number of classes.
        weights: of each example, shape (count,), with a sum of 1.
        penalties: of each column, shape (columns,).
        scales: about the inverse root of each column's curvature, shape (columns,): the iteration
            runs on V / scales. They change how fast the minimum is found, not what it is.
        start: coefficients to begin with, shape (columns, classes).
    """
    features = features * scales
    penalties = (penalties * jnp.square(scales))[:, jnp.newaxis]
    weights = weights[:, jnp.newaxis]
    targets = weights * jax.nn.one_hot(labels, start.shape[1], dtype=features.dtype)

    def advance(state: _State) -> _State:
        value, residuals = _loss(state.logits, targets, weights)
        value += jnp.sum(penalties * jnp.square(state.point)) / 2
        gradient = features.T @ residuals + penalties * state.point
        # Before the first step there is nothing to remember: these changes are no curvature.
        moves = _appended(state.moves, state.point - state.last_point)
        changes = _appended(state.changes, gradient - state.last_gradient)
        direction = _direction(gradient, moves, changes)
        slope = jnp.vdot(direction, gradient)
        change = features @ direction
        length = _line_search(state, direction, change, slope, targets, weights, penalties)
        # Where rounding hides any progress, the last point is as good as it gets.
        better = value < state.last_value
        return _State(
            jnp.where(better, state.point + length * direction, state.last_point),
            state.logits + length * change,
            state.point,
            gradient,
            value,
            moves,
            changes,
            state.step + 1,
            better & (-slope / 2 > TOLERANCE * value) & (state.step < MAX_STEPS),
        )

    point = start / scales[:, jnp.newaxis]
    memory = jnp.zeros((MEMORY, *point.shape), point.dtype)
    worst = jnp.asarray(jnp.inf, point.dtype)
    none = jnp.zeros((), jnp.int32)
    begun = _State(
        point, features @ point, point, 0 * point, worst, memory, memory, none, none == 0
    )
    last = jax.lax.while_loop(lambda state: state.goes_on, advance, begun)
    return Fit(last.point * scales[:, jnp.newaxis], last.step)


def _loss(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The cross-entropy and its gradient with respect to the logits."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    exponentials = jnp.exp(shifted)
    sums = exponentials.sum(axis=1, keepdims=True)
    loss = jnp.sum(weights * jnp.log(sums)) - jnp.sum(targets * shifted)
    return loss, exponentials * (weights / sums) - targets


def _appended(memory: jax.Array, newest: jax.Array) -> jax.Array:
    return jnp.concatenate([memory[1:], newest[jnp.newaxis]])


def _direction(gradient: jax.Array, moves: jax.Array, changes: jax.Array) -> jax.Array:
    """Minus the gradient times the inverse curvature that the last steps tell of."""
    shape, vector = gradient.shape, gradient.reshape(-1)
    moves, changes = moves.reshape(MEMORY, -1), changes.reshape(MEMORY, -1)
    curvatures = jnp.sum(moves * changes, axis=1)
    known = curvatures > 0
    inverse = jnp.where(known, 1 / jnp.where(known, curvatures, 1), 0)

    def backward(vector: jax.Array, pair: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        move, change, inverse = pair
        share = inverse * jnp.vdot(move, vector)
        return vector - share * change, share

    def forward(vector: jax.Array, pair: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        move, change, inverse, share = pair
        return vector + (share - inverse * jnp.vdot(change, vector)) * move, None

    vector, shares = jax.lax.scan(backward, vector, (moves, changes, inverse), reverse=True)
    squares = jnp.sum(jnp.square(changes[-1]))
    vector *= jnp.where(known[-1], curvatures[-1] / jnp.where(known[-1], squares, 1), 1)
    vector, _ = jax.lax.scan(forward, vector, (moves, changes, inverse, shares))
    return -vector.reshape(shape)


def _line_search(
    state: _State,
    direction: jax.Array,
    change: jax.Array,
    slope: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    penalties: jax.Array,
) -> jax.Array:
    """Where a convex function is about lowest, by Newton's method kept within brackets."""
    linear = jnp.sum(penalties * state.point * direction) - jnp.sum(targets * change)
    square = jnp.sum(penalties * jnp.square(direction))

    def advance(search: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        tries, _, length, low, high, _ = search
        logits = state.logits + length * change
        shares = jnp.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        means = jnp.sum(shares * change, axis=1, keepdims=True)
        first = jnp.sum(weights * means) + linear + length * square
        second = jnp.sum(weights * shares * jnp.square(change - means)) + square
        # Along a convex function a flat place is the lowest one.
        is_flat = (first >= CURVATURE * slope) & (first <= OVERSHOOT * -slope)
        low, high = jnp.where(first < 0, length, low), jnp.where(first < 0, high, length)
        farthest = jnp.minimum(high, 4 * length)
        newton = length - first / second
        inside = (newton > low) & (newton < farthest)
        following = jnp.where(inside, newton, (low + farthest) / 2)
        return tries + 1, length, following, low, high, ~is_flat & (tries < SEARCHES)

    one = jnp.ones_like(slope)
    begun = (jnp.zeros((), jnp.int32), one, one, 0 * one, jnp.inf * one, jnp.bool_(True))
    return jax.lax.while_loop(lambda search: search[-1], advance, begun)[1]
