"""What the scores share: checks of what they are given, and the precision that they compute in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxtransfer.errors import DataError

Array: TypeAlias = jax.Array | np.ndarray
"""What the scores take."""

Score: TypeAlias = jax.Array | float
"""What they give: a float, or under `jit`, `vmap` and `grad` a traced scalar."""


def score(core: Callable[..., jax.Array], *arrays: Array, **others: Any) -> Score:
    """What a jitted function gives for checked arrays, in float64 wherever that can be chosen.

    Features of real networks have a large mean and small details. With 10,000 x 2,048 such features
    float32 loses every eigenvalue below a ten-millionth of the largest, while float64 costs hardly
    more (eigenvectors: 7.0 s instead of 6.2 s on two cores). Inside another transformation the
    caller's precision holds: float32, or float64 within `jax.enable_x64(True)`.
    """
    if any(isinstance(value, Tracer) for value in (*arrays, *others.values())):
        return core(*(_as_numbers(array, jnp.float32) for array in arrays), **others)
    with jax.enable_x64(True):
        return float(core(*(_as_numbers(array, jnp.float64) for array in arrays), **others))


def _as_numbers(array: Array, lowest: Any) -> jax.Array:
    if jnp.issubdtype(array.dtype, jnp.floating):
        double = array.dtype == np.float64
        return jnp.asarray(array, jnp.float64 if double else lowest)
    return jnp.asarray(array, jnp.int32)


def check_features(where: str, features: Array, labels: Array) -> Array:
    """Features as floats of shape (count, features), with a label each.

    Args:
        where: the score's name, for the message.
        features: numbers of any kind.
        labels: what the examples are, of any dtype.

    Raises:
        DataError: the features are no finite matrix, or the lengths differ, or there is none.
    """
    features = as_array(features)
    problems = []
    if features.ndim != 2 or 0 in features.shape:
        problems.append(f"features of shape (count, features), found shape {features.shape}")
    elif labels.ndim < 1 or len(labels) != len(features):
        problems.append(f"a label for each of {len(features)} examples, found {labels.shape}")
    problems += _not_finite("features", features)
    _report(where, problems)
    floating = jnp.issubdtype(features.dtype, jnp.floating)
    return features if floating else features.astype(np.float32)


def check_probabilities(where: str, probabilities: Array, labels: Array) -> Array:
    """A source model's probabilities of shape (count, source classes), with a label each.

    Raises:
        DataError: as `check_features`, or a row is no distribution.
    """
    probabilities = check_features(where, probabilities, labels)
    if not isinstance(probabilities, Tracer):
        sums = jnp.sum(jnp.asarray(probabilities, jnp.float32), axis=1)
        farthest = float(jnp.max(jnp.abs(sums - 1)))
        lowest = float(np.min(probabilities))
        if lowest < 0 or farthest > 1e-2:
            raise DataError(
                f"{where}: expected rows of probabilities, found a lowest value of {lowest:.3g} "
                f"and a row whose sum is {farthest:.3g} away from 1; apply softmax to logits first"
            )
    return probabilities


def check_labels(
    where: str, labels: Array, num_classes: int | None, argument: str = "labels"
) -> tuple[Array, int]:
    """Class numbers of shape (count,), and how many classes there are.

    Args:
        where: the score's name, for the message.
        labels: integers from 0.
        num_classes: how many classes there are; where `None`, one more than the highest label.
        argument: what the labels are called there.

    Raises:
        DataError: the labels are no vector of integers from 0 below `num_classes`, or they are
            traced and `num_classes` is `None`.
    """
    labels = as_array(labels)
    size = (
        "num_classes" if argument == "labels" else f"num_{argument.removesuffix('labels')}classes"
    )
    problems = []
    if labels.ndim != 1 or labels.size == 0 or not jnp.issubdtype(labels.dtype, jnp.integer):
        problems.append(
            f"{argument} as integers of shape (count,), found {labels.dtype} of {labels.shape}"
        )
    elif isinstance(labels, Tracer):
        if num_classes is None:
            problems.append(f"{size}, since {argument} are traced")
    else:
        lowest, highest = int(labels.min()), int(labels.max())
        num_classes = highest + 1 if num_classes is None else num_classes
        if lowest < 0 or highest >= num_classes:
            problems.append(f"{argument} from 0 to {num_classes - 1}, found {lowest} to {highest}")
    _report(where, problems)
    return labels, num_classes or 0


def check_targets(where: str, targets: Array) -> Array:
    """What a regression is to predict, as floats of shape (count, outputs).

    Raises:
        DataError: `targets` has another shape, or is not finite.
    """
    problems = _not_finite("labels", targets)
    if targets.ndim not in (1, 2) or 0 in targets.shape:
        problems.append(f"labels of shape (count,) or (count, outputs), found {targets.shape}")
    _report(where, problems)
    return targets.reshape(len(targets), -1)


def one_hot(labels: jax.Array, num_classes: int, dtype: Any) -> jax.Array:
    """Zeros and ones of shape (count, classes), in the dtype of what they are multiplied with."""
    return jax.nn.one_hot(labels, num_classes, dtype=dtype)


def as_array(values: Any) -> Array:
    """Arrays of JAX as they are, anything else as one of NumPy."""
    return values if isinstance(values, jax.Array) else np.asarray(values)


def _not_finite(argument: str, values: Array) -> list[str]:
    if isinstance(values, Tracer) or not jnp.issubdtype(values.dtype, jnp.floating):
        return []
    # Arrays of JAX stay on their device.
    finite = (np if isinstance(values, np.ndarray) else jnp).isfinite(values)
    bad = int(np.size(values)) - int(finite.sum())
    return [f"finite {argument}, found {bad} values that are not"] if bad else []


def _report(where: str, problems: list[str]) -> None:
    if problems:
        raise DataError(f"{where}: expected " + "; ".join(problems))
