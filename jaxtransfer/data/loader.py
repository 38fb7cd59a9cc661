"""Batches on the host, read ahead by threads or processes, from any step on."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from jaxtransfer.data.arrays import batch_indices
from jaxtransfer.data.augment import Augment, Compose, RandomResizedCrop
from jaxtransfer.data.source import Data
from jaxtransfer.data.stored import StoredData, check_forms
from jaxtransfer.data.targets import take_labels
from jaxtransfer.errors import DataError

Batch = dict[str, Any]
IndicesOf = Callable[[int], np.ndarray]
"""From a step to the positions of the examples of its batch, -1 for padding."""

READ_AHEAD = 2
"""How many batches the threads are ahead of the one that is asked for."""

MEASURE_SECONDS = 0.25
"""How long each number of workers is measured at a time."""

MEASURE_ROUNDS = 2
"""How often each is measured; the best counts, as other work on the machine only slows down."""

CLEARLY_BETTER = 1.1
"""More workers are taken where they read this many times as many images a second."""


@dataclass(frozen=True)
class Workers:
    """Who reads the examples of the next batches while one is computed on.

    Attributes:
        threads: number of threads in each process that reads; 0 reads when a batch is asked for.
        processes: number of processes; 0 reads in this one. They are started anew for each
            iterator and import the main module, which takes seconds and needs its guard
            `if __name__ == "__main__"`.

    Raises:
        DataError: a number is below 0.
    """

    threads: int
    processes: int = 0

    def __post_init__(self) -> None:
        if min(self.threads, self.processes) < 0:
            raise DataError(f"workers: expected numbers of at least 0, found {self}")


class Batches(Iterator[Batch]):
    """Batches of consecutive steps; `close` it, or use it in a `with` statement.

    Attributes:
        step: the step of the next batch.
    """

    def __init__(self, batches: Iterator[Batch], first: int, origin: Mapping[str, int]):
        self._batches = batches
        self._origin = dict(origin)
        self.step = first

    def __next__(self) -> Batch:
        batch = next(self._batches)
        self.step += 1
        return batch

    def state(self) -> dict[str, int]:
        """Where this iterator stands, as JSON can hold it; `Loader.resume` goes on from there."""
        return {"step": self.step, **self._origin}

    def close(self) -> None:
        """End the threads and processes that read ahead."""
        if isinstance(self._batches, _Reader):
            self._batches.close()

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Loader:
    """Shuffled batches of labelled examples, a function of the seed and the step alone.

    The order is that of `batch_indices`, whatever the number of workers, and of processes that
    each read their `rows` of the batch.

    Attributes:
        data: examples, made ready for the preprocessing.
        batch_size: examples of a batch in all processes together.
        seed: the same seed gives the same order.
        workers: who reads what is not in memory; a number is one of threads; `None` measures it on
            the first batches when they are first asked for.
        rows: the rows of each batch that this process reads.
        crop: of each image a part is read, drawn anew at each step, in place of the canvas that the
            preprocessing asks for; for `StoredData` alone. `crop_when_read` takes it from an
            augmentation.

    Raises:
        DataError: there is no example, the batch size is not at least 1, or there is a crop and the
            images were decoded before.
    """

    data: Data
    batch_size: int
    seed: int = 0
    workers: Workers | int | None = None
    rows: slice = field(default_factory=lambda: slice(None))
    crop: RandomResizedCrop | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1 or not len(self.data):
            raise DataError(
                f"loader: expected a batch_size and a number of examples of at least 1, found "
                f"{self.batch_size} and {len(self.data)}"
            )
        if self.crop is not None and not isinstance(self.data, StoredData):
            raise DataError(
                f"loader: expected images that are decoded when they are read, for {self.crop}, "
                f"found {type(self.data).__name__}; leave the crop to the augmentation"
            )

    @functools.cached_property
    def choice(self) -> tuple[Workers, str]:
        """The workers, and the sentence that says why it is these."""
        if self.data.in_memory:
            return Workers(0), "examples in memory are indexed, which needs no workers"
        if self.workers is not None:
            return _as_workers(self.workers), "the workers asked for"
        indices = np.concatenate([self._indices_of(step) for step in range(2)])
        return choose_workers(self.data, indices)

    def batches(self, first: int = 0, last: int | None = None) -> Batches:
        """The batches of the steps from `first` up to `last`, which is left out.

        Args:
            first: number of the first step, from 0.
            last: number of the step before which to stop; `None` for no end.
        """
        steps = range(first, (1 << 62) // self.batch_size if last is None else last)
        part = None
        if self.crop is not None and isinstance(self.data, StoredData):
            part = _Part(self.data, self.crop, self.seed)
        batches = read_batches(self.data, self._indices_of, steps, self.choice[0], part=part)
        return Batches(batches, first, self._origin)

    def resume(self, state: Mapping[str, int], last: int | None = None) -> Batches:
        """The batches from where an iterator stood when `state` was taken of it.

        Raises:
            DataError: the state is one of other batches.
        """
        if {**state, "step": 0} != {"step": 0, **self._origin} or "step" not in state:
            raise DataError(
                f"loader: expected a state of batches with {self._origin}, found {dict(state)}"
            )
        return self.batches(state["step"], last)

    @property
    def _origin(self) -> dict[str, int]:
        return {"seed": self.seed, "batch_size": self.batch_size, "examples": len(self.data)}

    @functools.cached_property
    def _indices_of(self) -> IndicesOf:
        return _Rows(len(self.data), self.batch_size, self.seed, self.rows)


@dataclass(frozen=True, eq=False)
class _Rows:
    """This process's rows of each batch; a class, so that it can be sent to other processes."""

    count: int
    batch_size: int
    seed: int
    rows: slice

    def __call__(self, step: int) -> np.ndarray:
        return batch_indices(self.count, self.batch_size, step, self.seed)[self.rows]


@dataclass(frozen=True, eq=False)
class _InOrder:
    """All examples once, in order; -1 fills the last batch."""

    count: int
    batch_size: int
    rows: slice

    def __call__(self, step: int) -> np.ndarray:
        indices = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        return np.where(indices < self.count, indices, -1)[self.rows]


def crop_when_read(
    augment: Augment | None, data: Data
) -> tuple[RandomResizedCrop | None, Augment | None]:
    """What of an augmentation a `Loader` can do while it decodes, and what is left for the device.

    A part is then cut out of the whole image, at its own resolution, and no pixel is resized that
    is not asked for.

    Args:
        augment: what happens to a batch.
        data: the examples.

    Returns:
        The `RandomResizedCrop` that the augmentation begins with, and what comes after it; `None`
        and the augmentation where it begins otherwise, or the images were decoded before.

    >>> from jaxtransfer.data import ArrayData, augment
    >>> crop_when_read(augment.HorizontalFlip(), ArrayData(np.zeros((1, 2, 2, 1)), np.zeros(1)))
    (None, HorizontalFlip(probability=0.5))
    """
    steps = augment.steps if isinstance(augment, Compose) else (augment,)
    if steps and isinstance(steps[0], RandomResizedCrop) and isinstance(data, StoredData):
        return steps[0], Compose(steps[1:])
    return None, augment


def evaluation_batches(
    data: Data, batch_size: int, *, workers: Workers | int = 0, rows: slice = slice(None)
) -> Batches:
    """All examples once, in order, in batches of one size.

    Args:
        data: examples, made ready for the preprocessing.
        batch_size: examples of a batch in all processes together.
        workers: who reads what is not in memory; a number is one of threads.
        rows: the rows of each batch that this process reads.

    Returns:
        Batches with a `weight` of shape (batch,), float32: that of the examples, or 1, and 0 for
        what fills the last one.

    Raises:
        DataError: there is no example, or a batch has not at least one.

    >>> from jaxtransfer.data import ArrayData
    >>> data = ArrayData(np.zeros((3, 2, 2, 1)), np.arange(3))
    >>> [batch["weight"].tolist() for batch in evaluation_batches(data, 2)]
    [[1.0, 1.0], [1.0, 0.0]]
    """
    loader = Loader(data, batch_size, 0, workers, rows)
    count = -(-len(data) // batch_size)
    indices_of = _InOrder(len(data), batch_size, rows)
    batches = read_batches(data, indices_of, range(count), loader.choice[0], weigh=True)
    return Batches(batches, 0, {"batch_size": batch_size, "examples": len(data)})


def read_batches(
    data: Data,
    indices_of: IndicesOf,
    steps: range,
    workers: Workers,
    *,
    weigh: bool = False,
    part: _Part | None = None,
) -> Iterator[Batch]:
    """The batches of these steps, the examples of each chosen by `indices_of`.

    Args:
        data: where the examples are read.
        indices_of: the positions of a step's examples, as many at each step, -1 for padding.
        steps: the steps, without gaps.
        workers: who reads what is not in memory.
        weigh: whether batches say by `weight` what is padding.
        part: how an example is read of which a part is wanted; `None` for whole ones.
    """
    weighed = _weighed if weigh else _as_it_is
    if data.in_memory:
        return (weighed(data.read(np.maximum(i, 0)), i) for i in map(indices_of, steps))
    return _Reader(part or _Whole(data), indices_of, steps, workers, weighed)


def _weighed(batch: Batch, indices: np.ndarray) -> Batch:
    counts = (indices >= 0).astype(np.float32)
    return {**batch, "weight": counts * np.asarray(batch.get("weight", counts), np.float32)}


def _as_it_is(batch: Batch, indices: np.ndarray) -> Batch:
    return batch


@dataclass(frozen=True)
class _Whole:
    """How an example is read: as it is."""

    data: Data

    def __call__(self, step: int, index: int) -> Batch:
        batch = self.data.read(np.array([index]))
        return jax.tree.map(lambda array: array[0], batch)


@dataclass(frozen=True)
class _Part:
    """How an example is read: a part of its image, by seed, step and index alone."""

    data: StoredData
    crop: RandomResizedCrop
    seed: int

    def __call__(self, step: int, index: int) -> Batch:
        generator = np.random.default_rng((self.seed, step, index))
        image = self.data.part(index, self.crop, generator)
        return {"image": image, "label": take_labels(self.data.labels, np.array(index))}


@dataclass(frozen=True)
class _Example:
    """The example at a place of the stream of all rows of all steps; padding is example 0 again."""

    read: _Whole | _Part
    indices_of: IndicesOf
    steps: range
    rows: int

    def __call__(self, place: int) -> tuple[int, Any]:
        step, row = divmod(place, self.rows)
        step = self.steps[step]
        index = int(_remembered(self.indices_of, step)[row])
        return index, self.read(step, max(index, 0))


@functools.lru_cache(maxsize=64)
def _remembered(indices_of: IndicesOf, step: int) -> np.ndarray:
    return indices_of(step)


class _Reader(Iterator[Batch]):
    """Examples read by Grain's threads or processes, one by one, and put together to batches."""

    def __init__(
        self,
        read: _Whole | _Part,
        indices_of: IndicesOf,
        steps: range,
        workers: Workers,
        weighed: Callable[[Batch, np.ndarray], Batch],
    ):
        import grain

        self._rows = len(indices_of(steps.start)) if len(steps) else 1
        self._weighed, self._data = weighed, read.data
        ahead = max(READ_AHEAD * self._rows, workers.threads) if workers.threads else 0
        examples = grain.MapDataset.range(len(steps) * self._rows)
        examples = examples.map(_Example(read, indices_of, steps, self._rows))
        options = grain.ReadOptions(num_threads=workers.threads, prefetch_buffer_size=ahead)
        stream = examples.to_iter_dataset(options)
        if workers.processes:
            _parse_no_flags()
            per_process = -(-READ_AHEAD * self._rows // workers.processes)
            stream = stream.mp_prefetch(
                grain.MultiprocessingOptions(workers.processes, per_process)
            )
        self._examples: Any = iter(stream)

    def __next__(self) -> Batch:
        read = [next(self._examples) for _ in range(self._rows)]
        indices = np.array([index for index, _ in read])
        check_forms([example["image"] for _, example in read], lambda i: self._name(indices[i]))
        batch = jax.tree.map(lambda *rows: np.stack(rows), *(example for _, example in read))
        return self._weighed(batch, indices)

    def _name(self, index: int) -> str:
        data = self._data
        return data.name(max(index, 0)) if isinstance(data, StoredData) else f"example {index}"

    def close(self) -> None:
        self._examples.close()


def _parse_no_flags() -> None:
    """Grain's processes read flags of absl, which only a program of absl has parsed."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def _as_workers(workers: Workers | int) -> Workers:
    return workers if isinstance(workers, Workers) else Workers(workers)


def choose_workers(data: Data, indices: np.ndarray) -> tuple[Workers, str]:
    """The number of threads that reads these examples fastest, measured.

    Args:
        data: examples that are not in memory.
        indices: the examples to measure with, again and again.

    Returns:
        The workers, and a sentence with the figures.
    """
    threads = [0] + [2**i for i in range(1, 10) if 2**i <= 2 * _cores()]
    data.read(indices[:1])  # what is imported and opened with the first image
    rates = dict.fromkeys(threads, 0.0)
    for count in threads * MEASURE_ROUNDS:  # taking turns
        rates[count] = max(rates[count], _images_a_second(data, indices, count))
    chosen = 0
    for count, rate in rates.items():
        if rate > CLEARLY_BETTER * rates[chosen]:
            chosen = count
    figures = ", ".join(f"{rate:.0f} with {count}" for count, rate in rates.items())
    return Workers(chosen), f"{chosen} threads: images a second are {figures}"


def _cores() -> int:
    """The number of processor cores that this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)  # which macOS has not
    return len(allowed(0)) if allowed is not None else os.cpu_count() or 1


def _images_a_second(data: Data, indices: np.ndarray, threads: int) -> float:
    size = max(1, len(indices) // 2)
    steps = range(1 << 30)
    reader = _Reader(_Whole(data), _Cycle(indices, size), steps, Workers(threads), _as_it_is)
    began, count = time.perf_counter(), 0
    try:
        while count < size or time.perf_counter() - began < MEASURE_SECONDS:
            next(reader)
            count += size
        return count / (time.perf_counter() - began)
    finally:
        reader.close()


@dataclass(frozen=True, eq=False)
class _Cycle:
    """The same examples again and again."""

    indices: np.ndarray
    size: int

    def __call__(self, step: int) -> np.ndarray:
        return np.take(
            self.indices, np.arange(step * self.size, (step + 1) * self.size), mode="wrap"
        )
