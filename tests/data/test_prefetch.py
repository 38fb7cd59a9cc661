from __future__ import annotations

import gc
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest

from jaxtransfer.data import ArrayData, Loader, prefetch_to_device
from jaxtransfer.errors import DataError


def same(batch: Any) -> Any:
    return batch


def running() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch_to_device"]


def wait_until_none_runs() -> None:
    for thread in running():
        thread.join(5)
    assert running() == []


class Source(Iterator[int]):
    """Counts up, and says how far it was read and which thread closed it."""

    def __init__(self, end: int = 1000):
        self.next, self.end, self.closed_by = 0, end, ""

    def __next__(self) -> int:
        if self.next == self.end:
            raise StopIteration
        self.next += 1
        return self.next - 1

    def close(self) -> None:
        self.closed_by = threading.current_thread().name


def test_batches_come_in_order_and_on_the_devices() -> None:
    data = ArrayData(np.arange(10)[:, None], np.arange(10, dtype=np.int32))
    expected = [batch["label"].tolist() for batch in Loader(data, 4, 1).batches(0, 5)]
    with prefetch_to_device(Loader(data, 4, 1).batches(0, 5)) as batches:
        found = list(batches)
    assert [batch["label"].tolist() for batch in found] == expected
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(found))
    with pytest.raises(StopIteration):
        next(batches)


def test_no_more_batches_are_read_ahead_than_asked_for() -> None:
    source, placed = Source(), threading.Semaphore(0)

    def place(batch: int) -> int:
        placed.release()
        return batch

    with prefetch_to_device(source, place, ahead=2) as batches:
        for taken in range(4):
            # Two wait and one more is in the hand of the thread; it goes on when one is taken.
            assert all(placed.acquire(timeout=5) for _ in range(3 if taken == 0 else 1))
            assert not placed.acquire(timeout=0.02)
            assert source.next == 3 + taken
            assert next(batches) == taken


def test_closing_ends_the_thread_and_closes_the_source() -> None:
    source = Source()
    batches = prefetch_to_device(source, same)
    assert next(batches) == 0
    batches.close()
    batches.close()  # twice is no harm
    assert running() == [] and source.closed_by == "prefetch_to_device"
    with pytest.raises(StopIteration):
        next(batches)


def test_the_end_of_the_source_ends_the_thread() -> None:
    source = Source(3)
    assert list(prefetch_to_device(source, same)) == [0, 1, 2]
    wait_until_none_runs()
    assert source.closed_by == "prefetch_to_device"


def test_batches_that_nobody_holds_any_more_end_the_thread() -> None:
    batches = prefetch_to_device(Source(), same)
    next(batches)
    del batches
    gc.collect()
    wait_until_none_runs()


def test_an_error_in_the_thread_is_raised_in_its_place_with_its_traceback() -> None:
    def numbers() -> Iterator[int]:
        yield 1
        raise DataError("image.png: damaged")

    batches = prefetch_to_device(numbers(), same)
    assert next(batches) == 1
    with pytest.raises(DataError, match=r"image\.png: damaged") as error:
        next(batches)
    assert "in numbers" in "".join(traceback.format_tb(error.value.__traceback__))
    with pytest.raises(StopIteration):
        next(batches)

    def place(batch: int) -> int:
        raise MemoryError("device full")

    with prefetch_to_device(Source(), place) as batches, pytest.raises(MemoryError, match="full"):
        next(batches)
    assert running() == []


def test_the_time_spent_waiting_is_measured() -> None:
    gate = threading.Event()

    def late() -> Iterator[int]:
        gate.wait(5)
        yield 1

    with prefetch_to_device(late(), same) as batches:
        threading.Timer(0.05, gate.set).start()
        assert next(batches) == 1
        assert 0.03 < batches.waiting_seconds < 5
    with prefetch_to_device(Source(), same, ahead=1) as batches:
        while not batches._queue.ready:
            time.sleep(0.001)
        next(batches)
        assert batches.waiting_seconds < 0.03


def test_at_least_one_batch_must_be_ahead() -> None:
    with pytest.raises(DataError, match="expected ahead of at least 1, found 0"):
        prefetch_to_device([], same, ahead=0)
