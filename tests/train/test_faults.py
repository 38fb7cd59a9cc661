"""What a run survives: damage, full disks, folders that cannot be written, and SIGKILL."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from jaxtransfer.data import ArrayData
from jaxtransfer.errors import CheckpointError, OutputError
from jaxtransfer.models import Model
from jaxtransfer.partition import full, lp_ft
from jaxtransfer.train import (
    Checkpoints,
    DamagedCheckpointWarning,
    Progress,
    TrainState,
    init_state,
    train,
)
from jaxtransfer.train.saved import hash_of_record, read_record
from jaxtransfer.train.settings import run_identity
from jaxtransfer.tree import fingerprint
from tests.train.runs import Run, Stop, assert_same, contents_of, steps_in


@pytest.fixture(scope="module")
def run(network: Model, examples: ArrayData) -> Run:
    return Run(network, examples, lp_ft(network, head_share=0.5))


@pytest.fixture(scope="module")
def expected(run: Run) -> tuple[Model, list[dict[str, Any]]]:
    """What the run comes to if nothing happens to it."""
    return run.whole()


@pytest.fixture(scope="module")
def finished(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has come to its end; to be copied, not changed."""
    folder = tmp_path_factory.mktemp("finished")
    run.into(folder)
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of the folder of a run that has come to its end, with checkpoints of 8 and 10."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


# ---------------------------------------------------------------------------------------------
# Damage


def largest_file(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def rename_a_leaf(path: Path) -> None:
    path.write_text(path.read_text().replace("kernel", "kernal"))


def forge(path: Path) -> None:
    """Another number in a file that can be read."""
    text = path.read_text()
    changed = re.sub(r'"plan": 1', '"plan": 0', text, count=1)
    assert changed != text
    path.write_text(changed)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        (file, damage)
        for file in ("state/manifest.ocdbt", "state/_METADATA", "record/metadata", "largest")
        for damage in (truncate, flip_a_bit, empty, Path.unlink)
        # Much in that file says nothing of the arrays: a bit there may change nothing.
        if (file, damage) != ("state/_METADATA", flip_a_bit)
    ]
    + [
        ("state/_METADATA", rename_a_leaf),
        ("record/metadata", forge),
        ("state", shutil.rmtree),
        ("record", shutil.rmtree),
    ],
)
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one_and_says_so(
    file: str,
    damage: Callable[[Path], None],
    run: Run,
    expected: Any,
    folder: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    damage(largest_file(folder / "10" / "state") if file == "largest" else folder / "10" / file)
    with pytest.warns(DamagedCheckpointWarning) as caught:
        found = run.into(folder)
    (message,) = [str(warning.message) for warning in caught]
    assert message.startswith(f"{folder / '10'}: expected a whole checkpoint of this run, found ")
    assert message.endswith("; the checkpoint of step 8 is taken instead")
    assert "\n" not in message
    gc.collect()
    # Orbax's own reads would fail in the background, with a traceback each.
    assert "Traceback" not in capfd.readouterr().err
    assert_same(found, expected)
    # What was damaged is kept, and what stands in its place is whole.
    assert steps_in(folder) == [8, 10] and (folder / "10.damaged").is_dir()
    with run.checkpoints(folder, resume=True) as checkpoints:
        assert checkpoints.progress() == Progress(10, 1, tuple(expected[1]))


def test_a_checkpoint_of_nothing_is_passed_over(run: Run, expected: Any, folder: Path) -> None:
    (folder / "99").mkdir()
    with pytest.warns(DamagedCheckpointWarning, match=re.escape(f"{folder / '99'}: expected a")):
        found = run.into(folder)
    assert_same(found, expected)
    assert steps_in(folder) == [8, 10]


def test_where_all_checkpoints_are_damaged_the_error_names_them_and_nothing_is_lost(
    run: Run, folder: Path
) -> None:
    for number in ("8", "10"):
        flip_a_bit(largest_file(folder / number / "state"))
    before = contents_of(folder)
    with pytest.raises(CheckpointError, match="found damage in all 2; all is left as it is") as e:
        run.into(folder)
    assert f"\n - {folder / '10'}: " in str(e.value) and f"\n - {folder / '8'}: " in str(e.value)
    assert contents_of(folder) == before


@pytest.mark.parametrize("damage", [flip_a_bit, truncate, Path.unlink])
def test_a_damaged_history_is_no_history(
    damage: Callable[[Path], None], run: Run, folder: Path
) -> None:
    damage(folder / "history.jsonl")
    with pytest.raises(CheckpointError, match=r"history\.jsonl"):
        run.into(folder)
    assert steps_in(folder) == [8, 10]


def test_damage_at_the_end_of_the_history_costs_the_last_checkpoint_alone(
    run: Run, expected: Any, folder: Path
) -> None:
    path = folder / "history.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.warns(DamagedCheckpointWarning, match=r"another history\.jsonl than was written"):
        found = run.into(folder)
    assert_same(found, expected)


def test_a_checkpoint_of_another_version_is_told(run: Run, folder: Path) -> None:
    for number in (8, 10):
        record = {**read_record(folder, number), "version": 99}
        content = {**record, "sha256": hash_of_record(record)}
        (folder / str(number) / "record" / "metadata").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="of version 1, found 99; use the version of jaxtra"):
        run.into(folder)


# ---------------------------------------------------------------------------------------------
# Folders that cannot be written


def test_a_folder_below_a_file_cannot_be_made(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OutputError, match="expected a folder that can be written"):
        run.into(tmp_path / "file" / "run")


def test_a_folder_that_is_lost_on_the_way_is_an_error(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def on_step(number: int, _: Any) -> None:
        if number == 2:
            shutil.rmtree(folder)
            folder.write_text("not a folder any more")

    with pytest.raises(OutputError, match=re.escape(f"{folder}: expected a folder that can be")):
        run.into(folder, on_step=on_step, save_every=3)


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True, timeout=30)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte; only those who may mount one have it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk))
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no right to mount a small disk here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True, timeout=30)


BIG = ["head/kernel"]


def state_of_300_kilobytes() -> tuple[TrainState, Any]:
    model = Model.from_function(
        lambda params, x: x @ params["head"]["kernel"], {"head": {"kernel": jnp.ones((25, 1000))}}
    )
    plan = full(model)
    return init_state(model, plan, plan.optimizer(1e-3)), plan


def test_a_folder_that_may_only_be_read_is_refused_at_once(run: Run, small_disk: Path) -> None:
    mount("-o", "remount,ro", str(small_disk))
    with pytest.raises(OutputError, match="can be written, found: Read-only file system"):
        run.into(small_disk)


def test_a_disk_that_becomes_read_only_is_an_error_and_no_checkpoint_is_lost(
    small_disk: Path,
) -> None:
    state, plan = state_of_300_kilobytes()
    checkpoints = Checkpoints(small_disk, {})
    checkpoints.save(state, BIG, Progress(1, 0, ()))
    checkpoints.wait()
    mount("--bind", str(small_disk), str(small_disk))
    try:
        mount("-o", "remount,bind,ro", str(small_disk))
        with pytest.raises(OutputError, match="Read-only file system"):
            checkpoints.save(state, BIG, Progress(2, 0, ()))
        checkpoints.close()
    finally:
        subprocess.run(["umount", "-l", str(small_disk)], check=True, timeout=30)
    with Checkpoints(small_disk, {}, resume=True) as checkpoints:
        assert checkpoints.progress() == Progress(1, 0, ())
        checkpoints.restore(state, plan, BIG)


def fill(folder: Path, state: TrainState) -> None:
    with Checkpoints(folder, {}, keep=9) as checkpoints:
        for number in range(1, 9):
            checkpoints.save(state, BIG, Progress(number, 0, ({"step": 1},) * number))


@pytest.mark.parametrize("is_noticed", [True, False], ids=["noticed before", "met while writing"])
def test_a_full_disk_is_an_error_and_with_more_room_the_run_goes_on(
    is_noticed: bool, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, plan = state_of_300_kilobytes()
    folder = small_disk / "run"
    with monkeypatch.context() as patch:
        if not is_noticed:  # as where a quota ends, or another process fills the disk meanwhile
            plenty = shutil.disk_usage("/")._replace(free=2**40)
            patch.setattr(shutil, "disk_usage", lambda path: plenty)
        with pytest.raises(OutputError, match="(?i)no space left.*; make room") as caught:
            fill(folder, state)
    assert str(caught.value).startswith(f"{folder}: expected to write a checkpoint")
    whole = steps_in(folder)
    assert whole == list(range(1, len(whole) + 1)) and whole
    mount("-o", "remount,size=9m", str(small_disk))
    with Checkpoints(folder, {}, keep=9, resume=True) as checkpoints:
        progress = checkpoints.progress()
        assert progress is not None and progress.number == len(progress.history) == whole[-1]
        checkpoints.restore(state, plan, BIG)
        checkpoints.save(state, BIG, Progress(9, 0, ({"step": 1},) * 9))
    assert steps_in(folder) == [*whole, 9]
    assert not list(folder.glob("*tmp*"))


@pytest.mark.parametrize("method", ["save", "wait_until_finished"])
def test_what_goes_wrong_behind_the_training_is_told(
    method: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: Any, **options: Any) -> None:
        raise OSError(122, "Disk quota exceeded")

    checkpoints = run.checkpoints(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints._manager, method, fails)
        with pytest.raises(OutputError, match="Disk quota exceeded; make room") as caught:
            with checkpoints:
                train(run.model, run.data, run.plans, run.settings, checkpoints=checkpoints)
    assert str(caught.value).startswith(f"{tmp_path}: expected to write a checkpoint")
    checkpoints.close()


# ---------------------------------------------------------------------------------------------
# Killed


SCRIPT = """
import sys

import jax.numpy as jnp
import numpy as np

from jaxtransfer.data import ArrayData
from jaxtransfer.models import Model
from jaxtransfer.partition import full
from jaxtransfer.train import Checkpoints, Settings, train
from jaxtransfer.train.settings import run_identity
from jaxtransfer.train.saved import hash_of_record, read_record

SETTINGS = Settings(steps=100_000, batch_size=4)


def classify(params, x):
    return x @ params["body"]["kernel"] @ params["head"]["kernel"]


def make():
    rng = np.random.default_rng(0)
    data = ArrayData(rng.random((8, 300), np.float32), rng.integers(0, 3, 8).astype(np.int32))
    body, head = rng.normal(size=(300, 1000)), rng.normal(size=(1000, 3))
    model = Model.from_function(
        classify,
        {
            "body": {"kernel": jnp.asarray(body, jnp.float32)},
            "head": {"kernel": jnp.asarray(head, jnp.float32)},
        },
    )
    return model, data, (full(model),)


if __name__ == "__main__":
    model, data, plans = make()
    identity = run_identity(model, data, plans, SETTINGS)
    with Checkpoints(sys.argv[1], identity, resume=True) as checkpoints:
        train(
            model,
            data,
            plans,
            SETTINGS,
            on_step=lambda number, state: print(number, flush=True),
            checkpoints=checkpoints,
            save_every=1,
        )
"""


def run_and_kill(script: Path, folder: Path, steps: int, delay: float) -> None:
    """Start the run, and kill it some seconds after so many steps."""
    with subprocess.Popen(
        [sys.executable, str(script), str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        text=True,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        lines = [process.stdout.readline() for _ in range(steps)]
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert all(lines), process.stderr.read()


def check_kills(folder: Path, moments: list[tuple[int, float]]) -> None:
    """Kill a run at each of these moments, and compare what it goes on from with a whole run."""
    script, checkpoint_folder = folder / "run.py", folder / "checkpoints"
    script.write_text(SCRIPT)
    setup = runpy.run_path(str(script))
    model, data, plans = setup["make"]()
    identity = run_identity(model, data, plans, setup["SETTINGS"])
    template = init_state(model, plans[0], plans[0].optimizer(1.0, schedule=lambda _: 1.0))
    found: dict[int, tuple[str, list[Any]]] = {}
    for steps, delay in moments:
        run_and_kill(script, checkpoint_folder, steps, delay)
        with Checkpoints(checkpoint_folder, identity, resume=True) as checkpoints:
            progress = checkpoints.progress()
            if progress is None:
                assert steps < 3 and not found
                continue
            restored = checkpoints.restore(template, plans[0], ["body/kernel", "head/kernel"])
        assert int(restored.step) == progress.number == len(progress.history)
        # Each run went on where the last one was, and came further if it had the time.
        assert progress.number >= max(found, default=0) + (steps >= 3)
        found[progress.number] = (fingerprint(restored.params), list(progress.history))

    expected: dict[int, str] = {}

    def on_step(number: int, state: Any) -> None:
        if number in found:
            expected[number] = fingerprint(state.params)
        if number == max(found):
            raise Stop

    with contextlib.suppress(Stop):
        train(model, data, plans, setup["SETTINGS"], on_step=on_step)
    assert {number: params for number, (params, _) in found.items()} == expected
    histories = [history for _, history in found.values()]
    assert all(history == histories[-1][: len(history)] for history in histories)


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_from_its_last_whole_checkpoint(tmp_path: Path) -> None:
    rng = random.Random(0)
    check_kills(tmp_path, [(3, rng.uniform(0.0, 0.25)) for _ in range(2)])


@pytest.mark.slow
def test_a_run_may_be_killed_twenty_times_at_any_moment(tmp_path: Path) -> None:
    rng = random.Random(1)
    # While it starts, at its first steps, and well on its way; a save takes some 50 ms.
    moments = [(rng.choice([0, 1, 3, 3, 4, 5]), rng.uniform(0.0, 0.3)) for _ in range(18)]
    check_kills(tmp_path, [*moments, (0, rng.uniform(1.0, 3.0)), (3, 0.1)])
