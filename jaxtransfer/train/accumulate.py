"""A batch in micro-batches: the same sums in a fraction of the memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from jaxtransfer.errors import TrainingError
from jaxtransfer.surgery.network import working_dtype
from jaxtransfer.train.convolutions import canonical_convolutions
from jaxtransfer.types import PyTree

Carry = TypeVar("Carry", bound=PyTree)
Sums = TypeVar("Sums", bound=PyTree)


def micro_batches(batch: PyTree, count: int) -> PyTree:
    """A batch as `count` micro-batches: each leaf (batch, …) becomes (count, batch / count, …).

    Micro-batch j has the examples j, j + count, j + 2 count and so on. Where a batch is spread over
    devices, each of them thus has a part of every micro-batch, and none has to move.

    Raises:
        TrainingError: the batch cannot be divided by `count`.

    >>> micro_batches({"label": jnp.arange(6)}, 2)["label"].tolist()
    [[0, 2, 4], [1, 3, 5]]
    """
    check_divisible(batch, count, "accumulate", "micro-batches")
    return jax.tree.map(
        lambda leaf: jnp.swapaxes(jnp.reshape(leaf, (-1, count, *leaf.shape[1:])), 0, 1), batch
    )


def check_divisible(batch: PyTree, count: int, where: str, parts: str) -> None:
    """Raise unless the leaves of a batch can be cut into `count` equal parts.

    Raises:
        TrainingError: they cannot.
    """
    sizes = sorted({jnp.shape(leaf)[0] if jnp.ndim(leaf) else 1 for leaf in jax.tree.leaves(batch)})
    if any(size % count for size in sizes):
        raise TrainingError(
            f"{where}: expected a batch that can be divided into {count} {parts}, found "
            f"{', '.join(map(str, sizes))} examples; take a batch size that is a multiple of "
            f"{count}, filled up with examples of weight 0 if need be"
        )


def accumulate(
    function: Callable[[Carry, PyTree, jax.Array], tuple[Carry, Sums]],
    carry: Carry,
    batch: PyTree,
    count: int,
) -> tuple[Carry, Sums]:
    """Call a function on each micro-batch in turn, and sum up what it gives.

    Args:
        function: `(carry, micro_batch, position) -> (carry, summands)`; summands are arrays.
        carry: what goes from one micro-batch to the next, such as running statistics.
        batch: leaves (batch, …).
        count: number of micro-batches; 1 calls the function once, on the batch itself.

    Returns:
        The last carry, and the sums, at least in float32.

    Raises:
        TrainingError: the batch cannot be divided by `count`.
    """
    if count == 1:
        return function(carry, batch, jnp.int32(0))
    if jax.default_backend() == "cpu":
        function = canonical_convolutions(function)
    parts = micro_batches(batch, count)
    first = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), parts)
    _, summands = jax.eval_shape(function, carry, first, jnp.int32(0))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, working_dtype(leaf.dtype)), summands)

    def body(state: tuple[Carry, Sums], part: Any) -> tuple[tuple[Carry, Sums], None]:
        (carry, sums), (micro, position) = state, part
        carry, summands = function(carry, micro, position)
        sums = jax.tree.map(lambda total, more: total + more.astype(total.dtype), sums, summands)
        return (carry, sums), None

    positions = jnp.arange(count, dtype=jnp.int32)
    result, _ = jax.lax.scan(body, (carry, zeros), (parts, positions))
    return result
