"""The suite: every case in processes of their own that take turns, ours beside its peers.

    python3 -m benchmarks [--only step/resnet50] [--pairs 5] [--peers PYTHON] [--out FILE]
    python3 -m benchmarks --tables FILE...

The peers are PyTorch with torchvision, and Keras on JAX. `--peers` names the interpreter that has
them, by default this one; `--shims` modules that it must import first. Without them ours is
measured alone. Nothing is downloaded, and it runs unchanged on one GPU.

The table has the ratio of ours to the best peer first, the median over pairs with the lowest and
the highest. Below it stands how much of what the device can do at best the steps reach. With
`--out` all figures of all runs are written as JSON, with the machine, the versions and the commit;
`--tables` prints the tables of such files.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.cases import all_cases
from benchmarks.suite import ROOT, Machine, Runner, measure
from benchmarks.tables import rates, table


def main() -> None:
    """Measure the cases that are asked for, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="CASE", help="beginnings of names"
    )
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    parser.add_argument("--pairs", type=int, default=5, help="runs of each")
    parser.add_argument("--steps", type=int, default=4, help="that are timed in each run")
    parser.add_argument("--peers", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--shims", default="", metavar="MODULES", help="with commas between")
    parser.add_argument(
        "--set",
        nargs="+",
        type=_variable,
        default=[],
        metavar="NAME=VALUE",
        help="in the environment of all",
    )
    parser.add_argument("--out", type=Path, metavar="FILE")
    parser.add_argument("--tables", type=Path, nargs="+", metavar="FILE")
    options = parser.parse_args()
    if options.tables:
        for file in options.tables:
            found = json.loads(file.read_text())
            print(table(found["cases"]))
            print(rates(found["cases"], found["machine"]["peaks"]))
        return
    cases = [
        case
        for name, case in all_cases(options.steps).items()
        if name.startswith(tuple(options.only))
    ]
    if options.list or not cases:
        print("\n".join(all_cases()))
        return
    with tempfile.TemporaryDirectory() as cache:
        # Steps are timed after they are compiled: later pairs may find them compiled.
        kept = {"JAX_COMPILATION_CACHE_DIR": cache, "TORCHINDUCTOR_CACHE_DIR": cache}
        chosen = dict(options.set)
        machine = Machine(options.peers, options.shims, {**kept, **chosen})
        found: dict[str, Any] = {
            "machine": machine_of(machine),
            "set": chosen,
            "pairs": options.pairs,
            "cases": [],
        }
        for case in cases:
            if case.needs_accelerator and found["machine"]["backend"] == "cpu":
                _say(f"{case.name}: left out, there is no accelerator")
                continue
            found["cases"].append(measure(case, machine, options.pairs, say=_say))
            if options.out is not None:  # what is measured stays, whatever comes
                options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found["cases"]))
    print(rates(found["cases"], found["machine"]["peaks"]))


def machine_of(machine: Machine) -> dict[str, Any]:
    """Versions, device, commit, and what the device can do at best.

    A process of its own looks at the device: this one would keep the memory of a GPU from others.
    """
    told = machine.run(Runner("peaks", "peaks"), {})
    found: dict[str, Any] = {**told["environment"], "backend": told["backend"]}
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    found["commit"] = commit.stdout.strip()
    found["processor"] = _processor()
    found["peers"] = machine.versions()
    found["load"] = os.getloadavg()[0]
    found["peaks"] = told["peaks"]
    return found


def _processor() -> str:
    """The name that Linux knows it by, or what Python knows."""
    if (told := Path("/proc/cpuinfo")).exists():
        for line in told.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _variable(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not (name and sign):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, found {text!r}")
    return name, value


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
