"""The tables of docs/results.md: runs the studies and writes what they found.

    python3 -m benchmarks.results DATA [--only NAME …] [--quick]
    python3 -m benchmarks.results --tables

DATA has the folders `weights` and `datasets` with the files that `STUDIES` names. Each study is a
process of its own and leaves docs/results/NAME.json; its table in docs/results.md, between the
comments `<!-- NAME -->` and `<!-- end -->`, is written anew. `--tables` only writes tables, from
the JSON files that are there. Expected: about two hours on two cores; `--quick`, which shows that
all of it runs and proves nothing, takes a few minutes and writes to a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import ants_and_bees, mnist_few_shot, source_ranking
from benchmarks.markdown import with_table

PAGE = Path(__file__).parents[1] / "docs" / "results.md"
RESULTS = PAGE.with_suffix("")

IMAGES = "datasets/hymenoptera_short256.zip"
SQUEEZENET = "weights/squeezenet_v1.1_keras_notop/*.h5"
MOBILENET = "weights/mobilenet_v1_0.25_224_keras_notop/*.h5"
RESNET20 = "weights/cifar10_resnet/resnet20-*.th"


@dataclass(frozen=True)
class Study:
    """A benchmark whose table is on the page.

    Attributes:
        markdown: from its JSON file to the table.
        arguments: of its command, paths below the data; `IMAGES` becomes the folder with the
            images of the archive.
    """

    markdown: Callable[[dict[str, Any]], str]
    arguments: tuple[str, ...]


STUDIES = {
    "ants_and_bees": Study(ants_and_bees.markdown, (IMAGES, SQUEEZENET, MOBILENET)),
    "mnist_few_shot": Study(mnist_few_shot.markdown, ("datasets/mnist", RESNET20)),
    "source_ranking": Study(source_ranking.markdown, (".", IMAGES)),
}


def main() -> None:
    """Run what is asked for, and write tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--only", nargs="+", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--tables", action="store_true", help="write tables, run nothing")
    options = parser.parse_args()
    if options.tables == bool(options.data):
        parser.error("expected the folder of the data, or --tables")
    with tempfile.TemporaryDirectory() as temporary:
        results = Path(temporary) if options.quick else RESULTS
        results.mkdir(exist_ok=True)
        for name in options.only:
            if options.data:
                run(name, options.data, results, options.quick, Path(temporary) / "images")
            table = STUDIES[name].markdown(json.loads((results / f"{name}.json").read_text()))
            print(table)
            if not options.quick:
                PAGE.write_text(with_table(PAGE.read_text(), name, table))


def run(name: str, data: Path, results: Path, quick: bool, images: Path) -> None:
    """One study in a process of its own."""
    arguments = [_path(data, argument, images) for argument in STUDIES[name].arguments]
    quickly = ["--quick"] if quick else []
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments, *quickly]
    subprocess.run([*command, "--out", str(results / f"{name}.json")], check=True)


def _path(data: Path, argument: str, images: Path) -> str:
    if argument == IMAGES:
        if not images.exists():
            with zipfile.ZipFile(data / IMAGES) as archive:
                archive.extractall(images)
        (training,) = images.rglob("train/ants")
        return str(training.parents[1])
    (found,) = data.glob(argument) if "*" in argument else [data / argument]
    return str(found)


if __name__ == "__main__":
    main()
