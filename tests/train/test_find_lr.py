from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtransfer.data import ArrayData
from jaxtransfer.data.augment import RandomResizedCrop
from jaxtransfer.data.stored import stored_data
from jaxtransfer.errors import DataError, PlanError, TrainingError
from jaxtransfer.models import Model
from jaxtransfer.partition import full, probe
from jaxtransfer.train import cross_entropy, init_state, make_train_step
from jaxtransfer.train.find_lr import LearningRates, find_lr
from jaxtransfer.tree import diff
from tests.train.runs import Pixels

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(64, 16)).astype(np.float32)
DATA = ArrayData(IMAGES, (IMAGES[:, 0] + IMAGES[:, 1] > 0).astype(np.int32))


def _network(params: Any, x: Any, *, start: Any = None, stop: Any = None) -> Any:
    if start != "head":
        x = jnp.tanh(x * params["body"]["scale"])
    return x if stop == "head" else x @ params["head"]["kernel"] + params["head"]["bias"]


@pytest.fixture(scope="module")
def small() -> Model:
    """A scale for each of sixteen features, and a dense head for two classes."""
    head = {"kernel": jnp.asarray(RNG.normal(0, 0.3, (16, 2)), jnp.float32), "bias": jnp.zeros(2)}
    return Model.from_function(_network, {"body": {"scale": jnp.ones(16)}, "head": head})


@pytest.fixture(scope="module")
def swept(small: Model) -> LearningRates:
    return find_lr(small, DATA, optimizer="sgd", lo=1e-5, hi=1e4, batch_size=16)


# ---------------------------------------------------------------------------------------------
# The sweep


def test_a_sweep_rises_until_it_diverges(swept: LearningRates) -> None:
    assert 20 < len(swept.rates) < 100
    assert len(swept.rates) == len(swept.losses) == len(swept.smoothed)
    np.testing.assert_allclose(swept.rates, np.geomspace(1e-5, 1e4, 100)[: len(swept.rates)])
    assert swept.smoothed[-1] > 4 * min(swept.smoothed) or not np.isfinite(swept.losses[-1])
    assert all(value <= 4 * min(swept.smoothed) for value in swept.smoothed[:-1])
    assert swept.plan == "full" and swept.form == "sweep"


def test_the_losses_are_those_of_the_steps_and_smoothed(swept: LearningRates, small: Model) -> None:
    # The first rates hardly change anything, and batches are in the order of training.
    order = np.random.default_rng((0, 0)).permutation(64)[:16]
    logits = _network(small.params, IMAGES[order])
    first = cross_entropy()(logits, {"label": DATA.labels[order]}).mean()
    np.testing.assert_allclose(swept.losses[0], first, rtol=1e-5)
    weights = 0.98 ** np.arange(30)[::-1]
    expected = np.sum(weights * swept.losses[:30]) / weights.sum()
    np.testing.assert_allclose(swept.smoothed[29], expected, rtol=1e-6)


def test_the_suggestion_trains_and_ten_times_the_last_rate_does_not(
    swept: LearningRates, small: Model
) -> None:
    def final_loss(rate: float) -> float:
        plan = full(small)
        tx = plan.optimizer(rate, optimizer="sgd")
        step = make_train_step(small.apply, cross_entropy(), tx, plan)
        state, metrics = init_state(small, plan, tx), {}
        for _ in range(30):
            state, metrics = step(state, {"image": IMAGES, "label": DATA.labels})
        return float(metrics["loss"])

    assert final_loss(swept.suggestion) < 0.8 * swept.losses[0]
    assert not final_loss(10 * swept.rates[-1]) < swept.losses[0]


def test_the_model_stays_as_it_is_and_a_seed_gives_the_same_curve(small: Model) -> None:
    before = jax.tree.map(np.array, small.params)
    runs = [find_lr(small, DATA, steps=12, batch_size=8, seed=seed) for seed in (0, 0, 1)]
    assert diff(before, small.params).is_empty
    assert runs[0] == runs[1] and runs[0].losses != runs[2].losses


def test_only_what_the_plan_trains_moves(small: Model) -> None:
    # At a rate of 1 for the body alone or the head alone, other losses come out.
    of_head = find_lr(small, DATA, "probe", steps=12, lo=1e-2, hi=1.0, batch_size=8)
    of_all = find_lr(small, DATA, full(small), steps=12, lo=1e-2, hi=1.0, batch_size=8)
    assert of_head.losses[0] == pytest.approx(of_all.losses[0])
    assert of_head.losses[-1] != pytest.approx(of_all.losses[-1], rel=1e-3)
    assert (of_head.plan, of_all.plan) == ("probe", "full")


def test_a_pair_of_arrays_is_data_and_options_reach_the_step(small: Model) -> None:
    plain = find_lr(small, (IMAGES, DATA.labels), steps=4, batch_size=8)
    assert plain == find_lr(small, DATA, steps=4, batch_size=8)
    prepared = replace(small, preprocess=replace(small.preprocess, mean=(1.0,)))
    assert find_lr(prepared, DATA, steps=4, batch_size=8).losses != plain.losses


def test_stored_images_are_cut_by_the_loader_as_in_a_run(
    network: Model, examples: ArrayData, boxes: list[tuple[int, ...]]
) -> None:
    pixels = (255 * examples.images).astype(np.uint8)
    stored = stored_data(Pixels(pixels), examples.labels, None)
    # Parts that are the whole image, for both ways to give the same.
    crop = RandomResizedCrop(8, scale=(1, 1), ratio=(1, 1))
    cut, whole = (
        find_lr(network, data, lo=1e-6, hi=1e-5, steps=2, batch_size=4, workers=0, augment=crop)
        for data in (stored, stored.load())
    )
    assert boxes == [(0, 0, 8, 8)] * 8 and cut.losses == whole.losses


def test_a_curve_can_be_read_and_written(swept: LearningRates) -> None:
    fields = json.loads(json.dumps(swept.to_dict()))
    assert fields["suggestions"]["valley"] == swept.suggestion
    assert f"valley {swept.suggestion:.2g}, steep" in str(swept)


# ---------------------------------------------------------------------------------------------
# Independent runs


@pytest.fixture(scope="module")
def independent(small: Model) -> LearningRates:
    return find_lr(small, DATA, "probe", form="independent", steps=7, steps_each=3, batch_size=8)


def test_each_rate_has_a_run_of_its_own(independent: LearningRates, small: Model) -> None:
    order = np.random.default_rng((0, 0)).permutation(64)
    plan = probe(small)
    tx = plan.optimizer(1.0, weight_decay=1e-4)
    step = make_train_step(small.apply, cross_entropy(), tx, plan)
    for rate, expected in zip(independent.rates, independent.losses, strict=True):
        state, metrics = init_state(small, plan, tx), {}
        opt_state = optax.tree.set(state.opt_state, learning_rate=jnp.float32(rate))
        state = replace(state, opt_state=opt_state)
        for number in range(4):
            chosen = order[8 * number : 8 * number + 8]
            state, metrics = step(state, {"image": IMAGES[chosen], "label": DATA.labels[chosen]})
        np.testing.assert_allclose(expected, metrics["loss"], rtol=1e-4)


def test_how_many_run_together_changes_nothing(independent: LearningRates, small: Model) -> None:
    options: dict[str, Any] = {"form": "independent", "steps": 7, "steps_each": 3, "batch_size": 8}
    for memory in (1, 6_000):
        found = find_lr(small, DATA, "probe", **options, memory=memory)
        np.testing.assert_allclose(found.losses, independent.losses, rtol=1e-5)


def test_the_flat_part_of_independent_runs_is_no_valley(small: Model) -> None:
    found = find_lr(
        small, DATA, form="independent", steps=24, steps_each=4, batch_size=16, optimizer="sgd"
    )
    falls = found.losses[0] - np.array(found.losses)
    at = found.rates.index(found.suggestion)
    assert falls[at] > 0.005 * falls.max()


# ---------------------------------------------------------------------------------------------
# Questions that cannot be answered


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lo": 1.0, "hi": 0.1}, "rates with 0 < lo < hi, found 1.0 and 0.1"),
        ({"steps": 1}, "steps of at least 2, found 1"),
        ({"batch_size": 0}, "batch_size and steps_each of at least 1, found 0 and 10"),
        ({"form": "guess"}, "form among sweep, independent, found 'guess'"),
        (
            {"form": "independent", "parallel": "pmap"},
            "parallel='jit' of independent runs, found 'pmap'",
        ),
        ({"plan": "lp_ft"}, "expected one plan, found lp_ft: head, lp_ft: all"),
    ],
)
def test_what_is_out_of_range_is_refused(
    options: dict[str, Any], message: str, small: Model
) -> None:
    with pytest.raises(TrainingError, match=message):
        find_lr(small, DATA, **options)


def test_no_examples_and_no_such_plan_are_refused(small: Model) -> None:
    with pytest.raises(DataError, match=r"found \(0, 16\) and \(0,\)"):
        find_lr(small, DATA.take(np.arange(0)))
    with pytest.raises(PlanError, match="expected a recipe"):
        find_lr(small, DATA, "everything")


def test_labels_that_the_head_does_not_have_are_told(small: Model) -> None:
    wrong = replace(DATA, labels=DATA.labels + 5)
    with pytest.raises(TrainingError, match="found 0 of 1; lower lo"):
        find_lr(small, wrong, steps=4)
