"""The wish that a run shall end soon: SIGTERM is noted, and acted upon between two steps."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

import jax

from jaxtransfer.errors import TrainingError


class Preempted(SystemExit):
    """A run was asked to end, and has saved: the process ends with the status 0.

    Attributes:
        step: number of steps done in the whole run, all of them saved.
        folder: where the checkpoint is.
    """

    def __init__(self, step: int, folder: Path) -> None:
        super().__init__(0)
        self.step = step
        self.folder = folder


class Termination:
    """Whether a run has been asked to end; `watch_termination` gives it."""

    def __init__(self) -> None:
        self._requested = False

    def request(self) -> None:
        """Ask the run to end, as SIGTERM does; in this process alone."""
        self._requested = True

    def reached(self, step: int) -> bool:
        """Whether the run shall save and end after this step.

        Of several processes one or more may be asked, and all of them answer `True` after the same
        step, a few steps later; for that each must call this after each step.

        Args:
            step: number of steps done in the whole run.
        """
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            self._requested |= multihost_utils.reached_preemption_sync_point(step)
        return self._requested


@contextlib.contextmanager
def watch_termination() -> Iterator[Termination]:
    """Note SIGTERM, which schedulers send before they take a machine away, instead of ending by it.

    Further ones change nothing, so that the last checkpoint is written in peace; Ctrl-C (SIGINT)
    stays as it is. Python allows signal handlers in the main thread alone: in others nothing is
    noted, and SIGTERM does what it did before. The handler of before is put back at the end.

    Several processes of `jax.distributed` leave the signal to JAX's preemption service, which
    agrees on a step among them.

    Raises:
        TrainingError: there are several processes, and the preemption service is turned off.

    Example:
        `with watch_termination() as termination: …`, and after each step
        `if termination.reached(step): checkpoints.save(…); leave(checkpoints, step)`

    Source: `jax.experimental.multihost_utils.reached_preemption_sync_point`.
    """
    termination = Termination()
    if jax.process_count() > 1:
        if not jax.config.values["jax_enable_preemption_service"]:
            raise TrainingError(
                "jax_enable_preemption_service: expected the service that tells all processes of "
                "a SIGTERM, found it turned off; leave it on before jax.distributed.initialize"
            )
        yield termination
        return
    if threading.current_thread() is not threading.main_thread():
        yield termination
        return

    def note(number: int, frame: FrameType | None) -> None:
        termination.request()

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield termination
    finally:
        # Handlers that were not set from Python cannot be put back from there.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def leave(step: int, folder: Path) -> NoReturn:
    """End the process with the status 0, and tell on the standard error how to go on.

    Args:
        step: number of steps done in the whole run; their checkpoint is written, waited for.
        folder: where it is.

    Raises:
        Preempted: always.
    """
    if jax.process_index() == 0:
        print(
            f"{folder}: asked to end, saved after step {step}; resume to go on from there",
            file=sys.stderr,
        )
    raise Preempted(step, folder)
