"""Which source? Rank models for labelled images by scores that need no training."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from jaxtransfer.cli.common import add_json, natural, positive, print_json
from jaxtransfer.cli.datasets import EMBEDDED_DATA, add_data, read_parts
from jaxtransfer.formats.output import make_folder
from jaxtransfer.models import Model
from jaxtransfer.ranking.table import Ranking
from jaxtransfer.report.ranking import NAMES, sentence, write_ranking
from jaxtransfer.surgery import truncate
from jaxtransfer.transfer import DIGITS, EMBEDDED_SOURCE, load, rank
from jaxtransfer.transfer.ranking import SCORES

PER_CLASS = 20
"""Labelled images of each class of the embedded data and of arrays."""


NAME_WIDTH = 11
"""Letters of a source's name in a line of the table at least; in narrow terminals it is folded."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `jaxtransfer rank`."""
    parser.add_argument(
        "sources",
        nargs="*",
        metavar="SOURCE",
        help="models, or files of weights of networks of the catalog (default: "
        f"{EMBEDDED_SOURCE}, and its early stages)",
    )
    add_data(parser, PER_CLASS)
    parser.add_argument(
        "--scores", nargs="+", choices=SCORES, default=list(SCORES), help="which to compute"
    )
    parser.add_argument(
        "--stages", action="store_true", help="rank each source cut off after each stage, too"
    )
    parser.add_argument(
        "--resamples", type=natural, default=100, help="of the bootstrap, for intervals of ranks"
    )
    parser.add_argument(
        "--max-examples", type=positive(int), default=1000, help="images that are looked at"
    )
    parser.add_argument("--seed", type=natural, default=0, help="of all that is random")
    parser.add_argument("--out", default="runs/rank", help="folder for the report")
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Rank, write the report, print the table or the JSON."""
    make_folder(options.out)  # better now than after the work
    begun = time.perf_counter()
    references = dict.fromkeys(options.sources or [EMBEDDED_SOURCE])
    names = _names_of(list(references))
    sources: dict[str, str | Model] = dict(zip(names, references, strict=True))
    if options.stages or not options.sources:
        for name, reference in zip(names, references, strict=True):
            sources |= _stages_of(name, reference)
    ranking = rank(
        sources,
        read_parts(options.data, options.per_class, options.seed, few_per_class=PER_CLASS).train,
        scores=options.scores,
        target=DIGITS if options.data == EMBEDDED_DATA else options.data,
        resamples=options.resamples,
        max_examples=options.max_examples,
        seed=options.seed,
    )
    paths = write_ranking(ranking, options.out)
    if options.json:
        print_json(ranking.to_dict())
        return
    _print_table(ranking)
    seconds = time.perf_counter() - begun
    print(f"Written in {seconds:.0f} s: {', '.join(map(str, paths))}")


def _names_of(references: list[str]) -> list[str]:
    """Files by their names without folders, where these differ; all else as it was given."""
    names = [Path(one).name if Path(one).is_file() else one for one in references]
    return names if len(set(names)) == len(names) else references


def _stages_of(name: str, reference: str) -> dict[str, Model]:
    """The model cut off after each stage that has parameters, but for the whole of its body."""
    model = load(reference)
    stages = [stage for stage in model.spec.stages[:-1] if stage in model.params]
    return {f"{name} up to {stage}": truncate(model, stage) for stage in stages[:-1]}


def _print_table(ranking: Ranking) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    # What no source has is told below.
    shown = [
        s for s, row in ranking.ranks.items() if any(rank is not None for rank in row.values())
    ]
    table = Table(
        title=f"Sources for {ranking.target}: rank by each score",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=0,
    )
    table.add_column("source", min_width=NAME_WIDTH, overflow="fold")
    for score in shown:
        header = "kNN" if score == "knn" else NAMES[score]  # so that 80 letters are enough
        table.add_column(header, justify="right", overflow="fold", min_width=4)
    table.add_column("mean", justify="right", no_wrap=True)
    for name in ranking.order:
        ranks = [ranking.ranks[score][name] for score in shown]
        cells = ["-" if rank is None else f"{rank:g}" for rank in ranks]
        style = "bold" if name == ranking.best else None
        table.add_row(name, *cells, ranking.shown_mean(name), style=style)
    console = Console(highlight=False)
    console.print(table)
    for score, names in ranking.unavailable.items():
        reason = next(iter(names.values()))
        console.print(f"No {NAMES[score]} for {len(names)} sources: {reason}.", style="dim")
    console.print(sentence(ranking), style="bold")
