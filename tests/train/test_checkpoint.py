from __future__ import annotations

import gc
import json
import os
import random
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtransfer.data import ArrayData
from jaxtransfer.errors import CheckpointError, NonFiniteLossError, OutputError
from jaxtransfer.models import Model
from jaxtransfer.partition import Group, Plan, lp_ft
from jaxtransfer.train import Checkpoints, Progress, Settings, cross_entropy, init_state, train
from jaxtransfer.train.loop import OnStep, run_identity
from jaxtransfer.tree import diff, fingerprint, flatten

SETTINGS = Settings(steps=10, batch_size=4, learning_rate=0.01, weight_decay=0.1)
FROZEN = Group("**", frozen=True)
# The second plan freezes what the first one trained: it is in no trainable tree any more.
NARROWING = (
    Plan((Group(("layer3/**", "head/**")), FROZEN), name="wide"),
    Plan((Group("head/**"), FROZEN), name="narrow"),
)


class Stop(Exception):
    """The run is stopped from outside."""


@dataclass(frozen=True)
class Run:
    """One run, to be carried out whole, in parts, or again."""

    model: Model
    data: ArrayData
    plans: tuple[Plan, ...]
    settings: Settings = SETTINGS

    def whole(self) -> tuple[Model, list[dict[str, Any]]]:
        return train(self.model, self.data, self.plans, self.settings)

    def checkpoints(self, folder: Path, **options: Any) -> Checkpoints:
        identity = run_identity(self.model, self.data, self.plans, self.settings)
        return Checkpoints(folder, identity, **options)

    def into(
        self,
        folder: Path,
        *,
        resume: bool = True,
        save_every: int = 2,
        on_step: OnStep | None = None,
    ) -> tuple[Model, list[dict[str, Any]]]:
        with self.checkpoints(folder, resume=resume) as checkpoints:
            return train(
                self.model,
                self.data,
                self.plans,
                self.settings,
                on_step=on_step,
                checkpoints=checkpoints,
                save_every=save_every,
            )

    def stopped_at(self, step: int, folder: Path, **options: Any) -> None:
        def on_step(number: int, _: Any) -> None:
            if number == step:
                raise Stop

        with pytest.raises(Stop):
            self.into(folder, on_step=on_step, **options)


def assert_same(
    found: tuple[Model, list[dict[str, Any]]], expected: tuple[Model, list[dict[str, Any]]]
) -> None:
    assert diff(expected[0].params, found[0].params).is_empty
    assert diff(expected[0].stats, found[0].stats).is_empty
    assert found[1] == expected[1]


def steps_in(folder: Path) -> list[int]:
    return sorted(int(child.name) for child in folder.iterdir() if child.name.isdigit())


@pytest.fixture(scope="module")
def lp_ft_run(network: Model, examples: ArrayData) -> Run:
    return Run(network, examples, lp_ft(network, head_share=0.5))


@pytest.fixture(scope="module")
def narrowing_run(network: Model, examples: ArrayData) -> Run:
    return Run(network, examples, NARROWING)


@pytest.fixture(scope="module")
def finished(lp_ft_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has come to its end; to be copied, not changed."""
    folder = tmp_path_factory.mktemp("finished")
    lp_ft_run.into(folder)
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of the folder of a run that has come to its end."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


# ---------------------------------------------------------------------------------------------
# Resuming


@pytest.mark.parametrize(
    ("plans", "stops"), [("lp_ft", (1, 4, 5, 6, 10)), ("narrowing", (3, 5, 6, 9))]
)
def test_a_run_stopped_anywhere_goes_on_to_the_same_bits(
    plans: str, stops: tuple[int, ...], lp_ft_run: Run, narrowing_run: Run, tmp_path: Path
) -> None:
    run = lp_ft_run if plans == "lp_ft" else narrowing_run
    expected = run.whole()
    # Before the first save; in the first plan, at its end; in the second plan; at the end of all.
    for stop in stops:
        run.stopped_at(stop, tmp_path / str(stop))
        assert_same(run.into(tmp_path / str(stop)), expected)


def test_a_run_may_be_stopped_again_and_again(narrowing_run: Run, tmp_path: Path) -> None:
    for stop in (4, 6, 7, 9):
        narrowing_run.stopped_at(stop, tmp_path, save_every=1)
        assert steps_in(tmp_path)[-1] == stop - 1
    assert_same(narrowing_run.into(tmp_path), narrowing_run.whole())


def test_a_save_at_the_very_end_of_a_plan_leads_to_the_next_one(
    narrowing_run: Run, tmp_path: Path
) -> None:
    narrowing_run.stopped_at(6, tmp_path, save_every=5)
    assert steps_in(tmp_path) == [5]
    with narrowing_run.checkpoints(tmp_path, resume=True) as checkpoints:
        progress = checkpoints.progress()
    assert progress is not None and (progress.number, progress.plan) == (5, 0)
    assert_same(narrowing_run.into(tmp_path), narrowing_run.whole())


def test_a_finished_run_is_read_and_not_run_again(lp_ft_run: Run, folder: Path) -> None:
    steps: list[int] = []
    found = lp_ft_run.into(folder, on_step=lambda number, _: steps.append(number))
    assert steps == []
    assert_same(found, lp_ft_run.whole())


def test_what_is_restored_enters_the_step_that_is_compiled_already(
    lp_ft_run: Run, tmp_path: Path
) -> None:
    plan, template = lp_ft_run.plans[0], None
    for _ in range(2):
        state = init_state(lp_ft_run.model, plan, plan.optimizer(1.0), with_ema=True)
        if template is None:
            template = state
            average = jax.tree.map(lambda leaf: leaf + jnp.float32(1), state.ema)
            saved = state = replace(state, ema=average)
        with lp_ft_run.checkpoints(tmp_path, resume=True) as checkpoints:
            if checkpoints.progress() is None:
                checkpoints.save(state, ["head/kernel", "head/bias"], Progress(3, 0, ()))
            else:
                state = checkpoints.restore(template, plan, ["head/kernel", "head/bias"])

    def signature(state: Any) -> Any:
        return jax.tree.map(lambda leaf: (leaf.aval, leaf.committed), state)

    assert signature(state) == signature(template)
    assert diff(state, saved).is_empty and not diff(state, template).is_empty


def test_saving_changes_nothing(lp_ft_run: Run, tmp_path: Path) -> None:
    assert_same(lp_ft_run.into(tmp_path, save_every=1), lp_ft_run.whole())


def test_what_is_saved_is_the_state_of_that_step_though_later_steps_donate_it(
    narrowing_run: Run, tmp_path: Path
) -> None:
    states: dict[int, dict[str, np.ndarray]] = {}
    own = narrowing_run

    def on_step(number: int, state: Any) -> None:
        states[number] = {name: np.array(leaf) for name, leaf in flatten(state.params).items()}

    with own.checkpoints(tmp_path, keep=10) as checkpoints:
        options: dict[str, Any] = {"checkpoints": checkpoints, "save_every": 1}
        train(own.model, own.data, own.plans, own.settings, on_step=on_step, **options)
    for number in range(10, 5, -1):
        with own.checkpoints(tmp_path, resume=True, keep=10) as checkpoints:
            plan = own.plans[1]
            template = init_state(own.model, plan, plan.optimizer(1.0, schedule=lambda _: 1.0))
            changed = [name for name in states[1] if name.startswith(("layer3", "head"))]
            restored = checkpoints.restore(template, plan, changed)
        assert int(restored.step) == number - 5
        assert diff(states[number], flatten(restored.params)).is_empty
        shutil.rmtree(tmp_path / str(number))


def test_only_the_newest_checkpoints_are_kept(folder: Path) -> None:
    assert steps_in(folder) == [8, 10]


def test_only_what_the_run_changed_is_saved(narrowing_run: Run, tmp_path: Path) -> None:
    narrowing_run.into(tmp_path)
    described = json.loads((tmp_path / "10" / "state" / "_METADATA").read_text())["tree_metadata"]
    written = {
        tuple(key["key"] for key in entry["key_metadata"])
        for entry in described.values()
        if entry["value_metadata"]["value_type"] == "jax.Array"
    }
    # The second plan trains the head, and the first one trained the last stage.
    assert {path[1] for path in written if path[0] == "changed"} == {"layer3", "head"}
    assert not {"stem", "layer3"} & {
        key for path in written if path[0] == "opt_state" for key in path
    }


def test_numbers_of_numpy_may_be_settings(lp_ft_run: Run, tmp_path: Path) -> None:
    run = replace(lp_ft_run, settings=replace(SETTINGS, learning_rate=np.float64(0.01)))
    run.stopped_at(3, tmp_path)
    assert_same(lp_ft_run.into(tmp_path), lp_ft_run.whole())


def test_a_normal_run_and_its_resumption_say_nothing(
    lp_ft_run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lp_ft_run.stopped_at(5, tmp_path)
    lp_ft_run.into(tmp_path)
    gc.collect()
    assert capfd.readouterr() == ("", "")


# ---------------------------------------------------------------------------------------------
# Losses that are not finite


def poisoned() -> Any:
    """A cross-entropy that is NaN for class 2, under the usual loss's name."""
    usual = cross_entropy()

    def loss(logits: jax.Array, batch: Any) -> jax.Array:
        losses = usual(logits, batch)
        return jnp.where(batch["label"] == 2, jnp.nan, losses)

    loss.__qualname__ = usual.__qualname__
    return loss


def test_nothing_already_written_is_lost_when_the_loss_becomes_nan(
    lp_ft_run: Run, tmp_path: Path
) -> None:
    lp_ft_run.stopped_at(5, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert steps_in(tmp_path) == [2, 4]
    spoilt = replace(lp_ft_run, settings=replace(SETTINGS, loss=poisoned()))
    with pytest.raises(NonFiniteLossError, match=r"^step [5-8] of plan"):
        spoilt.into(tmp_path)
    assert {path: path.read_bytes() for path in before} == before
    assert steps_in(tmp_path)[-1] <= 6
    # The same run with a mended loss goes on as if nothing had happened.
    assert_same(lp_ft_run.into(tmp_path), lp_ft_run.whole())


def test_mended_data_are_another_run_and_the_old_ones_checkpoints_stay(
    lp_ft_run: Run, folder: Path
) -> None:
    images = np.clip(lp_ft_run.data.images, 0, 0.9)
    mended = replace(lp_ft_run, data=ArrayData(images, lp_ft_run.data.labels))
    with pytest.raises(CheckpointError, match="data: .*found .*choose another folder"):
        mended.into(folder)
    assert steps_in(folder) == [8, 10]


# ---------------------------------------------------------------------------------------------
# Damage


def largest_file(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(content)


def forge(path: Path) -> None:
    """Another loss in the history, in a file that can be read."""
    text = path.read_text()
    changed = re.sub(r'"loss": \d', '"loss": 9', text, count=1)
    assert changed != text
    path.write_text(changed)


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, Path.unlink], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "file", ["state/manifest.ocdbt", "state/_METADATA", "record/metadata", "largest"]
)
def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_serves(
    file: str,
    damage: Callable[[Path], None],
    lp_ft_run: Run,
    folder: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    damage(largest_file(folder / "10" / "state") if file == "largest" else folder / "10" / file)
    with pytest.raises(CheckpointError) as caught:
        lp_ft_run.into(folder)
    message = str(caught.value)
    assert message.startswith(f"{folder / '10'}: expected a whole checkpoint of this run, found ")
    assert message.endswith("remove that folder to go on from the checkpoint before it")
    assert "\n" not in message
    del caught
    gc.collect()
    # Orbax's own reads would fail in the background, with a traceback each.
    assert "Traceback" not in capfd.readouterr().err
    shutil.rmtree(folder / "10")
    assert_same(lp_ft_run.into(folder), lp_ft_run.whole())


def test_a_forged_history_is_refused(lp_ft_run: Run, folder: Path) -> None:
    forge(folder / "10" / "record" / "metadata")
    with pytest.raises(CheckpointError, match="another record than was written"):
        lp_ft_run.into(folder)


def test_a_checkpoint_of_nothing_is_refused(lp_ft_run: Run, folder: Path) -> None:
    (folder / "99").mkdir()
    with pytest.raises(CheckpointError, match=re.escape(f"{folder / '99'}: expected a whole")):
        lp_ft_run.into(folder)


def test_there_must_be_a_checkpoint_to_restore(lp_ft_run: Run, tmp_path: Path) -> None:
    plan = lp_ft_run.plans[0]
    state = init_state(lp_ft_run.model, plan, plan.optimizer(1.0))
    with lp_ft_run.checkpoints(tmp_path) as checkpoints:
        assert checkpoints.progress() is None
        with pytest.raises(CheckpointError, match="expected a checkpoint, found none"):
            checkpoints.restore(state, plan, ["head/kernel", "head/bias"])


# ---------------------------------------------------------------------------------------------
# Other runs, and folders that cannot be written


def test_another_runs_folder_is_refused_and_what_differs_is_told(
    lp_ft_run: Run, folder: Path
) -> None:
    settings = replace(SETTINGS, learning_rate=0.02, optimizer="sgd")
    other = replace(lp_ft_run, plans=NARROWING, settings=settings)
    with pytest.raises(CheckpointError) as caught:
        other.into(folder)
    message = str(caught.value)
    assert message.startswith(f"{folder}: expected checkpoints of the same run, with ")
    assert "learning_rate: 0.02, found 0.01" in message
    assert 'optimizer: "sgd", found "adamw"' in message
    assert "plans: " in message
    assert not re.search(r"\b(seed|steps|data|model|batch_size|loss): ", message)
    assert_same(lp_ft_run.into(folder), lp_ft_run.whole())


def test_a_folder_with_a_run_is_not_written_over(lp_ft_run: Run, folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match="found a run's; resume it, or choose another folder"):
        lp_ft_run.into(folder, resume=False)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_folder_below_a_file_cannot_be_made(lp_ft_run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OutputError, match="expected a folder that can be written"):
        lp_ft_run.into(tmp_path / "file" / "run")


def test_a_folder_that_is_lost_on_the_way_is_an_error(lp_ft_run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def on_step(number: int, _: Any) -> None:
        if number == 2:
            shutil.rmtree(folder)
            folder.write_text("not a folder any more")

    with pytest.raises(OutputError, match=re.escape(f"{folder}: expected a folder that can be")):
        lp_ft_run.into(folder, on_step=on_step, save_every=3)


@pytest.mark.parametrize("method", ["save", "wait_until_finished"])
def test_a_full_disk_is_an_error_that_says_so(
    method: str, lp_ft_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    # The manager that Orbax gives is all that can be filled here without filling the machine.
    checkpoints = lp_ft_run.checkpoints(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints._manager, method, full)
        with pytest.raises(OutputError, match="No space left on device; make room") as caught:
            with checkpoints:
                plans, settings = lp_ft_run.plans, lp_ft_run.settings
                train(lp_ft_run.model, lp_ft_run.data, plans, settings, checkpoints=checkpoints)
    assert str(caught.value).startswith(f"{tmp_path}: expected to write a checkpoint")
    checkpoints.close()


@pytest.mark.parametrize("keep", [0, -1])
def test_at_least_one_checkpoint_is_kept(keep: int, lp_ft_run: Run, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"at least 1 checkpoint, found {keep}"):
        lp_ft_run.checkpoints(tmp_path, keep=keep)


# ---------------------------------------------------------------------------------------------
# Killed


SCRIPT = """
import sys

import jax.numpy as jnp
import numpy as np

from jaxtransfer.data import ArrayData
from jaxtransfer.models import Model
from jaxtransfer.partition import full
from jaxtransfer.train import Checkpoints, Settings, train
from jaxtransfer.train.loop import run_identity

SETTINGS = Settings(steps=100_000, batch_size=4)


def classify(params, x):
    return x @ params["body"]["kernel"] @ params["head"]["kernel"]


def make():
    rng = np.random.default_rng(0)
    data = ArrayData(rng.random((8, 300), np.float32), rng.integers(0, 3, 8).astype(np.int32))
    body, head = rng.normal(size=(300, 1000)), rng.normal(size=(1000, 3))
    model = Model.from_function(
        classify,
        {
            "body": {"kernel": jnp.asarray(body, jnp.float32)},
            "head": {"kernel": jnp.asarray(head, jnp.float32)},
        },
    )
    return model, data, (full(model),)


if __name__ == "__main__":
    model, data, plans = make()
    identity = run_identity(model, data, plans, SETTINGS)
    with Checkpoints(sys.argv[1], identity, resume=True) as checkpoints:
        train(
            model,
            data,
            plans,
            SETTINGS,
            on_step=lambda number, state: print(number, flush=True),
            checkpoints=checkpoints,
            save_every=1,
        )
"""


def run_and_kill(script: Path, folder: Path, delay: float) -> None:
    """Start the run, and kill it some time after its third step, when the first one is saved."""
    with subprocess.Popen(
        [sys.executable, str(script), str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        text=True,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        lines = [process.stdout.readline() for _ in range(3)]
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert all(lines), process.stderr.read()


def test_a_run_that_is_killed_goes_on_from_its_last_whole_checkpoint(tmp_path: Path) -> None:
    script, folder = tmp_path / "run.py", tmp_path / "checkpoints"
    script.write_text(SCRIPT)
    setup = runpy.run_path(str(script))
    model, data, plans = setup["make"]()
    identity = run_identity(model, data, plans, setup["SETTINGS"])
    template = init_state(model, plans[0], plans[0].optimizer(1.0, schedule=lambda _: 1.0))
    names = ["body/kernel", "head/kernel"]
    rng, found = random.Random(0), {}
    for _ in range(4):
        run_and_kill(script, folder, rng.uniform(0.0, 0.25))
        with Checkpoints(folder, identity, resume=True) as checkpoints:
            progress = checkpoints.progress()
            assert progress is not None
            restored = checkpoints.restore(template, plans[0], names)
        assert int(restored.step) == progress.number == len(progress.history)
        assert progress.number > max(found, default=0)  # each run went on where the last one was
        found[progress.number] = (fingerprint(restored.params), list(progress.history))

    expected: dict[int, str] = {}

    def on_step(number: int, state: Any) -> None:
        if number in found:
            expected[number] = fingerprint(state.params)
        if number == max(found):
            raise Stop

    with pytest.raises(Stop):
        train(model, data, plans, setup["SETTINGS"], on_step=on_step)
    assert {number: params for number, (params, _) in found.items()} == expected
    histories: Sequence[list[Any]] = [history for _, history in found.values()]
    assert all(history == histories[-1][: len(history)] for history in histories)
