"""Losses, one value an example.

A loss is a function from outputs and batch to shape (batch,). The step multiplies by
`batch["weight"]`, sums up, and divides once by the sum of the weights. A loss that shall be divided
by something else, as that with class weights is, has an attribute `example_weights`: a function
from the batch to what each example counts in the divisor.

Outputs are float32 when they come here, and so are the losses.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from jaxtransfer.errors import TrainingError

Batch: TypeAlias = Mapping[str, Any]
Loss: TypeAlias = Callable[[Any, Batch], jax.Array]
"""From a network's outputs and the batch that they belong to, a loss for each example."""

# One loss for one argument, so that compiled steps can be shared.
_cached = functools.lru_cache(maxsize=None)


def cross_entropy(
    label_smoothing: float = 0.0, class_weights: Sequence[float] | None = None
) -> Loss:
    """Softmax cross-entropy against integer labels, or against a distribution over the classes.

    With `label_smoothing` s over K classes the target t becomes (1 - s) t + s / K (Szegedy et al.
    2016, "Rethinking the Inception Architecture for Computer Vision", arXiv 1512.00567, section 7).
    With `class_weights` w the loss is the sum over the classes of -w t log p, and with integer
    labels the mean is over the sum of the labels' weights, as in
    https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html

    Args:
        label_smoothing: share s of the target that is spread over all classes, from 0, below 1.
        class_weights: a weight of at least 0 for each class, such as the inverse of its frequency.

    Returns:
        A loss from logits of shape (batch, classes) and `batch["label"]`, integers of shape
        (batch,) or floats of shape (batch, classes), to shape (batch,), in nats; NaN for an integer
        that is none of the classes.

    Raises:
        TrainingError: `label_smoothing` or a weight is out of range.

    >>> loss = cross_entropy()
    >>> print(loss(jax.numpy.zeros((1, 4)), {"label": jax.numpy.array([2])}).round(4))
    [1.3863]
    """
    if not 0 <= label_smoothing < 1:
        raise TrainingError(
            f"cross_entropy: expected a label_smoothing from 0, below 1, found {label_smoothing}"
        )
    return _cross_entropy(float(label_smoothing), _weights("class_weights", class_weights))


@_cached
def _cross_entropy(label_smoothing: float, class_weights: tuple[float, ...] | None) -> Loss:
    loss = _softmax_loss(label_smoothing, class_weights)
    return _named(loss, "cross_entropy", label_smoothing, class_weights)


def smoothed_cross_entropy(label_smoothing: jax.Array) -> Loss:
    """`cross_entropy` whose label smoothing is an array of shape (), such as a traced one.

    Each call gives a loss of its own, and nothing is checked.
    """
    return _softmax_loss(label_smoothing, None)


def _distribution(labels: jax.Array, count: int, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Targets of shape (batch, classes), and whether each label is one."""
    if jnp.issubdtype(labels.dtype, jnp.floating):
        return labels.astype(dtype), jnp.ones(labels.shape[:-1], bool)
    # A label that is none of the classes has no 1 among its targets: its loss would be a silent 0.
    return jax.nn.one_hot(labels, count, dtype=dtype), (labels >= 0) & (labels < count)


def _weights_of_labels(class_weights: tuple[float, ...], batch: Batch) -> jax.Array:
    """What each example counts: the weight of its class, and 1 where it belongs to several."""
    labels = batch["label"]
    if jnp.issubdtype(labels.dtype, jnp.floating):
        return jnp.ones(labels.shape[0], jnp.float32)
    return jnp.asarray(class_weights, jnp.float32)[labels]


def focal(gamma: float = 2.0, class_weights: Sequence[float] | None = None) -> Loss:
    """The cross-entropy with less weight on what the network is sure of: -(1 - p)^gamma log p.

    p is the softmax probability of the label. With `gamma` 0 it is `cross_entropy`, and class
    weights are the same as there. A distribution over the classes gets the mean of the loss by it.

    Source: Lin et al. 2017, "Focal Loss for Dense Object Detection", arXiv 1708.02002, equations 4
    and 5, with softmax instead of the sigmoid; `binary_cross_entropy(focal_gamma=…)` has the
    latter.

    Args:
        gamma: how much less, from 0; the paper's best is 2.
        class_weights: a weight of at least 0 for each class, the paper's alpha.

    Returns:
        A loss from logits of shape (batch, classes) and `batch["label"]`, as for `cross_entropy`.

    Raises:
        TrainingError: `gamma` or a weight is out of range.

    >>> loss = focal(gamma=2.0)
    >>> print(loss(jax.numpy.zeros((1, 2)), {"label": jax.numpy.array([1])}).round(4))
    [0.1733]
    """
    _check_range("focal", "gamma", gamma, 0)
    return _focal(float(gamma), _weights("class_weights", class_weights))


@_cached
def _focal(gamma: float, class_weights: tuple[float, ...] | None) -> Loss:
    def factor(logs: jax.Array) -> jax.Array:
        return _power(-jnp.expm1(logs), gamma)

    loss = _softmax_loss(0.0, class_weights, factor if gamma else None)
    return _named(loss, "focal", gamma, class_weights)


def _softmax_loss(
    label_smoothing: float | jax.Array,
    class_weights: tuple[float, ...] | None,
    factor: Callable[[jax.Array], jax.Array] | None = None,
) -> Loss:
    """The cross-entropy with a factor on each class's share that depends on its log-probability."""

    def loss(logits: jax.Array, batch: Batch) -> jax.Array:
        labels, count = batch["label"], logits.shape[-1]
        if jnp.issubdtype(labels.dtype, jnp.floating):
            _check_same_shape("cross_entropy, focal", logits, labels)
        targets, is_class = _distribution(labels, count, logits.dtype)
        targets = optax.smooth_labels(targets, label_smoothing)
        if class_weights is not None:
            targets = targets * _row(class_weights, count, logits.dtype)
        logs = jax.nn.log_softmax(logits)
        shares = targets * logs if factor is None else targets * factor(logs) * logs
        # A class that is ruled out, by a logit of minus infinity, is no target.
        losses = -jnp.sum(shares, axis=-1, where=targets != 0)
        return jnp.where(is_class, losses, jnp.nan)

    if class_weights is not None:
        loss.example_weights = functools.partial(_weights_of_labels, class_weights)
    return loss


def _power(base: jax.Array, exponent: float) -> jax.Array:
    """A power above 0 of what is not below 0, with finite derivatives at 0."""
    safe = jnp.where(base > 0, base, 1)
    return jnp.where(base > 0, safe**exponent, 0)


def binary_cross_entropy(
    positive_weights: Sequence[float] | None = None,
    *,
    focal_gamma: float = 0.0,
    focal_alpha: float | None = None,
) -> Loss:
    """The mean over the outputs of the sigmoid cross-entropy: several labels may be true at once.

    An output x with target t costs -w t log s(x) - (1 - t) log(1 - s(x)), s the sigmoid and w its
    positive weight, as in
    https://docs.pytorch.org/docs/stable/generated/torch.nn.BCEWithLogitsLoss.html

    With `focal_gamma` g that is multiplied by (1 - p)^g, p = s(x) t + (1 - s(x)) (1 - t), and with
    `focal_alpha` a by a t + (1 - a) (1 - t) (Lin et al. 2017, arXiv 1708.02002, equation 5).

    Args:
        positive_weights: a weight of at least 0 for the positive examples of each output, such as
            the number of negative over that of positive ones.
        focal_gamma: from 0, which leaves the loss as it is.
        focal_alpha: from 0 to 1, the share of the positive examples; `None` for no such factor.

    Returns:
        A loss from logits of shape (batch, outputs) and `batch["label"]`, truth values, 0 and 1 or
        probabilities of the same shape, to shape (batch,), in nats.

    Raises:
        TrainingError: an argument is out of range.

    >>> loss = binary_cross_entropy()
    >>> print(loss(jax.numpy.zeros((1, 2)), {"label": jax.numpy.array([[1, 0]])}).round(4))
    [0.6931]
    """
    _check_range("binary_cross_entropy", "focal_gamma", focal_gamma, 0)
    _check_range("binary_cross_entropy", "focal_alpha", focal_alpha, 0, 1)
    weights = _weights("positive_weights", positive_weights)
    return _binary_cross_entropy(weights, float(focal_gamma), focal_alpha)


@_cached
def _binary_cross_entropy(
    positive_weights: tuple[float, ...] | None, gamma: float, alpha: float | None
) -> Loss:
    def loss(logits: jax.Array, batch: Batch) -> jax.Array:
        _check_same_shape("binary_cross_entropy", logits, batch["label"])
        targets, count = batch["label"].astype(logits.dtype), logits.shape[-1]
        log_true, log_false = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
        positive = targets * log_true
        if positive_weights is not None:
            positive = positive * _row(positive_weights, count, logits.dtype)
        losses = -positive - (1 - targets) * log_false
        if gamma:
            share = jnp.exp(log_true) * (1 - targets) + jnp.exp(log_false) * targets
            losses = losses * _power(share, gamma)
        if alpha is not None:
            losses = losses * (alpha * targets + (1 - alpha) * (1 - targets))
        return jnp.mean(losses, axis=-1)

    return _named(loss, "binary_cross_entropy", positive_weights, gamma or None, alpha)


@_cached
def squared_error() -> Loss:
    """The mean over the outputs of the squared difference to `batch["label"]`.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.MSELoss.html

    Returns:
        A loss from outputs and `batch["label"]` of one shape (batch, …) to shape (batch,). A label
        of shape (batch,) goes with a single output, too.

    >>> loss = squared_error()
    >>> print(loss(jax.numpy.array([[1.0, 3.0]]), {"label": jax.numpy.array([[0.0, 0.0]])}))
    [5.]
    """
    return _named(_of_differences("squared_error", jnp.square), "squared_error")


@_cached
def absolute_error() -> Loss:
    """The mean over the outputs of the absolute difference to `batch["label"]`.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.L1Loss.html

    Returns:
        A loss with shapes as for `squared_error`.

    >>> loss = absolute_error()
    >>> print(loss(jax.numpy.array([[1.0, 3.0]]), {"label": jax.numpy.array([[0.0, 0.0]])}))
    [2.]
    """
    return _named(_of_differences("absolute_error", jnp.abs), "absolute_error")


def huber(delta: float = 1.0) -> Loss:
    """Squared for differences d up to `delta`, and straight on beyond it, where outliers lie.

    The mean over the outputs of d² / 2, or of delta (|d| - delta / 2) beyond (Huber 1964, "Robust
    Estimation of a Location Parameter"), as in
    https://docs.pytorch.org/docs/stable/generated/torch.nn.HuberLoss.html

    Args:
        delta: above 0.

    Returns:
        A loss with shapes as for `squared_error`.

    Raises:
        TrainingError: `delta` is out of range.

    >>> loss = huber(1.0)
    >>> print(loss(jax.numpy.array([[1.0, 3.0]]), {"label": jax.numpy.array([[0.0, 0.0]])}))
    [1.5]
    """
    _check_range("huber", "delta", delta, 0, is_open=True)
    return _huber(float(delta))


@_cached
def _huber(delta: float) -> Loss:
    def one(difference: jax.Array) -> jax.Array:
        near = jnp.minimum(jnp.abs(difference), delta)
        return near * (jnp.abs(difference) - near / 2)

    return _named(_of_differences("huber", one), "huber", delta)


def _of_differences(name: str, one: Callable[[jax.Array], jax.Array]) -> Loss:
    def loss(outputs: jax.Array, batch: Batch) -> jax.Array:
        labels = batch["label"].astype(outputs.dtype)
        if outputs.shape == (*labels.shape, 1):
            outputs = outputs[..., 0]
        _check_same_shape(name, outputs, labels)
        values = one(outputs - labels)
        return jnp.mean(values.reshape(values.shape[0], -1), axis=-1)

    return loss


def multi_task(losses: Mapping[str, Loss], weights: Mapping[str, float] | None = None) -> Loss:
    """The weighted sum of the losses of several tasks, each on its own outputs and labels.

    Source: Caruana 1997, "Multitask Learning"; fixed weights as in equation 1 of Kendall et al.
    2018, arXiv 1705.07115.

    A task's class weights scale its losses; the mean is over the examples, not over the weights.

    Args:
        losses: by the name of a task.
        weights: a factor on each task's loss, of at least 0; 1 for those that are not named.

    Returns:
        A loss from outputs and `batch["label"]`, both dicts by the name of a task, to (batch,).

    Raises:
        TrainingError: there are no tasks, a weight is for none of them or out of range; at the
            first step, outputs or labels lack a task.

    >>> loss = multi_task({"age": absolute_error(), "kind": cross_entropy()}, weights={"age": 0.1})
    >>> outputs = {"age": jax.numpy.array([[30.0]]), "kind": jax.numpy.zeros((1, 2))}
    >>> labels = {"age": jax.numpy.array([40.0]), "kind": jax.numpy.array([1])}
    >>> print(loss(outputs, {"label": labels}).round(4))
    [1.6931]
    """
    factors = {task: 1.0 for task in losses} | dict(weights or {})
    unknown = [task for task in factors if task not in losses]
    if not losses or unknown:
        raise TrainingError(
            f"multi_task: expected at least one task, and weights for tasks among {list(losses)}, "
            f"found weights for {unknown}"
        )
    for task, factor in factors.items():
        _check_range("multi_task", f"the weight of {task}", factor, 0)
    return _multi_task(tuple((task, loss, float(factors[task])) for task, loss in losses.items()))


@_cached
def _multi_task(tasks: tuple[tuple[str, Loss, float], ...]) -> Loss:
    def loss(outputs: Mapping[str, Any], batch: Batch) -> Any:
        labels = batch["label"]
        for what, found in (("outputs", outputs), ("labels", labels)):
            names = set(found) if isinstance(found, Mapping) else set()
            missing = [task for task, _, _ in tasks if task not in names]
            if missing:
                raise TrainingError(
                    f"multi_task: expected {what} as a dict with {missing}, found "
                    f"{sorted(names) or type(found).__name__}"
                )
        terms = [
            factor * one(outputs[task], {**batch, "label": labels[task]})
            for task, one, factor in tasks
        ]
        return jnp.sum(jnp.stack(terms), axis=0)

    described = ", ".join(f"{task}: {factor:g} {loss_name(one)}" for task, one, factor in tasks)
    loss.__qualname__ = f"multi_task({described})"
    return loss


def loss_name(loss: Loss) -> str:
    """By what a run that is resumed knows its loss again.

    >>> loss_name(cross_entropy(0.1))
    'cross_entropy(0.1)'
    """
    return getattr(loss, "__qualname__", type(loss).__qualname__)


def _named(loss: Any, name: str, *arguments: Any) -> Loss:
    """The loss under a name with its arguments; trailing ones that are `None` are left away."""
    while arguments and arguments[-1] is None:
        arguments = arguments[:-1]
    loss.__qualname__ = f"{name}({', '.join(map(_text, arguments))})"
    return loss


def _text(argument: Any) -> str:
    if isinstance(argument, tuple):
        return f"[{', '.join(map(_text, argument))}]"
    return repr(argument) if argument is None else f"{argument:g}"


def _weights(name: str, weights: Sequence[float] | None) -> tuple[float, ...] | None:
    if weights is None:
        return None
    values = tuple(float(weight) for weight in weights)
    wrong = [value for value in values if not (math.isfinite(value) and value >= 0)]
    if wrong or not any(values):
        raise TrainingError(
            f"{name}: expected numbers of at least 0, not all of them 0, found {wrong or values}"
        )
    return values


def _row(values: tuple[float, ...], count: int, dtype: Any) -> jax.Array:
    if len(values) != count:
        raise TrainingError(
            f"loss: expected a weight for each of {count} outputs, found {len(values)}"
        )
    return jnp.asarray(values, dtype)


def _check_range(
    loss: str,
    name: str,
    value: float | None,
    low: float,
    high: float = math.inf,
    *,
    is_open: bool = False,
) -> None:
    if value is None or (low < value <= high and math.isfinite(value)):
        return
    if value == low and not is_open:
        return
    text = f"above {low}" if is_open else f"from {low}"
    text += f" to {high}" if math.isfinite(high) else ""
    raise TrainingError(f"{loss}: expected {name} {text}, found {value}")


def _check_same_shape(name: str, outputs: jax.Array, labels: jax.Array) -> None:
    # Arrays that only broadcast to each other would give the loss of a table of pairs.
    if outputs.shape != labels.shape:
        raise TrainingError(
            f"{name}: expected labels of the shape of the outputs, {outputs.shape}, found "
            f"{labels.shape}"
        )
