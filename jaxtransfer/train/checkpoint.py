"""Checkpoints of a run: written in the background, whole or not at all, resumed to the bit."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtransfer.errors import CheckpointError, OutputError
from jaxtransfer.formats.output import make_folder
from jaxtransfer.partition import Plan
from jaxtransfer.train.state import TrainState
from jaxtransfer.tree import fingerprint, merge, split


@dataclass(frozen=True)
class Progress:
    """How far a run had come when a checkpoint was written.

    Attributes:
        number: number of steps done since the start of the run, all its plans together.
        plan: position of the plan that was being carried out.
        history: what was recorded of each step so far.
    """

    number: int
    plan: int
    history: tuple[dict[str, Any], ...]


class Checkpoints:
    """The checkpoints of one run in a folder, by Orbax; a context manager that waits for the last.

    A checkpoint holds what the run has changed: parameters, statistics, optimizer state and step.
    All else comes from the model that the run starts from. A write that is cut off leaves nothing
    under a checkpoint's name.

    Args:
        folder: is made if it does not exist.
        run: what identifies the run, as JSON can hold it; a run is continued by its like alone.
        resume: whether the run continues from the newest checkpoint, if there is one.
        keep: how many checkpoints are kept, from 1.

    Raises:
        OutputError: the folder cannot be made or written.
        CheckpointError: the folder holds a run already and `resume` is false, or `keep` is below 1.
    """

    def __init__(
        self, folder: str | Path, run: Mapping[str, Any], *, resume: bool = False, keep: int = 2
    ) -> None:
        import orbax.checkpoint as ocp

        if keep < 1:
            raise CheckpointError(f"keep: expected at least 1 checkpoint, found {keep}")
        self.folder = make_folder(folder).resolve()
        # Numbers of NumPy, such as a learning rate from a logspace, become Python's.
        self.run = json.loads(json.dumps(run, default=lambda value: value.item()))
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options)
        if self._manager.latest_step() is not None and not resume:
            self.close()
            raise CheckpointError(
                f"{self.folder}: expected a folder without checkpoints, found a run's; resume it, "
                "or choose another folder"
            )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait until everything is written.

        Raises:
            OutputError: it cannot be written.
        """
        with self._writing():
            self._manager.wait_until_finished()
        self._manager.close()

    def save(self, state: TrainState, changed: Collection[str], progress: Progress) -> None:
        """Write a checkpoint: arrays are copied before this returns, the write goes on behind it.

        Args:
            state: the state after a step.
            changed: the names of the parameters that the run has changed, now or in earlier plans.
            progress: how far the run has come.

        Raises:
            OutputError: this checkpoint, or the one before it, cannot be written.
        """
        import orbax.checkpoint as ocp

        # Where a checkpoint's folder cannot be made, threads of Orbax wait for it for minutes.
        make_folder(self.folder)
        parts = _parts(state, changed)
        contents = {
            "run": self.run,
            "number": progress.number,
            "plan": progress.plan,
            "history": list(progress.history),
            "state": _state_fingerprint(parts),
        }
        record = {**contents, "sha256": _sha256(contents)}
        with self._writing():
            self._manager.save(
                progress.number,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(parts), record=ocp.args.JsonSave(record)
                ),
            )

    def progress(self) -> Progress | None:
        """How far the newest checkpoint had come, or `None` if there is none.

        Raises:
            CheckpointError: it is damaged, or belongs to a run with other settings.
        """
        number = self._manager.latest_step()
        if number is None:
            return None
        record = self._record(number)
        self._check_same_run(record["run"])
        return Progress(record["number"], record["plan"], tuple(record["history"]))

    def restore(self, template: TrainState, plan: Plan, changed: Collection[str]) -> TrainState:
        """The newest checkpoint's state; parameters that the run did not change are the template's.

        Args:
            template: a state of the same plan before its first step.
            plan: what trains.
            changed: as `save` was given.

        Raises:
            CheckpointError: there is no checkpoint, it is damaged, or its leaves are not those of
                the template.
        """
        import orbax.checkpoint as ocp

        number = self._manager.latest_step()
        if number is None:
            raise CheckpointError(f"{self.folder}: expected a checkpoint, found none")
        like = _parts(template, changed)
        wanted = ocp.args.StandardRestore(like)
        with self._reading(number):
            _read_every_array(self.folder / str(number) / "state")
            parts = self._manager.restore(number, args=ocp.args.Composite(state=wanted))["state"]
            if self._record(number)["state"] != _state_fingerprint(parts):
                raise ValueError("other values than were written")
        parts = jax.tree.map(_placed_like, parts, like)
        _, untouched = split(template.params, changed.__contains__)
        trainable, frozen = split(merge(parts.pop("changed"), untouched), plan)
        return replace(template, trainable=trainable, frozen=frozen, **parts)

    def _record(self, number: int) -> dict[str, Any]:
        """What a checkpoint says about itself."""
        import orbax.checkpoint as ocp

        with self._reading(number):
            args = ocp.args.Composite(record=ocp.args.JsonRestore())
            record = self._manager.restore(number, args=args)["record"]
            if record.pop("sha256") != _sha256(record):
                raise ValueError("another record than was written")
        return record

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
                f"{self.folder}: expected to write a checkpoint, found {_reason(error)}; make room "
                "or mend the folder's permissions, and resume from the last checkpoint there"
            ) from error

    @contextlib.contextmanager
    def _reading(self, number: int) -> Iterator[None]:
        try:
            yield
        except CheckpointError:
            raise
        except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged file
            raise CheckpointError(
                f"{self.folder / str(number)}: expected a whole checkpoint of this run, found "
                f"{_reason(error)}; remove that folder to go on from the checkpoint before it"
            ) from error


def _parts(state: TrainState, changed: Collection[str]) -> dict[str, Any]:
    """What a checkpoint holds. The random key is made anew from the seed, and needs no place."""
    values, _ = split(state.params, changed.__contains__)
    parts = {
        "step": state.step,
        "changed": values,
        "stats": state.stats,
        "opt_state": state.opt_state,
        "ema": state.ema,
    }
    return {name: part for name, part in parts.items() if jax.tree.leaves(part)}


def _state_fingerprint(parts: Mapping[str, Any]) -> str | None:
    """The fingerprint of what a checkpoint holds; none where other processes hold parts of it."""
    if not all(leaf.is_fully_addressable for leaf in jax.tree.leaves(parts)):
        return None
    return fingerprint(parts)


def _read_every_array(folder: Path) -> None:
    """Read the arrays of a checkpoint one by one, so that damage is found before Orbax reads.

    Orbax reads them all at once: where one is damaged, its other reads fail in the background, with
    a traceback each on the standard error, long after the error itself was caught.
    """
    import tensorstore

    base = {"driver": "file", "path": f"{folder}/"}
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    keys = [key.decode() for key in store.list().result()]
    paths = [key.removesuffix(".zarray") for key in keys if key.endswith(".zarray")]
    if not paths:
        raise ValueError("no arrays")
    for path in paths:
        kvstore = {"driver": "ocdbt", "base": base, "path": path}
        tensorstore.open({"driver": "zarr", "kvstore": kvstore}).result().read().result()


def _placed_like(restored: jax.Array, like: jax.Array) -> jax.Array:
    """A restored array where the run expects it.

    Orbax commits arrays to the device that they were on, and for those a step is compiled anew.
    """
    return restored if like.committed else jnp.array(np.asarray(restored))


def _sha256(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else 'no reason given'}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
