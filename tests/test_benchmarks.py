"""The suite of benchmarks: how runs are compared, and what its tables say of them."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from benchmarks.cases import all_cases
from benchmarks.scaling import curve, told
from benchmarks.suite import PEERS, Case, Figure, Machine, Runner, compared, measure
from benchmarks.tables import rates, table

ROOT = Path(__file__).parent.parent
OURS = Runner("jaxtransfer", "importing", ("json",))
SECONDS = Figure("seconds", "time", "s", 1.0)


def case(figure: Figure = SECONDS, *names: str) -> Case:
    peers = tuple(Runner(name, "importing", ("json",)) for name in names)
    return Case("case", "a case", OURS, peers, (figure,))


def runs(key: str, **values: list[float]) -> dict[str, list[dict[str, float]]]:
    return {name: [{key: value} for value in found] for name, found in values.items()}


def test_the_ratio_is_the_median_over_pairs_with_the_best_peer():
    found = compared(
        SECONDS,
        case(SECONDS, "slow", "fast"),
        runs("seconds", jaxtransfer=[1, 2, 6], slow=[9, 9, 9], fast=[2, 2, 3]),
    )
    assert found["peer"] == "fast"
    assert found["ratio"] == 1 and found["ratios"] == [0.5, 2]
    assert found["is_reached"]
    assert found["medians"] == {"jaxtransfer": 2, "slow": 9, "fast": 2}


@pytest.mark.parametrize(("more", "reached"), [(False, False), (True, True)])
def test_more_may_be_better(more, reached):
    figure = Figure("rate", "rate", "images/s", 1.0, more_is_better=more)
    found = compared(figure, case(figure, "a", "b"), runs("rate", jaxtransfer=[30], a=[20], b=[10]))
    assert found["peer"] == ("a" if more else "b")
    assert found["is_reached"] is reached


def test_a_list_counts_by_its_median_and_what_a_peer_does_not_tell_is_left_out():
    found = compared(
        SECONDS,
        case(SECONDS, "silent"),
        {"jaxtransfer": [{"seconds": [1, 5, 2]}], "silent": [{"other": 1}]},
    )
    assert found["medians"] == {"jaxtransfer": 2} and found["peer"] is None
    assert "ratio" not in found


def test_a_figure_may_be_a_ratio_by_itself():
    figure = Figure("overhead", "to plain", "times", 1.05, own_ratio=True)
    found = compared(figure, case(figure), runs("overhead", jaxtransfer=[1.0, 1.2, 1.1]))
    assert found["ratio"] == 1.1 and not found["is_reached"]


def test_processes_take_turns_and_say_what_they_found():
    said: list[str] = []
    found = measure(case(SECONDS, "json again"), Machine(), 2, said.append)
    assert [text.split(": ")[0] for text in said] == [
        f"case {number}/2 {name}" for number in (1, 2) for name in ("jaxtransfer", "json again")
    ]
    assert all(len(each) == 2 for each in found["runs"].values())
    assert found["figures"][0]["ratio"] > 0
    text = table([found])
    assert text.splitlines()[0].startswith("| ratio | asked |")
    assert "a case, time" in text and "json again: " in text


def test_peers_that_are_not_there_are_left_out_and_named():
    absent = Runner("absent", "torch_step", ("resnet50",), ("no_such_module",))
    said: list[str] = []
    found = measure(Case("case", "a case", OURS, (absent,), (SECONDS,)), Machine(), 1, said.append)
    assert found["peers"] == [] and "absent left out" in said[0]
    assert table([found]).splitlines()[2].startswith("|  | ≤ 1.00 |")


def test_a_peer_that_fails_is_named_and_left_out():
    failing = Runner("failing", "torch_step", ("no_such_network",), ("json",))
    machine, said = Machine(), []
    found = measure(Case("case", "a case", OURS, (failing,), (SECONDS,)), machine, 2, said.append)
    assert found["peers"] == [] and list(found["runs"]) == ["jaxtransfer"]
    assert len(found["runs"]["jaxtransfer"]) == 2
    assert [text for text in said if "failing left out: failing: expected" in text]
    assert len(said) == 3


def test_a_process_that_fails_ends_the_suite_with_its_command():
    failing = Runner("jaxtransfer", "importing", ("no_such_module",))
    with pytest.raises(RuntimeError, match=r"importing no_such_module to end well, found .* 1"):
        Machine().run(failing, {})


def test_a_ratio_that_is_missed_stands_out():
    missed = compared(SECONDS, case(SECONDS, "a"), runs("seconds", jaxtransfer=[3], a=[2]))
    found = {"case": "c", "title": "t", "ours": "jaxtransfer", "figures": [missed]}
    assert "| **1.50 (1.50 to 1.50)** | ≤ 1.00 |" in table([found])


@pytest.mark.parametrize(
    ("ours", "peer", "shown"),
    [
        (2.007, 2.0, "| **1.004 (1.004 to 1.004)** | ≤ 1.00 | t, time | 2.01 s"),
        (1.993, 2.0, "| 1.00 (1.00 to 1.00) | ≤ 1.00 | t, time | 1.99 s"),
        (0.0031, 0.9, "| 0.003 (0.003 to 0.003) | ≤ 1.00 | t, time | 0.003 s"),
        (0.0, 0.9, "| 0.00 (0.00 to 0.00) | ≤ 1.00 | t, time | 0.00 s"),
    ],
)
def test_neither_a_miss_nor_a_small_value_is_rounded_away(ours, peer, shown):
    figure = compared(SECONDS, case(SECONDS, "a"), runs("seconds", jaxtransfer=[ours], a=[peer]))
    found = {"case": "c", "title": "t", "ours": "jaxtransfer", "figures": [figure]}
    assert shown in table([found])


def test_rates_are_shares_of_what_the_device_does_at_best():
    slow, fast = (
        {"dtype": "float32", "gigaflop": 60.0, "gigabytes": 8.0, "seconds": [seconds] * 3}
        for seconds in (2.0, 1.0)
    )
    found = {"title": "t", "ours": "jaxtransfer", "runs": {"jaxtransfer": [slow, fast, slow]}}
    other = {"title": "o", "ours": "jaxtransfer", "runs": {"jaxtransfer": [{"seconds": 1.0}]}}
    peaks = {"float32_gigaflops": 120.0, "bfloat16_gigaflops": 240.0, "copy_gigabytes": 16.0}
    shown = rates([found, other], peaks).splitlines()
    assert shown[2:] == ["| t | 30 | 0.25 | 4.0 | 0.25 |"]
    assert rates([other], peaks) == ""


def test_versions_are_those_of_the_interpreter_of_the_peers():
    assert Machine().versions()["jax"] == metadata.version("jax")


def test_a_case_for_accelerators_is_left_out_on_a_cpu(tmp_path):
    file = tmp_path / "found.json"
    command = [sys.executable, "-m", "benchmarks", "--only", "bfloat16/", "--out", str(file)]
    done = subprocess.run(command, text=True, cwd=ROOT, capture_output=True, check=True)
    assert "bfloat16/vit_b16: left out, there is no accelerator" in done.stderr
    assert "| ratio | asked |" in done.stdout


def test_every_runner_of_every_case_is_there():
    for name, each in all_cases().items():
        assert each.name == name and each.figures
        for runner in (each.ours, *each.peers, *each.prepare):
            ours = ROOT / "benchmarks" / "ours" / f"{runner.script}.py"
            assert ours.exists() != (PEERS / f"{runner.script}.py").exists(), runner
            assert bool(runner.needs) == runner.is_peer


def test_ours_runs_and_prints_what_the_cases_compare(tmp_path):
    """The training step, as the suite runs it, on a smaller image."""
    arguments = ("resnet50", "--plan", "probe", "--size", "32", "--batch-size", "2", "--steps", "1")
    found = Machine().run(Runner("jaxtransfer", "training_step", arguments), {})
    [step] = [each for name, each in all_cases().items() if name == "step/resnet50/probe"]
    told = {figure.key for figure in step.figures} - {"device_mebibytes"}  # no CPU tells it
    assert told <= set(found)
    assert found["parameters"] == 2048 * 10 + 10


def test_what_is_prepared_is_found_by_each_run():
    """The input pipeline on a few photographs of its own."""
    photos = Runner("photos", "photos", ("{case}", "4"))
    ours = Runner("jaxtransfer", "input_pipeline", ("{case}", "--batch-size", "2"))
    rate = Figure("rate", "rate", "images/s", 1.0, more_is_better=True)
    pipeline = Case("pipeline", "a pipeline", ours, (), (rate,), prepare=(photos,))
    found = measure(pipeline, Machine(), 1, lambda _: None)
    assert found["figures"][0]["medians"]["jaxtransfer"] > 0


def test_the_command_lists_its_cases_and_prints_tables(tmp_path):
    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "benchmarks", *arguments]
        return subprocess.check_output(command, text=True, cwd=ROOT)

    assert set(run("--list", "--set", "A=1", "B=").split()) == set(all_cases())
    with pytest.raises(subprocess.CalledProcessError):
        run("--list", "--set", "A")
    measured = measure(case(SECONDS, "json again"), Machine(), 1, lambda _: None)
    file = tmp_path / "found.json"
    file.write_text(json.dumps({"cases": [measured], "machine": {"peaks": {}}}))
    assert run("--tables", str(file)).strip() == table([measured])


def test_growth_is_a_straight_line_through_medians():
    def run(slower):
        sizes = (4, 8, 16)
        seconds = [[0.5 + 0.1 * size, 9.0, 0.5 + 0.1 * size - slower] for size in sizes]
        return {
            "rows": [
                {"batch_size": size, "seconds": found, "mebibytes": 30.0 + 2.0 * size}
                for size, found in zip(sizes, seconds, strict=True)
            ]
        }

    runs = [run(0.0), run(0.0), run(0.2)]
    found = curve(2, runs)
    assert found["seconds"] == pytest.approx([0.9, 1.3, 2.1])
    fitted = [found[key] for key in ("seconds_per_image", "fixed_seconds")]
    assert fitted == pytest.approx([0.1, 0.5])
    fitted = [found[key] for key in ("mebibytes_per_image", "fixed_mebibytes")]
    assert fitted == pytest.approx([2.0, 30.0])
    assert told(runs[0]) == "4 images 0.90 s, 8 images 1.30 s, 16 images 2.10 s"
