"""What is seen of a run while it goes on: a progress bar, or a line now and then."""

from __future__ import annotations

import contextlib
import datetime
import importlib.util
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import jax
import numpy as np

from jaxtransfer.errors import TrainingError
from jaxtransfer.train.cache import CacheReport
from jaxtransfer.train.events import Callback, Event

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, Task

Style: TypeAlias = Literal["auto", "bar", "lines"]

Advance: TypeAlias = Callable[[str, int, int], None]
"""Told what is being done, how many steps of it are done and how many there are."""

# Seconds between two pictures of a bar in a notebook, which draws no faster.
REDRAW = 0.2


@contextlib.contextmanager
def progress_bar(style: Style = "auto", console: Console | None = None) -> Iterator[Callback]:
    """A callback that shows a run, on standard error or in the notebook.

    A bar shows the plan, the steps and the time left; the lines below it the loss, examples a
    second and the share of time in which steps waited for data; and the scores of the last
    evaluation. It stays when the run is over. Where there is no terminal, such as in a file of
    logs, each evaluation is a line instead, and so is each tenth of a run in which nothing was
    evaluated meanwhile. Of several processes the first one shows.

    Args:
        style: "bar" for the bar also where there is no terminal, "lines" for lines also where
            there is one.
        console: of rich, where to show; by default standard error.

    Raises:
        TrainingError: the style is unknown.

    Example:
        `with progress_bar() as show: jt.finetune(…, callbacks=[show])`
    """
    from rich.console import Console

    if style not in ("auto", "bar", "lines"):
        raise TrainingError(f"progress_bar: expected a style of auto, bar or lines, found {style}")
    if jax.process_index() != 0:
        yield lambda event: None
        return
    console = console or Console(stderr=True, force_terminal=True if style == "bar" else None)
    if style == "lines" or (style == "auto" and not can_redraw(console)):
        yield _line_printer(console)
        return
    with _training_bar(console) as show:
        yield show


@contextlib.contextmanager
def step_bar(console: Console | None = None) -> Iterator[Advance]:
    """A progress bar advanced by `(what, done, total)`; it goes when all is done.

    Where there is no terminal nothing is shown.

    Args:
        console: of rich, where to show; by default standard error.
    """
    from rich.console import Console

    console = console or Console(stderr=True)
    progress, task = _progress(console, transient=True, disable=not can_redraw(console))
    with progress:
        yield lambda what, done, total: progress.update(
            task, description=what, completed=done, total=total
        )


def can_redraw(console: Console) -> bool:
    """Whether what a console shows can be drawn anew: in a terminal, or a notebook with widgets."""
    if console.is_jupyter:
        return importlib.util.find_spec("ipywidgets") is not None
    return console.is_terminal and not console.is_dumb_terminal


@contextlib.contextmanager
def _training_bar(console: Console) -> Iterator[Callback]:
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    progress, task = _progress(console)
    shown = {"cache": "", "training": "", "validation": ""}
    skipped = 0
    drawn = 0.0

    def picture() -> Group:
        lines = [Text(f"{what:<11}{text}") for what, text in shown.items() if text]
        return Group(progress.get_renderable(), *lines)

    def show(event: Event) -> None:
        nonlocal skipped, drawn
        skipped += _skipped(event)
        progress.update(task, description=event.plan, completed=event.step, total=event.steps)
        shown["cache"] = "" if event.cache is None else str(event.cache)
        shown["training"] = _training_text(event, skipped) or shown["training"]
        if event.evaluation is not None:
            shown["validation"] = f"{_scores_text(event.evaluation)}, at step {event.step}"
        if console.is_jupyter and time.monotonic() - drawn > REDRAW:
            drawn = time.monotonic()
            live.refresh()

    # A notebook takes what other threads draw for output of the cell, so there this one draws.
    live = Live(get_renderable=picture, console=console, auto_refresh=not console.is_jupyter)
    with live:
        live.refresh()
        try:
            yield show
        finally:
            live.refresh()


def _progress(console: Console, **how: Any) -> tuple[Progress, Any]:
    """Rich's bar for steps, and its task."""
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
    from rich.text import Text

    class Steps(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(_steps_text(task))

    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        Steps(),
        console=console,
        expand=True,
        **how,
    )
    return progress, progress.add_task("loading and compiling", total=None)


def _steps_text(task: Task) -> str:
    """How many steps are done, and how long the others or they all take; nothing at first."""
    if task.total is None:
        return ""
    count = f"{task.completed:.0f}/{task.total:.0f} steps"
    if task.finished:
        return f"{count} in {_time(task.finished_time)}"
    return f"{count}, {_time(task.time_remaining)} left"


def _time(seconds: float | None) -> str:
    return "-:--:--" if seconds is None else str(datetime.timedelta(seconds=int(seconds)))


def _line_printer(console: Console) -> Callback:
    """Prints a line for an evaluation, a tenth of the run without a line, and each plan's cache."""
    tenths = 0
    skipped = 0
    cache: CacheReport | None = None

    def show(event: Event) -> None:
        nonlocal tenths, skipped, cache
        if event.cache is not None and event.cache is not cache:
            cache = event.cache
            console.print(str(cache), markup=False, highlight=False, soft_wrap=True)
        skipped += _skipped(event)
        reached = 10 * event.step // event.steps
        if event.evaluation is None and reached == tenths:
            return
        tenths = reached
        scores = event.evaluation and f"validation {_scores_text(event.evaluation)}"
        step = f"step {event.step}/{event.steps}"
        parts = [step, event.plan, _training_text(event, skipped), scores]
        text = " | ".join(part for part in parts if part)
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    return show


def _training_text(event: Event, skipped: int) -> str:
    losses = [record["loss"] for record in event.records if "loss" in record]
    if not losses:
        return ""
    parts = [
        f"loss {np.mean(losses):.4g}",
        f"{event.examples_per_second:,.0f} examples/s",
        f"{event.waiting:.0%} waiting for data",
    ]
    return ", ".join(parts + ([f"{skipped} skipped"] if skipped else []))


def _scores_text(scores: Mapping[str, float]) -> str:
    return ", ".join(_score_text(name, value) for name, value in scores.items())


def _score_text(name: str, value: float) -> str:
    words = name.replace("_", " ").replace("/", " ")
    return f"{words} {value:.1%}" if name.endswith("accuracy") else f"{words} {value:.4g}"


def _skipped(event: Event) -> int:
    """How many of the steps were left out because of a number that is not finite."""
    return sum(int(record.get("skipped", 0)) for record in event.records)
