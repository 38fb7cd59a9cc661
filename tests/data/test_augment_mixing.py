from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxtransfer.data import augment
from jaxtransfer.errors import DataError

KEY = jax.random.key(0)
IMAGES = jax.random.uniform(KEY, (4, 5, 6, 3))
LABELS = jnp.array([0, 2, 1, 2], jnp.int32)
BATCH = {"image": IMAGES, "label": LABELS, "name": jnp.arange(4)}
ONE_HOT = np.eye(3)[np.asarray(LABELS)]
mixup, cutmix = (jax.jit(f, static_argnums=2) for f in (augment.mixup, augment.cutmix))


def before(values: Any) -> np.ndarray:
    """The partner of each: the one before it, the last one for the first."""
    return np.asarray(values)[[3, 0, 1, 2]]


def test_mixup_is_a_weighted_mean():
    found = mixup(BATCH, 0.7, 3)
    expected = 0.7 * np.asarray(IMAGES) + 0.3 * before(IMAGES)
    np.testing.assert_allclose(found["image"], expected, rtol=0, atol=1e-6)
    expected = [[0.7, 0, 0.3], [0.3, 0, 0.7], [0, 0.7, 0.3], [0, 0.3, 0.7]]
    np.testing.assert_allclose(found["label"], expected, rtol=0, atol=1e-6)
    assert found["label"].dtype == jnp.float32 and set(found) == set(BATCH)
    np.testing.assert_array_equal(found["name"], BATCH["name"])


def test_cutmix_replaces_a_box_and_counts_its_pixels():
    found = cutmix(BATCH, jnp.array([1, 2, 3, 4]), 3)
    expected = np.array(IMAGES)
    expected[:, 1:4, 2:6] = before(IMAGES)[:, 1:4, 2:6]
    np.testing.assert_array_equal(found["image"], expected)
    expected = (1 - 12 / 30) * ONE_HOT + 12 / 30 * before(ONE_HOT)
    np.testing.assert_allclose(found["label"], expected, rtol=0, atol=1e-6)


def test_all_of_oneself_changes_nothing():
    for found in (mixup(BATCH, 1.0, 3), cutmix(BATCH, jnp.zeros(4), 3)):
        np.testing.assert_array_equal(found["image"], IMAGES)
        np.testing.assert_array_equal(found["label"], ONE_HOT)


def test_losses_of_labels_keep_their_examples_weights():
    weight = jnp.array([1.0, 0.5, 2.0, 0.25])
    for found, share in (
        (mixup({**BATCH, "weight": weight}, 0.6, 3), 0.6),
        (cutmix({**BATCH, "weight": weight}, jnp.array([0, 0, 2, 6]), 3), 1 - 12 / 30),
    ):
        own, others = share * np.asarray(weight), (1 - share) * before(weight)
        np.testing.assert_allclose(found["weight"], own + others, rtol=1e-6)
        # Any loss that is linear in the label: its weighted values add up as without mixing.
        expected = own[:, None] * ONE_HOT + others[:, None] * before(ONE_HOT)
        np.testing.assert_allclose(
            found["weight"][:, None] * found["label"], expected, rtol=0, atol=1e-6
        )
        assert abs(float(found["weight"].sum()) - 3.75) < 1e-6


def test_padding_stays_padding_and_mixes_with_nothing():
    weight = jnp.array([1.0, 1.0, 0.0, 1.0])
    images, labels = IMAGES.at[2].set(jnp.nan), LABELS.at[2].set(-1)
    batch = {"image": images, "label": labels, "weight": weight}
    for found in (mixup(batch, 0.75, 3), cutmix(batch, jnp.array([0, 0, 5, 6]), 3)):
        np.testing.assert_array_equal(found["weight"], weight)
        # The fourth has padding for its partner.
        np.testing.assert_array_equal(found["image"][2:], images[2:])
        np.testing.assert_array_equal(found["label"][3], ONE_HOT[3])
        assert not np.array_equal(found["image"][:2], images[:2])
        assert np.isfinite(found["label"][jnp.array([0, 1, 3])]).all()


def test_labels_may_be_soft_already():
    soft = jnp.array([[0.5, 0.5], [1, 0], [0.25, 0.75], [0, 1]])
    found = mixup({"image": IMAGES, "label": soft}, 0.5, 2)["label"]
    np.testing.assert_allclose(found, (np.asarray(soft) + before(soft)) / 2, atol=1e-6)


def test_a_label_of_no_class_is_no_number():
    found = np.asarray(augment.soft_labels(jnp.array([0, 3, -1, 2]), 3))
    assert np.isnan(found).all(axis=1).tolist() == [False, True, True, False]
    np.testing.assert_array_equal(found[[0, 3]], np.eye(3)[[0, 2]])


@pytest.mark.parametrize(
    "labels", [jnp.zeros((4, 2)), jnp.zeros(4), jnp.zeros((4, 3), jnp.int32), jnp.zeros(4, bool)]
)
def test_other_labels_are_refused(labels: jax.Array):
    with pytest.raises(DataError, match=r"floats of shape \(batch, 3\), found (float|int|bool)"):
        augment.mixup({"image": IMAGES, "label": labels}, 0.5, 3)


def test_boxes_follow_timms_law():
    keys = jax.random.split(KEY, 20_000)
    shares = jax.random.uniform(jax.random.key(1), (20_000,))
    boxes = jax.jit(jax.vmap(lambda k, s: augment.cutmix_box(k, s, (24, 32))))(keys, shares)
    found = np.asarray(boxes, float)
    found = np.column_stack([found, 1 - found[:, 2] * found[:, 3] / (24 * 32)])
    # Of 200,000 draws of timm 1.0's `cutmix_bbox_and_lam` with uniform shares on 24 x 32.
    means = (5.5071, 7.3411, 12.6699, 16.9997, 0.6914)
    deviations = np.array([5.6747, 7.5676, 4.8208, 6.4213, 0.1859])
    errors = deviations * np.sqrt(1 / 20_000 + 1 / 200_000)
    np.testing.assert_array_less(np.abs(found.mean(axis=0) - means), 4 * errors)
    np.testing.assert_allclose(found.std(axis=0), deviations, rtol=0.03)


MIXES = {
    "cutmix": augment.CutMix(1, 3),
    "either": augment.MixUpOrCutMix(3, probability=1),
}
RUNS = {name: jax.jit(mix) for name, mix in MIXES.items()}


@given(st.sampled_from(sorted(RUNS)), st.integers(0, 2**31))
def test_mixed_labels_add_up_and_images_keep_range(name: str, seed: int):
    found = RUNS[name](jax.random.key(seed), BATCH)
    np.testing.assert_allclose(found["label"].sum(axis=1), np.ones(4), rtol=0, atol=1e-6)
    assert found["image"].shape == IMAGES.shape and found["image"].dtype == jnp.float32
    assert 0 <= float(found["image"].min()) and float(found["image"].max()) <= 1
    if name == "cutmix":
        changed = np.asarray(found["image"] != IMAGES).any(axis=-1).mean(axis=(1, 2))
        np.testing.assert_allclose(found["label"][0, 0], 1 - changed[0], rtol=0, atol=1e-6)
        np.testing.assert_allclose(changed, changed[0], rtol=0, atol=1e-6)


def shares_of(mix: augment.Augment) -> tuple[np.ndarray, np.ndarray]:
    """What is left of the first label, and whether the images are mixed without a box; 4,000."""
    images = jnp.zeros((2, 16, 16, 1)).at[0].set(1.0)
    batch = {"image": images, "label": jnp.array([0, 1])}

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        mixed = mix(key, batch)
        values = mixed["image"]
        return mixed["label"][0, 0], jnp.any((values > 0) & (values < 1))

    shares, is_mixup = jax.jit(jax.vmap(one))(jax.random.split(KEY, 4000))
    return np.asarray(shares), np.asarray(is_mixup)


def test_shares_are_drawn_from_beta():
    shares, _ = shares_of(augment.MixUp(0.4, 2))
    spread = 0.5 / np.sqrt(2 * 0.4 + 1)  # the deviation of Beta(a, a)
    assert abs(shares.mean() - 0.5) < 4 * spread / np.sqrt(4000)
    assert abs(shares.std() - spread) < 0.01


def test_either_way_is_taken_as_often_as_asked():
    shares, is_mixup = shares_of(augment.MixUpOrCutMix(2, 1, 1, 0.25, 0.8))
    assert abs(is_mixup.mean() - 0.8 * 0.75) < 4 * np.sqrt(0.24 / 4000)
    # A box holds no pixel of 16 x 16 for one share in 256.
    expected = 0.8 * (0.75 + 0.25 * 255 / 256)
    assert abs((shares < 1).mean() - expected) < 4 * np.sqrt(0.16 / 4000)


def test_one_share_for_the_whole_batch_and_keys_repeat():
    first = RUNS["either"](KEY, BATCH)
    np.testing.assert_array_equal(RUNS["either"](KEY, BATCH)["image"], first["image"])
    own = np.asarray(first["label"])[[0, 1, 2], [0, 2, 1]]
    np.testing.assert_allclose(own, own[0], rtol=0, atol=1e-6)


def test_wrong_numbers_are_refused():
    with pytest.raises(DataError, match="MixUp: expected an alpha above 0, found 0; num_classes"):
        augment.MixUp(0, 0)
    with pytest.raises(DataError, match="CutMix: expected an alpha above 0, found nan"):
        augment.CutMix(float("nan"), 2)
    with pytest.raises(DataError, match="(?s)found -1; an alpha.*found 0; a probability.*found 2"):
        augment.MixUpOrCutMix(2, -1, 0, 2)
