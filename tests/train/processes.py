"""Runs a program in several processes of this machine, which find each other on a free port."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit status, negative for a signal, and all that it wrote."""

    status: int
    text: str


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


@contextmanager
def started(
    program: Sequence[str | Path],
    arguments: Sequence[str],
    count: int,
    devices: int,
    folder: Path,
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """`count` processes that run `program --process-id … arguments`; at the end they are killed.

    A single process gets no coordinator. What they write goes to files in the folder, see `output`.
    """
    coordinator = ["--coordinator", f"localhost:{free_port()}", "--processes", str(count)]
    environment = {
        **os.environ,
        "JAX_NUM_CPU_DEVICES": str(devices),
        "PYTHONPATH": str(ROOT),
        # A folder that several processes share at once is no place for compiled programs.
        "JAX_ENABLE_COMPILATION_CACHE": "false",
    }
    with ExitStack() as stack:
        running = []
        for number in range(count):
            own = [*coordinator, "--process-id", str(number)] if count > 1 else []
            process = subprocess.Popen(
                [sys.executable, *program, *own, *arguments],
                stdout=stack.enter_context(output(folder, number, count).open("wb")),
                stderr=subprocess.STDOUT,
                env=environment,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            running.append(process)
        yield running


def output(folder: Path, number: int, count: int) -> Path:
    """The file with all that one of the processes writes."""
    return folder / f"process{number}of{count}.txt"


def run_processes(
    program: Sequence[str | Path],
    arguments: Sequence[str],
    count: int,
    devices: int,
    folder: Path,
    limit: float,
) -> list[Ended]:
    """How the processes of `started` end by themselves.

    What is still running after `limit` seconds is killed, and that is an error.
    """
    with started(program, arguments, count, devices, folder) as running:
        statuses = [process.wait(limit) for process in running]
    return [
        Ended(status, output(folder, number, count).read_text())
        for number, status in enumerate(statuses)
    ]
