from __future__ import annotations

import csv
import json
import math
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import jax
import pytest

from jaxtransfer.errors import MissingLibraryError, OutputError
from jaxtransfer.train import (
    Callback,
    Event,
    csv_writer,
    event_rows,
    jsonl_writer,
    tensorboard_writer,
)


def event(
    steps: Sequence[int], evaluation: dict[str, float] | None = None, at: int | None = None
) -> Event:
    """What is told after some steps."""
    step = at if at is not None else steps[-1]
    return Event(
        step=step,
        steps=6,
        plan="probe",
        records=tuple({"step": s, "plan": "probe", "loss": 1 / s} for s in steps),
        evaluation=evaluation,
        examples_per_second=100.0,
        waiting=0.25,
        state=cast(Any, None),
    )


RUN = (
    event([1, 2]),
    event([3, 4], {"loss": 0.5, "accuracy": 0.75}),
    event([5, 6], {"loss": 0.25, "accuracy": 1.0}),
)
COLUMNS = "step,plan,loss,examples_per_second,waiting,validation/loss,validation/accuracy"


def write(writer: Callback, events: Sequence[Event]) -> None:
    for one in events:
        assert writer(one) is None  # a writer never ends a run


def rows_of(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]
    return [json.loads(line) for line in path.read_text().splitlines()]


def steps_of(path: Path) -> list[int]:
    return [int(row["step"]) for row in rows_of(path)]


@pytest.fixture(params=["csv", "jsonl"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Path]:
    return (csv_writer if request.param == "csv" else jsonl_writer), tmp_path / f"m.{request.param}"


# ---------------------------------------------------------------------------------------------
# What is written


def test_an_event_is_a_row_for_each_step() -> None:
    assert event_rows(RUN[1]) == [
        {"step": 3, "plan": "probe", "loss": 1 / 3},
        {
            "step": 4,
            "plan": "probe",
            "loss": 0.25,
            "examples_per_second": 100.0,
            "waiting": 0.25,
            "validation/loss": 0.5,
            "validation/accuracy": 0.75,
        },
    ]


def test_an_evaluation_before_the_first_step_is_a_row_of_its_own() -> None:
    assert event_rows(event([], {"loss": 2.0}, at=0)) == [
        {"step": 0, "plan": "probe", "validation/loss": 2.0}
    ]
    assert event_rows(event([], at=0)) == []


def test_csv_columns_stay_where_they_are_when_an_evaluation_comes_later(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    writer = csv_writer(path)
    writer(RUN[0])
    assert path.read_text() == (
        "step,plan,loss,examples_per_second,waiting\n1,probe,1.0,,\n2,probe,0.5,100.0,0.25\n"
    )
    write(writer, RUN[1:])
    lines = path.read_text().splitlines()
    assert lines[0] == COLUMNS
    assert lines[1:3] == ["1,probe,1.0,,,,", "2,probe,0.5,100.0,0.25,,"]
    assert lines[4] == "4,probe,0.25,100.0,0.25,0.5,0.75"
    assert len(lines) == 7


def test_json_lines_are_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(jsonl_writer(path), RUN)
    assert rows_of(path) == [row for one in RUN for row in event_rows(one)]


def test_json_has_no_number_for_nan(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    jsonl_writer(path)(event([1], {"loss": math.nan, "accuracy": math.inf}))
    assert rows_of(path)[0]["validation/loss"] is rows_of(path)[0]["validation/accuracy"] is None
    assert "NaN" not in path.read_text() and "Infinity" not in path.read_text()


def test_each_event_is_on_disk_at_once(file: Any) -> None:
    make, path = file
    writer = make(path)
    for count, one in enumerate(RUN, start=1):
        writer(one)
        assert steps_of(path) == list(range(1, 2 * count + 1))


def test_only_the_first_process_writes(file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    make, path = file
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    write(make(path), RUN)
    assert not path.exists()


# ---------------------------------------------------------------------------------------------
# Runs that go on, and runs that begin anew


def test_a_resumed_run_replaces_the_steps_it_carries_out_again(file: Any) -> None:
    make, path = file
    write(make(path), RUN)
    whole = path.read_text()
    write(make(path), [event([3, 4], {"loss": 0.5, "accuracy": 0.75})])
    assert steps_of(path) == [1, 2, 3, 4]
    write(make(path), RUN[2:])
    assert path.read_text() == whole
    assert list(path.parent.iterdir()) == [path]


def test_a_line_that_was_cut_off_is_written_anew(file: Any) -> None:
    make, path = file
    write(make(path), RUN)
    whole = path.read_text()
    path.write_text(whole[:-9])
    write(make(path), RUN[2:])
    assert path.read_text() == whole


def test_a_new_run_leaves_the_file_of_the_old_one(file: Any) -> None:
    make, path = file
    writer = make(path)
    write(writer, RUN)
    old = path.read_text()
    write(make(path), RUN[:1])
    # One writer may see several runs.
    write(writer, RUN[:2])
    assert steps_of(path) == [1, 2, 3, 4]
    assert path.with_suffix(f".1{path.suffix}").read_text() == old
    assert steps_of(path.with_suffix(f".2{path.suffix}")) == [1, 2]
    assert len(list(path.parent.iterdir())) == 3


def test_a_file_of_something_else_is_left_alone(file: Any) -> None:
    make, path = file
    for text in ("a,b\n1,2\n", '{"a": 1}\n', "[1]\n", "step,plan\n3,a,b\n", "step\nthree\n"):
        path.write_text(text)
        with pytest.raises(OutputError, match="rows of a run that is resumed"):
            write(make(path), RUN[1:])
        assert path.read_text() == text


def test_a_place_that_cannot_be_written_is_told_before_the_work(file: Any) -> None:
    make, path = file
    path.mkdir()
    with pytest.raises(OutputError, match="found: something that is no file"):
        make(path)
    other = path.with_name("file")
    other.write_text("")
    with pytest.raises(OutputError, match=r"expected to write what a run tells, found: .*exists"):
        make(other / path.name)


def test_folders_are_made(file: Any) -> None:
    make, path = file
    deep = path.parent / "runs" / "one" / path.name
    write(make(deep), RUN)
    assert steps_of(deep) == [1, 2, 3, 4, 5, 6]


# ---------------------------------------------------------------------------------------------
# TensorBoard


def records_of(path: Path) -> list[bytes]:
    """The records of an event file: length, checksum, content, checksum."""
    content, records = path.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        records.append(content[12 : 12 + length])
        content = content[16 + length :]
    return records


def test_tensorboard_sees_each_step_and_each_evaluation(tmp_path: Path) -> None:
    messages = pytest.importorskip("tensorboardX.proto.event_pb2")
    with tensorboard_writer(tmp_path / "run") as writer:
        write(writer, RUN[:1])
        (path,) = (tmp_path / "run").iterdir()
        early = len(records_of(path))
        write(writer, RUN[1:])
    events = [messages.Event.FromString(record) for record in records_of(path)]
    values = [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]
    expected = [
        (row["step"], name if "/" in name else f"train/{name}", pytest.approx(value))
        for one in RUN
        for row in event_rows(one)
        for name, value in row.items()
        if name not in ("step", "plan")
    ]
    assert values == expected
    assert (early, len(events)) == (4, 8)  # a version, a start, and two steps an event


def test_tensorboard_is_told_which_steps_are_carried_out_again(tmp_path: Path) -> None:
    messages = pytest.importorskip("tensorboardX.proto.event_pb2")
    for events in (RUN, RUN[1:]):
        with tensorboard_writer(tmp_path) as writer:
            write(writer, events)
    starts = set()
    for path in tmp_path.iterdir():
        for record in records_of(path):
            found = messages.Event.FromString(record)
            if found.HasField("session_log"):
                starts.add(found.step)
    assert starts == {1, 3}


def test_without_tensorboardx_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("tensorboardX", "tensorboardX.event_file_writer"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingLibraryError, match=r"'tensorboardX'.*'jaxtransfer\[logging\]'"):
        tensorboard_writer(tmp_path)
