"""Reading the checkpoints of a run, each proven whole before it is used."""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxtransfer.errors import CheckpointError
from jaxtransfer.formats import orbax
from jaxtransfer.mapping import Receipt
from jaxtransfer.models import Model, load_model
from jaxtransfer.partition.opt_state import schedule_free_average
from jaxtransfer.train.contents import check_fit, hash_of, untouched
from jaxtransfer.train.history import HistoryFile
from jaxtransfer.train.keeping import best_of, score_of
from jaxtransfer.tree import flatten, map_with_names, place

VERSION = 1
STATE = "state"
RECORD = "record"
SOURCE = "source"


class DamagedCheckpointWarning(UserWarning):
    """A checkpoint is damaged, and an earlier one was taken in its place."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was read and found whole.

    Attributes:
        number: number of steps done when it was written.
        record: what it says about itself and its run.
        arrays: what it holds of the state, by name, in the host's memory.
        history: what was recorded of each step up to it.
    """

    number: int
    record: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]
    history: tuple[dict[str, Any], ...]


def numbers_in(folder: Path) -> list[int]:
    """The steps of which a folder has checkpoints, whole or damaged, in order."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(int(child.name) for child in found if child.name.isdigit() and child.is_dir())


def read_record(folder: Path, number: int) -> dict[str, Any]:
    """What a checkpoint says about itself.

    Raises:
        CheckpointError: it is damaged, or written by another version.
    """
    with _reading(folder, number):
        text = (folder / str(number) / RECORD / "metadata").read_text(encoding="utf-8")
        record = json.loads(text)
        if record.pop("sha256") != hash_of_record(record):
            raise ValueError("another record than was written")
    if record.get("version") != VERSION:
        raise CheckpointError(
            f"{folder / str(number)}: expected a checkpoint of version {VERSION}, found "
            f"{record.get('version')}; use the version of jaxtransfer that wrote it"
        )
    return record


def read_checkpoint(folder: Path, number: int, history: HistoryFile) -> Saved:
    """A checkpoint with everything in it, read once and compared with its hashes.

    Each process reads all of it into the host's memory, whatever devices wrote it.

    Args:
        folder: of the run.
        number: which checkpoint.
        history: goes on from this checkpoint afterwards.

    Raises:
        CheckpointError: it is damaged.
    """
    record = read_record(folder, number)
    with _reading(folder, number):
        arrays = orbax.read(folder / str(number) / STATE)
        if record["state"] not in (None, hash_of(arrays)):
            raise ValueError("other values than were written")
        steps = history.read(record["history"])
    return Saved(number, record, arrays, steps)


def newest_whole(folder: Path, history: HistoryFile) -> tuple[Saved | None, dict[int, str]]:
    """The newest checkpoint that is whole, and what is wrong with those after it, newest first.

    Raises:
        CheckpointError: there are checkpoints, but none is whole.
    """
    damaged: dict[int, str] = {}
    for number in reversed(numbers_in(folder)):
        try:
            return read_checkpoint(folder, number, history), damaged
        except CheckpointError as error:
            damaged[number] = str(error)
    if damaged:
        reasons = "".join(f"\n - {reason}" for reason in damaged.values())
        raise CheckpointError(
            f"{folder}: expected a whole checkpoint, found damage in all {len(damaged)}; all is "
            f"left as it is: mend it, or begin anew in another folder{reasons}"
        )
    return None, damaged


def warn_of(damaged: Mapping[int, str], taken: Saved, stacklevel: int) -> None:
    """Say which checkpoints are damaged, and which one is used."""
    if damaged:
        reasons = "; ".join(damaged.values())
        warnings.warn(
            f"{reasons}; the checkpoint of step {taken.number} is taken instead",
            DamagedCheckpointWarning,
            stacklevel=stacklevel + 1,
        )


def load_checkpoint(
    folder: str | Path,
    model: Model | None = None,
    step: int | str | None = None,
    *,
    average: bool | None = None,
) -> Model:
    """The model of a checkpoint, ready to use; the run may still be going on.

    Parameters and statistics that the run did not change are those of the model that it started
    from, and are compared with the hash that the checkpoint keeps of them. What a schedule-free
    optimizer trained are its averages, as the run itself evaluates and returns them.

    Args:
        folder: of the checkpoints.
        model: what the run started from; not needed where it is kept beside the checkpoints.
        step: which checkpoint, by its number of steps, or "best" by the metric of the run; by
            default the newest, or the one before it where that is damaged, with a
            `DamagedCheckpointWarning`.
        average: whether trainable parameters are their moving average (EMA); by default where the
            run kept one, as it evaluates and returns that.

    Raises:
        CheckpointError: there is no such checkpoint, it is damaged, `model` is another one than
            the run started from or is needed and not given, or there is no moving average.

    Example:
        `model = load_checkpoint("runs/finetune/checkpoints", step="best")`
    """
    folder = Path(folder)
    saved = _chosen(folder, step)
    where = folder / str(saved.number)
    beside = folder / SOURCE
    if beside.is_dir():
        model = load_model(beside, model)
    if model is None:
        raise CheckpointError(
            f"{where}: expected the model that the run started from, found none beside the "
            "checkpoint; give it: load_checkpoint(folder, model)"
        )
    like = {"params": model.params, "stats": model.stats}
    values = {
        name: array
        for name, array in saved.arrays.items()
        if name.startswith(("params/", "stats/"))
    }
    template = {name: leaf for name, leaf in flatten(like).items() if name in values}
    check_fit(values, template, str(where))
    check_source(saved, untouched(**like, held=values), where)
    if average is None:
        average = any(name.startswith("ema/") for name in saved.arrays)
    values |= _average(saved, where) if average else _evaluated(saved)
    tree = map_with_names(lambda name, leaf: place(values[name]) if name in values else leaf, like)
    return replace(
        model, params=tree["params"], stats=tree["stats"], receipt=_receipt(saved, model, folder)
    )


def scores_in(folder: Path, metric: str | None = None) -> dict[int, float]:
    """The scores of a folder's checkpoints; those without a whole record have none.

    Args:
        folder: of the run.
        metric: by which; by default that of the newest checkpoint.
    """
    scores = {}
    for number in reversed(numbers_in(folder)):
        with contextlib.suppress(CheckpointError):
            record = read_record(folder, number)
            metric = metric or record["metric"]
            score = score_of(record["metrics"], metric)
            if score is not None:
                scores[number] = score
    return scores


def hash_of_record(record: Mapping[str, Any]) -> str:
    """The SHA-256 of a record without its own."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def first_line(error: Exception) -> str:
    """What an error of another library says, on one line that keeps its end, where causes stand."""
    line = (str(error).strip() or "no reason given").splitlines()[0]
    short = line if len(line) <= 200 else f"{line[:80]} … {line[-117:]}"
    return f"{type(error).__name__}: {short}"


def _chosen(folder: Path, step: int | str | None) -> Saved:
    numbers, history = numbers_in(folder), HistoryFile(folder)
    if step == "best":
        best = best_of(scores_in(folder))
        if not best:
            raise CheckpointError(
                f"{folder}: expected a checkpoint with the run's metric, found none; name a step "
                f"of {numbers}"
            )
        step = best[0]
    if step is None and numbers:
        saved, damaged = newest_whole(folder, history)
        if saved is not None:
            warn_of(damaged, saved, stacklevel=3)
            return saved
    if step not in numbers:
        raise CheckpointError(
            f"{folder}: expected a checkpoint{'' if step is None else f' of step {step}'}, found "
            f"{f'those of {numbers}' if numbers else 'none'}; check the path"
        )
    return read_checkpoint(folder, int(step), history)


def check_source(saved: Saved, leaves: Mapping[str, Any], where: Path) -> None:
    """Raise unless leaves that a checkpoint does not hold are those that its run started from.

    Raises:
        CheckpointError: they are others.
    """
    expected, found = saved.record["untouched"], hash_of(leaves)
    if expected is not None and found is not None and expected != found:
        raise CheckpointError(
            f"{where}: expected the model that the run started from, whose other leaves have the "
            f"fingerprint {expected[:16]}…, found {found[:16]}…; give that model"
        )


def _average(saved: Saved, where: Path) -> dict[str, np.ndarray]:
    average = {
        f"params/{name.removeprefix('ema/')}": array
        for name, array in saved.arrays.items()
        if name.startswith("ema/")
    }
    if not average:
        raise CheckpointError(
            f"{where}: expected a moving average of the parameters, found none; leave average out"
        )
    return average


def _evaluated(saved: Saved) -> dict[str, np.ndarray]:
    """The parameters of schedule-free optimizers, as `evaluation_params` has them."""
    found = {}
    for name, z in saved.arrays.items():
        state, _, parameter = name.partition("/z/")
        b1 = saved.arrays.get(f"{state}/b1/{parameter}", saved.arrays.get(f"{state}/b1"))
        y = saved.arrays.get(f"params/{parameter}")
        if name.startswith("opt_state/") and b1 is not None and y is not None:
            # On the device, where the run does it, to the same bits.
            average = schedule_free_average(*map(jnp.asarray, (y, z, b1)))
            found[f"params/{parameter}"] = np.asarray(average)
    return found


def _receipt(saved: Saved, model: Model, folder: Path) -> Receipt:
    kept = saved.record["receipt"]
    receipt = model.receipt if kept is None else Receipt.from_json(json.dumps(kept))
    return receipt.with_note(f"trained: step {saved.number} of the run in {folder.name}")


@contextlib.contextmanager
def _reading(folder: Path, number: int) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # many kinds, as many as there are ways to damage a file
        raise CheckpointError(
            f"{folder / str(number)}: expected a whole checkpoint of this run, found "
            f"{first_line(error)}"
        ) from error
