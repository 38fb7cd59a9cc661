from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from jaxtransfer.errors import CheckpointError, OutputError
from jaxtransfer.train import Checkpoints, TakenOverWarning
from jaxtransfer.train.lock import FolderLock
from tests.train.runs import contents_of

# Holds the folder until it is killed or its standard input ends.
HOLD = """
import sys
from pathlib import Path

from jaxtransfer.train.lock import FolderLock

lock = FolderLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_run_is_refused_and_told_of_the_first_and_takes_over_when_that_is_killed(
    tmp_path: Path,
) -> None:
    with hold(tmp_path) as process:
        before = contents_of(tmp_path)
        expected = (
            rf"^{re.escape(str(tmp_path))}: expected a folder that no other run uses, found that "
            rf"process {process.pid} on {re.escape(socket.gethostname())}, running since "
            r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00, does; wait for its end, stop it, or choose"
        )
        with pytest.raises(CheckpointError, match=expected):
            Checkpoints(tmp_path, {})
        assert contents_of(tmp_path) == before
        process.send_signal(signal.SIGKILL)
        process.wait()
    # What the killed process left behind names it still, and hinders nobody.
    assert json.loads((tmp_path / "running.json").read_text())["pid"] == process.pid
    with Checkpoints(tmp_path, {}):
        assert json.loads((tmp_path / "running.json").read_text())["pid"] == os.getpid()
    assert not (tmp_path / "running.json").exists()


def test_a_process_locks_out_itself_too(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    with pytest.raises(CheckpointError, match=f"found that process {os.getpid()} on "):
        FolderLock(tmp_path)
    lock.release()
    lock.release()
    FolderLock(tmp_path).release()


def test_a_folder_is_given_back_when_it_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "5").mkdir()
    for _ in range(2):
        with pytest.raises(CheckpointError, match="expected a folder without checkpoints"):
            Checkpoints(tmp_path, {})


def test_what_a_process_of_another_host_left_is_taken_over_with_a_warning(tmp_path: Path) -> None:
    holder = {"host": "elsewhere", "pid": 7, "since": "2026-01-01T00:00:00+00:00"}
    (tmp_path / "running.json").write_text(json.dumps(holder))
    expected = "taken over from process 7 on elsewhere, running since 2026-01-01T00:00:00.00:00,"
    with pytest.warns(TakenOverWarning, match=expected):
        FolderLock(tmp_path).release()


@pytest.mark.parametrize("content", ["", "[1]", "{", "\x00\xff"])
def test_a_note_that_cannot_be_read_hinders_nobody(content: str, tmp_path: Path) -> None:
    (tmp_path / "running.json").write_text(content)
    lock = FolderLock(tmp_path)
    (tmp_path / "running.json").write_text(content)
    with pytest.raises(CheckpointError, match="found that another process does"):
        FolderLock(tmp_path)
    lock.release()


def test_a_folder_that_cannot_be_locked_is_an_error(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(OutputError, match="expected a folder that can be locked, found .*; choose"):
        FolderLock(tmp_path)
