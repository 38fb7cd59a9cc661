from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtransfer.data import ArrayData
from jaxtransfer.errors import CheckpointError, ModelError
from jaxtransfer.models import Model
from jaxtransfer.partition import probe
from jaxtransfer.surgery import replace_head
from jaxtransfer.train import (
    Checkpoints,
    DamagedCheckpointWarning,
    Progress,
    init_state,
    load_checkpoint,
)
from jaxtransfer.tree import diff
from tests.train.runs import SETTINGS, Run, contents_of

NAMES = ["head/bias", "head/kernel"]


@pytest.fixture(scope="module")
def run(network: Model, examples: ArrayData) -> Run:
    labelled = network.with_labels(("dark", "grey", "bright"))
    return Run(labelled, examples, (probe(network),), replace(SETTINGS, steps=4))


@pytest.fixture(scope="module")
def tuned(run: Run) -> Model:
    return run.whole()[0]


@pytest.fixture(scope="module")
def folders(run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Finished runs, with their source beside them and without."""
    folders = {}
    for frozen in ("reference", "beside"):
        folders[frozen] = tmp_path_factory.mktemp(frozen)
        run.into(folders[frozen], source=run.model, frozen=frozen)
    return folders


def assert_is(found: Model, expected: Model) -> None:
    assert diff(found.params, expected.params).is_empty
    assert diff(found.stats, expected.stats).is_empty
    assert found.labels == expected.labels and found.preprocess == expected.preprocess


def test_a_folder_with_its_source_gives_the_model_by_itself(
    folders: dict[str, Path], tuned: Model
) -> None:
    found = load_checkpoint(folders["beside"])
    assert_is(found, tuned)
    images = jnp.ones((1, 8, 8, 1))
    outputs, _ = found.apply(found.params, found.stats, images, train=False)
    expected, _ = tuned.apply(tuned.params, tuned.stats, images, train=False)
    np.testing.assert_array_equal(outputs, expected)
    assert found.receipt.notes[-1] == f"trained: step 4 of the run in {folders['beside'].name}"
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(found.params))


def test_without_its_source_the_model_that_the_run_started_from_is_needed(
    folders: dict[str, Path], run: Run, tuned: Model
) -> None:
    folder = folders["reference"]
    with pytest.raises(CheckpointError, match=r"found none beside .*load_checkpoint\(folder, mod"):
        load_checkpoint(folder)
    assert_is(load_checkpoint(folder, run.model), tuned)
    # Its head is the checkpoint's, whatever it was.
    params = {**run.model.params, "head": jax.tree.map(jnp.zeros_like, run.model.params["head"])}
    assert_is(load_checkpoint(folder, replace(run.model, params=params)), tuned)


def test_another_source_is_refused(folders: dict[str, Path], run: Run) -> None:
    params = {**run.model.params, "stem": jax.tree.map(lambda x: x + 1, run.model.params["stem"])}
    with pytest.raises(CheckpointError, match="expected the model that the run started from, who"):
        load_checkpoint(folders["reference"], replace(run.model, params=params))
    wide = replace_head(run.model, 5)
    with pytest.raises(CheckpointError, match=r" ~ params/head/bias: float32\[5\], found float32"):
        load_checkpoint(folders["reference"], wide)


def test_reading_changes_nothing_and_needs_no_lock(folders: dict[str, Path], run: Run) -> None:
    folder = folders["reference"]
    with run.checkpoints(folder, resume=True):
        before = contents_of(folder)
        load_checkpoint(folder, run.model)
        assert contents_of(folder) == before


def test_steps_are_chosen_by_number_and_by_metric(network: Model, tmp_path: Path) -> None:
    plan = probe(network)
    state = init_state(network, plan, plan.optimizer(1e-3), with_ema=True)

    def at(step: int) -> Model:
        params = {**network.params, "head": jax.tree.map(lambda x: x + step, state.params["head"])}
        return replace(network, params=params)

    options = {"keep": 1, "keep_best": 1, "metric": "accuracy"}
    with Checkpoints(tmp_path, {}, **options) as checkpoints:
        for step, accuracy in ((1, 0.2), (2, 0.8), (3, 0.5)):
            trainable = {**state.trainable, "head": at(step).params["head"]}
            moved = replace(state, trainable=trainable)
            checkpoints.save(moved, NAMES, Progress(step, 0, ()), {"accuracy": accuracy})
    assert_is(load_checkpoint(tmp_path, network, "best", average=False), at(2))
    assert_is(load_checkpoint(tmp_path, network, 2, average=False), at(2))
    assert_is(load_checkpoint(tmp_path, network, average=False), at(3))
    # By default the average, where the run kept one.
    assert_is(load_checkpoint(tmp_path, network, average=True), network)
    assert_is(load_checkpoint(tmp_path, network), network)
    with pytest.raises(CheckpointError, match=r"checkpoint of step 1, found those of \[2, 3\]"):
        load_checkpoint(tmp_path, network, 1)


def test_what_is_not_there_is_told(folders: dict[str, Path], run: Run, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected a checkpoint, found none; check the path"):
        load_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="expected a moving average .* found none; leave ave"):
        load_checkpoint(folders["reference"], run.model, average=True)
    with pytest.raises(CheckpointError, match=r"with the run's metric, found none; name .*\[2, 4"):
        load_checkpoint(folders["reference"], run.model, "best")


def test_the_one_before_a_damaged_checkpoint_is_taken_unless_that_one_was_asked_for(
    folders: dict[str, Path], run: Run, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders["beside"], tmp_path / "run"))
    (folder / "4" / "record" / "metadata").write_text(json.dumps({"sha256": ""}))
    with pytest.warns(DamagedCheckpointWarning, match="checkpoint of step 2 is taken instead"):
        found = load_checkpoint(folder)
    assert_is(found, load_checkpoint(folders["reference"], run.model, 2))
    with pytest.raises(CheckpointError, match=re.escape(f"{folder / '4'}: expected a whole")):
        load_checkpoint(folder, step=4)


def test_the_network_of_a_user_is_kept_beside_too(tmp_path: Path) -> None:
    params = {"body": {"kernel": jnp.ones((3, 4))}, "head": {"kernel": jnp.ones((4, 2))}}
    model = Model.from_function(
        lambda params, x: x @ params["body"]["kernel"] @ params["head"]["kernel"], params
    )
    plan = probe(model)
    state = init_state(model, plan, plan.optimizer(1e-3))
    moved = replace(state, trainable=jax.tree.map(lambda leaf: 2 * leaf, state.trainable))
    with Checkpoints(tmp_path, {}, source=model, frozen="beside") as checkpoints:
        checkpoints.save(moved, ["head/kernel"], Progress(1, 0, ()))
    with pytest.raises(ModelError, match="a network of a user's own; give the network too"):
        load_checkpoint(tmp_path)
    forgotten = replace(model, params=jax.tree.map(jnp.zeros_like, params))
    found = load_checkpoint(tmp_path, forgotten)
    # Only the head was said to have changed.
    assert (found.params["head"]["kernel"] == 2).all() and (
        found.params["body"]["kernel"] == 1
    ).all()
