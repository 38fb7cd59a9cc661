from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import pytest

from jaxtransfer.errors import TrainingError
from jaxtransfer.train.lock import FolderLock
from jaxtransfer.train.preemption import Preempted, leave, watch_termination
from tests.train.runs import steps_in


def test_sigterm_is_noted_and_the_handler_of_before_comes_back() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        interrupt = signal.getsignal(signal.SIGINT)
        with watch_termination() as termination:
            assert not termination.reached(1)
            os.kill(os.getpid(), signal.SIGTERM)
            assert termination.reached(2)
            os.kill(os.getpid(), signal.SIGTERM)
            assert termination.reached(3)
            assert signal.getsignal(signal.SIGINT) is interrupt
        assert seen == []
        os.kill(os.getpid(), signal.SIGTERM)
        assert seen == [signal.SIGTERM]
        with pytest.raises(RuntimeError), watch_termination():
            raise RuntimeError
        os.kill(os.getpid(), signal.SIGTERM)
        assert seen == [signal.SIGTERM] * 2
    finally:
        signal.signal(signal.SIGTERM, before)


def test_in_another_thread_nothing_is_touched() -> None:
    found: list[bool] = []
    before = signal.getsignal(signal.SIGTERM)

    def watch() -> None:
        with watch_termination() as termination:
            found.append(signal.getsignal(signal.SIGTERM) is before)
            found.append(termination.reached(1))

    thread = threading.Thread(target=watch)
    thread.start()
    thread.join()
    assert found == [True, False]


def test_who_leaves_says_so_and_ends_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Preempted) as caught:
        leave(40, tmp_path)
    assert caught.value.code == 0
    assert (caught.value.step, caught.value.folder) == (40, tmp_path)
    assert capsys.readouterr() == (
        "",
        f"{tmp_path}: asked to end, saved after step 40; resume to go on from there\n",
    )


SCRIPT = """
import os
import sys
import time

import jax

if len(sys.argv) > 2:
    jax.distributed.initialize(sys.argv[2], 2, int(sys.argv[3]))

import jax.numpy as jnp
import numpy as np

from jaxtransfer.models import Model
from jaxtransfer.partition import full
from jaxtransfer.train import Checkpoints, Progress, init_state
from jaxtransfer.train.preemption import leave, watch_termination

params = {"head": {"kernel": jnp.ones((300, 1000))}}
model = Model.from_function(lambda params, x: x @ params["head"]["kernel"], params)
plan = full(model)
state = init_state(model, plan, plan.optimizer(1e-3))


def spread(leaf):
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("data",))
    fits = leaf.ndim > 0 and leaf.shape[0] % mesh.size == 0
    spec = jax.sharding.PartitionSpec("data" if fits else None)
    if jax.process_count() == 1:
        return leaf
    sharding = jax.sharding.NamedSharding(mesh, spec if leaf.ndim else jax.sharding.PartitionSpec())
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(spread(jax.random.key_data(leaf)))
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


state = jax.tree.map(spread, state)
add = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree))

with watch_termination() as termination, Checkpoints(sys.argv[1], {}, resume=True) as checkpoints:
    names = ["head/kernel"]
    progress = checkpoints.progress()
    number = 0
    if progress is not None:
        number = progress.number
        state = checkpoints.restore(state, plan, names)
        for shard in state.params["head"]["kernel"].addressable_shards:
            assert (np.asarray(shard.data) == 1 + number).all()
    while True:
        number += 1
        parts = add({"step": state.step, "trainable": state.trainable})
        state = type(state)(**{**vars(state), **parts})
        time.sleep(0.02)
        history = tuple({"step": step} for step in range(1, number + 1))
        print(number, flush=True)
        if termination.reached(number):
            checkpoints.save(state, names, Progress(number, 0, history))
            print("saving", flush=True)
            checkpoints.wait()
            leave(number, checkpoints.folder)
"""


def start(script: Path, *arguments: str) -> subprocess.Popen[str]:
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(
        [sys.executable, str(script), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**environment, "JAX_NUM_CPU_DEVICES": "2"},
        text=True,
    )


def read_until(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None and process.stderr is not None
    for found in process.stdout:
        if found == f"{line}\n":
            return
    raise AssertionError(process.stderr.read())


def test_a_process_that_is_terminated_saves_and_ends_with_success(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with start(tmp_path / "run.py", str(folder)) as process:
        read_until(process, "3")
        process.send_signal(signal.SIGTERM)
        read_until(process, "saving")
        # Impatient schedulers ask again, while the checkpoint is written and afterwards.
        for _ in range(5):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.002)
        _, errors = process.communicate(timeout=60)
    (saved,) = steps_in(folder)
    assert saved >= 3
    assert process.returncode == 0
    expected = f"{folder}: asked to end, saved after step {saved}; resume to go on from there\n"
    assert errors == expected
    assert not (folder / "running.json").exists()


@pytest.mark.slow
def test_all_processes_of_a_run_save_the_same_step_when_one_is_terminated(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for attempt in range(2):  # the second one goes on where the first one ended
        address = f"localhost:{free_port()}"
        processes = [
            start(tmp_path / f"run{rank}.py", str(folder), address, str(rank)) for rank in (0, 1)
        ]
        try:
            for process in processes:
                read_until(process, "3" if attempt == 0 else str(steps_in(folder)[-1] + 3))
            processes[1].send_signal(signal.SIGTERM)
            ends = [process.communicate(timeout=60) for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.communicate()
        assert [process.returncode for process in processes] == [0, 0], ends
        saved = steps_in(folder)[-1]
        last = [[line for line in out.splitlines() if line.isdigit()][-1] for out, _ in ends]
        assert last == [str(saved)] * 2
        assert len(steps_in(folder)) == attempt + 1
        assert f"saved after step {saved}" in ends[0][1]
        assert "saved after" not in ends[1][1]


@pytest.mark.slow
def test_all_processes_of_a_run_are_refused_where_another_run_has_the_folder(
    tmp_path: Path,
) -> None:
    address = f"localhost:{free_port()}"
    lock = FolderLock(tmp_path)
    processes = [
        start(tmp_path / f"run{rank}.py", str(tmp_path), address, str(rank)) for rank in (0, 1)
    ]
    try:
        ends = [process.communicate(timeout=60) for process in processes]
    finally:
        lock.release()
        for process in processes:
            process.kill()
            process.communicate()
    assert [process.returncode for process in processes] == [1, 1]
    assert f"found that process {os.getpid()} on" in ends[0][1]
    assert "expected a folder that the first process can lock" in ends[1][1]


def test_without_the_service_several_processes_cannot_agree(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    jax.config.update("jax_enable_preemption_service", False)
    try:
        with pytest.raises(TrainingError, match="found it turned off"), watch_termination():
            pass
    finally:
        jax.config.update("jax_enable_preemption_service", True)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]
