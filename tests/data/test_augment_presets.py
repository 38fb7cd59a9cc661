"""Whole augmentations: what they are made of, as values, in jit, under vmap and on many devices."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxtransfer.data import augment
from jaxtransfer.errors import DataError

KEY = jax.random.key(0)
BATCH = {
    "image": jax.random.uniform(KEY, (8, 12, 10, 3)),
    "label": jnp.arange(8, dtype=jnp.int32) % 3,
    "weight": jnp.ones(8),
}
# One of each; what RandAugment draws from has a row of each kind.
POLICY = augment.RandAugment(
    1,
    operations=tuple(map(augment.Operation, ("rotate", "contrast", "sharpness", "equalize"))),
)
ALL = augment.Compose(
    (
        augment.RandomCrop((12, 10), 2),
        augment.VerticalFlip(),
        augment.ColorJitter(0.4, 0.4, 0.4, 0.1),
        augment.RandomGrayscale(),
        POLICY,
        augment.standard_augment(8),
        augment.RandomErasing(),
        augment.MixUpOrCutMix(3),
    )
)


def test_steps_run_in_order_with_keys_of_their_own():
    flips = augment.Compose((augment.HorizontalFlip(), augment.HorizontalFlip()))
    run = jax.jit(lambda key, images: flips(key, {"image": images})["image"])
    images = jnp.tile(jnp.arange(2.0).reshape(1, 1, 2, 1), (2000, 1, 1, 1))
    is_same = np.asarray((run(KEY, images) == images).all(axis=(1, 2, 3)))
    assert abs(is_same.mean() - 0.5) < 4 * np.sqrt(0.25 / 2000)  # one key would flip all back
    resized = augment.Compose((augment.RandomResizedCrop(8), augment.RandomCrop(3, 0)))
    found = jax.eval_shape(resized, KEY, BATCH)
    assert found["image"].shape == (8, 3, 3, 3) and found["label"].shape == (8,)
    assert augment.Compose(())(KEY, BATCH) is BATCH


def test_augmentations_are_values():
    for make in (lambda: augment.standard_augment(24), lambda: augment.strong_augment(24, 7)):
        assert make() == make() and hash(make()) == hash(make()) and repr(make()) == repr(make())
    assert augment.standard_augment(24) == augment.standard_augment((24, 24))
    assert augment.standard_augment(24) != augment.standard_augment(25)
    assert repr(augment.strong_augment(24, 7)) != repr(augment.strong_augment(24, 8))
    steps = [augment.HorizontalFlip()]
    assert hash(augment.Compose(steps)) == hash(augment.Compose(tuple(steps)))  # type: ignore[arg-type]


def test_presets_are_those_of_their_sources():
    crop, flip = augment.standard_augment(224).steps
    assert crop == augment.RandomResizedCrop((224, 224), (0.08, 1.0), (3 / 4, 4 / 3), "bilinear")
    assert flip == augment.HorizontalFlip(0.5)
    crop, flip, policy, erasing, mix = augment.strong_augment((32, 48), 10).steps
    assert crop == augment.RandomResizedCrop((32, 48), interpolation="bicubic")
    assert policy == augment.RandAugment(
        2, 9.0, 10.0, 0.5, 0.5, augment.RAND_AUGMENT_INCREASING, 0.5
    )
    assert erasing == augment.RandomErasing(0.25, (0.02, 1 / 3), (0.3, 1 / 0.3), "noise")
    assert mix == augment.MixUpOrCutMix(10, 0.8, 1.0, 0.5, 1.0)
    assert augment.strong_augment((32, 48)).steps == (crop, flip, policy, erasing)


@pytest.fixture(scope="module")
def run() -> Any:
    return jax.jit(ALL)


@pytest.mark.slow
def test_everything_runs_in_one_program(run: Any):
    found = run(KEY, BATCH)
    assert found["image"].shape == (8, 8, 8, 3) and found["image"].dtype == jnp.float32
    assert 0 <= float(found["image"].min()) and float(found["image"].max()) <= 1
    assert found["label"].shape == (8, 3)
    np.testing.assert_array_equal(found["weight"], np.ones(8))
    again, other = run(KEY, BATCH), run(jax.random.key(1), BATCH)
    np.testing.assert_array_equal(again["image"], found["image"])
    assert not np.array_equal(other["image"], found["image"])


@pytest.mark.slow
def test_many_devices_make_the_same_images_without_talking(run: Any):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    spread = jax.jit(ALL, in_shardings=(None, rows), out_shardings=rows)
    compiled = spread.lower(KEY, BATCH).compile()
    for name, found in compiled(KEY, jax.device_put(BATCH, rows)).items():
        np.testing.assert_allclose(found, run(KEY, BATCH)[name], rtol=0, atol=1e-5)
    # Mixing hands one image of each device to the next one, and nothing else travels.
    talk = re.findall(r"= (\S+) (all-\w+|reduce-scatter|collective-\w+)\(", compiled.as_text())
    assert talk and {kind for _, kind in talk} == {"collective-permute"}
    assert all(re.match(r"f32\[1[,\]]", shape) for shape, _ in talk), talk


def test_one_grey_image_passes():
    grey = {"image": BATCH["image"][:1, ..., :1], "label": jnp.array([2])}
    jitter = augment.ColorJitter(0.4, 0.4, 0.4, 0.1)
    steps = (augment.RandomCrop(8), jitter, augment.RandomGrayscale(), augment.CutMix(1.0, 3))
    found = jax.jit(augment.Compose(steps))(KEY, grey)
    assert found["image"].shape == (1, 8, 8, 1)
    assert 0 <= float(found["image"].min()) and float(found["image"].max()) <= 1
    # Alone, an image mixes with itself.
    np.testing.assert_allclose(found["label"], [[0, 0, 1]], atol=1e-6)


def test_any_channels_and_vmap_over_keys():
    images = {"image": jnp.tile(BATCH["image"], (1, 1, 1, 2))}
    step = augment.Compose((augment.HorizontalFlip(), augment.RandomRotation(9.0)))
    keys = jax.random.split(KEY, 3)
    found = jax.jit(jax.vmap(step, in_axes=(0, None)))(keys, images)["image"]
    run = jax.jit(step)
    expected = np.array([run(key, images)["image"] for key in keys])
    assert expected.shape == (3, 8, 12, 10, 6)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_what_is_no_batch_of_images_is_refused():
    step = augment.standard_augment(6)
    with pytest.raises(DataError, match="float32 in .0, 1., found uint8; divide integers"):
        step(KEY, {"image": jnp.zeros((2, 6, 6, 3), jnp.uint8)})
    with pytest.raises(DataError, match=r"\(batch, height, width, channel\), found \(6, 6, 3\)"):
        step(KEY, {"image": jnp.zeros((6, 6, 3))})
    with pytest.raises(DataError, match="Compose: expected functions, found"):
        augment.Compose((3,))  # type: ignore[arg-type]
