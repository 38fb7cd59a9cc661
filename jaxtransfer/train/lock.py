"""One run a folder: a lock that the system frees when its process ends, however it ends."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import socket
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxtransfer.errors import CheckpointError, OutputError
from jaxtransfer.formats.output import write_text

LOCK_FILE = ".lock"
HOLDER_FILE = "running.json"


class TakenOverWarning(UserWarning):
    """A folder was taken over from a process on another host that did not give it back."""


class FolderLock:
    """The right to write in a folder, which one run has at a time.

    The system frees the lock when its process ends, killed or not; what a killed process left
    behind is taken over. A process on another host cannot be asked whether it lives: where its file
    system grants the lock, it is taken over with a warning. Of several processes of one run the
    first takes the lock, for all.

    Args:
        folder: must exist and be writable.

    Raises:
        CheckpointError: another run has the folder; the message names its process.
        OutputError: the folder cannot be locked.
    """

    def __init__(self, folder: Path) -> None:
        from filelock import FileLock

        self.folder = folder
        # Held by the object, not by the thread: whichever thread closes a run frees its folder.
        self._lock = FileLock(folder / LOCK_FILE, timeout=0, thread_local=False)
        error = self._take() if jax.process_index() == 0 else None
        if jax.process_count() > 1:
            error = _first_ones(error, folder)
        if error is not None:
            raise error

    def release(self) -> None:
        """Give the folder back; once more does nothing."""
        if self._lock.is_locked:
            with contextlib.suppress(OSError):
                (self.folder / HOLDER_FILE).unlink(missing_ok=True)
            self._lock.release()

    def _take(self) -> CheckpointError | OutputError | None:
        """Take the lock, or say why that cannot be."""
        from filelock import Timeout

        try:
            self._lock.acquire()
        except Timeout:
            return CheckpointError(
                f"{self.folder}: expected a folder that no other run uses, found that "
                f"{_described(_holder(self.folder))} does; wait for its end, stop it, or choose "
                "another folder"
            )
        except (OSError, NotImplementedError) as error:
            return OutputError(
                f"{self.folder}: expected a folder that can be locked, found {error}; choose one "
                "on a file system with locks"
            )
        try:
            self._sign()
        except OutputError as error:
            self.release()
            return error
        return None

    def _sign(self) -> None:
        before = _holder(self.folder)
        if before is not None and before.get("host") != socket.gethostname():
            warnings.warn(
                f"{self.folder}: taken over from {_described(before)}, which did not give it back; "
                "make sure that it has ended",
                TakenOverWarning,
                stacklevel=5,
            )
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": now}
        write_text(json.dumps(holder) + "\n", self.folder / HOLDER_FILE)


def _first_ones(
    error: CheckpointError | OutputError | None, folder: Path
) -> CheckpointError | OutputError | None:
    """The first process's error as all processes know it, so that none goes on alone."""
    from jax.experimental import multihost_utils

    refused = multihost_utils.broadcast_one_to_all(np.array(error is not None))
    if error is None and refused:
        return CheckpointError(
            f"{folder}: expected a folder that the first process can lock, found that it cannot; "
            "see its message"
        )
    return error


def _holder(folder: Path) -> dict[str, Any] | None:
    """What the process that has the folder, or had it and was killed, wrote about itself."""
    try:
        found = json.loads((folder / HOLDER_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _described(holder: dict[str, Any] | None) -> str:
    if holder is None:
        return "another process"
    return (
        f"process {holder.get('pid')} on {holder.get('host')}, running since {holder.get('since')},"
    )
