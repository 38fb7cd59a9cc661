"""What the settings of a run do, as `finetune`, its history and its callbacks show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

import jaxtransfer as jt
from jaxtransfer.data import ArrayData, batch_indices
from jaxtransfer.errors import DataError, NonFiniteLossError, TrainingError
from jaxtransfer.models import Model
from jaxtransfer.partition import evaluation_params, gradual
from jaxtransfer.train import (
    Event,
    Settings,
    TrainState,
    cross_entropy,
    early_stopping,
    evaluate,
    load_checkpoint,
    train,
)
from jaxtransfer.tree import diff, merge
from tests.train.tuning import (
    ALL,
    HELD_OUT,
    NARROWING,
    POINTS,
    STILL,
    assert_same,
    evaluated,
    host,
    losses,
    resumed,
    tune,
)

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
        assert event.evaluation is not None
        assert event.evaluation == {n: record[f"validation/{n}"] for n in ("loss", "accuracy")}
        assert event.evaluations[-1] == {
            "step": event.step,
            "plan": event.plan,
            **event.evaluation,
        }
        assert event.examples_per_second > 0 and 0 <= event.waiting <= 1
    assert [e["step"] for e in events[-1].evaluations] == [5, 6, 10]
    # Without validation examples they hear of losses at the same steps.
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


def test_a_schedule_free_optimizer_gives_its_average_after_each_plan(
    plain: Model, tmp_path: Path
) -> None:
    states: dict[int, TrainState] = {}

    def keep(number: int, state: TrainState) -> None:
        if number in (6, 7, 12):
            states[number] = jax.tree.map(jnp.copy, state)

    options: dict[str, Any] = {"optimizer": "schedule_free_adamw", "schedule": "constant"}
    options |= {"validation": HELD_OUT, "checkpoint_folder": tmp_path}
    result = tune(plain, NARROWING, **options, on_step=keep)
    averages = {n: evaluation_params(s.opt_state, s.trainable) for n, s in states.items()}
    # The second plan freezes the averages of the first one's parameters, and trains from them.
    assert diff({"body": averages[6]["body"]}, {"body": states[7].frozen["body"]}).is_empty
    assert not diff({"body": averages[6]["body"]}, {"body": states[6].trainable["body"]}).is_empty
    assert diff(result.model.params, merge(averages[12], states[12].frozen)).is_empty
    assert diff(load_checkpoint(tmp_path, plain).params, result.model.params).is_empty
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
    whole = tune(plain, optimizer=optimizer, steps=20)
    assert np.mean(losses(whole)[-5:]) < 0.9 * np.mean(losses(whole)[:5])
    assert_same(resumed(5, tmp_path, plain, optimizer=optimizer, steps=20), whole)


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


def test_the_labels_of_each_task_are_looked_at(plain: Model) -> None:
    model = jt.replace_head(plain, tasks={"kind": 3, "side": 2})
    data = ArrayData(POINTS.images, {"kind": POINTS.labels, "side": POINTS.labels})
    with pytest.raises(DataError, match="data: labels of side: .* below 2, .* found 2; replace"):
        train(model, data, [ALL], Settings(steps=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps whole, of at least 1, found 0"),
        ({"steps": 1}, "at least a step for each of 2 plans, found 1"),
        ({"steps": None, "batch_size": 0}, "batch_size whole, of at least 1, found 0"),
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
