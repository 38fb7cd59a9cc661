"""Sweeps against `finetune`: each configuration is the run that it stands for."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.data import ArrayData
from jaxtransfer.errors import DataError, NonFiniteLossError, PlanError, TrainingError
from jaxtransfer.models import Model
from jaxtransfer.partition import Group, Plan
from jaxtransfer.train.sweep_program import Examples, Recipe, cost_of, scan_program
from jaxtransfer.train.sweep_start import cached_stage
from tests.train.tuning import HELD_OUT, POINTS

GRID = {
    "lr": [0.01, 0.1],
    "weight_decay": [0.0, 0.3],
    "label_smoothing": [0.0, 0.2],
    "seed": [0, 5],
}
ONE = jax.devices()[:1]
FROZEN = Group("**", frozen=True, stats="frozen")


def sweep(model: Model, grid: Any = GRID, data: Any = POINTS, **options: Any) -> jt.Sweep:
    usual = {"validation": HELD_OUT, "steps": 12, "batch_size": 8, "devices": ONE}
    return jt.sweep(model, data, grid, **{**usual, **options})


def assert_as_finetuned(
    model: Model, found: jt.Sweep, plan: Any, which: list[int], data: Any = POINTS, **options: Any
) -> None:
    """These configurations have the losses and the score of their own runs, the best its model."""
    for i in which:
        alone = jt.finetune(
            model,
            data,
            plan,
            validation=HELD_OUT,
            steps=12,
            batch_size=8,
            progress=False,
            **found.configurations[i].to_dict(),
            **options,
        )
        expected = [record["loss"] for record in alone.history]
        np.testing.assert_allclose(found.losses[i], expected, rtol=1e-5, atol=1e-6)
        assert found.validation[i] == pytest.approx(alone.history[-1]["validation/accuracy"])
        if i == found.order[0]:
            for leaf, other in zip(
                jax.tree.leaves((found.model.params, found.model.stats)),
                jax.tree.leaves((alone.model.params, alone.model.stats)),
                strict=True,
            ):
                np.testing.assert_allclose(leaf, other, rtol=2e-5, atol=2e-6)


@pytest.fixture(scope="module")
def probed(plain: Model) -> jt.Sweep:
    return sweep(plain)


# ---------------------------------------------------------------------------------------------
# Each configuration is the run that it stands for


def test_each_configuration_is_the_run_of_finetune(plain: Model, probed: jt.Sweep) -> None:
    which = sorted({0, 6, 9, probed.order[0]})
    seeds = {probed.configurations[i].seed for i in which}
    assert len(which) >= 3 and seeds == {0, 5}
    assert_as_finetuned(plain, probed, "probe", which)


def test_a_new_head_is_that_of_the_seed(plain: Model) -> None:
    # Four classes, for which the network has no head.
    labels = (np.arange(40) % 4).astype(np.int32)
    data = ArrayData(POINTS.images, labels)
    found = sweep(plain, {"lr": [0.1], "seed": [0, 5]}, data)
    assert found.losses[0][0] != found.losses[1][0]
    assert_as_finetuned(plain, found, "probe", [0, 1], data)


def test_statistics_and_dropout_of_what_trains_are_those_of_finetune(
    staged_with_dropout: Model,
) -> None:
    plan = jt.last(staged_with_dropout, 2)
    assert cached_stage(staged_with_dropout, plan, POINTS) == "neck"
    # Of a bias before a BatchNorm the gradient is rounding alone, which Adam would make steps of.
    grid = {"lr": [0.01, 0.05], "seed": [0, 5]}
    found = sweep(staged_with_dropout, grid, plan=plan, optimizer="sgd")
    assert_as_finetuned(staged_with_dropout, found, plan, [found.order[0]], optimizer="sgd")


def test_without_a_frozen_prefix_the_images_are_what_is_shared(plain: Model) -> None:
    # Of this network nothing can be left out: its first stage trains, after its preprocessing.
    model = replace(plain, preprocess=replace(plain.preprocess, mean=(0.5,)))
    plan = Plan((Group("stem/**"), FROZEN), name="stem")
    assert cached_stage(model, plan, POINTS) is None
    found = sweep(model, {"lr": [0.01, 0.1]}, plan=plan)
    assert_as_finetuned(model, found, plan, [0, 1])


@pytest.mark.slow
def test_convolutions_are_trained_by_single_steps(network: Model, examples: ArrayData) -> None:
    plan = jt.last(network, 2)
    stage = cached_stage(network, plan, examples)
    assert stage not in (None, network.spec.stages[0], network.spec.stages[-1])
    grid = {"lr": [0.01, 0.05], "weight_decay": [0.0, 0.1]}
    options = {"validation": examples, "steps": 3, "batch_size": 8}
    before = scan_program.cache_info().currsize
    found = jt.sweep(network, examples, grid, plan=plan, devices=ONE, **options)
    assert scan_program.cache_info().currsize == before
    for i, one in enumerate(found.configurations):
        alone = jt.finetune(network, examples, plan, progress=False, **options, **one.to_dict())
        expected = [record["loss"] for record in alone.history]
        np.testing.assert_allclose(found.losses[i], expected, rtol=1e-4)


def test_other_optimizers_clipping_and_schedules_are_those_of_finetune(plain: Model) -> None:
    # The points that a schedule-free optimizer evaluates at are not those that it trains at.
    options: Any = {"optimizer": "schedule_free_sgd", "schedule": "constant", "clip_norm": 0.5}
    found = sweep(plain, {"lr": [0.1, 1.0], "weight_decay": [0.0, 0.1]}, **options)
    assert_as_finetuned(plain, found, "probe", [3, found.order[0]], **options)


def test_numbers_are_swept_by_r_squared(plain: Model) -> None:
    values = POINTS.images[:, :1].astype(np.float32)
    data = ArrayData(POINTS.images, values)
    held_out = ArrayData(HELD_OUT.images, HELD_OUT.images[:, :1].astype(np.float32))
    grid = {"lr": [1e-6, 0.3]}
    found = sweep(plain, grid, data, validation=held_out, optimizer="sgd", steps=60)
    assert found.score == "r_squared" and found.best.learning_rate == 0.3
    assert found.validation[0] < 0 < found.validation[1] <= 1
    with pytest.raises(TrainingError, match="label_smoothing 0 where labels are no classes"):
        sweep(plain, {"label_smoothing": [0.1]}, data, validation=held_out)


@pytest.mark.parametrize(
    ("targets", "labels", "score"),
    [
        ("values", lambda data: data.images[:, 0], "r_squared"),
        ("multi_label", lambda data: (data.images[:, :2] > 0).astype(int), "accuracy"),
    ],
)
def test_the_labels_of_a_pair_are_what_targets_says(
    plain: Model, targets: str, labels: Any, score: str
) -> None:
    pair, held_out = ((data.images, labels(data)) for data in (POINTS, HELD_OUT))
    grid = {"lr": [1e-6, 0.3]}
    found = sweep(plain, grid, pair, validation=held_out, targets=targets, steps=30)
    assert found.score == score and found.best.learning_rate == 0.3
    with pytest.raises(DataError, match="labels: expected"):
        sweep(plain, grid, pair, validation=held_out)


# ---------------------------------------------------------------------------------------------
# Side by side


def same(found: jt.Sweep, expected: jt.Sweep) -> None:
    np.testing.assert_allclose(found.validation, expected.validation)
    for a, b in zip(found.losses, expected.losses, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert found.order == expected.order
    for a, b in zip(
        jax.tree.leaves(found.model.params), jax.tree.leaves(expected.model.params), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_all_devices_give_what_one_gives(plain: Model, probed: jt.Sweep) -> None:
    assert len(jax.devices()) == 8
    same(sweep(plain, devices=None), probed)


def test_configurations_on_other_devices_need_nothing_of_each_other(plain: Model) -> None:
    from jaxtransfer.train import sweep_run

    seen = []
    original = sweep_run.scan_program

    def spy(recipe: Recipe) -> Any:
        program: Any = original(recipe)

        def call(*arguments: Any) -> Any:
            seen.append(program.lower(*arguments).compile().as_text())
            return program(*arguments)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep_run, "scan_program", spy)
        sweep(plain, {"lr": [0.01, 0.1], "seed": [0, 1]}, devices=jax.devices()[:2])
    (text,) = seen
    assert not [
        name for name in ("all-reduce", "all-gather", "permute", "all-to-all") if name in text
    ]


def test_chunks_that_fit_into_memory_give_what_one_program_gives(
    plain: Model, probed: jt.Sweep
) -> None:
    from jaxtransfer.train import sweep_run

    counts = []
    original = sweep_run.arrange

    def arrange(seeds: Any, devices: int) -> np.ndarray:
        counts.append(len(seeds))
        return original(seeds, devices)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep_run, "arrange", arrange)
        same(sweep(plain, memory=15_000), probed)
    assert len(counts) > 1 and sum(counts) == 16


def test_the_estimate_of_memory_grows_with_what_trains_and_with_the_batch(plain: Model) -> None:
    def cost(rows: int, width: int) -> int:
        recipe = Recipe(
            plain.apply, "head", jt.probe(plain), None, "sgd", "constant", 1, None, "classes"
        )
        state: Any = {"kernel": jax.ShapeDtypeStruct((width, 3), jnp.float32)}
        inputs = jax.ShapeDtypeStruct((rows, 8), jnp.float32)
        return cost_of(recipe, plain.params, plain.stats, state, inputs).memory

    assert cost(8, 16) - cost(8, 8) == 3 * 8 * 3 * 4
    # The product and the bias added to it, of four bytes each, twice; what is broadcast on the way.
    assert cost(16, 8) - cost(8, 8) >= 2 * 2 * 8 * 3 * 4


def test_a_network_is_run_once_over_the_examples(plain: Model) -> None:
    calls = []

    def apply(params: Any, x: Any, *, start: Any = None, stop: Any = None) -> Any:
        if start != "head":
            jax.debug.callback(lambda: calls.append(1))
            x = jnp.tanh(x @ params["body"])
        return x if stop == "head" else x @ params["head"]

    model = Model.from_function(apply, {"body": jnp.eye(4), "head": jnp.zeros((4, 3))})
    sweep(model, {"lr": [0.01, 0.1], "seed": [0, 1]})
    jax.effects_barrier()
    assert len(calls) == 2  # the examples and those to compare by, one batch of each


# ---------------------------------------------------------------------------------------------
# Halving, and what diverges


def test_those_that_come_to_the_end_are_what_they_are_without_halving(
    plain: Model, probed: jt.Sweep
) -> None:
    found = sweep(plain, halving=3)
    # A first rung one earlier would be less than a step.
    assert [rung.steps for rung in found.rungs] == [1, 4, 12]
    assert [len(rung.configurations) for rung in found.rungs] == [16, 6, 2]
    for rung, after in zip(found.rungs, found.rungs[1:], strict=False):
        assert after.configurations == tuple(sorted(rung.order()[: len(after.configurations)]))
    ended = found.rungs[-1].configurations
    for i in range(16):
        count = len(found.losses[i])
        assert count == (
            12 if i in ended else max(r.steps for r in found.rungs if i in r.configurations)
        )
        np.testing.assert_allclose(found.losses[i], probed.losses[i][:count], rtol=1e-5, atol=1e-6)
    for i in ended:
        assert found.validation[i] == pytest.approx(probed.validation[i])
    assert set(found.order[:2]) == set(ended) and sorted(found.order) == list(range(16))


def test_one_that_diverges_is_never_the_best_and_leaves_the_others_alone(plain: Model) -> None:
    options: Any = {"optimizer": "sgd", "schedule": "constant"}
    found = sweep(plain, {"lr": [0.1, 1e38], "seed": [0, 1]}, **options)
    alone = sweep(plain, {"lr": [0.1], "seed": [0, 1]}, **options)
    assert [math.isnan(score) for score in found.validation] == [False, False, True, True]
    assert found.validation[:2] == pytest.approx(alone.validation)
    np.testing.assert_allclose(found.losses[:2], alone.losses, rtol=1e-5)
    assert found.best.learning_rate == 0.1 and set(found.order[2:]) == {2, 3}
    assert "diverged" in found.table()
    text = json.dumps(found.to_dict(), allow_nan=False)
    assert json.loads(text)["validation"][2:] == [None, None]
    with pytest.raises(NonFiniteLossError, match="all of 2 have diverged"):
        sweep(plain, {"lr": [1e38], "seed": [0, 1]}, **options)


# ---------------------------------------------------------------------------------------------
# What is found, and what is refused


def test_the_best_is_the_highest_and_stands_first(probed: jt.Sweep) -> None:
    best = max(probed.validation)
    assert probed.validation[probed.order[0]] == best
    assert probed.best == probed.configurations[probed.order[0]]
    header, rows = probed.rows(3)
    assert header[:4] == ["learning rate", "weight decay", "label smoothing", "seed"]
    assert len(rows) == 3 and rows[0][4] == f"{best:.4f}"
    assert len(probed.table().splitlines()) == 18
    assert f"best validation accuracy {best:.4f} with learning_rate" in str(probed)
    assert "of 16 configurations the best by validation accuracy" in probed.model.receipt.notes[-1]


def test_the_model_is_the_one_that_scored(plain: Model, probed: jt.Sweep) -> None:
    logits = jt.predict(probed.model, HELD_OUT)
    assert np.mean(logits.argmax(-1) == HELD_OUT.labels) == pytest.approx(max(probed.validation))
    frozen = [(probed.model.params[name], plain.params[name]) for name in ("stem", "body")]
    assert all(jt.diff(before, after).is_empty for after, before in frozen)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"plan": "lp_ft"}, TrainingError, "one plan, found"),
        ({"plan": "nothing"}, PlanError, "recipe among"),
        ({"halving": 1}, TrainingError, "halving whole, from 2, or None, found 1"),
        ({"devices": []}, TrainingError, "one device, found 16 and 0"),
        ({"memory": 3000}, TrainingError, "raise memory"),
        ({"steps": 0}, TrainingError, "steps whole"),
        ({"steps": None, "epochs": 0}, TrainingError, "epochs above 0"),
        ({"validation": (np.zeros((0, 4)), [])}, DataError, "images of shape"),
        ({"grid": {"lr": [math.inf]}}, TrainingError, "found inf"),
    ],
)
def test_what_cannot_be_swept_is_told(
    plain: Model, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        sweep(plain, **options)


def test_a_head_of_each_seed_that_does_not_train_is_refused(plain: Model) -> None:
    data = ArrayData(POINTS.images, (np.arange(40) % 4).astype(np.int32))
    plan = Plan((Group("head/bias"), FROZEN), name="bias")
    with pytest.raises(TrainingError, match="'bias' freezes head/kernel"):
        sweep(plain, {"seed": [0, 1]}, data, plan=plan)


def test_weights_of_examples_count(plain: Model) -> None:
    examples = Examples(jnp.ones((3, 2)), jnp.arange(3), jnp.array([1.0, 0.0, 2.0]))
    batch = examples.batch(jnp.array([2, 0]))
    assert batch["weight"].tolist() == [2.0, 1.0] and batch["label"].tolist() == [2, 0]
