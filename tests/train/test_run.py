"""What the settings of a run do, as `finetune`, its history and its callbacks show."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

import jaxtransfer as jt
from jaxtransfer.data import ArrayData, batch_indices
from jaxtransfer.data.augment import CutMix, MixUp
from jaxtransfer.errors import CheckpointError, DataError, NonFiniteLossError, TrainingError
from jaxtransfer.models import Model, Preprocess
from jaxtransfer.models.stages import StagedNetwork
from jaxtransfer.partition import Group, Plan, evaluation_params, gradual
from jaxtransfer.train import (
    BFLOAT16,
    Event,
    LossScaling,
    Precision,
    Settings,
    Sharding,
    TrainState,
    cross_entropy,
    distillation,
    early_stopping,
    evaluate,
    l2_sp,
    load_checkpoint,
    train,
)
from jaxtransfer.transfer import Result
from jaxtransfer.tree import diff, merge

# A rate at which nothing moves, so that losses tell of the data alone.
STILL = 1e-30
ALL = Plan((Group("**"),), name="all")
FROZEN = Group("**", frozen=True)
# What the first plan trains, the second one freezes.
NARROWING = (Plan((Group("**"),), name="wide"), Plan((Group("head/**"), FROZEN), name="narrow"))


class Plain(StagedNetwork):
    """Three dense stages without normalisation; compiled in a moment."""

    @property
    def stages(self) -> tuple[str, ...]:
        return ("stem", "body", "head")

    def _run(self, stage: str, x: jax.Array, train: bool) -> jax.Array:
        x = nn.Dense(3 if stage == "head" else 8, name=stage)(x)
        return x if stage == "head" else nn.tanh(x)


@pytest.fixture(scope="session")
def plain() -> Model:
    variables = Plain().init(jax.random.key(0), jnp.ones((1, 4)), train=False)
    return Model.from_linen(Plain(), variables, stages=("stem", "body", "head"))


def _points(count: int, seed: int) -> ArrayData:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count).astype(np.int32)
    points = rng.normal(size=(count, 4)) + labels[:, np.newaxis]
    return ArrayData(points.astype(np.float32), labels)


POINTS, HELD_OUT = _points(40, 0), _points(12, 1)


def tune(model: Model, plan: Any = ALL, data: Any = POINTS, **options: Any) -> Result:
    """Twelve steps of eight of forty examples: five are an epoch."""
    usual = {"steps": 12, "batch_size": 8, "learning_rate": 0.02, "progress": False}
    return jt.finetune(model, data, plan, **{**usual, **options})


class Stop(Exception):
    """The run is stopped from outside."""


def resumed(at: int, folder: Path, *arguments: Any, **options: Any) -> Result:
    """The same run, stopped at a step and taken up again; every second step is saved."""

    def stop(number: int, _: Any) -> None:
        if number == at:
            raise Stop

    kept = {"checkpoint_folder": folder, "save_every": 2, "resume": True}
    with pytest.raises(Stop):
        tune(*arguments, **options, **kept, on_step=stop)
    return tune(*arguments, **options, **kept)


def assert_same(found: Result, expected: Result) -> None:
    """The same bits."""
    assert diff(expected.model.params, found.model.params).is_empty
    assert diff(expected.model.stats, found.model.stats).is_empty
    assert found.history == expected.history


def assert_close(found: Result, expected: Result, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """The same to rounding."""
    assert losses(found) == pytest.approx(losses(expected), rel=rtol)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(np.asarray(a), b, rtol=rtol, atol=atol),
        found.model.params,
        jax.tree.map(np.asarray, expected.model.params),
    )


def losses(result: Result) -> list[float]:
    return [record["loss"] for record in result.history]


def evaluated(result: Result) -> list[int]:
    return [record["step"] for record in result.history if "validation/loss" in record]


def host(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: np.array(leaf), tree)


# ---------------------------------------------------------------------------------------------
# Evaluations and what they lead to


def test_every_epoch_and_every_plans_end_is_evaluated(plain: Model) -> None:
    result = tune(plain, NARROWING, validation=HELD_OUT)
    assert evaluated(result) == [5, 6, 10, 12]
    assert evaluated(tune(plain, NARROWING, validation=HELD_OUT, evaluate_every=4)) == [4, 6, 8, 12]
    assert evaluated(tune(plain, NARROWING)) == []
    model = result.model
    scores = evaluate(model, model.params, model.stats, HELD_OUT, batch_size=8)
    assert scores.keys() == {"loss", "accuracy"}
    for name, value in scores.items():
        assert result.history[-1][f"validation/{name}"] == pytest.approx(value, rel=1e-6)


def test_a_plan_with_patience_ends_early_and_the_next_goes_on_with_the_data(
    plain: Model,
) -> None:
    plans = gradual(plain, phases=3, patience=2)
    options: dict[str, Any] = {"learning_rate": STILL, "validation": HELD_OUT, "evaluate_every": 1}
    result = tune(plain, plans, **options)
    # The first evaluation of a phase is its best, and the two after it are no better.
    names = [plan.name for plan in plans]
    assert [r["plan"] for r in result.history] == [n for name in names for n in [name] * 3]
    assert [r["step"] for r in result.history] == list(range(1, 10))
    logits = plain.apply(plain.params, {}, POINTS.images, train=False)[0]
    each = np.asarray(optax.softmax_cross_entropy_with_integer_labels(logits, POINTS.labels))
    seen = [each[batch_indices(40, 8, step, 0)].mean() for step in range(9)]
    assert losses(result) == pytest.approx(seen, rel=1e-5)


@pytest.mark.parametrize("at", [1, 4, 5, 8])
def test_a_run_whose_phases_end_early_resumes_to_the_same_bits(
    plain: Model, at: int, tmp_path: Path
) -> None:
    plans = gradual(plain, phases=2, patience=2)
    options: dict[str, Any] = {"metric": "accuracy", "validation": HELD_OUT, "evaluate_every": 1}
    options |= {"learning_rate": 1e-4, "steps": 20}
    whole = tune(plain, plans, **options)
    first = sum(record["plan"] == plans[0].name for record in whole.history)
    assert first == 3 and first < len(whole.history) < 20
    # Within the first phase, just after its end, and in the second one.
    assert_same(resumed(min(at, len(whole.history)), tmp_path, plain, plans, **options), whole)


def test_a_run_that_ended_early_is_over_when_it_is_resumed(plain: Model, tmp_path: Path) -> None:
    numbers: list[int] = []
    options: dict[str, Any] = {
        "learning_rate": STILL,
        "validation": HELD_OUT,
        "evaluate_every": 2,
        "checkpoint_folder": tmp_path,
        "callbacks": [early_stopping(patience=1)],
        "on_step": lambda number, _: numbers.append(number),
    }
    result = tune(plain, NARROWING, **options)
    assert numbers == [1, 2, 3, 4] and evaluated(result) == [2, 4]
    again = tune(plain, NARROWING, **options, resume=True)
    assert numbers == [1, 2, 3, 4]
    assert_same(again, result)


def test_callbacks_hear_of_each_step_once(plain: Model) -> None:
    events: list[Event] = []
    others: list[int] = []

    def watch(event: Event) -> bool:
        events.append(event)
        return event.step == 10

    callbacks = [watch, lambda event: others.append(event.step)]
    result = tune(plain, NARROWING, validation=HELD_OUT, callbacks=callbacks)
    assert [event.step for event in events] == [5, 6, 10] == others
    assert [r for event in events for r in event.records] == result.history
    assert [r["step"] for r in result.history] == list(range(1, 11))
    assert [(event.plan, event.steps) for event in events] == [
        *([("wide", 12)] * 2),
        ("narrow", 12),
    ]
    for event, record in zip(events, (result.history[i - 1] for i in (5, 6, 10)), strict=True):
        assert event.evaluation == {n: record[f"validation/{n}"] for n in ("loss", "accuracy")}
        assert event.evaluations[-1] == {
            "step": event.step,
            "plan": event.plan,
            **event.evaluation,
        }
        assert event.examples_per_second > 0 and 0 <= event.waiting <= 1
    assert [e["step"] for e in events[-1].evaluations] == [5, 6, 10]
    # Without validation examples they hear of losses, every ten steps and at the end of each plan.
    events.clear()
    tune(plain, validation=None, steps=12, callbacks=[lambda event: events.append(event)])
    assert [(e.step, len(e.records), e.evaluation) for e in events] == [
        (5, 5, None),
        (10, 5, None),
        (12, 2, None),
    ]


def test_the_best_checkpoint_is_kept_though_it_was_no_turn_to_save(
    plain: Model, tmp_path: Path
) -> None:
    states: dict[int, Any] = {}
    options: dict[str, Any] = {"validation": HELD_OUT, "evaluate_every": 1, "learning_rate": 0.5}
    result = tune(
        plain,
        **options,
        checkpoint_folder=tmp_path,
        keep_best=1,
        on_step=lambda number, state: states.update({number: host(state.params)}),
    )
    best = min(result.history, key=lambda record: record["validation/loss"])["step"]
    assert best < 11, "else it would be among the newest anyway"
    assert diff(load_checkpoint(tmp_path, plain, "best").params, states[best]).is_empty


def test_the_best_checkpoint_needs_validation_examples(plain: Model, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="keep_best: expected validation examples"):
        tune(plain, checkpoint_folder=tmp_path / "run", keep_best=1)
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------------------------------
# What is returned


def test_the_moving_average_is_evaluated_and_returned(plain: Model) -> None:
    params: list[Any] = []
    result = tune(
        plain,
        ema_decay=0.5,
        validation=HELD_OUT,
        on_step=lambda _, state: params.append(host(state.trainable)),
    )
    average = host(plain.params)
    for moved in params:
        average = jax.tree.map(lambda old, new: 0.5 * old + 0.5 * new, average, moved)
    for found, expected in zip(
        jax.tree.leaves(result.model.params), jax.tree.leaves(average), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert not diff(result.model.params, params[-1]).is_empty
    loss = evaluate(result.model, result.model.params, {}, HELD_OUT)["loss"]
    assert result.history[-1]["validation/loss"] == pytest.approx(loss, rel=1e-6)


def test_a_schedule_free_optimizer_gives_its_average_after_each_plan(plain: Model) -> None:
    states: dict[int, TrainState] = {}

    def keep(number: int, state: TrainState) -> None:
        if number in (6, 7, 12):
            states[number] = jax.tree.map(jnp.copy, state)

    options: dict[str, Any] = {"optimizer": "schedule_free_adamw", "schedule": "constant"}
    result = tune(plain, NARROWING, **options, validation=HELD_OUT, on_step=keep)
    averages = {n: evaluation_params(s.opt_state, s.trainable) for n, s in states.items()}
    # The second plan freezes the averages of the first one's parameters, and trains from them.
    assert diff({"body": averages[6]["body"]}, {"body": states[7].frozen["body"]}).is_empty
    assert not diff({"body": averages[6]["body"]}, {"body": states[6].trainable["body"]}).is_empty
    assert diff(result.model.params, merge(averages[12], states[12].frozen)).is_empty
    loss = evaluate(result.model, result.model.params, {}, HELD_OUT)["loss"]
    assert result.history[-1]["validation/loss"] == pytest.approx(loss, rel=1e-6)


# ---------------------------------------------------------------------------------------------
# Optimizers and schedules


def moments(state: TrainState, name: str) -> Any:
    """The first moment of a parameter, by Adam."""
    found = [
        np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state)
        if "mu" in jax.tree_util.keystr(path) and name in jax.tree_util.keystr(path)
    ]
    assert len(found) == 1
    return found[0].copy()


def test_moments_are_carried_over_or_not(plain: Model) -> None:
    seen: dict[bool, dict[int, Any]] = {True: {}, False: {}}
    histories = {}
    for carry, found in seen.items():

        def on_step(number: int, state: TrainState, found: Any = found) -> None:
            found[number] = moments(state, "['head']['kernel']")

        histories[carry] = tune(plain, NARROWING, carry_moments=carry, on_step=on_step).history
    assert histories[True][:7] == histories[False][:7] and histories[True] != histories[False]
    # The gradient of the first step of the second plan is the same; what it is added to is not.
    np.testing.assert_array_equal(seen[True][6], seen[False][6])
    np.testing.assert_allclose(
        seen[True][7] - 0.9 * seen[True][6], seen[False][7], rtol=1e-4, atol=1e-7
    )


def at_the_third_step(steps: int) -> optax.Schedule:
    """A rate at one step of each plan, and none at the others."""
    return lambda count: jnp.where(count == 2, 1.0, 0.0) * (steps / 6)


def test_each_plan_has_the_schedule_from_its_start(plain: Model) -> None:
    heads: list[Any] = [np.asarray(plain.params["head"]["kernel"])]
    tune(
        plain,
        NARROWING,
        schedule=at_the_third_step,
        optimizer="sgd",
        weight_decay=0.0,
        on_step=lambda _, state: heads.append(np.array(state.trainable["head"]["kernel"])),
    )
    moved = [i + 1 for i in range(12) if (heads[i] != heads[i + 1]).any()]
    assert moved == [3, 9]


@pytest.mark.parametrize("optimizer", ["sam", "muon"])
def test_optimizers_of_their_own_kind_train(plain: Model, optimizer: str, tmp_path: Path) -> None:
    whole = tune(plain, optimizer=optimizer, steps=30)
    assert np.mean(losses(whole)[-5:]) < 0.8 * np.mean(losses(whole)[:5])
    assert losses(whole) != losses(tune(plain, optimizer="sgd", steps=30))
    assert_same(resumed(5, tmp_path, plain, optimizer=optimizer, steps=30), whole)


# ---------------------------------------------------------------------------------------------
# How a step is computed


def test_parts_of_a_batch_give_what_the_whole_does(plain: Model) -> None:
    options: dict[str, Any] = {"optimizer": "sgd", "clip_norm": 0.5}
    assert_close(tune(plain, **options, accumulate=2), tune(plain, **options))
    with pytest.raises(TrainingError, match="accumulate: expected a batch that can be divided"):
        tune(plain, accumulate=3)


def test_what_is_computed_anew_is_the_same(plain: Model) -> None:
    assert_close(tune(plain, remat=("body",), optimizer="sgd"), tune(plain, optimizer="sgd"))
    with pytest.raises(TrainingError, match="remat"):
        tune(plain, remat=("bdy",))


FLOAT16 = Precision(compute="float16", loss_scale=LossScaling(initial=4.0, growth_interval=2))


@pytest.mark.parametrize("precision", [BFLOAT16, FLOAT16], ids=["bfloat16", "float16"])
def test_half_precision_trains_and_resumes(
    plain: Model, precision: Precision, tmp_path: Path
) -> None:
    whole = tune(plain, NARROWING, precision=precision)
    expected = losses(tune(plain, NARROWING))
    assert losses(whole) == pytest.approx(expected, rel=0.03) and losses(whole) != expected
    assert {leaf.dtype for leaf in jax.tree.leaves(whole.model.params)} == {jnp.dtype("float32")}
    assert_same(resumed(5, tmp_path, plain, NARROWING, precision=precision), whole)
    if precision.loss_scale is not None:
        # It grows every two steps, also over the interruption, and begins anew with each plan.
        row = [4.0, 4.0, 8.0, 8.0, 16.0, 16.0]
        assert [record["loss_scale"] for record in whole.history] == row * 2


def test_devices_change_nothing(plain: Model, tmp_path: Path) -> None:
    options: dict[str, Any] = {"validation": HELD_OUT, "batch_size": 16, "optimizer": "sgd"}
    one = tune(plain, NARROWING, **options)
    eight = tune(plain, NARROWING, **options, sharding=Sharding(fsdp=8))
    assert_close(eight, one)
    kernel = eight.model.params["head"]["kernel"]
    assert len(kernel.sharding.device_set) == 8 and not kernel.sharding.is_fully_replicated
    by_pmap = tune(plain, NARROWING, **options, parallel="pmap")
    assert_close(by_pmap, one)
    for result in (eight, by_pmap):
        scores = [r["validation/loss"] for r in result.history if "validation/loss" in r]
        expected = [r["validation/loss"] for r in one.history if "validation/loss" in r]
        assert scores == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("begins", [8, 1])
def test_a_checkpoint_goes_on_with_other_devices(plain: Model, begins: int, tmp_path: Path) -> None:
    where = {8: Sharding(fsdp=8), 1: None}
    options: dict[str, Any] = {"batch_size": 16, "optimizer": "sgd"}
    kept = {"checkpoint_folder": tmp_path, "save_every": 2, "resume": True}

    def stop(number: int, _: Any) -> None:
        if number == 5:
            raise Stop

    with pytest.raises(Stop):
        tune(plain, NARROWING, **options, **kept, sharding=where[begins], on_step=stop)
    found = tune(plain, NARROWING, **options, **kept, sharding=where[9 - begins])
    assert_close(found, tune(plain, NARROWING, **options))


@contextlib.contextmanager
def counted_compilations() -> Iterator[list[str]]:
    """The names of the functions that JAX compiles, those found in its cache on disk too."""
    names: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: names.append(record.getMessage().split()[1])
    handler.addFilter(lambda record: record.getMessage().startswith("Compiling"))
    logger = logging.getLogger("jax")
    logger.addHandler(handler)
    try:
        with jax.log_compiles():
            yield names
    finally:
        logger.removeHandler(handler)


def test_each_phase_compiles_one_step(plain: Model) -> None:
    # A number of steps that no other test has.
    options: dict[str, Any] = {"steps": 14, "validation": HELD_OUT, "evaluate_every": 3}
    with counted_compilations() as names:
        tune(plain, NARROWING, **options)
    assert sum("_step" in name for name in names) == 2
    with counted_compilations() as names:
        tune(plain, NARROWING, **options, seed=1, learning_rate=0.5, max_skipped=2)
    assert not any("step" in name for name in names)


# ---------------------------------------------------------------------------------------------
# Augmentation


def noise(key: jax.Array, batch: Any) -> Any:
    """Images of noise, whatever they were."""
    return {**batch, "image": jax.random.normal(key, batch["image"].shape)}


def test_augmentation_is_random_anew_in_each_step_and_the_same_when_resumed(
    plain: Model, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"data": POINTS.take(np.zeros(8, int)), "learning_rate": STILL}
    plans = (ALL, replace(ALL, name="again"))
    assert len({round(loss, 6) for loss in losses(tune(plain, plans, **options))}) == 1
    whole = tune(plain, plans, **options, augment=noise)
    assert len({round(loss, 6) for loss in losses(whole)}) == 12
    assert_same(resumed(5, tmp_path, plain, plans, **options, augment=noise), whole)
    other = tune(plain, plans, **options, augment=noise, seed=1)
    assert not {*losses(other)} & {*losses(whole)}


def brightness(params: Any, images: jax.Array) -> jax.Array:
    return params["head"]["kernel"] * images.mean(axis=(1, 2))


def first_output(outputs: jax.Array, batch: Any) -> jax.Array:
    return outputs[:, 0]


def as_it_is(key: jax.Array, batch: Any) -> Any:
    # Images that are looked at as they come to an augmentation: in [0, 1].
    inside = (batch["image"] >= 0).all() & (batch["image"] <= 1).all()
    return {**batch, "image": jnp.where(inside, batch["image"], jnp.nan)}


@pytest.mark.parametrize("augment", [None, as_it_is])
@pytest.mark.parametrize(
    ("dtype", "scale", "expected"),
    [
        ("uint8", None, 10.0),
        ("uint8", 16.0, 10 / 16),
        ("uint8", 255.0, 10 / 255),
        ("uint16", 65535.0, 10 / 65535),
        ("int32", None, 10.0),
        ("float32", 255.0, 0.25),
        ("float32", None, 0.25),
    ],
)
def test_the_network_gets_the_same_numbers_whether_images_are_augmented_or_not(
    augment: Any, dtype: str, scale: float | None, expected: float
) -> None:
    preprocess = Preprocess((4, 4), 1, scale=scale, crop_fraction=0.5)
    params = {"head": {"kernel": jnp.ones((1,))}}
    model = replace(Model.from_function(brightness, params), preprocess=preprocess)
    value = 0.25 if dtype == "float32" else 10
    images = np.full((8, 4, 4, 1), value, dtype)
    data = ArrayData(images, np.zeros(8, np.int32))
    how: dict[str, Any] = {"loss": first_output, "augment": augment, "learning_rate": STILL}
    found = train(model, data, [ALL], Settings(steps=1, batch_size=8, **how))[1]
    assert found[0]["loss"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("mix", [MixUp(num_classes=3, alpha=1.0), CutMix(num_classes=3, alpha=1.0)])
def test_mixed_examples_train_with_cross_entropy(network: Model, mix: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 24)
    images = (rng.integers(0, 60, (24, 8, 8, 1)) + 90 * labels[:, None, None, None]).astype("uint8")
    options: dict[str, Any] = {"data": (images, labels), "augment": mix, "plan": "probe"}
    whole = tune(network, **options, validation=(images, labels))
    assert np.isfinite(losses(whole)).all()
    assert losses(whole) != losses(tune(network, **{**options, "augment": None}))
    assert whole.history[-1]["validation/accuracy"] >= 0.3
    assert_same(resumed(5, tmp_path, network, **options, validation=(images, labels)), whole)


# ---------------------------------------------------------------------------------------------
# Regularisers


def test_what_a_regulariser_holds_is_part_of_the_run(plain: Model, tmp_path: Path) -> None:
    other = replace(plain, params=jax.tree.map(lambda leaf: leaf + 1, plain.params))
    for number, (mine, another) in enumerate(
        [
            (l2_sp(plain), l2_sp(other)),
            (distillation(plain, plain), distillation(plain, other)),
        ]
    ):
        folder = tmp_path / str(number)
        whole = tune(plain, regularisers=[mine])
        name = next(key for key in whole.history[0] if key.startswith("regulariser/"))
        assert whole.history[0][name] == pytest.approx(0, abs=0.02)
        assert whole.history[-1][name] > 0
        assert_same(resumed(5, folder, plain, regularisers=[mine]), whole)
        far = tune(plain, regularisers=[another])
        assert losses(far)[0] > losses(whole)[0] + 0.1
        with pytest.raises(CheckpointError, match="regularisers"):
            tune(plain, regularisers=[another], checkpoint_folder=folder, resume=True)


# ---------------------------------------------------------------------------------------------
# Bad steps and bad labels


def spoilt_where_large(outputs: jax.Array, batch: Any) -> jax.Array:
    """Cross-entropy, but for one kind of example."""
    each = cross_entropy()(outputs, batch)
    return jnp.where(batch["image"][:, 0] > 100, jnp.nan, each)


def test_a_bad_batch_is_skipped_and_training_goes_on(plain: Model) -> None:
    images = POINTS.images.copy()
    images[7, 0] = 1000
    params: list[Any] = [host(plain.params)]
    result = tune(
        plain,
        data=ArrayData(images, POINTS.labels),
        loss=spoilt_where_large,
        optimizer="sgd",
        on_step=lambda _, state: params.append(host(state.params)),
    )
    bad = [n + 1 for n in range(12) if 7 in batch_indices(40, 8, n, 0)]
    assert [r["step"] for r in result.history if r["skipped"]] == bad and len(bad) >= 2
    for number in range(2, 12):  # the first and the last step have a rate of 0
        stands = diff(params[number - 1], params[number]).is_empty
        assert stands == (number in bad)


def test_bad_steps_are_counted_over_an_interruption(plain: Model, tmp_path: Path) -> None:
    images = np.full_like(POINTS.images, 1000)
    options: dict[str, Any] = {
        "data": ArrayData(images, POINTS.labels),
        "loss": spoilt_where_large,
        "max_skipped": 5,
    }
    with pytest.raises(NonFiniteLossError, match="^step 5: .* for 5 steps in a row"):
        resumed(4, tmp_path, plain, **options)


@pytest.mark.parametrize(("label", "which"), [(3, "data"), (-1, "data"), (3, "validation")])
def test_labels_without_an_output_are_refused(plain: Model, label: int, which: str) -> None:
    wrong = ArrayData(POINTS.images, np.full(40, label, np.int32))
    examples = {"data": POINTS, "validation": HELD_OUT, which: wrong}
    settings = Settings(steps=1)
    message = f"^{which}: labels: expected classes from 0, below 3, .* found {label}"
    with pytest.raises(DataError, match=message):
        train(plain, examples["data"], [ALL], settings, validation=examples["validation"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps of at least 1, found 0"),
        ({"steps": 1}, "at least a step for each of 2 plans, found 1"),
        ({"steps": None, "batch_size": 0}, "batch_size of at least 1, found 0"),
        ({"steps": None, "epochs": float("inf")}, "epochs above 0, found inf"),
        ({"steps": None, "epochs": float("nan")}, "epochs above 0, found nan"),
    ],
)
def test_numbers_that_make_no_run_are_told(
    plain: Model, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        tune(plain, NARROWING, **options)


def test_a_metric_that_no_patience_can_go_by_is_told_before_the_first_step(plain: Model) -> None:
    plans = (ALL, replace(ALL, patience=1))
    steps: list[int] = []
    with pytest.raises(TrainingError, match="metric 'beauty'"):
        tune(
            plain,
            plans,
            metric="beauty",
            validation=HELD_OUT,
            on_step=lambda number, _: steps.append(number),
        )
    assert steps == []


# ---------------------------------------------------------------------------------------------
# Files


def test_a_folder_of_images_end_to_end(network: Model, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for level, name in enumerate(("dark", "bright")):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(6):
                pixels = rng.integers(0, 80, (10, 9)) + 170 * level
                path = tmp_path / split / name / f"{number}.png"
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    data, held_out = jt.image_folder(tmp_path, "train"), jt.image_folder(tmp_path, "val")
    options: dict[str, Any] = {"validation": held_out, "plan": "probe", "learning_rate": 0.1}
    first, second = (tune(network, data=data, workers=workers, **options) for workers in (0, 2))
    assert_same(first, second)
    assert first.model.labels == ("bright", "dark")
    assert first.history[-1]["validation/accuracy"] == 1.0
    image = np.full((1, 8, 8, 1), 240, np.uint8)
    assert jt.predict(first.model, image).argmax() == 0
