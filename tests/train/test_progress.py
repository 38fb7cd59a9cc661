from __future__ import annotations

import importlib.machinery
import io
import sys
import types
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import jax
import pytest
from rich.console import Console
from rich.text import Text

from jaxtransfer.errors import TrainingError
from jaxtransfer.train import CacheReport, Event, progress_bar, step_bar


def event(step: int, evaluation: dict[str, float] | None = None, skipped: int = 0) -> Event:
    """What is told after ten steps more."""
    losses = [float(10 * step + i) for i in range(10)]
    records = [
        {"step": step - 9 + i, "loss": loss, "skipped": 0.0} for i, loss in enumerate(losses)
    ]
    for record in records[:skipped]:
        record["skipped"] = 1.0
    return Event(
        step=step,
        steps=40,
        plan="lp_ft: head [new]",
        records=tuple(records),
        evaluation=evaluation,
        examples_per_second=1234.4,
        waiting=0.0314,
        state=cast(Any, None),
    )


RUN = (
    event(10, skipped=2),
    event(20, {"loss": 0.25, "accuracy": 0.875, "size/r_squared": 0.5}),
    event(30, skipped=1),
)


def terminal(width: int = 80) -> Console:
    """A console that keeps what is shown, as plain lines."""
    kind = {"TERM": "xterm"}
    return Console(file=io.StringIO(), force_terminal=True, width=width, record=True, _environ=kind)


def show(console: Console, **how: Any) -> list[str]:
    """The lines that are there when a run is over."""
    with progress_bar(console=console, **how) as callback:
        for one in RUN:
            assert callback(one) is None  # what watches ends no run
    *_, last = console.export_text().rpartition("lp_ft: head")
    return ["lp_ft: head" + line if i == 0 else line for i, line in enumerate(last.splitlines())]


@pytest.fixture
def widgets(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A notebook with widgets; what its cell shows, oldest first."""
    shown: list[str] = []

    class Output:
        def __enter__(self) -> None: ...

        def __exit__(self, *exception: object) -> None: ...

        def clear_output(self, wait: bool) -> None:
            assert wait

    def display(value: Any) -> None:
        if not isinstance(value, Output):
            shown.append(Text.from_ansi(value._repr_mimebundle_((), ())["text/plain"]).plain)

    fakes = {
        "IPython": {},
        "IPython.display": {"display": display},
        "ipywidgets": {"Output": Output},
    }
    for name, members in fakes.items():
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    return shown


# ---------------------------------------------------------------------------------------------
# The bar


def test_the_bar_shows_plan_steps_speed_and_scores() -> None:
    bar, training, validation = show(terminal())
    assert bar.startswith("lp_ft: head [new] ━") and "30/40 steps," in bar and "left" in bar
    assert training == "training   loss 304.5, 1,234 examples/s, 3% waiting for data, 3 skipped"
    assert validation == "validation loss 0.25, accuracy 87.5%, size r squared 0.5, at step 20"


@pytest.mark.parametrize("width", [80, 120])
def test_the_bar_takes_the_whole_width_and_no_more(width: int) -> None:
    lines = show(terminal(width))
    assert len(lines[0]) == width == max(map(len, lines))


def test_what_is_printed_meanwhile_stands_above_the_bar() -> None:
    console = terminal()
    with progress_bar(console=console) as callback:
        callback(RUN[0])
        console.print("something else")
    text = console.export_text()
    assert text.index("something else") < text.rindex("10/40 steps")


# ---------------------------------------------------------------------------------------------
# Lines


def lines_of(run: Sequence[Event], **how: Any) -> list[str]:
    """What is printed of a run where there is no terminal, or lines are asked for."""
    file = io.StringIO()
    console = Console(file=file, width=40, force_terminal=bool(how))
    with progress_bar(console=console, **how) as callback:
        for one in run:
            assert callback(one) is None
    return file.getvalue().splitlines()


@pytest.mark.parametrize("how", [{}, {"style": "lines"}])
def test_without_a_terminal_each_evaluation_is_a_line(how: dict[str, Any]) -> None:
    run = [replace(one, steps=400) for one in RUN]
    assert lines_of(run, **how) == [
        "step 20/400 | lp_ft: head [new] | loss 204.5, 1,234 examples/s, 3% waiting for data, "
        "2 skipped | validation loss 0.25, accuracy 87.5%, size r squared 0.5"
    ]


def test_without_evaluations_each_tenth_of_a_run_is_a_line() -> None:
    run = [replace(event(step), steps=200) for step in range(10, 201, 10)]
    assert [line.split(" | ")[0] for line in lines_of(run)] == [
        f"step {step}/200" for step in range(20, 201, 20)
    ]


def test_what_was_computed_once_is_a_line_of_each_plan() -> None:
    file = io.StringIO()
    reports = (CacheReport("head", "all trains"), CacheReport("all", "too large"))
    events = [
        replace(one, steps=400, cache=report) for report in reports for one in (RUN[0], RUN[2])
    ]
    with progress_bar("lines", Console(file=file)) as callback:
        for one in events:
            callback(one)
    lines = [f"{one.plan}: nothing cached, since {one.reason}" for one in reports]
    assert file.getvalue().splitlines() == lines
    console = terminal()
    with progress_bar(console=console) as callback:
        callback(events[0])
    assert f"cache      {lines[0]}" in console.export_text()


def test_without_a_terminal_there_is_no_bar_of_steps(capsys: pytest.CaptureFixture[str]) -> None:
    with step_bar() as advance:
        advance("pretrain", 1, 2)
    assert capsys.readouterr() == ("", "")


def test_a_bar_that_is_asked_for_is_shown_without_a_terminal_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress_bar("bar") as callback:
        callback(RUN[0])
    out, err = capsys.readouterr()
    assert out == "" and "10/40" in err


def test_an_evaluation_before_the_first_step_has_no_loss_of_training() -> None:
    file = io.StringIO()
    first = Event(0, 40, "probe", (), {"loss": 2.5}, 0.0, 0.0, cast(Any, None))
    with progress_bar("lines", Console(file=file)) as callback:
        callback(first)
    assert file.getvalue() == "step 0/40 | probe | validation loss 2.5\n"


# ---------------------------------------------------------------------------------------------
# Notebooks, processes, other bars


def test_a_notebook_shows_the_same_bar(widgets: list[str]) -> None:
    show(Console(force_jupyter=True, width=80, record=True))
    assert "loading and compiling" in widgets[0]
    last = [text for text in widgets if text.strip()][-1].splitlines()
    assert "30/40 steps," in last[0] and "3 skipped" in last[1] and "accuracy 87.5%" in last[2]


def test_a_notebook_without_widgets_shows_lines(
    widgets: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    show(Console(force_jupyter=True, width=80, record=True))
    assert [text.split(" | ")[0] for text in widgets] == ["step 10/40", "step 20/40", "step 30/40"]


def test_only_the_first_process_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    for style in ("bar", "lines"):
        console = terminal()
        show(console, style=style)
        assert console.export_text() == ""


def test_a_bar_of_steps_goes_when_all_is_done() -> None:
    console = terminal()
    with step_bar(console) as advance:
        advance("pretrain [a]", 1, 4)
        advance("pretrain [a]", 2, 4)
    assert "pretrain [a]" in console.export_text()
    assert cast(io.StringIO, console.file).getvalue().endswith("\x1b[1A\x1b[2K")


def test_an_unknown_style_is_told() -> None:
    with (
        pytest.raises(TrainingError, match="auto, bar or lines, found loud"),
        progress_bar(cast(Any, "loud")),
    ):
        pass


def test_before_the_first_step_and_after_the_last_one_no_time_is_left() -> None:
    console = terminal()
    with progress_bar(console=console) as callback:
        callback(event(40))
    text = console.export_text()
    assert text.startswith("loading and compiling ━")
    assert "?" not in text and "left" not in text
    assert "━ 40/40 steps in 0:00:0" in text
