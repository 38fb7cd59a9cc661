from __future__ import annotations

import gc
import json
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxtransfer.data import ArrayData, batch_indices
from jaxtransfer.errors import CheckpointError, NonFiniteLossError
from jaxtransfer.models import Model
from jaxtransfer.partition import full, lp_ft, probe
from jaxtransfer.train import (
    Checkpoints,
    Progress,
    TrainState,
    cross_entropy,
    init_state,
    make_train_step,
    train,
)
from jaxtransfer.tree import diff, flatten
from tests.train.runs import NARROWING, SETTINGS, Run, assert_same, contents_of, steps_in


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
        if not entry["value_metadata"]["skip_deserialize"]
    }
    # The second plan trains the head, and the first one trained the last stage.
    assert {path[1] for path in written if path[0] == "params"} == {"layer3", "head"}
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
    before = contents_of(tmp_path)
    history = before.pop(tmp_path / "history.jsonl")
    assert steps_in(tmp_path) == [2, 4]
    spoilt = replace(lp_ft_run, settings=replace(SETTINGS, loss=poisoned(), max_skipped=1))
    with pytest.raises(NonFiniteLossError, match="^step [5-8]: "):
        spoilt.into(tmp_path)
    assert {path: path.read_bytes() for path in before} == before
    assert (tmp_path / "history.jsonl").read_bytes().startswith(history)
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
    before = contents_of(folder)
    with pytest.raises(CheckpointError, match="found a run's; resume it, or choose another folder"):
        lp_ft_run.into(folder, resume=False)
    assert contents_of(folder) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0}, "keep: expected at least 1 checkpoint, found 0"),
        ({"keep": -1}, "keep: expected at least 1 checkpoint, found -1"),
        ({"keep_best": 1}, "keep_best: .* a metric whose .*accuracy.*, found 1 and None"),
        ({"keep_best": -1, "metric": "loss"}, "found -1 and loss"),
        ({"frozen": "beside"}, "found 'beside' without a source"),
        ({"frozen": "elsewhere"}, "found 'elsewhere' without a source"),
        ({"keep": 0, "frozen": "beside"}, "keep: .*; frozen: "),
    ],
)
def test_arguments_that_do_not_fit_are_told(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        Checkpoints(tmp_path / "run", {}, **options)
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------------------------------
# What a checkpoint holds


NAMES = ("body/kernel", "head/kernel")


def classify(params: Any, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ params["body"]["kernel"]) @ params["head"]["kernel"]


def small_model(width: int = 16) -> Model:
    rng = np.random.default_rng(0)
    body, head = rng.normal(size=(8, width)), rng.normal(size=(width, 3))
    params = {
        "body": {"kernel": jnp.asarray(body, jnp.float32)},
        "head": {"kernel": jnp.asarray(head, jnp.float32)},
    }
    return Model.from_function(classify, params)


def varied(state: TrainState) -> TrainState:
    """The same state with other numbers in each leaf, as steps make them."""

    def other(leaf: jax.Array) -> jax.Array:
        return leaf + jnp.arange(leaf.size).reshape(leaf.shape).astype(leaf.dtype)

    parts = {
        name: jax.tree.map(other, getattr(state, name))
        for name in ("trainable", "opt_state", "ema")
    }
    return replace(state, **parts, step=jnp.int32(7), rng=jax.random.fold_in(jax.random.key(5), 1))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Extended(TrainState):
    """A state with one more field, of which checkpoints know nothing."""

    scale: Any = None


def test_all_fields_of_a_state_come_back_whatever_they_are(tmp_path: Path) -> None:
    model = small_model()
    plan = full(model)
    plain = init_state(model, plan, plan.optimizer(1e-3), with_ema=True)
    template = Extended(**vars(plain), scale={"value": jnp.bfloat16(1), "none": jnp.zeros((0, 2))})
    saved = replace(varied(template), scale={**template.scale, "value": jnp.bfloat16(512)})
    with Checkpoints(tmp_path, {}) as checkpoints:
        checkpoints.save(saved, NAMES, Progress(7, 0, ()))
        restored = checkpoints.restore(template, plan, NAMES)
    assert diff(saved, restored).is_empty
    assert jax.random.key_impl(restored.rng) == jax.random.key_impl(saved.rng)
    assert not jnp.array_equal(jax.random.key_data(restored.rng), jax.random.key_data(template.rng))


def test_a_state_of_other_leaves_is_refused_with_all_that_differ(tmp_path: Path) -> None:
    model, other = small_model(), small_model(12)
    plan = full(model)
    state = init_state(model, plan, plan.optimizer(1e-3))
    with Checkpoints(tmp_path, {}) as checkpoints:
        checkpoints.save(state, NAMES, Progress(1, 0, ()))
        template = init_state(other, plan, plan.optimizer(1e-3, optimizer="sgd"), with_ema=True)
        with pytest.raises(CheckpointError) as caught:
            checkpoints.restore(template, plan, NAMES)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / '1'}: expected the leaves of this run's state")
    assert "\n ~ params/head/kernel: float32[12, 3], found float32[16, 3]\n" in message
    assert "\n - ema/head/kernel\n" in message
    assert re.search(r"\n \+ opt_state/.*nu/head/kernel\n", message)


def bytes_in(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def test_the_checkpoint_of_a_probe_is_small_and_its_source_is_kept_once(tmp_path: Path) -> None:
    params = {"body": {"kernel": jnp.ones((8, 100_000))}, "head": {"kernel": jnp.ones((8, 3))}}
    model = Model.from_function(lambda params, x: x @ params["head"]["kernel"], params)
    big = params["body"]["kernel"].nbytes
    plan = probe(model)
    state = init_state(model, plan, plan.optimizer(1e-3))
    sizes = {}
    for frozen in ("reference", "beside"):
        folder = tmp_path / frozen
        with Checkpoints(folder, {}, source=model, frozen=frozen, keep=3) as checkpoints:
            for number in (1, 2, 3):
                checkpoints.save(state, ["head/kernel"], Progress(number, 0, ()))
        assert steps_in(folder) == [1, 2, 3]
        assert bytes_in(folder / "3") < 30_000
        sizes[frozen] = bytes_in(folder)
    assert big == 3_200_000
    assert sizes["reference"] < 90_000
    # What Orbax writes beside the arrays varies by a few hundred bytes.
    assert abs(sizes["beside"] - sizes["reference"] - big) < 10_000


def test_statistics_that_are_the_sources_still_are_not_stored_again(
    network: Model, tmp_path: Path
) -> None:
    plan = probe(network)
    template = init_state(network, plan, plan.optimizer(1e-3))
    stats = dict(flatten(template.stats))
    name = next(iter(stats))
    moved = jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            leaf + 1 if jax.tree_util.keystr(path, simple=True, separator="/") == name else leaf
        ),
        template.stats,
    )
    with Checkpoints(tmp_path, {}, source=network) as checkpoints:
        names = ["head/bias", "head/kernel"]
        checkpoints.save(replace(template, stats=moved), names, Progress(1, 0, ()))
        checkpoints.wait()
        written = json.loads((tmp_path / "1" / "state" / "_METADATA").read_text())["tree_metadata"]
        restored = checkpoints.restore(template, plan, names)
        keys = ["/".join(key["key"] for key in e["key_metadata"]) for e in written.values()]
        assert [key for key in keys if key.startswith("stats/")] == [f"stats/{name}"]
        assert diff(restored.stats, moved).is_empty and len(stats) > 1
        # A template of another source would give the other statistics other values.
        other = replace(template, stats=jax.tree.map(lambda leaf: leaf + 1, template.stats))
        with pytest.raises(CheckpointError, match="expected the model that the run started from"):
            checkpoints.restore(other, plan, names)


# ---------------------------------------------------------------------------------------------
# Other devices


LAYOUTS: dict[str, tuple[int, Any]] = {
    "one device": (1, P()),
    "four, replicated": (4, P()),
    "eight, replicated": (8, P()),
    "four, in pieces": (4, P("data")),
    "eight, in pieces": (8, P("data")),
}


def laid_out(state: TrainState, layout: str) -> TrainState:
    """A state on some devices: what can be cut in equal pieces is, where the layout says so."""
    count, spec = LAYOUTS[layout]
    mesh = Mesh(np.asarray(jax.devices()[:count]), ("data",))

    def put(leaf: jax.Array) -> jax.Array:
        fits = leaf.ndim > 0 and leaf.shape[0] % count == 0
        return jax.device_put(leaf, NamedSharding(mesh, spec if fits else P()))

    return jax.tree.map(put, state)


@pytest.mark.parametrize("there", LAYOUTS)
@pytest.mark.parametrize("here", ["eight, replicated", "one device", "four, in pieces"])
def test_a_checkpoint_goes_onto_any_devices(here: str, there: str, tmp_path: Path) -> None:
    model = small_model()
    plan = full(model)
    template = init_state(model, plan, plan.optimizer(1e-3), with_ema=True)
    saved = laid_out(varied(template), here)
    with Checkpoints(tmp_path, {}) as checkpoints:
        checkpoints.save(saved, NAMES, Progress(7, 0, ()))
    like = laid_out(template, there)
    with Checkpoints(tmp_path, {}, resume=True) as checkpoints:
        restored = checkpoints.restore(like, plan, NAMES)
    assert diff(jax.device_get(saved), jax.device_get(restored)).is_empty
    for leaf, expected in zip(jax.tree.leaves(restored), jax.tree.leaves(like), strict=True):
        assert leaf.sharding.is_equivalent_to(expected.sharding, leaf.ndim) and leaf.committed


def test_a_run_goes_on_with_the_same_examples_on_other_devices(tmp_path: Path) -> None:
    model = small_model()
    plan = full(model)
    rng = np.random.default_rng(1)
    images = rng.random((20, 8), np.float32)
    labels = rng.integers(0, 3, 20).astype(np.int32)
    tx = plan.optimizer(1e-2)
    step = make_train_step(model.apply, cross_entropy(), tx, plan)

    def steps(state: TrainState, layout: str, until: int) -> TrainState:
        count, _ = LAYOUTS[layout]
        mesh = Mesh(np.asarray(jax.devices()[:count]), ("data",))
        while (done := int(state.step)) < until:
            chosen = batch_indices(20, 8, done, 0)
            batch = {"image": images[chosen], "label": labels[chosen]}
            state, _ = step(state, jax.device_put(batch, NamedSharding(mesh, P("data"))))
        return state

    def start(layout: str) -> TrainState:
        return laid_out(init_state(model, plan, tx), layout)

    whole = steps(start("one device"), "one device", 6)
    state = steps(start("eight, replicated"), "eight, replicated", 2)
    for layout, until in (("one device", 3), ("four, in pieces", 5), ("four, replicated", 6)):
        with Checkpoints(tmp_path, {}, resume=True) as checkpoints:
            if checkpoints.progress() is not None:
                checkpoints.restore(state, plan, NAMES)
            checkpoints.save(state, NAMES, Progress(int(state.step), 0, ()))
        with Checkpoints(tmp_path, {}, resume=True) as checkpoints:
            state = steps(checkpoints.restore(start(layout), plan, NAMES), layout, until)
    for name, leaf in flatten(state.params).items():
        np.testing.assert_allclose(leaf, flatten(whole.params)[name], rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------------------------------
# Which checkpoints are kept


def saved_with(folder: Path, values: dict[int, float | None], **options: Any) -> Checkpoints:
    """The closed checkpoints of a run with these values of its metric."""
    model = small_model()
    plan = full(model)
    state = init_state(model, plan, plan.optimizer(1e-3))
    with Checkpoints(folder, {}, resume=True, **options) as checkpoints:
        for number, value in values.items():
            metrics = None if value is None else {options["metric"]: value, "other": 0.0}
            checkpoints.save(state, NAMES, Progress(number, 0, ()), metrics)
    return checkpoints


@pytest.mark.parametrize(
    ("metric", "values", "options", "kept", "best"),
    [
        ("accuracy", [0.1, 0.9, 0.3, 0.4, 0.5], {"keep_best": 1}, [2, 4, 5], 2),
        ("loss", [0.3, 0.9, 0.1, 0.4, 0.5], {"keep_best": 1}, [3, 4, 5], 3),
        ("top1_error", [0.3, 0.2, 0.1, 0.4, 0.5], {"keep_best": 2, "keep": 1}, [2, 3, 5], 3),
        ("accuracy", [0.7, 0.7, 0.7, 0.7, 0.7], {"keep_best": 1}, [1, 4, 5], 1),
        ("accuracy", [None, 0.2, None, None, None], {"keep_best": 1}, [2, 4, 5], 2),
        ("accuracy", [0.5, float("nan"), 0.2, 0.1, 0.1], {"keep_best": 1}, [1, 4, 5], 1),
        ("accuracy", [0.1, 0.9, 0.3, 0.4, 0.5], {"keep_best": 0}, [4, 5], 5),
        ("accuracy", [None] * 5, {"keep_best": 1}, [4, 5], None),
    ],
)
def test_the_newest_checkpoints_and_the_best_are_kept(
    metric: str,
    values: list[float | None],
    options: dict[str, Any],
    kept: list[int],
    best: int | None,
    tmp_path: Path,
) -> None:
    # The run is left and resumed in between: the best one so far is known from the folder.
    everything = dict(enumerate(values, start=1))
    first = {number: everything[number] for number in (1, 2, 3)}
    saved_with(tmp_path, first, metric=metric, **options)
    rest = {number: everything[number] for number in (4, 5)}
    checkpoints = saved_with(tmp_path, rest, metric=metric, **options)
    assert steps_in(tmp_path) == kept
    assert checkpoints.best_step() == best


def test_the_best_checkpoint_can_be_restored_while_later_ones_are_there(tmp_path: Path) -> None:
    model = small_model()
    plan = full(model)
    template = init_state(model, plan, plan.optimizer(1e-3))
    with Checkpoints(tmp_path, {}, keep=1, keep_best=1, metric="accuracy") as checkpoints:
        for number, value in ((1, 0.9), (2, 0.1), (3, 0.2)):
            state = replace(template, step=jnp.int32(number))
            history = tuple({"step": step} for step in range(1, number + 1))
            checkpoints.save(state, NAMES, Progress(number, 0, history), {"accuracy": value})
        best = checkpoints.best_step()
        assert best == 1
        assert checkpoints.progress(best) == Progress(1, 0, ({"step": 1},))
        assert int(checkpoints.restore(template, plan, NAMES, best).step) == 1
        # To go on from there would put a second history beside that of the later ones.
        with pytest.raises(CheckpointError, match=r"save step 2 as the newest, found .* \[3\]"):
            checkpoints.save(template, NAMES, Progress(2, 0, ()))
        with pytest.raises(CheckpointError, match=r"of step 2, found those of \[1, 3\]"):
            checkpoints.restore(template, plan, NAMES, 2)
        assert int(checkpoints.restore(template, plan, NAMES).step) == 3


def test_another_metric_makes_others_the_best(tmp_path: Path) -> None:
    model = small_model()
    plan = full(model)
    state = init_state(model, plan, plan.optimizer(1e-3))
    with Checkpoints(tmp_path, {}, keep=2, keep_best=1, metric="loss") as checkpoints:
        for number, loss in ((1, 0.1), (2, 0.2), (3, 0.3)):
            metrics = {"loss": loss, "accuracy": loss}
            checkpoints.save(state, NAMES, Progress(number, 0, ()), metrics)
        assert checkpoints.best_step() == 1
    with Checkpoints(tmp_path, {}, resume=True, metric="accuracy") as checkpoints:
        assert checkpoints.best_step() == 3


def test_a_step_is_saved_once(tmp_path: Path) -> None:
    model = small_model()
    plan = full(model)
    state = init_state(model, plan, plan.optimizer(1e-3))
    with Checkpoints(tmp_path, {}) as checkpoints:
        checkpoints.save(state, NAMES, Progress(3, 0, ()))
        checkpoints.save(state, NAMES, Progress(3, 0, ()))
    with Checkpoints(tmp_path, {}, resume=True) as checkpoints:
        checkpoints.restore(state, plan, NAMES)
        before = contents_of(tmp_path)
        checkpoints.save(state, NAMES, Progress(3, 0, ()))
        checkpoints.wait()
        assert contents_of(tmp_path) == before


# ---------------------------------------------------------------------------------------------
# The history


def test_the_bytes_of_a_checkpoint_do_not_grow_with_the_history(tmp_path: Path) -> None:
    model = small_model()
    plan = full(model)
    state = init_state(model, plan, plan.optimizer(1e-3))
    history = tuple({"step": step, "loss": 1 / step} for step in range(1, 10_001))
    with Checkpoints(tmp_path, {}, keep=3) as checkpoints:
        for number in (1, 5000, 10_000):
            checkpoints.save(state, NAMES, Progress(number, 0, history[:number]))
    sizes = [bytes_in(tmp_path / str(number)) for number in (1, 5000, 10_000)]
    # The database of the arrays takes a thousand bytes more or less from one write to the next.
    assert max(sizes) < min(sizes) + 4000 < bytes_in(tmp_path / "history.jsonl") / 10
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert tuple(json.loads(line) for line in lines) == history
    with Checkpoints(tmp_path, {}, resume=True) as checkpoints:
        progress = checkpoints.progress()
        assert progress is not None and progress.history == history


def test_a_history_that_went_on_after_the_checkpoint_is_cut_off(
    lp_ft_run: Run, tmp_path: Path
) -> None:
    lp_ft_run.stopped_at(7, tmp_path)
    path = tmp_path / "history.jsonl"
    with path.open("a") as file:  # written, and then killed before the checkpoint
        file.write('{"step": 7, "loss": 99.0}\n{"step": 8, "lo')
    expected = lp_ft_run.whole()
    assert_same(lp_ft_run.into(tmp_path), expected)
    assert [json.loads(line) for line in path.read_text().splitlines()] == expected[1]
