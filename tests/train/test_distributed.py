from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.errors import TrainingError
from jaxtransfer.train import Sharding, distributed
from jaxtransfer.tree import flatten
from tests.train.processes import ROOT, Ended, output, run_processes, started

PROGRAM = ROOT / "tests" / "train" / "train_in_processes.py"
STEPS = 6


# ---------------------------------------------------------------------------------------------
# One process


def test_alone_there_is_nothing_to_join() -> None:
    jax.devices()  # they are in use: to join others would be too late
    distributed.initialize()
    distributed.initialize()
    assert not jax.distributed.is_initialized()


def test_a_cluster_is_found_by_what_it_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("SLURM_JOB_ID", "7"),
        ("SLURM_STEP_NODELIST", "node[1-2]"),
        ("SLURM_NTASKS", "2"),
        ("SLURM_PROCID", "0"),
        ("SLURM_LOCALID", "0"),
    ):
        monkeypatch.setenv(name, value)
    jax.devices()
    with pytest.raises(TrainingError, match="the cluster before JAX uses its devices"):
        distributed.initialize()


def test_to_join_comes_before_any_use_of_devices() -> None:
    jax.devices()
    with pytest.raises(TrainingError, match="2 processes at localhost:1234 before .* call init"):
        distributed.initialize("localhost:1234", 2, 0)


def test_all_bad_arguments_are_named_at_once() -> None:
    with pytest.raises(TrainingError) as error:
        distributed.initialize("localhost", 2, 2, patience=0)
    for text in (
        "coordinator as host:port, found 'localhost'",
        "process_id from 0, below 2, found 2",
        "patience of at least 1 second, found 0",
    ):
        assert text in str(error.value)


def test_arguments_that_nothing_tells_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrainingError, match="expected coordinator, process_id too, as no cluster"):
        distributed.initialize(processes=2)
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1234")
    with pytest.raises(TrainingError, match="expected processes, process_id too"):
        distributed.initialize()


def test_a_process_alone_agrees_with_itself() -> None:
    assert distributed.is_primary()
    assert distributed.process_rows(7) == slice(0, 7)
    assert distributed.agree(True) and not distributed.agree(False)
    tree = Sharding(fsdp=8, min_size=1).place({"a": jnp.arange(8.0), "b": jnp.ones(3)})
    for found in (distributed.gather(tree), distributed.broadcast(tree)):
        assert isinstance(found["a"], np.ndarray)
        np.testing.assert_array_equal(found["a"], np.arange(8.0))
    key = jax.random.key(3)
    np.testing.assert_array_equal(distributed.gather(key), jax.random.key_data(key))
    distributed.barrier("here")


# ---------------------------------------------------------------------------------------------
# Several processes of this machine


def ends_of(
    folder: Path, count: int, devices: int, *options: str, limit: float = 90
) -> list[Ended]:
    arguments = ["--folder", str(folder), "--steps", str(STEPS), *options]
    return run_processes([PROGRAM], arguments, count, devices, folder, limit)


def finished(folder: Path, count: int, devices: int, *options: str) -> tuple[list[float], dict]:
    """The losses and the last values of a run that must come to its end."""
    for ended in ends_of(folder, count, devices, *options):
        assert ended.status == 0, ended.text
    with np.load(folder / "state.npz") as state:
        return json.loads((folder / "losses.json").read_text()), dict(state)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[float], dict]:
    """The run in one process on one device."""
    return finished(tmp_path_factory.mktemp("one"), 1, 1)


def assert_same(found: tuple[list[float], dict], expected: tuple[list[float], dict]) -> None:
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    assert len(found[0]) == STEPS and found[1].keys() == expected[1].keys()
    for name, values in found[1].items():
        np.testing.assert_allclose(values, expected[1][name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [(), ("--fsdp", "2", "--tensor", "2"), ("--tensor", "4")],
    ids=["data", "fsdp and tensor", "tensor over both"],
)
def test_two_processes_train_as_one_does(
    options: tuple[str, ...], tmp_path: Path, one_process: tuple[list[float], dict]
) -> None:
    assert_same(finished(tmp_path, 2, 2, *options), one_process)


@pytest.mark.slow
def test_all_processes_leave_at_the_same_step(tmp_path: Path) -> None:
    losses, _ = finished(tmp_path, 2, 2, "--leave", "1", "3")
    assert len(losses) == 3


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_after_a_kill_the_others_end_and_one_process_goes_on(
    victim: int, tmp_path: Path, one_process: tuple[list[float], dict]
) -> None:
    patience, saving = 5, ("--fsdp", "2", "--save-every", "2")
    ends = ends_of(
        tmp_path, 2, 2, *saving, "--kill", str(victim), "5", "--patience", str(patience), limit=90
    )
    assert ends[victim].status == -signal.SIGKILL
    assert ends[1 - victim].status == -signal.SIGABRT, ends[1 - victim].text
    assert "JAX distributed service detected fatal errors" in ends[1 - victim].text
    assert not (tmp_path / "losses.json").exists()
    assert_same(finished(tmp_path, 1, 1, "--save-every", "2"), one_process)


# ---------------------------------------------------------------------------------------------
# The command in several processes

COMMAND = ("-m", "jaxtransfer.cli.main", "finetune")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source whose larger kernels are cut by `--fsdp`, and a target of three classes."""
    folder = tmp_path_factory.mktemp("files")
    model = jt.init("cifar_resnet8", in_channels=1, width=16, input_size=(8, 8), num_classes=3)
    model.with_labels(["0", "1", "x"]).save(folder / "model")
    digits = jt.load_digits()
    few = digits.take(np.flatnonzero(digits.labels < 3))
    np.savez(folder / "digits.npz", images=few.images, labels=few.labels)
    return folder


def command_arguments(files: Path, out: Path) -> list[str]:
    return [
        *("--source", str(files / "model"), "--data", str(files / "digits.npz")),
        *("--steps", "60", "--batch-size", "8", "--learning-rate", "1e-3", "--save-every", "10"),
        *("--log", "jsonl", "--out", str(out)),
    ]


def records_in(out: Path) -> list[dict]:
    """What a run recorded of each step, but for the plan's name and how fast it was."""
    lines = (out / "history.jsonl").read_text().splitlines()
    left_out = ("plan", "examples_per_second", "waiting")
    return [{k: v for k, v in json.loads(line).items() if k not in left_out} for line in lines]


def wait_for(checkpoint: Path, running: list, limit: float) -> None:
    deadline = time.monotonic() + limit
    while not checkpoint.is_dir():
        assert all(process.poll() is None for process in running), "ended too early"
        assert time.monotonic() < deadline, f"no {checkpoint}"
        time.sleep(0.01)


@pytest.mark.slow
def test_the_command_in_two_processes_is_killed_and_goes_on_in_one(
    tmp_path: Path, files: Path
) -> None:
    arguments = command_arguments(files, tmp_path / "out")
    with started(COMMAND, [*arguments, "--fsdp", "2"], 2, 1, tmp_path) as running:
        wait_for(tmp_path / "out" / "checkpoints" / "40", running, 240)
        running[0].kill()
        statuses = [process.wait(60) for process in running]
    texts = [output(tmp_path, number, 2).read_text() for number in (0, 1)]
    assert statuses == [-signal.SIGKILL, -signal.SIGABRT], texts
    assert "step 40/60 | lp_ft: all" in texts[0] and "| lp_ft" not in texts[1]
    assert not (tmp_path / "out" / "config.json").exists()

    whole = command_arguments(files, tmp_path / "whole")
    (ended,) = run_processes(COMMAND, [*arguments, "--resume"], 1, 1, tmp_path, 240)
    assert ended.status == 0, ended.text
    assert "step 40/60" not in ended.text and "step 60/60" in ended.text
    (ended,) = run_processes(COMMAND, whole, 1, 1, tmp_path, 240)
    assert ended.status == 0, ended.text

    found, expected = records_in(tmp_path / "out"), records_in(tmp_path / "whole")
    assert [record["step"] for record in found] == list(range(1, 61))
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-6)
    resumed, uninterrupted = jt.load(tmp_path / "out"), jt.load(tmp_path / "whole")
    for name, difference in differences(resumed, uninterrupted).items():
        assert difference < 1e-3, name


def differences(model: jt.Model, other: jt.Model) -> dict[str, float]:
    """By leaf, how far two models are apart, relative to how large the leaf's numbers are."""
    trees = [flatten({"params": m.params, "stats": m.stats}) for m in (model, other)]
    assert trees[0].keys() == trees[1].keys()
    return {
        name: float(np.abs(leaf - trees[1][name]).max() / np.abs(leaf).max())
        for name, leaf in trees[0].items()
    }
