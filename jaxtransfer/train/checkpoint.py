"""Checkpoints of a training run: written in the background, whole or not at all, resumed to the bit."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from jaxtransfer.errors import CheckpointError
from jaxtransfer.formats.output import make_folder
from jaxtransfer.partition import Plan
from jaxtransfer.train.state import TrainState
from jaxtransfer.tree import merge, split


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
    """The checkpoints of one run in a folder, by Orbax; a context manager that waits for the last write.

    A checkpoint holds what the run has changed: parameters, statistics, optimizer state and step. All
    else comes from the model that the run starts from. A write that is cut off leaves nothing under a
    checkpoint's name.

    Args:
        folder: is made if it does not exist.
        run: what identifies the run, as JSON can hold it; a run is continued by its like alone.
        resume: whether the run continues from the newest checkpoint, if there is one.
        keep: how many checkpoints are kept.

    Raises:
        OutputError: the folder cannot be made or written.
        CheckpointError: the folder holds a run already and `resume` is false.
    """

    def __init__(
        self, folder: str | Path, run: Mapping[str, Any], *, resume: bool = False, keep: int = 2
    ) -> None:
        import orbax.checkpoint as ocp

        self.folder = make_folder(folder).resolve()
        self.run = json.loads(json.dumps(run))
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options)
        if self._manager.latest_step() is not None and not resume:
            self.close()
            raise CheckpointError(
                f"{self.folder}: expected a folder without checkpoints, found a run's; resume it, or choose "
                "another folder"
            )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait until everything is written."""
        self._manager.wait_until_finished()
        self._manager.close()

    def save(self, state: TrainState, changed: Collection[str], progress: Progress) -> None:
        """Write a checkpoint: the arrays are copied before this returns, the write goes on behind it.

        Args:
            state: the state after a step.
            changed: the names of the parameters that the run has changed, now or in earlier plans.
            progress: how far the run has come.
        """
        import orbax.checkpoint as ocp

        record = {
            "run": self.run,
            "number": progress.number,
            "plan": progress.plan,
            "history": list(progress.history),
        }
        self._manager.save(
            progress.number,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_parts(state, changed)),
                record=ocp.args.JsonSave(record),
            ),
        )

    def progress(self) -> Progress | None:
        """How far the newest checkpoint had come, or `None` if there is none.

        Raises:
            CheckpointError: it is damaged, or belongs to a run with other settings.
        """
        import orbax.checkpoint as ocp

        number = self._manager.latest_step()
        if number is None:
            return None
        try:
            restored = self._manager.restore(
                number, args=ocp.args.Composite(record=ocp.args.JsonRestore())
            )
            record = restored["record"]
            progress = Progress(record["number"], record["plan"], tuple(record["history"]))
            run = record["run"]
        except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged file
            raise self._damaged(number, error) from error
        self._check_same_run(run)
        return progress

    def restore(self, template: TrainState, plan: Plan, changed: Collection[str]) -> TrainState:
        """The newest checkpoint's state; parameters that the run has not changed are the template's.

        Args:
            template: a state of the same plan before its first step.
            plan: what trains.
            changed: as `save` was given.

        Raises:
            CheckpointError: the checkpoint is damaged, or its leaves are not those of the template.
        """
        import orbax.checkpoint as ocp

        number = self._manager.latest_step()
        try:
            restored = self._manager.restore(
                number,
                args=ocp.args.Composite(state=ocp.args.StandardRestore(_parts(template, changed))),
            )
        except Exception as error:
            raise self._damaged(number, error) from error
        parts = restored["state"]
        _, untouched = split(template.params, changed.__contains__)
        trainable, frozen = split(merge(parts.pop("changed"), untouched), plan)
        return replace(template, trainable=trainable, frozen=frozen, **parts)

    def _check_same_run(self, run: Mapping[str, Any]) -> None:
        others = [key for key in {*run, *self.run} if run.get(key) != self.run.get(key)]
        if others:
            found = "; ".join(
                f"{key}: {_short(self.run.get(key))}, found {_short(run.get(key))}"
                for key in sorted(others)
            )
            raise CheckpointError(
                f"{self.folder}: expected checkpoints of the same run, with {found}; resume with the settings "
                "that the run began with, or choose another folder"
            )

    def _damaged(self, number: int | None, error: Exception) -> CheckpointError:
        reason = str(error).strip().splitlines()
        return CheckpointError(
            f"{self.folder / str(number)}: expected a whole checkpoint of this run, found "
            f"{type(error).__name__}: {reason[0][:200] if reason else ''}; remove that folder to go on from "
            "the checkpoint before it"
        )


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


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
