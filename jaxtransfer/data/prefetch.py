"""Move batches to the devices while the step before them is computed."""

from __future__ import annotations

import collections
import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax

from jaxtransfer.errors import DataError

Place = Callable[[Any], Any]
"""From a batch on the host to one on the devices."""


class _Queue:
    """What the thread and its consumer share; it knows neither, so that both can be collected."""

    def __init__(self, ahead: int):
        self.ahead = ahead
        self.changed = threading.Condition()
        self.ready: collections.deque[Any] = collections.deque()
        self.is_closed = False
        self.is_over = False
        self.error: BaseException | None = None

    def put(self, batch: Any) -> bool:
        """Add a batch once there is room; `False` where nobody wants more."""
        with self.changed:
            self.changed.wait_for(lambda: self.is_closed or len(self.ready) < self.ahead)
            if not self.is_closed:
                self.ready.append(batch)
                self.changed.notify_all()
            return not self.is_closed

    def end(self, error: BaseException | None) -> None:
        with self.changed:
            self.is_over, self.error = True, error
            self.changed.notify_all()

    def close(self) -> None:
        with self.changed:
            self.is_closed = True
            self.ready.clear()
            self.changed.notify_all()


class Prefetched(Iterator[Any]):
    """Batches on the devices; `close` it, or use it in a `with` statement.

    Attributes:
        waiting_seconds: how long the consumer has waited for batches in all.
    """

    def __init__(self, batches: Iterable[Any], place: Place, ahead: int):
        if ahead < 1:
            raise DataError(f"prefetch_to_device: expected ahead of at least 1, found {ahead}")
        self.waiting_seconds = 0.0
        self._queue = _Queue(ahead)
        self._thread = threading.Thread(
            target=_fill, args=(batches, place, self._queue), name="prefetch_to_device", daemon=True
        )
        self._thread.start()

    def __next__(self) -> Any:
        queue, began = self._queue, time.perf_counter()
        with queue.changed:
            queue.changed.wait_for(lambda: queue.ready or queue.is_over or queue.is_closed)
            self.waiting_seconds += time.perf_counter() - began
            if queue.ready:
                batch = queue.ready.popleft()
                queue.changed.notify_all()
                return batch
            error, queue.error = queue.error, None
        if error is not None:
            raise error  # with the traceback of the thread
        raise StopIteration

    def close(self) -> None:
        """End the thread, close the batches it reads, and let go of what is on the devices."""
        self._queue.close()
        self._thread.join()

    def __enter__(self) -> Prefetched:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # where it was not made in full
            self._queue.close()


def _fill(batches: Iterable[Any], place: Place, queue: _Queue) -> None:
    error = None
    try:
        for batch in batches:
            if not queue.put(place(batch)):
                break
    except BaseException as raised:  # whatever it is, the consumer must hear of it
        error = raised
    finally:
        # Only the thread that runs a generator may close it.
        close = getattr(batches, "close", None)
        if close is not None:
            close()
        queue.end(error)


def prefetch_to_device(
    batches: Iterable[Any], place: Place = jax.device_put, ahead: int = 2
) -> Prefetched:
    """Batches on the devices, read and moved by a thread while the caller computes.

    Args:
        batches: batches on the host, such as `Loader.batches` gives; closed in the end.
        place: moves a batch to the devices, such as `Sharding.put_batch`.
        ahead: how many batches wait on the devices beside the one in use, from 1.

    Returns:
        An iterator over the same batches in the same order. What goes wrong in the thread is raised
        in place of the batch that it concerns, with the traceback of the thread.

    Raises:
        DataError: `ahead` is below 1.

    >>> with prefetch_to_device([{"label": 1}, {"label": 2}], lambda batch: batch) as batches:
    ...     [batch["label"] for batch in batches]
    [1, 2]
    """
    return Prefetched(batches, place, ahead)
