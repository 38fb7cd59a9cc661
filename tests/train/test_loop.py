from __future__ import annotations

import dataclasses
import json
import math
import re
from dataclasses import replace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxtransfer.data import ArrayData, batch_indices
from jaxtransfer.data.augment import Compose, HorizontalFlip, RandomResizedCrop
from jaxtransfer.data.stored import stored_data
from jaxtransfer.errors import DataError, NonFiniteLossError, PlanError, TrainingError
from jaxtransfer.models import Model, Preprocess
from jaxtransfer.partition import Group, Plan, full, lp_ft, probe, warmup_cosine
from jaxtransfer.train import Settings, cross_entropy, init_state, make_train_step, train
from jaxtransfer.train.cache import Cache
from jaxtransfer.train.loop import changed_by
from jaxtransfer.train.precision import BFLOAT16
from jaxtransfer.train.program import cached_program
from jaxtransfer.train.regularisers import l2_sp
from jaxtransfer.train.settings import _described as described
from jaxtransfer.train.settings import run_identity, share_steps
from jaxtransfer.tree import diff
from tests.train.runs import Pixels

# As in the tests of checkpoints, so that what is compiled serves both.
SETTINGS = Settings(steps=10, batch_size=4, learning_rate=0.01, weight_decay=0.1)
ALL = Group("**")


# ---------------------------------------------------------------------------------------------
# Steps for each plan


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6), st.integers(0, 200))
def test_the_steps_are_shared_out_in_proportion(shares: list[float], extra: int) -> None:
    plans = [Plan((ALL,), share=share) for share in shares]
    steps = len(plans) + extra
    lengths = share_steps(plans, steps)
    assert sum(lengths) == steps and min(lengths) >= 1 and len(lengths) == len(plans)
    ends = np.cumsum(lengths)
    ideal = np.cumsum(shares) / sum(shares) * steps
    # Half a step from the ideal end, unless a plan before or after it needs its one step.
    for position, (end, wanted) in enumerate(zip(ends, ideal, strict=True), start=1):
        earliest = ends[position - 2] + 1 if position > 1 else 1
        latest = steps - (len(plans) - position)
        assert abs(end - wanted) <= 0.5 + 1e-6 or end in (earliest, latest)


def test_equal_shares_give_equal_steps() -> None:
    assert share_steps([Plan((ALL,))] * 4, 20) == (5, 5, 5, 5)
    assert share_steps([Plan((ALL,), share=3.0), Plan((ALL,))], 20) == (15, 5)


def test_a_plan_without_a_step_is_an_error() -> None:
    with pytest.raises(TrainingError, match="at least a step for each of 3 plans, found 2"):
        share_steps([Plan((ALL,))] * 3, 2)


# ---------------------------------------------------------------------------------------------
# Settings


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "steps whole, of at least 1, found 0"),
        ({"batch_size": 0}, "batch_size whole, of at least 1, found 0"),
        ({"learning_rate": 0.0}, "learning_rate above 0, found 0.0"),
        ({"learning_rate": math.nan}, "learning_rate above 0, found nan"),
        ({"learning_rate": math.inf}, "learning_rate above 0, found inf"),
        ({"weight_decay": -1.0}, "weight_decay of at least 0, found -1.0"),
        ({"clip_norm": 0.0}, "clip_norm above 0 or None, found 0.0"),
        ({"precision": "bfloat16"}, "precision such as jt.BFLOAT16, found 'bfloat16'"),
        ({"loss": "focal"}, "loss a function such as jt.focal(), found 'focal'"),
        (
            {"optimizer": "schedule_free_sgd", "ema_decay": 0.9},
            "ema_decay None with schedule_free_sgd, which averages by itself, found 0.9",
        ),
        ({"seed": -1}, "seed whole, of at least 0, found -1"),
    ],
)
def test_a_setting_out_of_range_is_an_error(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=re.escape(message)):
        Settings(**{"steps": 1, **fields})


def test_one_regulariser_may_stand_alone(network: Model) -> None:
    alone = l2_sp(network)
    assert Settings(steps=1, regularisers=cast(Any, alone)).regularisers == (alone,)


def test_all_settings_out_of_range_are_told_at_once() -> None:
    with pytest.raises(TrainingError, match="steps .*batch_size .*seed "):
        Settings(steps=0, batch_size=0, seed=-1)


# ---------------------------------------------------------------------------------------------
# The run


def test_the_loop_is_the_step_over_the_batches_and_no_more(
    network: Model, examples: ArrayData
) -> None:
    plan = full(network)
    tuned, history = train(network, examples, [plan], SETTINGS)
    tx = plan.optimizer(0.01, weight_decay=0.1, schedule=warmup_cosine(10))
    state = init_state(network, plan, tx)
    state = replace(state, rng=jax.random.fold_in(state.rng, 0))
    step = make_train_step(network.apply, cross_entropy(), tx, plan)
    for number in range(10):
        chosen = batch_indices(20, 4, number, 0)
        batch = {"image": examples.images[chosen], "label": examples.labels[chosen]}
        state, metrics = step(state, batch)
        assert history[number] == {
            "step": number + 1,
            "plan": "full",
            "loss": pytest.approx(float(metrics["loss"]), rel=1e-5),
            "gradient_norm": pytest.approx(float(metrics["gradient_norm"]), rel=1e-4),
            "skipped": 0.0,
        }
    for found, expected in zip(
        jax.tree.leaves(tuned.params), jax.tree.leaves(state.params), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_plans_follow_each_other(network: Model, examples: ArrayData) -> None:
    seen: list[tuple[int, tuple[str, ...]]] = []

    def on_step(number: int, state: Any) -> None:
        seen.append((number, diff(network.params, state.params).changed))

    head, everything = lp_ft(network, head_share=0.5)
    _, history = train(network, examples, (head, everything), SETTINGS, on_step=on_step)
    assert [number for number, _ in seen] == list(range(1, 11))
    assert [record["plan"] for record in history] == [head.name] * 5 + [everything.name] * 5
    # The first step of each plan has a rate of zero.
    assert all(set(changed) <= {"head/bias", "head/kernel"} for _, changed in seen[:6])
    assert {"head/kernel", "stem/conv/kernel"} <= set(seen[-1][1])


def test_the_model_stays_as_it_is_and_the_rest_of_it_is_carried_on(
    network: Model, examples: ArrayData
) -> None:
    before = jax.tree.map(np.array, (network.params, network.stats))
    tuned, _ = train(network, examples, [probe(network)], SETTINGS)
    assert diff(before, (network.params, network.stats)).is_empty
    assert diff(network.stats, tuned.stats).is_empty
    assert set(diff(network.params, tuned.params).changed) == {"head/bias", "head/kernel"}
    assert tuned.params["stem"]["conv"]["kernel"] is network.params["stem"]["conv"]["kernel"]
    assert (tuned.spec, tuned.apply, tuned.labels) == (network.spec, network.apply, network.labels)


def test_one_seed_gives_one_result_and_another_seed_another(
    network: Model, examples: ArrayData
) -> None:
    plans = lp_ft(network, head_share=0.5)
    first, first_history = train(network, examples, plans, SETTINGS)
    again, again_history = train(network, examples, plans, SETTINGS)
    assert diff((first.params, first.stats), (again.params, again.stats)).is_empty
    assert first_history == again_history
    other, other_history = train(network, examples, plans, replace(SETTINGS, seed=1))
    assert "head/kernel" in diff(first.params, other.params).changed
    assert first_history != other_history


def test_seeds_and_learning_rates_share_one_compiled_step(
    network: Model, examples: ArrayData
) -> None:
    plan = full(network)
    train(network, examples, [plan], SETTINGS)
    before = cached_program.cache_info().misses
    slow, _ = train(network, examples, [plan], replace(SETTINGS, learning_rate=1e-6, seed=3))
    assert cached_program.cache_info().misses == before
    moved = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), slow.params, network.params)
    assert 0 < max(float(leaf) for leaf in jax.tree.leaves(moved)) < 1e-4


def test_images_are_preprocessed_as_the_model_says(network: Model, examples: ArrayData) -> None:
    shifted = replace(network, preprocess=Preprocess((8, 8), 1, mean=(0.25,), std=(0.5,)))
    by_hand = ArrayData((examples.images - 0.25) / 0.5, examples.labels)
    plain = replace(network, preprocess=Preprocess(scale=None))
    settings = replace(SETTINGS, steps=2)
    _, expected = train(plain, by_hand, [probe(network)], settings)
    _, found = train(shifted, examples, [probe(network)], settings)
    assert found[0]["loss"] == pytest.approx(expected[0]["loss"], rel=1e-5)


def test_inputs_need_not_be_images() -> None:
    rng = np.random.default_rng(0)
    tokens, labels = rng.integers(0, 7, (12, 5)), rng.integers(0, 2, 12).astype(np.int32)
    model = Model.from_function(
        lambda params, tokens: params["table"][tokens].mean(axis=1) @ params["head"]["kernel"],
        {"table": jnp.ones((7, 3)), "head": {"kernel": jnp.eye(3, 2)}},
    )
    tuned, history = train(model, ArrayData(tokens, labels), [full(model)], SETTINGS)
    assert len(history) == 10
    assert set(diff(model.params, tuned.params).changed) == {"table", "head/kernel"}


# ---------------------------------------------------------------------------------------------
# What is refused


def test_every_plan_is_checked_before_the_first_one_starts(
    network: Model, examples: ArrayData
) -> None:
    steps: list[int] = []
    wrong = Plan((Group("haed/**"), ALL))
    with pytest.raises(PlanError, match="haed"):
        train(
            network,
            examples,
            [probe(network), wrong],
            SETTINGS,
            on_step=lambda number, _: steps.append(number),
        )
    assert steps == []


def test_a_loss_that_is_not_finite_is_an_error_that_names_the_step(
    network: Model, examples: ArrayData
) -> None:
    images = np.where(np.arange(20)[:, None, None, None] == 7, np.float32(np.nan), examples.images)
    spoilt = replace(network, preprocess=Preprocess(scale=None))
    first = next(n for n in range(10) if 7 in batch_indices(20, 4, n, 0)) + 1
    settings = replace(SETTINGS, max_skipped=1)
    data = ArrayData(images, examples.labels)
    with pytest.raises(NonFiniteLossError, match=rf"^step {first}: .* a loss of nan"):
        train(spoilt, data, [probe(network)], settings)
    _, history = train(spoilt, data, [probe(network)], SETTINGS)
    assert [r["step"] for r in history if r["skipped"]] == [
        n + 1 for n in range(10) if 7 in batch_indices(20, 4, n, 0)
    ]


def test_a_gradient_that_is_not_finite_is_an_error_too(examples: ArrayData) -> None:
    # The square root's slope at zero is infinite, where its value is 0.
    model = Model.from_function(
        lambda params, x: jnp.sqrt(x.mean(axis=(1, 2)) * params["head"]["kernel"]),
        {"head": {"kernel": jnp.zeros((1, 3))}},
    )
    with pytest.raises(NonFiniteLossError, match=r"^step 10: .* norm of (nan|inf), .* 10 steps in"):
        train(model, examples, [full(model)], SETTINGS)


def test_a_label_that_the_head_does_not_have_is_an_error(
    network: Model, examples: ArrayData
) -> None:
    data = ArrayData(examples.images, np.full(20, 3, np.int32))
    with pytest.raises(
        DataError, match="data: labels: expected classes from 0, below 3, .* found 3"
    ):
        train(network, data, [probe(network)], SETTINGS)


def test_a_run_needs_examples_and_steps_between_checkpoints(
    network: Model, examples: ArrayData
) -> None:
    with pytest.raises(DataError, match="at least one example, found none"):
        train(network, examples.take(np.arange(0)), [probe(network)], SETTINGS)
    with pytest.raises(TrainingError, match="save_every: expected at least 1 step, found 0"):
        train(network, examples, [probe(network)], SETTINGS, save_every=0)


# ---------------------------------------------------------------------------------------------
# What makes two runs the same


def test_what_changed_so_far_is_what_any_plan_trained(network: Model) -> None:
    head, norms = probe(network), Plan((Group("stem/bn/*"), Group("**", frozen=True)))
    assert changed_by([head], network.params) == {"head/bias", "head/kernel"}
    assert changed_by([head, norms], network.params) == {
        *("head/bias", "head/kernel", "stem/bn/bias", "stem/bn/scale"),
    }


def test_a_run_is_known_by_all_that_shapes_it(network: Model, examples: ArrayData) -> None:
    plans = lp_ft(network, head_share=0.5)

    def identity(
        model: Model = network,
        data: ArrayData = examples,
        plans: Any = plans,
        settings: Settings = SETTINGS,
    ) -> dict[str, Any]:
        return run_identity(model, data, plans, settings)

    def differs(other: dict[str, Any]) -> set[str]:
        mine = identity()
        assert mine.keys() == other.keys()
        return {key for key in mine if mine[key] != other[key]}

    assert differs(identity()) == set()
    others = {
        "steps": 11,
        "batch_size": 5,
        "learning_rate": 0.1,
        "weight_decay": 0.5,
        "optimizer": "sgd",
        "schedule": "linear",
        "clip_norm": 1.0,
        "carry_moments": False,
        "loss": cross_entropy(0.1),
        "augment": HorizontalFlip(),
        "regularisers": (l2_sp(network),),
        "accumulate": 2,
        "precision": BFLOAT16,
        "remat": ("layer1",),
        "ema_decay": 0.9,
        "metric": "accuracy",
        "parallel": "pmap",
        "seed": 1,
    }
    # How many bad steps one puts up with may change from one attempt to the next.
    assert differs(identity(settings=replace(SETTINGS, max_skipped=3))) == set()
    assert {*others, "max_skipped"} == {field.name for field in dataclasses.fields(Settings)}
    for name, value in others.items():
        assert differs(identity(settings=replace(SETTINGS, **{name: value}))) == {name}
    params = jax.tree.map(lambda leaf: leaf + jnp.float32(1), network.params)
    first, second = ((l2_sp(source),) for source in (network, replace(network, params=params)))
    assert described(first) != described(second)
    assert json.dumps(identity()) == json.dumps(identity())
    assert differs(identity(plans=plans[:1])) == {"plans"}
    images = examples.images.copy()
    images[3, 2, 1, 0] += 1e-3
    assert differs(identity(data=ArrayData(images, examples.labels))) == {"data"}
    labels = examples.labels[::-1].copy()
    assert differs(identity(data=ArrayData(examples.images, labels))) == {"data"}
    stats = jax.tree.map(lambda leaf: leaf + jnp.float32(1), network.stats)
    assert differs(identity(model=replace(network, stats=stats))) == {"model"}
    scaled = replace(network, preprocess=Preprocess((8, 8), 1, scale=16.0))
    assert differs(identity(model=scaled)) == {"preprocess"}
    other = replace(network, spec=replace(network.spec, options=()))
    assert differs(identity(model=other)) == {"network"}


def test_every_plan_and_seed_has_random_numbers_of_its_own(
    network: Model, examples: ArrayData
) -> None:
    keys: set[tuple[int, ...]] = set()

    def on_step(number: int, state: Any) -> None:
        keys.add(tuple(jax.random.key_data(state.rng).tolist()))

    for seed in (0, 1):
        settings = replace(SETTINGS, seed=seed)
        train(network, examples, lp_ft(network, head_share=0.5), settings, on_step=on_step)
    assert len(keys) == 4


def test_the_learning_rate_reaches_the_optimizer(network: Model, examples: ArrayData) -> None:
    rates: set[float] = set()

    def on_step(number: int, state: Any) -> None:
        rates.add(float(optax.tree.get(state.opt_state, "learning_rate")))

    settings = replace(SETTINGS, learning_rate=0.03)
    train(network, examples, [full(network)], settings, on_step=on_step)
    assert list(rates) == [pytest.approx(0.03)]


# ---------------------------------------------------------------------------------------------
# Parts of images that are cut out while they are decoded


def test_stored_images_are_cut_by_the_loader_and_arrays_by_the_device(
    network: Model, examples: ArrayData, boxes: list[tuple[int, ...]]
) -> None:
    pixels = (255 * examples.images).astype(np.uint8)
    stored = stored_data(Pixels(pixels), examples.labels, None)
    # Parts that are the whole image, for both ways to give the same.
    whole = Compose((RandomResizedCrop(8, scale=(1, 1), ratio=(1, 1)),))
    settings = replace(SETTINGS, steps=2, augment=whole)
    runs = [
        train(network, data, [full(network)], settings, workers=0)
        for data in (stored, stored.load())
    ]
    assert boxes == [(0, 0, 8, 8)] * 8
    (cut, told), (same, others) = runs
    assert [record["loss"] for record in told] == [record["loss"] for record in others]
    assert diff(cut.params, same.params).is_empty
    # Parts of several views are kept, and so not cut anew by the loader.
    boxes.clear()
    train(network, stored, [probe(network)], settings, workers=0, cache=Cache(views=2))
    assert not boxes
