"""What was recorded of each step: lines added to one file, of which checkpoints know the length."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HISTORY_FILE = "history.jsonl"


class HistoryFile:
    """The history of a run in a file beside its checkpoints, one line of JSON a record.

    A checkpoint keeps a mark: how many lines and bytes there were, and their SHA-256. So each
    record is written once, however many checkpoints there are, and what comes after the mark is
    cut off when a run goes on from that checkpoint.

    Args:
        folder: of the checkpoints.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / HISTORY_FILE
        self._lines = 0
        self._bytes = 0
        self._digest = hashlib.sha256()

    @property
    def mark(self) -> dict[str, Any]:
        """What a checkpoint keeps: `lines`, `bytes` and `sha256` of the history so far."""
        return {
            "lines": self._lines,
            "bytes": self._bytes,
            "sha256": self._digest.hexdigest(),
        }

    def extend(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Write what a whole history has beyond the mark; it is on disk when this returns.

        Raises:
            OSError: the file cannot be written, or has lost lines.
        """
        lines = history[self._lines :]
        added = "".join(json.dumps(line) + "\n" for line in lines).encode()
        with self.path.open("ab") as file:
            if file.tell() < self._bytes:
                raise OSError(f"{self.path.name} has lost lines that were written before")
            file.truncate(self._bytes)
            file.write(added)
            file.flush()
            os.fsync(file.fileno())
        self._advance(added, len(lines))

    def read(self, mark: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
        """The history up to a checkpoint's mark, from where `extend` then goes on.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is not the one that the mark was made of.
        """
        content = b""
        if mark["bytes"]:
            with self.path.open("rb") as file:
                content = file.read(mark["bytes"])
        if hashlib.sha256(content).hexdigest() != mark["sha256"]:
            raise ValueError(f"another {self.path.name} than was written")
        self._lines, self._bytes, self._digest = 0, 0, hashlib.sha256()
        self._advance(content, mark["lines"])
        return tuple(json.loads(line) for line in content.splitlines())

    def _advance(self, added: bytes, lines: int) -> None:
        self._lines += lines
        self._bytes += len(added)
        self._digest.update(added)
