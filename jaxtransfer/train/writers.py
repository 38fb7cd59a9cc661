"""Callbacks that write what a run tells into files: CSV, JSON lines and TensorBoard."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import os
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax

from jaxtransfer.errors import OutputError
from jaxtransfer.formats.base import require
from jaxtransfer.formats.output import make_folder, write_text
from jaxtransfer.train.events import Callback, Event

Row: TypeAlias = Mapping[str, Any]


def event_rows(event: Event) -> list[dict[str, Any]]:
    """What an event tells as flat rows, one a step, oldest first.

    Each record of a step is a row. The last row also has `examples_per_second` and `waiting`, and
    the scores of an evaluation as `validation/loss` and so on.
    """
    rows = [dict(record) for record in event.records]
    speed = {"examples_per_second": event.examples_per_second, "waiting": event.waiting}
    scores = {f"validation/{name}": value for name, value in (event.evaluation or {}).items()}
    if rows:
        rows[-1] |= speed
    if scores and not (rows and rows[-1]["step"] == event.step):
        rows.append({"step": event.step, "plan": event.plan})
    if scores:
        rows[-1] |= scores
    return rows


def csv_writer(path: str | Path) -> Callback:
    """A callback that writes each step and each evaluation as a row of a CSV file.

    Columns stay where they are: new ones, as with the first evaluation, are added on the right, and
    are empty in the rows before. Every event is on disk when the callback returns; no file is left
    open between events. Of several processes the first one writes.

    A run that is resumed goes on in the file: rows of steps that it carries out again are replaced.
    Where a file is there already and a run begins anew, the old file is kept as `NAME.1.csv` and so
    on.

    Args:
        path: the file; its folder is made if it does not exist.

    Raises:
        OutputError: the file cannot be written, or, when a run is resumed, is no CSV file with a
            column `step`.

    Example:
        `jt.finetune(…, callbacks=[csv_writer("runs/one/metrics.csv")])`
    """
    return _RowWriter(path, _parse_csv, _render_csv, has_header=True)


def jsonl_writer(path: str | Path) -> Callback:
    """A callback that writes each step and each evaluation as a line of JSON.

    Numbers that JSON does not have, NaN and infinity, are `null`. All else is as of `csv_writer`.

    Args:
        path: the file; its folder is made if it does not exist.

    Raises:
        OutputError: the file cannot be written, or, when a run is resumed, has other lines than
            objects with a `step`.
    """
    return _RowWriter(path, _parse_jsonl, _render_jsonl, has_header=False)


def tensorboard_writer(folder: str | Path) -> TensorBoardWriter:
    """A callback that writes each step and each evaluation for TensorBoard.

    Args:
        folder: where event files go; a run that is resumed adds one, and TensorBoard shows steps
            that were carried out again once.

    Raises:
        MissingLibraryError: tensorboardX is not installed.

    Example:
        `with tensorboard_writer("runs/one") as log: jt.finetune(…, callbacks=[log])`
    """
    return TensorBoardWriter(folder)


class TensorBoardWriter:
    """What `tensorboard_writer` gives: a callback, and a context manager that closes its file.

    The file is flushed at every event; one that is never closed is closed when the process ends.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        # Of tensorboardX only the file itself: its SummaryWriter takes the file of another one that
        # was made in the same second, and does not wait for its queue when it is flushed.
        self._files = require("tensorboardX.event_file_writer", "TensorBoard", extra="logging")
        self._events = require("tensorboardX.proto.event_pb2", "TensorBoard", extra="logging")
        self._file: Any = None
        self._close: Callable[[], object] = lambda: None

    def __call__(self, event: Event) -> None:
        """Write what an event tells."""
        rows = event_rows(event)
        if jax.process_index() != 0 or not rows:
            return
        try:
            file = self._file = self._file or self._open(rows[0]["step"])
            for row in rows:
                message = self._events.Event(wall_time=time.time(), step=row["step"])
                for name, value in row.items():
                    if isinstance(value, (int, float)) and name != "step":
                        tag = name if "/" in name else f"train/{name}"
                        message.summary.value.add(tag=tag, simple_value=value)
                file.write_event(message)
            file.flush()
        except OSError as error:
            raise _not_written(self.folder, error) from error

    def _open(self, first: int) -> Any:
        folder = make_folder(self.folder)
        # Files are read in the order of their names.
        file = self._files.EventsWriter(str(folder / "events"), f".{time.time_ns()}")
        self._close = weakref.finalize(self, file.close)
        # From this step on, TensorBoard leaves out what earlier files have.
        start = self._events.SessionLog(status=self._events.SessionLog.START)
        file.write_event(self._events.Event(wall_time=time.time(), step=first, session_log=start))
        return file

    def close(self) -> None:
        """Close the file; an event after that begins another one."""
        self._close()
        self._file = None

    def __enter__(self) -> TensorBoardWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _RowWriter:
    """Appends rows to a text file, and knows where it stands in it."""

    def __init__(
        self,
        path: str | Path,
        parse: Callable[[str], list[dict[str, Any]]],
        render: Callable[[Sequence[Row], Sequence[str], bool], str],
        has_header: bool,
    ) -> None:
        self.path = Path(path)
        self._parse, self._render, self._has_header = parse, render, has_header
        self._columns: list[str] = []
        self._last = math.inf  # the last step that was written by this writer
        _check(self.path)

    def __call__(self, event: Event) -> None:
        rows = event_rows(event)
        if jax.process_index() != 0 or not rows:
            return
        first = rows[0]["step"]
        begins = first < self._last  # also where one writer sees one run after another
        old = self._begin(first) if begins else []
        columns = list(
            dict.fromkeys(_names(old) + ([] if begins else self._columns) + _names(rows))
        )
        grows = self._has_header and columns != self._columns
        if begins or grows:
            old = old if begins else self._read()
            write_text(self._render([*old, *rows], columns, True), self.path)
        else:
            self._append(self._render(rows, columns, False))
        self._columns, self._last = columns, rows[-1]["step"]

    def _begin(self, first: int) -> list[dict[str, Any]]:
        """The rows of before a step, where a run goes on in the file at that step."""
        if not self.path.exists():
            return []
        if first <= 1:
            names = (f"{self.path.stem}.{n}{self.path.suffix}" for n in itertools.count(1))
            paths = (self.path.with_name(name) for name in names)
            self.path.rename(next(path for path in paths if not path.exists()))
            return []
        return [row for row in self._read() if int(row["step"]) < first]

    def _read(self) -> list[dict[str, Any]]:
        try:
            text = self.path.read_text(encoding="utf-8")
            # A process that was killed while it wrote leaves the beginning of a line.
            rows = self._parse(text[: text.rfind("\n") + 1])
            for row in rows:
                int(row["step"])
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            raise OutputError(
                f"{self.path}: expected the rows of a run that is resumed, each with its step, "
                f"found {type(error).__name__}: {error}; move that file away, or name another one"
            ) from error
        except OSError as error:
            raise _not_written(self.path, error) from error
        return rows

    def _append(self, text: str) -> None:
        try:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                file.write(text)
        except OSError as error:
            raise _not_written(self.path, error) from error


def _parse_csv(text: str) -> list[dict[str, Any]]:
    table = csv.DictReader(io.StringIO(text), strict=True)
    rows = list(table)
    if text and "step" not in (table.fieldnames or ()):
        raise ValueError("no column of this name: step")
    if any(None in row for row in rows):
        raise ValueError("a row with more fields than there are columns")
    return rows


def _render_csv(rows: Sequence[Row], columns: Sequence[str], header: bool) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n")
    if header:
        table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def _parse_jsonl(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def _render_jsonl(rows: Sequence[Row], columns: Sequence[str], header: bool) -> str:
    return "".join(json.dumps({k: _for_json(v) for k, v in row.items()}) + "\n" for row in rows)


def _for_json(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _names(rows: Sequence[Row]) -> list[str]:
    return [name for row in rows for name in row]


def _check(path: Path) -> None:
    """Make the folder of a file, so that what is wrong with it is told before the work."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            raise FileExistsError("something that is no file")
        if not os.access(path.parent, os.W_OK):
            raise PermissionError("a folder that cannot be written")
    except OSError as error:
        raise _not_written(path, error) from error


def _not_written(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path}: expected to write what a run tells, found: {error.strerror or error}; make room, "
        "mend the permissions or choose another place"
    )
