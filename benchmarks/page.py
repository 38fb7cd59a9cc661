"""The tables of docs/performance.md, written from what the suite measured.

    python3 -m benchmarks.page

It reads all files of docs/performance that `python3 -m benchmarks --out` and
`python3 -m benchmarks.scaling` wrote, each case in one of them, and writes the tables between the
comments `<!-- NAME -->` and `<!-- end -->` of the page anew. Nothing is measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cases import all_cases
from benchmarks.markdown import head, line, with_table
from benchmarks.tables import table

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
FOLDER = PAGE.with_suffix("")
SCALING = "scaling.json"
PLOT = "![Time and memory over the size of the batch, for 1 to 8 devices](performance/scaling.png)"
NOT_MEASURED = "Not measured yet."


@dataclass(frozen=True)
class Section:
    """A table of the page.

    Attributes:
        cases: beginnings of the names of its cases.
        figures: the keys of their figures that it shows; all if empty.
    """

    cases: tuple[str, ...]
    figures: tuple[str, ...] = ()


MEMORY = ("process_mebibytes", "steps_mebibytes", "compiler_mebibytes")
SECTIONS = {
    "steps": Section(("step/",), ("seconds",)),
    "memory": Section(("step/",), MEMORY),
    "depth": Section(("probe_memory",)),
    "cached_probe": Section(("cached_probe",)),
    "starts": Section(("import", "first_step/")),
    "options": Section(("option/",)),
    "input": Section(("input_pipeline",)),
}


def main() -> None:
    """Write all tables."""
    page = PAGE.read_text()
    for name, text in tables(FOLDER).items():
        page = with_table(page, name, text)
    PAGE.write_text(page)


def tables(folder: Path) -> dict[str, str]:
    """The tables of the page by their names.

    Args:
        folder: with the files that the suite and `benchmarks.scaling` wrote.

    Raises:
        ValueError: a case stands in two files.
    """
    measured = read(folder)
    written = {name: _section(section, measured) for name, section in SECTIONS.items()}
    return {
        "machine": _machine([found for _, found in _files(folder)]),
        **written,
        "growth": _growth(folder / SCALING),
    }


def read(folder: Path) -> dict[str, Mapping[str, Any]]:
    """The cases of all files by their names.

    Raises:
        ValueError: a case stands in two files.
    """
    measured: dict[str, Mapping[str, Any]] = {}
    for path, found in _files(folder):
        for case in found["cases"]:
            name = case["case"]
            if name in measured:
                raise ValueError(f"{path}: expected each case in one file, found {name} again")
            measured[name] = case
    return measured


def _files(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted(folder.glob("*.json")):
        if path.name != SCALING:
            yield path, json.loads(path.read_text())


def _section(section: Section, measured: Mapping[str, Mapping[str, Any]]) -> str:
    shown = [
        measured[name]
        for name in all_cases()
        if name.startswith(section.cases) and name in measured
    ]
    if not shown:
        return NOT_MEASURED
    chosen = [
        {**case, "figures": [figure for figure in case["figures"] if _is_in(figure, section)]}
        for case in shown
    ]
    return table(chosen)


def _is_in(figure: Mapping[str, Any], section: Section) -> bool:
    return not section.figures or figure["key"] in section.figures


def _machine(files: Sequence[Mapping[str, Any]]) -> str:
    """What was measured on, and what it did at best, over all files."""
    if not files:
        return NOT_MEASURED
    machines = [found["machine"] for found in files]
    versions = {
        "machine": ("processor", "cpu_count"),
        "packages": ("python", "jax", "jaxlib", "flax", "optax", "numpy"),
    }
    rows = [
        [name, ", ".join(_joined(machines, key) for key in keys)] for name, keys in versions.items()
    ]
    peers = {key for machine in machines for key in machine["peers"]}
    told = [machine["peers"] for machine in machines]
    rows.append(["peers", ", ".join(_joined(told, key) for key in sorted(peers))])
    rows.append(["code", _joined(machines, "commit")])
    for key, label in (
        ("float32_gigaflops", "largest product of matrices, GFLOP/s"),
        ("copy_gigabytes", "memory read and written, GB/s"),
    ):
        values = [machine["peaks"][key] for machine in machines]
        rows.append([label, f"{min(values):.0f} to {max(values):.0f}"])
    return "\n".join([head(("what", "which")), *map(line, rows)])


def _joined(machines: Sequence[Mapping[str, Any]], key: str) -> str:
    values = dict.fromkeys(machine[key] for machine in machines if key in machine)
    return f"{key.replace('cpu_count', 'cores')} {' or '.join(values)}"


def _growth(path: Path) -> str:
    """The plot, and the straight lines through the figures of each number of devices."""
    if not path.is_file():
        return NOT_MEASURED
    curves = json.loads(path.read_text())["curves"]
    header = ("devices", "seconds an image", "beside", "MiB an image on each", "beside")
    rows = [
        [
            str(found["devices"]),
            f"{found['seconds_per_image']:.3f}",
            f"{found['fixed_seconds']:.2f}",
            f"{found['mebibytes_per_image']:.1f}",
            f"{found['fixed_mebibytes']:.0f}",
        ]
        for found in curves
    ]
    return "\n".join([PLOT, "", head(header), *map(line, rows)])


if __name__ == "__main__":
    main()
