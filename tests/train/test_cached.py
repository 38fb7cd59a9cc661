from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtransfer.data import ArrayData, batch_indices
from jaxtransfer.data.augment import HorizontalFlip, MixUp, RandomRotation
from jaxtransfer.errors import TrainingError
from jaxtransfer.models import Model, init
from jaxtransfer.partition import Group, Plan, freeze_until, full, last, lp_ft, probe
from jaxtransfer.train import Cache, CacheReport, Event, Settings, Sharding, evaluate, train
from jaxtransfer.train.cached import VIEWS, Kept, compute_once, what_to_keep
from jaxtransfer.train.delta import delta
from jaxtransfer.train.distillation import distillation
from jaxtransfer.train.losses import cross_entropy
from jaxtransfer.train.precision import BFLOAT16
from jaxtransfer.train.regularisers import batch_spectral_shrinkage, l2_sp
from jaxtransfer.tree import diff
from tests.train.runs import Run, assert_same

FROZEN = Group("**", frozen=True)
SETTINGS = Settings(steps=12, batch_size=4, learning_rate=0.01)


@dataclass(frozen=True)
class Outcome:
    """What a run gave, and what it told of its plans' caches."""

    model: Model
    history: list[dict[str, Any]]
    reports: list[CacheReport]


def run(model: Model, data: Any, plans: Any, settings: Settings = SETTINGS, **more: Any) -> Outcome:
    reports: list[CacheReport] = []

    def note(event: Event) -> None:
        if event.cache is not None and event.cache not in reports:
            reports.append(event.cache)

    plans = (plans,) if isinstance(plans, Plan) else plans
    trained, history = train(model, data, plans, settings, callbacks=[note], **more)
    return Outcome(trained, history, reports)


def assert_close(found: Outcome, expected: Outcome) -> None:
    """The same to the rounding of float32, in losses, scores and parameters."""
    assert len(found.history) == len(expected.history)
    for one, other in zip(found.history, expected.history, strict=True):
        assert one.keys() == other.keys()
        numbers = [name for name, value in one.items() if isinstance(value, float)]
        for name in numbers:
            np.testing.assert_allclose(one[name], other[name], rtol=2e-5, atol=1e-6, err_msg=name)
    for tree in ("params", "stats"):
        leaves = (jax.tree.leaves(getattr(outcome.model, tree)) for outcome in (found, expected))
        for one, other in zip(*leaves, strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-6)


@pytest.fixture(scope="module")
def vit() -> Model:
    """A Vision Transformer of two narrow blocks, with dropout in them."""
    return init(
        "vit_ti16",
        input_size=(8, 8),
        patch=4,
        width=8,
        depth=2,
        heads=2,
        in_channels=1,
        num_classes=3,
        dropout=0.1,
    )


# ---------------------------------------------------------------------------------------------
# The same results


@pytest.mark.parametrize(
    ("plan", "stage"),
    [
        (probe, "head"),
        (lambda model: last(model, 2), "layer3"),
        pytest.param(lambda model: freeze_until(model, "layer2"), "layer2", marks=pytest.mark.slow),
    ],
)
def test_a_convolutional_network_trains_as_without(
    network: Model, examples: ArrayData, plan: Any, stage: str
) -> None:
    chosen = plan(network)
    expected = run(network, examples, chosen, validation=examples)
    found = run(network, examples, chosen, validation=examples, cache="auto")
    assert_close(found, expected)
    assert expected.reports == []
    (report,) = found.reports
    assert report.is_used and (report.stage, report.plan) == (stage, chosen.name)
    assert report.examples == 2 * len(examples) and report.where == "device"
    assert report.maximal_error == report.mean_error == 0


@pytest.mark.parametrize(
    ("plan", "stage"),
    [
        (probe, "head"),
        pytest.param(lambda model: freeze_until(model, "block1"), "block1", marks=pytest.mark.slow),
    ],
)
def test_a_transformer_trains_as_without(
    vit: Model, examples: ArrayData, plan: Any, stage: str
) -> None:
    expected = run(vit, examples, plan(vit))
    found = run(vit, examples, plan(vit), cache="auto")
    assert_close(found, expected)
    assert [report.stage for report in found.reports] == [stage]


def test_each_plan_has_its_own(staged: Model, rows: Any) -> None:
    data = ArrayData(rows["image"], rows["label"])
    plans = lp_ft(staged, head_share=0.5)
    expected = run(staged, data, plans, validation=data)
    found = run(staged, data, plans, validation=data, cache="auto")
    assert_close(found, expected)
    assert [report.stage for report in found.reports] == ["head", None]
    assert found.reports[1].reason == "stem trains"


# By SGD: AdamW would make steps of the gradients of biases before a BatchNorm, which are 0 but for
# their rounding.
SGD = replace(SETTINGS, optimizer="sgd")
HOW = {
    "half precision": (replace(SGD, precision=BFLOAT16), {}),
    # Eight examples in each part: what two of them vary by would magnify rounding.
    "micro-batches": (replace(SGD, accumulate=2, batch_size=16), {}),
    "recomputed": (replace(SGD, remat="all"), {}),
    "average": (replace(SGD, ema_decay=0.9), {}),
    "pmap": (replace(SGD, parallel="pmap", batch_size=8), {}),
    "two devices": (SGD, {"sharding": Sharding(devices=jax.devices()[:2])}),
    "fsdp": (SGD, {"sharding": Sharding(fsdp=2, devices=jax.devices()[:2], min_size=1)}),
}


SLOW = ("micro-batches", "average", "fsdp")


@pytest.mark.parametrize(
    "how", [pytest.param(how, marks=[pytest.mark.slow] * (how in SLOW)) for how in HOW]
)
def test_a_step_of_any_kind_takes_them(staged: Model, rows: Any, how: str) -> None:
    data = ArrayData(rows["image"], rows["label"])
    settings, more = HOW[how]
    plan = last(staged, 2)
    expected = run(staged, data, plan, settings, validation=data, **more)
    found = run(staged, data, plan, settings, validation=data, cache="always", **more)
    assert_close(found, expected)
    assert [report.stage for report in found.reports] == ["neck"]


def test_dropout_above_draws_the_same_numbers(staged_with_dropout: Model, rows: Any) -> None:
    data = ArrayData(rows["image"], rows["label"])
    plan = last(staged_with_dropout, 2)
    expected = run(staged_with_dropout, data, plan)
    found = run(staged_with_dropout, data, plan, cache="auto")
    assert_close(found, expected)
    assert found.reports[0].is_used


def test_regularisers_of_what_is_above_train_as_without(staged: Model, rows: Any) -> None:
    data = ArrayData(rows["image"], rows["label"])
    terms = (l2_sp(staged), batch_spectral_shrinkage(staged, eta=0.1))
    settings = replace(SETTINGS, regularisers=terms)
    for plan in (probe(staged), last(staged, 2)):
        expected = run(staged, data, plan, settings)
        found = run(staged, data, plan, settings, cache="auto")
        assert_close(found, expected)
        assert found.reports[0].is_used


def test_weights_of_examples_count(staged: Model, rows: Any) -> None:
    @dataclass(frozen=True)
    class Weighted(ArrayData):
        def read(self, indices: np.ndarray) -> dict[str, Any]:
            return super().read(indices) | {"weight": rows["weight"][indices]}

    data = Weighted(rows["image"], rows["label"])
    expected = run(staged, data, probe(staged), validation=data)
    assert_close(run(staged, data, probe(staged), validation=data, cache="auto"), expected)
    unweighted = run(staged, ArrayData(rows["image"], rows["label"]), probe(staged))
    assert unweighted.history[0]["loss"] != expected.history[0]["loss"]


@pytest.mark.parametrize("where", ["host", "disk"])
def test_other_places_give_the_same(plain: Model, rows: Any, where: str, tmp_path: Path) -> None:
    data = ArrayData(rows["image"], rows["label"])
    expected = run(plain, data, probe(plain), validation=data)
    cache = Cache(where=where, folder=tmp_path)
    found = run(plain, data, probe(plain), validation=data, cache=cache)
    assert_close(found, expected)
    assert [report.where for report in found.reports] == [where]
    assert list(tmp_path.iterdir()) == []


def test_fewer_bits_come_near_and_say_how_near(plain: Model, rows: Any) -> None:
    data = ArrayData(rows["image"], rows["label"])
    expected = run(plain, data, probe(plain))
    for dtype, share in (("bfloat16", 2), ("int8", 4)):
        found = run(plain, data, probe(plain), cache=Cache(dtype=dtype))
        (report,) = found.reports
        whole = 16 * 8 * 4
        scales = 4 * 4 * 8 if dtype == "int8" else 0
        assert report.bytes == whole // share + scales and report.dtype == dtype
        assert 0 < report.mean_error < 0.02 and 0 < report.maximal_error < 0.01
        losses = [[r["loss"] for r in outcome.history] for outcome in (found, expected)]
        np.testing.assert_allclose(*losses, rtol=0.02)
        assert losses[0] != losses[1]


# ---------------------------------------------------------------------------------------------
# Resumed runs


def test_a_run_goes_on_with_or_without(plain: Model, rows: Any, tmp_path: Path) -> None:
    data = ArrayData(rows["image"], rows["label"])
    run_of = Run(plain, data, (probe(plain),))
    expected = run_of.whole()
    run_of.stopped_at(7, tmp_path / "first")
    with run_of.checkpoints(tmp_path / "first", resume=True) as checkpoints:
        settings = (data, run_of.plans, run_of.settings)
        found = train(plain, *settings, checkpoints=checkpoints, cache="always")
    assert_close(Outcome(*found, []), Outcome(*expected, []))
    # To the bit, where both parts have it.
    whole = train(plain, *settings, cache="auto")
    with (
        pytest.raises(KeyboardInterrupt),
        run_of.checkpoints(tmp_path / "second") as checkpoints,
    ):
        more = {"checkpoints": checkpoints, "save_every": 9, "cache": "auto"}
        train(plain, *settings, on_step=_stop_after_nine, **more)
    with run_of.checkpoints(tmp_path / "second", resume=True) as checkpoints:
        again = train(plain, *settings, checkpoints=checkpoints, cache="auto")
    assert_same(again, whole)


def _stop_after_nine(step: int, _: Any) -> None:
    if step == 10:
        raise KeyboardInterrupt


# ---------------------------------------------------------------------------------------------
# Augmented views


def images_of(network: Model, data: ArrayData, views: int, augment: Any) -> Any:
    """The batches that a probe of a network trains on, and all that is known of the cache."""
    settings = replace(SETTINGS, augment=augment)
    plan, cache = probe(network), Cache(views=views)
    kept = what_to_keep(network, plan, settings, 100, data, None, cache, None)
    assert isinstance(kept, Kept)
    return compute_once(
        kept, network, plan, settings, data, None, workers=0, sharding=None, file=None
    )


def test_epochs_take_turns_with_views(network: Model, examples: ArrayData) -> None:
    data = examples.take(np.arange(6))
    augment = RandomRotation(30.0)
    cached = images_of(network, data, 2, augment)
    root = jax.random.fold_in(jax.random.key(SETTINGS.seed), VIEWS)

    def entering(index: int, view: int) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(root, index), view)
        batch = {"image": jnp.asarray(data.images[index : index + 1])}
        images = augment(key, batch)["image"]
        return network.apply(network.params, network.stats, images, train=False, stop="head")[0][0]

    for step, batch in enumerate(cached.batches(0, 5)):
        indices = batch_indices(6, 4, step, SETTINGS.seed)
        epochs = np.arange(4 * step, 4 * step + 4) // 6
        expected = [
            entering(i, e % 2) for i, e in zip(indices.tolist(), epochs.tolist(), strict=True)
        ]
        np.testing.assert_allclose(batch["image"], np.stack(expected), rtol=1e-4, atol=1e-5)
        assert batch["label"].tolist() == data.labels[indices].tolist()


def test_views_are_trained_on(network: Model, examples: ArrayData) -> None:
    settings = replace(SETTINGS, augment=HorizontalFlip(), steps=24)
    found = run(network, examples, probe(network), settings, cache=Cache(views=3))
    (report,) = found.reports
    assert report.views == 3 and "20 examples in 3 views" in str(report)
    assert report.bytes == 3 * 20 * 16 * 4
    plain = run(network, examples, probe(network), replace(settings, augment=None))
    assert found.history[-1]["loss"] != plain.history[-1]["loss"]
    again = run(network, examples, probe(network), settings, cache=Cache(views=3))
    assert diff(again.model.params, found.model.params).is_empty


def test_without_an_augmentation_there_is_one_view(plain: Model, rows: Any) -> None:
    data = ArrayData(rows["image"], rows["label"])
    found = run(plain, data, probe(plain), cache=Cache(views=5))
    assert found.reports[0].views == 1


# ---------------------------------------------------------------------------------------------
# What cannot be, or does not pay


def reads_images(outputs: Any, batch: Any) -> Any:
    return cross_entropy()(outputs, batch) + 0 * batch["image"].mean(1)


UPDATING = Plan((Group("head/**"), Group("**", frozen=True, stats="update")))
IMPOSSIBLE = {
    "augmented": (probe, lambda _: {"augment": HorizontalFlip()}, {}, "augmented anew in each"),
    "all trains": (full, lambda _: {}, {}, "stem trains"),
    "statistics": (lambda _: UPDATING, lambda _: {}, {}, "stem has statistics that follow the"),
    "features": (
        probe,
        lambda model: {"regularisers": delta(model, stages=["body"])},
        {},
        "DELTA looks at what enters body, before head",
    ),
    "inputs": (
        probe,
        lambda model: {"regularisers": distillation(model, model)},
        {},
        "the loss or a regulariser looks at the images",
    ),
    "loss": (probe, lambda _: {"loss": reads_images}, {}, "looks at the images"),
    "too short": (probe, lambda _: {"steps": 4}, {}, "sees each example no more than once"),
    "too large": (
        probe,
        lambda _: {},
        {"cache": Cache(limit=100)},
        r"takes 384 B, and there may be 100 B \(device\), 100 B \(host\), 0 B \(disk\)",
    ),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_what_cannot_be_is_said(staged: Model, rows: Any, case: str) -> None:
    plan, fields, more, reason = IMPOSSIBLE[case]
    settings = replace(SETTINGS, **fields(staged))
    data = ArrayData(rows["image"], rows["label"])
    cache = more.get("cache", Cache())
    found = what_to_keep(staged, plan(staged), settings, settings.steps, data, None, cache, None)
    assert isinstance(found, str) and re.search(reason, found), found


def test_what_mixes_examples_has_no_views(network: Model, examples: ArrayData) -> None:
    settings = replace(SETTINGS, augment=MixUp(num_classes=3, alpha=0.2))
    plan, cache = probe(network), Cache(views=2)
    found = what_to_keep(network, plan, settings, 99, examples, None, cache, None)
    assert found == "the augmentation changes label, not the image alone"


def test_several_processes_share_no_activations(
    plain: Model, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    data = ArrayData(rows["image"], rows["label"])
    found = what_to_keep(plain, probe(plain), SETTINGS, 99, data, None, Cache(), None)
    assert found == "several processes take part"


def test_where_nothing_is_cached_a_run_is_what_it_was(plain: Model, rows: Any) -> None:
    data = ArrayData(rows["image"], rows["label"])
    expected = run(plain, data, full(plain))
    found = run(plain, data, full(plain), cache="auto")
    assert diff(found.model.params, expected.model.params).is_empty
    (report,) = found.reports
    assert not report.is_used and str(report) == "full: nothing cached, since stem trains"


def test_a_cache_that_is_required_and_cannot_be_is_an_error(plain: Model, rows: Any) -> None:
    data = ArrayData(rows["image"], rows["label"])
    with pytest.raises(TrainingError, match=r"expected a plan for which .*\n - full: stem trains"):
        run(plain, data, full(plain), cache="always")
    short = replace(SETTINGS, steps=2)
    assert run(plain, data, probe(plain), short, cache="always").reports[0].is_used
    # One plan of several is enough.
    assert run(plain, data, lp_ft(plain), cache="always").reports[0].is_used


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"views": 0}, "views whole, of at least 1, found 0"),
        ({"dtype": "int4"}, "dtype among float32, bfloat16, int8, found 'int4'"),
        ({"where": "tape"}, "where among auto, device, host, disk, found 'tape'"),
        ({"limit": -1}, "limit a number of bytes, or None, found -1"),
        ({"limit": "1 GB"}, "limit a number of bytes, or None, found '1 GB'"),
        ({"where": "disk"}, "folder for where='disk', found None"),
    ],
)
def test_options_out_of_range_are_errors(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        Cache(**fields)


def test_an_unknown_name_is_an_error(plain: Model, rows: Any) -> None:
    data = ArrayData(rows["image"], rows["label"])
    with pytest.raises(TrainingError, match="expected 'auto', 'always', 'never' or a jt.Cache"):
        run(plain, data, probe(plain), cache="often")


# ---------------------------------------------------------------------------------------------
# Activations as data


def test_activations_are_data(network: Model, examples: ArrayData) -> None:
    cached = images_of(network, examples, 1, None)
    entering, _ = network.apply(
        network.params, network.stats, jnp.asarray(examples.images), train=False, stop="head"
    )
    some = cached.data.take(np.array([3, 1]))
    np.testing.assert_allclose(some.images, entering[np.array([3, 1])], rtol=1e-5, atol=1e-6)
    assert some.labels.tolist() == examples.labels[[3, 1]].tolist()
    arrays = (network.params, network.stats)
    scores = evaluate(cached.model, *arrays, cached.data)
    for name, value in evaluate(network, *arrays, examples).items():
        np.testing.assert_allclose(scores[name], value, rtol=1e-5)
    same = images_of(network, examples, 1, None)
    assert same.data.fingerprint() == cached.data.fingerprint()
    other = images_of(network, examples.take(np.arange(19)), 1, None)
    assert other.data.fingerprint() != cached.data.fingerprint()
