"""Scores on labelled examples: exact weighted means, computed on the device batch by batch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxtransfer.compiling import jit
from jaxtransfer.data import Data, Workers, evaluation_batches, preprocess_images
from jaxtransfer.errors import DataError, TrainingError
from jaxtransfer.models import AS_THEY_COME, Model, Preprocess
from jaxtransfer.train.losses import Batch, Loss, cross_entropy
from jaxtransfer.train.scores import KINDS, Target, rough_mean, target_of
from jaxtransfer.types import PyTree

Sums: TypeAlias = dict[str, Any]

READERS = 2
"""Threads that read examples which are not in memory, where nobody has measured what is best."""

# So many batches may be on their way to the device: it never waits, and does not fill up.
IN_FLIGHT = 4


class Placement(Protocol):
    """What is asked of a `Sharding` here."""

    @property
    def batch(self) -> NamedSharding:
        """How batches lie on the devices."""
        ...

    def local_rows(self, batch_size: int) -> slice:
        """The rows of a batch that this process reads."""
        ...

    def put_batch(self, local_batch: Any) -> Any:
        """The whole batch, spread over the devices, from this process's rows."""
        ...


def evaluate(
    model: Model | Callable[..., tuple[Any, PyTree]],
    params: PyTree,
    stats: PyTree,
    data: Data,
    *,
    loss: Loss | None = None,
    targets: Target | Mapping[str, Target] | None = None,
    preprocess: Preprocess | None = None,
    batch_size: int = 256,
    workers: Workers | int = READERS,
    sharding: Placement | None = None,
) -> dict[str, float]:
    """The loss and the scores of a network in evaluation mode.

    Each score is the mean over all examples, by `weight` where batches have one. The last batch is
    padded with examples of weight 0. Sums are made on the device and looked at once, in the end;
    over batches they are added in double precision. What the scores are depends on `targets`:

    - classes: `accuracy`, of the highest output, against the highest entry of soft labels;
    - multi_label, several labels an example: `accuracy`, the share of labels whose output is on the
      right side of 0, and `f1`, which is 2 TP / (2 TP + FP + FN) with true positives, false
      positives and false negatives counted over all labels (micro-averaged; van Rijsbergen 1979,
      "Information Retrieval", chapter 7, with equal weight for precision and recall), 0 without
      any;
    - values: `mean_absolute_error` and `r_squared`, 1 - Σ(y - ŷ)² / Σ(y - mean)² averaged over
      the outputs; where an output's labels are all the same it is 1 for a perfect answer, else 0.

    For a network with several tasks, labels are a dict by task, and the scores of each task are
    called `TASK/accuracy` and so on.

    Args:
        model: a `Model`, or a forward pass like its `apply`.
        params: the parameters to evaluate, such as those of a run in progress.
        stats: running statistics.
        data: labelled examples, at least one.
        loss: from outputs and batch to a loss for each example; cross-entropy by default.
        targets: what labels are, for several tasks a dict; by default as `target_of` finds.
        preprocess: what the network expects; by default what the model says, and for a forward pass
            nothing.
        batch_size: examples that are computed at a time, from 1.
        workers: who reads examples that are not in memory; a number is one of threads.
        sharding: how batches are spread over devices and processes; `batch_size` must be divisible
            as it says.

    Returns:
        `loss` and the scores, as numbers.

    Raises:
        DataError: there is no example, the weights sum to 0, or the examples do not fit.
        TrainingError: `batch_size` is below 1, or outputs and labels are not for the same tasks.

    Example:
        `evaluate(model, model.params, model.stats, data)["accuracy"]`
    """
    if batch_size < 1:
        raise TrainingError(f"batch_size: expected at least 1, found {batch_size}")
    if not len(data):
        raise DataError("evaluate: expected at least one example, found none")
    apply = model.apply if isinstance(model, Model) else model
    if preprocess is None:
        preprocess = model.preprocess if isinstance(model, Model) else AS_THEY_COME
    data = data.ready(preprocess)
    labels: Any = data.labels
    kinds = _kinds(labels, targets)
    centres = jax.tree.map(rough_mean, labels)
    everywhere = None if sharding is None else NamedSharding(sharding.batch.mesh, PartitionSpec())
    step = _step(apply, preprocess, loss or cross_entropy(), tuple(kinds.items()), everywhere)
    sums: list[Sums] = []
    size = min(batch_size, len(data)) if sharding is None else batch_size
    rows = slice(None) if sharding is None else sharding.local_rows(size)
    with evaluation_batches(data, size, workers=workers, rows=rows) as batches:
        for batch in batches:
            placed = batch if sharding is None else sharding.put_batch(batch)
            sums.append(step(params, stats, placed, centres))
            if len(sums) > IN_FLIGHT:
                jax.block_until_ready(sums[-1 - IN_FLIGHT])
    return _scores(_added(jax.device_get(sums)), kinds)


@functools.lru_cache(maxsize=32)
def forward_pass(
    apply: Callable[..., tuple[Any, PyTree]],
    preprocess: Preprocess,
    stop: str | None = None,
    pool: bool = False,
) -> Callable[..., Any]:
    """A jitted `forward(params, stats, images) -> outputs` in evaluation mode.

    Images are preprocessed first; one function for the same arguments, so that what is compiled is
    shared.

    Args:
        apply: a network's forward pass.
        preprocess: what the network expects.
        stop: the stage whose entering features are the outputs; by default the network runs to its
            end.
        pool: whether outputs are averaged over all axes between the first and the last.
    """
    # Left away where it is not asked for: a function of a user's own may not know it.
    cut = {} if stop is None else {"stop": stop}

    @jit
    def forward(params: PyTree, stats: PyTree, images: jax.Array) -> Any:
        prepared = preprocess_images(images, preprocess)
        outputs = apply(params, stats, prepared, train=False, **cut)[0]
        return outputs.mean(axis=tuple(range(1, outputs.ndim - 1))) if pool else outputs

    return forward


def run_batches(
    forward: Callable[..., Any],
    params: PyTree,
    stats: PyTree,
    data: Data,
    *,
    batch_size: int,
    workers: Workers | int = READERS,
) -> Any:
    """What a forward pass gives for all examples, in their order, as NumPy arrays.

    The last batch is padded, so that one program serves all of them, and the next batches are on
    their way while the device computes one.

    Args:
        forward: as `forward_pass` gives it.
        params: its parameters.
        stats: its running statistics.
        data: at least one example, in the form that the preprocessing takes (`Data.ready`).
        batch_size: examples that are computed at a time, from 1.
        workers: who reads examples that are not in memory; a number is one of threads.

    Returns:
        A tree of arrays whose first axis has the length of `data`.
    """
    count = len(data)
    outputs: list[Any] = []
    with evaluation_batches(data, min(batch_size, count), workers=workers) as batches:
        for batch in batches:
            outputs.append(forward(params, stats, batch["image"]))
            if len(outputs) > IN_FLIGHT:
                # Brought to the host as they are done, so that the device does not fill up.
                outputs[-1 - IN_FLIGHT] = jax.device_get(outputs[-1 - IN_FLIGHT])
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *jax.device_get(outputs))


# Evaluations of one run, and of runs that differ in their parameters alone, share one program.
@functools.lru_cache(maxsize=32)
def _step(
    apply: Callable[..., tuple[Any, PyTree]],
    preprocess: Preprocess,
    loss: Loss,
    targets: tuple[tuple[str, Target], ...],
    everywhere: NamedSharding | None,
) -> Callable[..., Sums]:
    """A jitted function from parameters, statistics, a batch and centres to weighted sums."""
    forward = forward_pass(apply, preprocess)
    # A loss with class weights is a mean over these, not over the examples.
    counts = getattr(loss, "example_weights", lambda batch: jnp.ones_like(batch["weight"]))

    def step(params: PyTree, stats: PyTree, batch: Batch, centres: Any) -> Sums:
        outputs = jax.tree.map(_as_float32, forward(params, stats, batch["image"]))
        weight = batch["weight"]
        tasks = _tasks(outputs, batch["label"], centres)
        if tasks.keys() != dict(targets).keys():
            raise TrainingError(
                "evaluate: expected outputs for the tasks of the labels, "
                f"{sorted(dict(targets))}, found {sorted(tasks)}"
            )
        return {
            "weight": jnp.sum(weight),
            "loss": _weighted_sum(loss(outputs, batch), weight),
            "loss weight": jnp.sum(weight)
            if counts is None
            else _weighted_sum(counts(batch), weight),
            "tasks": {
                task: {
                    name: _weighted_sum(rows, weight)
                    for name, rows in KINDS[target].rows(*tasks[task]).items()
                }
                for task, target in targets
            },
        }

    return jit(step, out_shardings=everywhere)


def _weighted_sum(rows: jax.Array, weight: jax.Array) -> jax.Array:
    """The sum over the first axis; what an example of weight 0 holds does not count, NaN too."""
    weights = weight.reshape(-1, *[1] * (rows.ndim - 1))
    return jnp.sum(jnp.where(weights > 0, rows.astype(jnp.float32), 0) * weights, axis=0)


def _scores(sums: Sums, targets: Mapping[str, Target]) -> dict[str, float]:
    weight = float(sums["weight"])
    if not weight > 0:
        raise DataError(f"evaluate: expected weights with a sum above 0, found {weight:g}")
    scores = {"loss": float(sums["loss"] / sums["loss weight"])}
    for task, target in targets.items():
        means = {name: value / weight for name, value in sums["tasks"][task].items()}
        found = KINDS[target].scores(means)
        scores |= {f"{task}/{name}" if task else name: value for name, value in found.items()}
    return scores


def _added(parts: Sequence[Sums]) -> Sums:
    """The sums of all batches, in double precision."""
    return jax.tree.map(lambda *values: np.sum(np.asarray(values, np.float64), axis=0), *parts)


def _kinds(labels: Any, targets: Target | Mapping[str, Target] | None) -> dict[str, Target]:
    """By task, what its labels are; labels of one task are those of the task ""."""
    by_task = labels if isinstance(labels, Mapping) else {"": labels}
    known = targets if isinstance(targets, Mapping) else dict.fromkeys(by_task, targets)
    kinds: dict[str, Any] = {
        task: known.get(task) or target_of(np.asarray(by_task[task])) for task in sorted(by_task)
    }
    unknown = [kind for kind in kinds.values() if kind not in KINDS]
    if known.keys() - kinds.keys() or unknown:
        raise TrainingError(
            f"evaluate: expected targets among {', '.join(KINDS)}, for the tasks {sorted(by_task)} "
            f"of the labels, found {targets}"
        )
    return kinds


def _as_float32(outputs: jax.Array) -> jax.Array:
    return outputs.astype(jnp.float32)


def _tasks(outputs: Any, labels: Any, centres: Any) -> dict[str, tuple[Any, Any, Any]]:
    """By task, its outputs, labels and centre; a network with one task has the task ""."""
    if not isinstance(labels, Mapping):
        return {"": (outputs, labels, centres)}
    found = outputs if isinstance(outputs, Mapping) else {}
    return {task: (found[task], labels[task], centres[task]) for task in labels if task in found}
