"""Cases that are measured in processes of their own, which take turns, and what came of them.

A process is told what to do by its arguments, and prints an object of JSON as its last line: a
figure, or a list of them whose median counts, under the name that the case compares.
"""

from __future__ import annotations

import functools
import json
import operator
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / "benchmarks" / "peers"
OURS = "jaxtransfer"

# So that a peer may need another module to be imported first: `runpy` runs its file after it.
_START = """
import runpy, sys
for module in sys.argv[1].split(","):
    if module:
        __import__(module)
del sys.argv[:2]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
_LOOK_FOR = """
import importlib.util, sys
sys.exit(not all(map(importlib.util.find_spec, sys.argv[1:])))
"""
_VERSIONS = """
import json, sys
from importlib import metadata
installed = {found.name: found.version for found in metadata.distributions()}
print(json.dumps({name: installed[name] for name in sys.argv[1:] if name in installed}))
"""
PEER_PACKAGES = ("torch", "torchvision", "keras", "jax")


@dataclass(frozen=True)
class Runner:
    """Who is measured: a module of `benchmarks.ours`, or a file of `benchmarks/peers`.

    Attributes:
        name: in the table.
        script: the name of the module or of the file.
        arguments: of the command line. `{case}` is a folder of the case, `{pair}` one of each pair.
        needs: modules that the interpreter must have.
    """

    name: str
    script: str
    arguments: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()

    @property
    def is_peer(self) -> bool:
        """Whether it is a file for the other interpreter."""
        return (PEERS / f"{self.script}.py").exists()


@dataclass(frozen=True)
class Figure:
    """What is compared.

    Attributes:
        key: its name in what the processes print.
        label: in the table.
        unit: in the table.
        target: what the ratio, ours to the peer's, should reach; `None` for what is told alone.
        more_is_better: whether the ratio should be at least the target, not at most.
        own_ratio: whether it is a ratio by itself, which the processes measured.
        decimals: in the table.
    """

    key: str
    label: str
    unit: str
    target: float | None = None
    more_is_better: bool = False
    own_ratio: bool = False
    decimals: int = 2


@dataclass(frozen=True)
class Case:
    """Who is compared by what.

    Attributes:
        name: by which it is asked for.
        title: in the table.
        ours: what is measured.
        peers: what it is compared with: for each figure the best of them counts.
        figures: the first is told while it runs.
        prepare: what runs once, before the first pair.
        peers_first: whether ours runs after its peers, of which it finds something.
        needs_accelerator: whether it is left out on a CPU.
    """

    name: str
    title: str
    ours: Runner
    peers: tuple[Runner, ...]
    figures: tuple[Figure, ...]
    prepare: tuple[Runner, ...] = ()
    peers_first: bool = False
    needs_accelerator: bool = False


@dataclass(frozen=True)
class Machine:
    """Which interpreters run what.

    Attributes:
        peers: the interpreter of the peers.
        shims: modules that it imports first, with commas between.
        environment: variables for all processes.
    """

    peers: str = sys.executable
    shims: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)

    def has(self, modules: Sequence[str]) -> bool:
        """Whether the peers' interpreter has them."""
        return _has(self.peers, *modules)

    def versions(self) -> dict[str, str]:
        """Of those `PEER_PACKAGES` that the peers' interpreter has."""
        command = [self.peers, "-c", _VERSIONS, *PEER_PACKAGES]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return json.loads(told)

    def run(self, runner: Runner, folders: Mapping[str, str]) -> dict[str, Any]:
        """What a process prints, and its arguments with the folders filled in."""
        arguments = [argument.format(**folders) for argument in runner.arguments]
        if runner.is_peer:
            path = str(PEERS / f"{runner.script}.py")
            command = [self.peers, "-c", _START, self.shims, path, *arguments]
        else:
            command = [sys.executable, "-m", f"benchmarks.ours.{runner.script}", *arguments]
        searched = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        done = subprocess.run(
            command,
            env={**os.environ, **self.environment, "PYTHONPATH": searched},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(
                f"{runner.name}: expected {' '.join(command)} to end well, found exit status "
                f"{done.returncode}; what it says stands above"
            )
        lines = done.stdout.splitlines()
        return json.loads(lines[-1]) if lines else {}


@functools.cache
def _has(interpreter: str, *modules: str) -> bool:
    command = [interpreter, "-c", _LOOK_FOR, *modules]
    return subprocess.run(command, check=False).returncode == 0


def measure(
    case: Case, machine: Machine, pairs: int, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """The figures of all runs, by runner; and the ratios of `compared`.

    A peer that fails is named and left out from there on; where ours fails, all ends.

    Args:
        case: what is measured.
        machine: with which interpreters.
        pairs: how often each runs.
        say: told of each run.
    """
    peers = [peer for peer in case.peers if not peer.is_peer or machine.has(peer.needs)]
    missing = [peer.name for peer in case.peers if peer not in peers]
    if missing:
        say(f"{case.name}: {', '.join(missing)} left out, not in the interpreter of the peers")
    runners = [*peers, case.ours] if case.peers_first else [case.ours, *peers]
    runs: dict[str, list[dict[str, Any]]] = {runner.name: [] for runner in runners}
    with tempfile.TemporaryDirectory() as folder:
        shared = Path(folder) / "case"
        shared.mkdir()
        for runner in case.prepare:
            if not runner.is_peer or machine.has(runner.needs):
                machine.run(runner, {"case": str(shared)})
        for number in range(pairs):
            pair = Path(folder) / f"pair{number}"
            pair.mkdir()
            for runner in list(runners):
                try:
                    found = machine.run(runner, {"case": str(shared), "pair": str(pair)})
                except RuntimeError as error:
                    if not runner.is_peer:
                        raise
                    say(f"{case.name}: {runner.name} left out: {error}")
                    runners.remove(runner)
                    del runs[runner.name]
                    continue
                runs[runner.name].append(found)
                first = case.figures[0]
                value = value_of(found, first.key)
                say(f"{case.name} {number + 1}/{pairs} {runner.name}: {value:.3f} {first.unit}")
    return {
        "case": case.name,
        "title": case.title,
        "ours": case.ours.name,
        "peers": [peer.name for peer in peers if peer.name in runs],
        "runs": runs,
        "figures": [compared(figure, case, runs) for figure in case.figures],
    }


def value_of(found: Mapping[str, Any], key: str) -> float:
    """A figure of one run: the median where it is a list."""
    value = found[key]
    return float(statistics.median(value)) if isinstance(value, list) else float(value)


def compared(
    figure: Figure, case: Case, runs: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    """Medians and ranges of a figure, and the ratio of ours to the best peer in pairs.

    Returns:
        `medians`, `lowest` and `highest` by runner, of those that print the figure; `peer`, the
        best of them or `None`; `ratio`, the median over pairs, and its range; `is_reached`.
    """
    values = {
        name: [value_of(run, figure.key) for run in found]
        for name, found in runs.items()
        if found and all(figure.key in run for run in found)
    }
    medians = {name: statistics.median(found) for name, found in values.items()}
    best = max if figure.more_is_better else min
    others = [name for name in medians if name != case.ours.name]
    peer = best(others, key=medians.__getitem__) if others else None
    told: dict[str, Any] = {
        "key": figure.key,
        "label": figure.label,
        "unit": figure.unit,
        "decimals": figure.decimals,
        "target": figure.target,
        "more_is_better": figure.more_is_better,
        "medians": medians,
        "lowest": {name: min(found) for name, found in values.items()},
        "highest": {name: max(found) for name, found in values.items()},
        "peer": peer,
    }
    mine = values.get(case.ours.name, [])
    ratios = mine if figure.own_ratio else []
    if mine and peer is not None:
        ratios = [ours / its for ours, its in zip(mine, values[peer], strict=True)]
    if not ratios:
        return told
    ratio = statistics.median(ratios)
    told |= {"ratio": ratio, "ratios": [min(ratios), max(ratios)]}
    if figure.target is not None:
        reaches = operator.ge if figure.more_is_better else operator.le
        told["is_reached"] = reaches(ratio, figure.target)
    return told
