"""What answers are scored by, for each kind of label: means of numbers for each example."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

Target: TypeAlias = Literal["classes", "multi_label", "values"]
"""One class an example, any number of labels an example, or numbers."""

Means: TypeAlias = Mapping[str, np.ndarray]


def target_of(labels: np.ndarray) -> Target:
    """What labels stand for, where nobody says.

    Args:
        labels: integers of shape (count,) are classes, floats of shape (count,) are values. Of
            shape (count, outputs), integers, booleans and floats that are all 0 or 1 are several
            labels an example; other floats are soft labels of classes if each row has shares that
            sum to 1, else values.

    >>> target_of(np.array([2, 0, 1])), target_of(np.array([[0.0, 1.0], [1.0, 1.0]]))
    ('classes', 'multi_label')
    >>> target_of(np.array([[0.9, 0.1], [0.5, 0.5]])), target_of(np.array([0.5, 17.0]))
    ('classes', 'values')
    """
    is_float = jnp.issubdtype(labels.dtype, jnp.floating)
    if labels.ndim == 1:
        return "values" if is_float else "classes"
    if not is_float or np.isin(labels, (0, 1)).all():
        return "multi_label"
    values = labels.astype(np.float64)
    return (
        "classes" if values.min() >= 0 and np.allclose(values.sum(-1), 1, atol=1e-3) else "values"
    )


def rough_mean(labels: Any) -> np.ndarray:
    """The mean of labels over the first axis, near which differences are exact enough."""
    return np.asarray(np.mean(labels, axis=0, dtype=np.float64), np.float32)


def _class_rows(outputs: jax.Array, label: jax.Array, centre: jax.Array) -> dict[str, jax.Array]:
    wanted = label if label.ndim == 1 else jnp.argmax(label, axis=-1)
    return {"right": jnp.argmax(outputs, axis=-1) == wanted}


def _label_rows(outputs: jax.Array, label: jax.Array, centre: jax.Array) -> dict[str, jax.Array]:
    found, wanted = outputs > 0, label.astype(jnp.float32) > 0.5
    return {
        "right": jnp.mean((found == wanted).astype(jnp.float32), axis=-1),
        "true positives": jnp.sum(found & wanted, axis=-1),
        "mistakes": jnp.sum(found != wanted, axis=-1),
    }


def _value_rows(outputs: jax.Array, label: jax.Array, centre: jax.Array) -> dict[str, jax.Array]:
    """What is needed for the error and R², with labels relative to their rough mean.

    The sum of squares about the mean is the difference of two sums, which cancel less the nearer
    to 0 the labels lie.
    """
    label = label.astype(jnp.float32)
    errors = (outputs.astype(jnp.float32).reshape(label.shape) - label).reshape(len(label), -1)
    centred = (label - centre).reshape(len(label), -1)
    return {
        "error": jnp.mean(jnp.abs(errors), axis=-1),
        "squared error": jnp.square(errors),
        "label": centred,
        "squared label": jnp.square(centred),
    }


def _class_scores(means: Means) -> dict[str, float]:
    return {"accuracy": float(means["right"])}


def _label_scores(means: Means) -> dict[str, float]:
    twice = 2 * float(means["true positives"])
    f1 = twice / (twice + float(means["mistakes"])) if twice else 0.0
    return {"accuracy": float(means["right"]), "f1": f1}


def _value_scores(means: Means) -> dict[str, float]:
    error = means["squared error"]
    spread = means["squared label"] - means["label"] ** 2
    constant = np.where(error == 0, 1.0, 0.0)
    r_squared = np.where(spread > 0, 1 - error / np.where(spread > 0, spread, 1), constant)
    return {
        "mean_absolute_error": float(means["error"]),
        "r_squared": float(np.mean(r_squared)),
    }


class Kind(NamedTuple):
    """How a kind of target is scored: numbers for each example, and scores from their means."""

    rows: Callable[[jax.Array, jax.Array, jax.Array], dict[str, jax.Array]]
    scores: Callable[[Means], dict[str, float]]


KINDS: dict[Target, Kind] = {
    "classes": Kind(_class_rows, _class_scores),
    "multi_label": Kind(_label_rows, _label_scores),
    "values": Kind(_value_rows, _value_scores),
}
