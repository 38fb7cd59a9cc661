from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxtransfer.data import (
    ArrayData,
    Loader,
    StoredData,
    Workers,
    batch_indices,
    crop_when_read,
    evaluation_batches,
    image_folder,
    loader,
)
from jaxtransfer.data.augment import (
    Compose,
    HorizontalFlip,
    RandomResizedCrop,
    standard_augment,
)
from jaxtransfer.data.stored import stored_data
from jaxtransfer.errors import DataError
from jaxtransfer.models import Preprocess

ROOT = Path(__file__).resolve().parent.parent.parent
IN_MEMORY = ArrayData(np.arange(14).reshape(7, 2), np.arange(7, dtype=np.int32))


class Numbers:
    """Images of 1x1 that hold their own number; some may be broken."""

    def __init__(self, count: int, broken: int = -1):
        self.count, self.broken = count, broken

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        if index == self.broken:
            return b"no image"
        return np.full((1, 1, 1), index, np.uint8)

    def name(self, index: int) -> str:
        return f"number {index}"

    def fingerprint(self) -> str:
        return f"numbers {self.count}"


def stored(count: int = 7, broken: int = -1) -> StoredData:
    return stored_data(Numbers(count, broken), np.arange(count, dtype=np.int32), None)


def numbers(batches: Any) -> list[list[int]]:
    """The labels of batches, checked against the images."""
    found = []
    for batch in batches:
        np.testing.assert_array_equal(
            batch["image"].reshape(len(batch["label"]), -1)[:, 0], batch["label"]
        )
        found.append(batch["label"].tolist())
    return found


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if "grain" in thread.name}


# ---------------------------------------------------------------------------------------------
# Order


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_the_order_is_a_function_of_the_step_whatever_the_workers(workers: int) -> None:
    expected = [batch_indices(7, 3, step, 5).tolist() for step in range(8)]
    for data in (stored(), ArrayData(np.arange(7)[:, None], np.arange(7, dtype=np.int32))):
        whole = Loader(data, 3, 5, workers)
        with whole.batches(0, 8) as batches:
            assert numbers(batches) == expected
        with whole.batches(5, 8) as batches:
            assert numbers(batches) == expected[5:]


@pytest.mark.parametrize("data", [stored(), stored().load()], ids=["stored", "in memory"])
def test_processes_read_their_rows_of_one_batch(data: Any) -> None:
    expected = [batch_indices(7, 4, step, 0).tolist() for step in range(3)]
    parts = []
    for rows in (slice(0, 1), slice(1, 4)):
        with Loader(data, 4, 0, 2, rows).batches(0, 3) as batches:
            parts.append(numbers(batches))
    assert [a + b for a, b in zip(*parts, strict=True)] == expected


def test_a_state_of_json_goes_on_where_it_was_taken() -> None:
    whole = Loader(stored(), 3, 5, 2)
    with whole.batches(0, 8) as batches:
        before = [next(batches)["label"].tolist() for _ in range(3)]
        state = json.loads(json.dumps(batches.state()))
        after = numbers(batches)
    assert state["step"] == 3 and len(before) == 3
    for workers in (0, 3):
        with Loader(stored(), 3, 5, workers).resume(state, 8) as batches:
            assert numbers(batches) == after
    for other in (Loader(stored(), 3, 4), Loader(stored(), 2, 5), Loader(stored(6), 3, 5)):
        with pytest.raises(DataError, match="loader: expected a state of batches with"):
            other.resume(state)
    with pytest.raises(DataError, match="loader: expected a state of batches with"):
        whole.resume({"seed": 5, "batch_size": 3, "examples": 7})


def test_without_an_end_batches_go_on() -> None:
    with Loader(stored(), 3, 0, 1).batches(1000) as batches:
        assert next(batches)["label"].tolist() == batch_indices(7, 3, 1000, 0).tolist()
    assert next(Loader(IN_MEMORY, 3).batches(10**9))["label"].shape == (3,)


def test_there_may_be_no_step_at_all() -> None:
    for data in (stored(), IN_MEMORY):
        with Loader(data, 3, 0, 2).batches(4, 4) as batches:
            assert list(batches) == []


@pytest.mark.slow
def test_processes_give_the_same_batches_and_leave_nothing_behind(
    folder: Path, tmp_path: Path
) -> None:
    code = f"""
import numpy as np
import jaxtransfer as jt

def main():
    data = jt.image_folder({str(folder)!r})
    both = []
    for workers in (0, jt.Workers(threads=1, processes=2)):
        with jt.Loader(data, 5, 3, workers).batches(2, 5) as batches:
            both.append([(batch["image"], batch["label"]) for batch in batches])
    for one, other in zip(*both, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])
    with jt.Loader(data, 5, 3, jt.Workers(1, 2)).batches(0) as batches:
        next(batches)  # the others are left unread
    print("equal", len(both[0]))

if __name__ == "__main__":
    main()
"""
    script = tmp_path / "script.py"
    script.write_text(code)
    run = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        capture_output=True,
        text=True,
        env={**__import__("os").environ, "PYTHONPATH": str(ROOT)},
        timeout=300,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "equal 3\n", "")


# ---------------------------------------------------------------------------------------------
# Ends and errors


def test_closing_ends_the_threads() -> None:
    before = threads()
    batches = Loader(stored(), 3, 0, 3).batches(0)
    next(batches)
    started = threads() - before
    assert started
    batches.close()
    for thread in started:
        thread.join(5)
    assert not any(thread.is_alive() for thread in started)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_read_is_named(workers: int) -> None:
    with Loader(stored(7, broken=4), 3, 0, workers).batches(0, 5) as batches:
        with pytest.raises(DataError, match="number 4: expected an image file, found"):
            list(batches)


def test_images_of_several_shapes_are_named() -> None:
    class Growing(Numbers):
        def __getitem__(self, index: int) -> Any:
            return np.zeros((1 + (index == 3), 1, 1), np.uint8)

    data = stored_data(Growing(4), np.arange(4), None)
    with Loader(data, 4, 0, 2).batches(0, 1) as batches:
        with pytest.raises(DataError, match=r"number 3.*\(2, 1, 1\)"):
            next(batches)


def test_what_cannot_be_loaded_is_an_error() -> None:
    with pytest.raises(DataError, match="batch_size and a number of examples of at least 1"):
        Loader(IN_MEMORY, 0)
    with pytest.raises(DataError, match="found 2 and 0"):
        Loader(IN_MEMORY.take(np.arange(0)), 2)
    with pytest.raises(DataError, match="workers: expected numbers of at least 0"):
        Workers(-1)


# ---------------------------------------------------------------------------------------------
# The choice of workers


def test_the_number_of_workers_is_measured_once_and_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []
    rates = {0: 100.0, 2: 205.0, 4: 210.0}

    def rate(data: Any, indices: np.ndarray, threads: int) -> float:
        measured.append(threads)
        assert len(indices) == 8
        return rates[threads] / (1 + measured.count(threads) % 2)  # the first time is slow

    monkeypatch.setattr(loader, "_images_a_second", rate)
    monkeypatch.setattr(loader, "_cores", lambda: 2)
    chosen = Loader(image_folder(folder), 4)
    for _ in range(2):
        with chosen.batches(0, 1) as batches:
            assert len(next(batches)["label"]) == 4
    assert chosen.choice[0] == Workers(2)  # 4 are hardly better
    assert chosen.choice[1] == "2 threads: images a second are 100 with 0, 205 with 2, 210 with 4"
    assert measured == [0, 2, 4] * 2


def test_the_measurement_reads_and_leaves_no_thread(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "MEASURE_SECONDS", 0.01)
    monkeypatch.setattr(loader, "_cores", lambda: 1)
    chosen = Loader(image_folder(folder), 4)
    workers, why = chosen.choice
    assert workers.threads in (0, 2) and workers.processes == 0
    assert why.startswith(f"{workers.threads} threads: images a second are ")
    assert Loader(image_folder(folder), 4, workers=3).choice[0] == Workers(3)


def test_examples_in_memory_need_no_workers() -> None:
    workers, why = Loader(IN_MEMORY, 2, workers=8).choice
    assert workers == Workers(0) and "in memory" in why


# ---------------------------------------------------------------------------------------------
# Evaluation


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("data", [stored(), stored().load()], ids=["stored", "in memory"])
def test_evaluation_sees_every_example_once_in_order(data: Any, workers: int) -> None:
    with evaluation_batches(data, 3, workers=workers) as batches:
        found = list(batches)
    assert [len(batch["label"]) for batch in found] == [3, 3, 3]
    weights = np.concatenate([batch["weight"] for batch in found])
    assert weights.dtype == np.float32 and weights.tolist() == [1] * 7 + [0, 0]
    labels = np.concatenate([batch["label"] for batch in found])
    assert labels[weights > 0].tolist() == list(range(7))
    assert all(batch["image"].shape[0] == 3 for batch in found)


def test_processes_evaluate_their_rows() -> None:
    seen = []
    for rows in (slice(0, 2), slice(2, 4)):
        for batch in evaluation_batches(IN_MEMORY, 4, rows=rows):
            assert len(batch["weight"]) == 2
            seen += batch["label"][batch["weight"] > 0].tolist()
    assert sorted(seen) == list(range(7))


# ---------------------------------------------------------------------------------------------
# Parts of images

CROP = RandomResizedCrop(4)


class Noise(Numbers):
    """Images of 12x16, each of noise of its own."""

    def __getitem__(self, index: int) -> Any:
        return np.random.default_rng(index).integers(0, 256, (12, 16, 3)).astype(np.uint8)


def noise(labels: Any = None) -> StoredData:
    labels = np.arange(7, dtype=np.int32) if labels is None else labels
    return stored_data(Noise(7), labels, None).ready(Preprocess((4, 4), 3))


def test_parts_are_drawn_anew_at_each_step_whoever_reads_them() -> None:
    found = []
    for workers in (0, 3):
        with Loader(noise(), 7, 1, workers, crop=CROP).batches(0, 2) as batches:
            found.append([batches_by_label(batch) for batch in batches])
    np.testing.assert_array_equal(*found)
    first, second = found[0]
    assert first.shape == (7, 4, 4, 3) and first.dtype == np.uint8
    assert all((a != b).any() for a, b in zip(first, second, strict=True))
    with Loader(noise(), 7, 1, 2, crop=CROP).batches(1, 2) as batches:
        np.testing.assert_array_equal(batches_by_label(next(batches)), second)
    with Loader(noise(), 7, 2, 2, crop=CROP).batches(1, 2) as batches:
        assert (batches_by_label(next(batches)) != second).any()
    parts = []
    for rows in (slice(0, 3), slice(3, 7)):
        with Loader(noise(), 7, 1, 2, rows, CROP).batches(1, 2) as batches:
            parts.append(next(batches))
    together = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    np.testing.assert_array_equal(batches_by_label(together), second)


def batches_by_label(batch: dict[str, Any]) -> np.ndarray:
    return batch["image"][np.argsort(batch["label"])]


def test_parts_keep_the_labels_of_several_tasks() -> None:
    labels = {"a": np.arange(7), "b": np.arange(14.0).reshape(7, 2)}
    with Loader(noise(labels), 3, 0, 2, crop=CROP).batches(0, 1) as batches:
        found = next(batches)["label"]
    chosen = batch_indices(7, 3, 0, 0)
    assert found["a"].tolist() == chosen.tolist()
    np.testing.assert_array_equal(found["b"], labels["b"][chosen])


def test_parts_of_images_in_memory_are_left_to_the_augmentation() -> None:
    with pytest.raises(DataError, match="loader: expected images that are decoded when.*ArrayData"):
        Loader(IN_MEMORY, 2, crop=CROP)
    how = standard_augment(4)
    assert crop_when_read(how, noise()) == (CROP, Compose((HorizontalFlip(),)))
    assert crop_when_read(CROP, noise()) == (CROP, Compose(()))
    assert crop_when_read(how, noise().load()) == (None, how)
    for other in (None, HorizontalFlip(), Compose(()), Compose((HorizontalFlip(), CROP))):
        assert crop_when_read(other, noise()) == (None, other)
