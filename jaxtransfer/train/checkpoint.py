"""Checkpoints of a run: written in the background, whole or not at all, resumed to the bit."""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from jaxtransfer.errors import CheckpointError, OutputError
from jaxtransfer.formats.output import make_folder
from jaxtransfer.models import Model
from jaxtransfer.models.model import CONFIG_FILE
from jaxtransfer.partition import Plan
from jaxtransfer.train.contents import check_fit, hash_of, held, onto_devices, to_host, untouched
from jaxtransfer.train.history import HistoryFile
from jaxtransfer.train.keeping import Preservation, best_of, score_of
from jaxtransfer.train.lock import FolderLock
from jaxtransfer.train.saved import (
    RECORD,
    SOURCE,
    STATE,
    VERSION,
    Saved,
    check_source,
    first_line,
    hash_of_record,
    newest_whole,
    numbers_in,
    read_checkpoint,
    scores_in,
    warn_of,
)
from jaxtransfer.train.state import TrainState
from jaxtransfer.train.stopping import DIRECTIONS, direction
from jaxtransfer.tree import count_bytes, flatten, unflatten
from jaxtransfer.tree.summary import format_bytes

# What Orbax writes beside the arrays of a small state.
_BOOKKEEPING_BYTES = 2**17


@dataclass(frozen=True)
class Progress:
    """How far a run had come when a checkpoint was written.

    Attributes:
        number: number of steps done since the start of the run, all its plans together; with the
            run's seed it tells which examples come next.
        plan: position of the plan that was being carried out.
        history: what was recorded of each step so far.
        is_over: whether a callback ended the run there.
    """

    number: int
    plan: int
    history: tuple[dict[str, Any], ...]
    is_over: bool = False


class Checkpoints:
    """The checkpoints of one run in a folder, by Orbax; a context manager that waits for the last.

    A checkpoint holds what the run has changed: parameters, statistics and all else that a state
    carries. What never trained stays in the model that the run starts from, which a checkpoint
    knows by its fingerprint, and which is kept beside the checkpoints where that is asked for. A
    write that is cut off leaves nothing under a checkpoint's name. One run at a time has the
    folder.

    Args:
        folder: is made if it does not exist.
        run: what identifies the run, as JSON can hold it; a run is continued by its like alone.
        source: the model that the run starts from. Its receipt is kept, and statistics that are
            still the source's are not stored again.
        frozen: "reference" needs the source at hand wherever a checkpoint is opened; "beside" keeps
            the source in the folder, once.
        resume: whether the run continues from the newest checkpoint, if there is one.
        keep: how many checkpoints are kept, the newest ones, from 1.
        keep_best: how many are kept besides, the best ones by `metric`.
        metric: the name of a metric given to `save`, of which `direction` in
            `jaxtransfer.train.stopping` knows which way it is better.

    Raises:
        OutputError: the folder cannot be made or written.
        CheckpointError: the folder holds a run already and `resume` is false, another process has
            it, or arguments do not fit together.
    """

    def __init__(
        self,
        folder: str | Path,
        run: Mapping[str, Any],
        *,
        source: Model | None = None,
        frozen: Literal["reference", "beside"] = "reference",
        resume: bool = False,
        keep: int = 2,
        keep_best: int = 0,
        metric: str | None = None,
    ) -> None:
        _check_arguments(source, frozen, keep, keep_best, metric)
        self.folder = make_folder(folder).resolve()
        # Numbers of NumPy, such as a learning rate from a logspace, become Python's.
        self.run = json.loads(json.dumps(run, default=lambda value: value.item()))
        self.metric = metric
        self.keep_best = keep_best
        self._policy = Preservation(keep, keep_best)
        self._history = HistoryFile(self.folder)
        self._last: int | None = None
        self._found: Saved | None = None
        self._damaged: dict[int, str] = {}
        self._source_hash: tuple[frozenset[str], str | None] | None = None
        self._receipt = None if source is None else json.loads(source.receipt.to_json())
        stats = {} if source is None else flatten({"stats": source.stats})
        self._source_stats = {name: np.array(leaf) for name, leaf in stats.items()}
        self._lock = FolderLock(self.folder)
        try:
            self._open(source if frozen == "beside" else None, resume)
        except BaseException:
            self._lock.release()
            raise

    def _open(self, beside: Model | None, resume: bool) -> None:
        if numbers_in(self.folder) and not resume:
            raise CheckpointError(
                f"{self.folder}: expected a folder without checkpoints, found a run's; resume it, "
                "or choose another folder"
            )
        self._policy.scores.update(scores_in(self.folder, self.metric) if self.metric else {})
        kept = self.folder / SOURCE
        if beside is not None and jax.process_index() == 0 and not (kept / CONFIG_FILE).is_file():
            beside.save(kept)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @functools.cached_property
    def _manager(self) -> Any:
        """Orbax's manager; made for the first save, it removes what was left unfinished."""
        import orbax.checkpoint as ocp

        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._policy, cleanup_tmp_directories=True
        )
        # Compression saves few bytes of floats and costs time; with it, a small file could claim to
        # hold arrays of any size.
        state = ocp.PyTreeCheckpointHandler(use_compression=False)
        handlers = {STATE: state, RECORD: ocp.JsonCheckpointHandler()}
        return ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    def wait(self) -> None:
        """Wait until everything is written.

        Raises:
            OutputError: it cannot be written.
        """
        if "_manager" in self.__dict__:
            with self._writing():
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait until everything is written, and give the folder back.

        Raises:
            OutputError: it cannot be written.
        """
        try:
            self.wait()
            if "_manager" in self.__dict__:
                self._manager.close()
        finally:
            self._lock.release()

    def save(
        self,
        state: TrainState,
        changed: Collection[str],
        progress: Progress,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Write a checkpoint: arrays are copied before this returns, the write goes on behind it.

        A step that is saved already is not saved again.

        Args:
            state: the state after a step.
            changed: the names of the parameters that the run has changed, now or in earlier plans.
            progress: how far the run has come.
            metrics: numbers by which checkpoints are compared, such as `accuracy`.

        Raises:
            OutputError: this checkpoint, or the one before it, cannot be written.
            CheckpointError: the folder has a later checkpoint than the one that the run is at.
        """
        import orbax.checkpoint as ocp

        if progress.number == self._last:
            return
        self.wait()
        self._check_is_newest(progress.number)
        # Where a checkpoint's folder cannot be made, threads of Orbax wait for it for minutes.
        make_folder(self.folder)
        arrays = self._without_source_stats(to_host(held(state, changed)))
        with self._writing():
            _check_room(self.folder, count_bytes(arrays))
            if jax.process_index() == 0:
                self._history.extend(progress.history)
            record = {
                "version": VERSION,
                "run": self.run,
                "receipt": self._receipt,
                "number": progress.number,
                "plan": progress.plan,
                "is_over": progress.is_over,
                "history": self._history.mark,
                "state": hash_of(arrays),
                "untouched": self._untouched_hash(state, arrays),
                "metrics": None if metrics is None else _as_floats(metrics),
                "metric": self.metric,
            }
            score = score_of(record["metrics"], self.metric)
            if score is not None:
                self._policy.scores[progress.number] = score
            self._manager.save(
                progress.number,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(unflatten(arrays)),
                    record=ocp.args.JsonSave({**record, "sha256": hash_of_record(record)}),
                ),
            )
        self._last, self._found = progress.number, None

    def best_step(self) -> int | None:
        """The step of the best checkpoint by the run's metric; `None` if none was measured."""
        numbers = set(numbers_in(self.folder)) | {self._last}
        best = [number for number in best_of(self._policy.scores) if number in numbers]
        return best[0] if best else None

    def progress(self, step: int | None = None) -> Progress | None:
        """How far a checkpoint had come, or `None` if there is none.

        Args:
            step: which checkpoint; by default the newest that is whole. Where later ones are
                damaged, a `DamagedCheckpointWarning` says so.

        Raises:
            CheckpointError: it is damaged, or all are, or it belongs to a run with other settings.
        """
        saved = self._read(step)
        if saved is None:
            return None
        self._check_same_run(saved.record["run"])
        record = saved.record
        return Progress(saved.number, record["plan"], saved.history, record["is_over"])

    def restore(
        self,
        template: TrainState,
        plan: Plan,
        changed: Collection[str],
        step: int | None = None,
    ) -> TrainState:
        """A checkpoint's state, on the devices of the template's leaves, in as many pieces.

        Parameters that the run did not change are the template's. Damaged checkpoints after this
        one are put aside under the name `STEP.damaged`, so that the run can write theirs anew.

        Args:
            template: a state of the same plan before its first step.
            plan: what trains.
            changed: as `save` was given.
            step: which checkpoint; by default the newest that is whole.

        Raises:
            CheckpointError: there is no checkpoint, it is damaged, or its leaves are not those of
                the template.
        """
        saved = self._read(step)
        if saved is None:
            raise CheckpointError(f"{self.folder}: expected a checkpoint, found none")
        where = self.folder / str(saved.number)
        check_fit(saved.arrays, held(template, changed), str(where))
        check_source(saved, untouched(template.params, template.stats, saved.arrays), where)
        self._put_damaged_aside()
        self._last, self._found = saved.number, None
        return onto_devices(saved.arrays, template, plan)

    def _read(self, step: int | None) -> Saved | None:
        """A whole checkpoint; it is kept until it is restored, so that it is read once."""
        self.wait()
        if self._found is None or step not in (None, self._found.number):
            if step is None:
                self._found, self._damaged = newest_whole(self.folder, self._history)
                if self._found is not None:
                    warn_of(self._damaged, self._found, stacklevel=3)
            elif step in (numbers := numbers_in(self.folder)):
                self._found = read_checkpoint(self.folder, step, self._history)
            else:
                raise CheckpointError(
                    f"{self.folder}: expected a checkpoint of step {step}, found those of {numbers}"
                )
        return self._found

    def _put_damaged_aside(self) -> None:
        """Give damaged checkpoints another name, in which Orbax sees no checkpoint."""
        for number in self._damaged if jax.process_index() == 0 else ():
            aside = self.folder / f"{number}.damaged"
            with self._writing():
                count = 1
                while aside.exists():
                    count += 1
                    aside = self.folder / f"{number}.damaged{count}"
                (self.folder / str(number)).rename(aside)
        if self._damaged and jax.process_count() > 1:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices("jaxtransfer: damaged checkpoints are put aside")
        self._damaged = {}

    def _check_is_newest(self, number: int) -> None:
        later = [other for other in numbers_in(self.folder) if other >= number]
        if later:
            raise CheckpointError(
                f"{self.folder}: expected to save step {number} as the newest, found checkpoints "
                f"of {later}; go on from the newest one, or in another folder"
            )

    def _without_source_stats(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        source = self._source_stats
        return {
            name: array
            for name, array in arrays.items()
            if name not in source or not _same_bits(array, source[name])
        }

    def _untouched_hash(self, state: TrainState, arrays: Mapping[str, Any]) -> str | None:
        """The fingerprint of what the source keeps; it is computed anew when less of it does."""
        leaves = untouched(state.params, state.stats, arrays)
        if self._source_hash is None or self._source_hash[0] != leaves.keys():
            self._source_hash = (frozenset(leaves), hash_of(leaves))
        return self._source_hash[1]

    def _check_same_run(self, run: Mapping[str, Any]) -> None:
        others = [key for key in {*run, *self.run} if run.get(key) != self.run.get(key)]
        if others:
            found = "; ".join(
                f"{key}: {_short(self.run.get(key))}, found {_short(run.get(key))}"
                for key in sorted(others)
            )
            raise CheckpointError(
                f"{self.folder}: expected checkpoints of the same run, with {found}; resume with "
                "what the run began with, or choose another folder"
            )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise many kinds for a full disk
            raise OutputError(
                f"{self.folder}: expected to write a checkpoint, found {first_line(error)}; make "
                "room or mend the folder's permissions, and resume from the last checkpoint there"
            ) from error


def _check_arguments(
    source: Model | None, frozen: str, keep: int, keep_best: int, metric: str | None
) -> None:
    problems = []
    if keep < 1:
        problems.append(f"keep: expected at least 1 checkpoint, found {keep}")
    if keep_best < 0 or (keep_best and (metric is None or direction(metric) is None)):
        problems.append(
            "keep_best: expected a number from 0, with a metric whose last word is one of "
            f"{', '.join(DIRECTIONS)}, found {keep_best} and {metric}"
        )
    if frozen not in ("reference", "beside") or (frozen == "beside" and source is None):
        problems.append(
            'frozen: expected "reference", or "beside" with a source, found '
            f"{frozen!r} {'without' if source is None else 'with'} a source"
        )
    if problems:
        raise CheckpointError("; ".join(problems))


def _check_room(folder: Path, needed: int) -> None:
    """Raise where a disk is too full; Orbax would log a traceback for each of its threads."""
    usage = shutil.disk_usage(folder)
    needed += _BOOKKEEPING_BYTES
    if usage.total and usage.free < needed:  # Some file systems do not know their size.
        raise OSError(
            f"no space left: {format_bytes(usage.free)} are free, {format_bytes(needed)} are needed"
        )


def _same_bits(array: Any, other: np.ndarray) -> bool:
    return (
        isinstance(array, np.ndarray)
        and (array.shape, array.dtype) == (other.shape, other.dtype)
        and array.tobytes() == other.tobytes()
    )


def _as_floats(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
