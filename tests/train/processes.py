"""Runs a program in several processes of this machine, which find each other on a free port."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
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


def run_processes(
    program: Path, arguments: Sequence[str], count: int, devices: int, folder: Path, limit: float
) -> list[Ended]:
    """The ends of `count` processes that run `program --process-id … arguments`.

    A single process gets no coordinator. What is still running after `limit` seconds is killed, and
    that is an error.
    """
    coordinator = ["--coordinator", f"localhost:{free_port()}", "--processes", str(count)]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": str(ROOT)}
    outputs = [folder / f"process{number}of{count}.txt" for number in range(count)]
    with ExitStack() as stack:
        running = []
        for number, output in enumerate(outputs):
            own = [*coordinator, "--process-id", str(number)] if count > 1 else []
            process = subprocess.Popen(
                [sys.executable, program, *own, *arguments],
                stdout=stack.enter_context(output.open("w")),
                stderr=subprocess.STDOUT,
                env=environment,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            running.append(process)
        statuses = [process.wait(limit) for process in running]
    return [
        Ended(status, output.read_text()) for status, output in zip(statuses, outputs, strict=True)
    ]
