"""How the steps of a run are computed, as `finetune` and its history show."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtransfer.data import ArrayData
from jaxtransfer.data.augment import CutMix, MixUp
from jaxtransfer.errors import CheckpointError, TrainingError
from jaxtransfer.models import Model, Preprocess
from jaxtransfer.train import (
    BFLOAT16,
    LossScaling,
    Precision,
    Settings,
    Sharding,
    distillation,
    l2_sp,
    train,
)
from tests.train.tuning import (
    ALL,
    HELD_OUT,
    NARROWING,
    POINTS,
    STILL,
    Stop,
    assert_close,
    assert_same,
    losses,
    resumed,
    tune,
)

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


# Each device has a part of every parameter that can be cut in eight.
EIGHT = Sharding(fsdp=8, min_size=1)
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


def test_devices_change_nothing(plain: Model) -> None:
    options: dict[str, Any] = {"validation": HELD_OUT, "batch_size": 16, "optimizer": "sgd"}
    one = tune(plain, NARROWING, **options)
    eight = tune(plain, NARROWING, **options, sharding=EIGHT)
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
    where = {8: EIGHT, 1: None}
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


def colours(params: Any, images: jax.Array) -> jax.Array:
    return images.mean(axis=(1, 2)) @ params["head"]["kernel"]


def test_what_an_augmentation_brought_to_size_is_not_cut_again() -> None:
    how = Preprocess((4, 4), 1, crop_fraction=0.5)
    model = replace(
        Model.from_function(brightness, {"head": {"kernel": jnp.ones((1,))}}), preprocess=how
    )
    images = np.zeros((8, 4, 4, 1), np.float32)
    images[:, 1:3, 1:3] = 1
    data = ArrayData(images, np.zeros(8, np.int32))
    settings = Settings(steps=1, batch_size=8, loss=first_output, learning_rate=STILL)
    whole = train(model, data, [ALL], replace(settings, augment=as_it_is))[1][0]["loss"]
    centre = train(model, data, [ALL], settings)[1][0]["loss"]
    assert whole == pytest.approx(0.25, rel=1e-6) and centre > 0.6


@pytest.mark.parametrize("mix", [MixUp(alpha=1.0, num_classes=3), CutMix(alpha=1.0, num_classes=3)])
def test_mixed_examples_train_with_cross_entropy(mix: Any, tmp_path: Path) -> None:
    labels = np.arange(24) % 3
    images = np.zeros((24, 4, 4, 3), np.uint8)
    images[np.arange(24), :, :, labels] = 255
    params = {"head": {"kernel": jnp.zeros((3, 3))}}
    model = replace(Model.from_function(colours, params), preprocess=Preprocess((4, 4), 3))
    options: dict[str, Any] = {"data": (images, labels), "validation": (images, labels)}
    options |= {"learning_rate": 0.1, "steps": 20}
    whole, pure = (tune(model, **options, augment=augment) for augment in (mix, None))
    assert whole.history[-1]["validation/accuracy"] == 1.0
    # Of mixed examples no more can be told than what they are mixed of.
    assert losses(whole)[-1] > losses(pure)[-1] + 0.1
    assert_same(resumed(5, tmp_path, model, **options, augment=mix), whole)


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
