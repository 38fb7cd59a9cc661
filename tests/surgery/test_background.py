from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.data import ArrayData
from jaxtransfer.errors import ModelError
from jaxtransfer.models import build
from jaxtransfer.transfer import fit_head


@pytest.fixture(scope="module")
def model() -> jt.Model:
    """A network whose first of 6 outputs is a background."""
    rng = np.random.default_rng(0)
    empty = build("cifar_resnet8", width=2, input_size=8, num_classes=6)
    filled = jax.tree.map(lambda leaf: jnp.asarray(rng.random(leaf.shape), leaf.dtype), empty)
    return replace(filled, preprocess=replace(filled.preprocess, label_offset=1))


def test_the_outputs_are_those_of_the_labels(model):
    dropped = jt.drop_background(model)
    images = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 3), np.uint8)
    np.testing.assert_allclose(
        jt.predict(dropped, images), jt.predict(model, images)[:, 1:], rtol=1e-6
    )
    assert (dropped.num_classes, model.num_classes) == (5, 6)
    assert dropped.preprocess.label_offset == 0 and jt.drop_background(dropped) is dropped
    assert dropped.receipt.notes == ("drop_background: head has 5 outputs instead of 6",)


def test_leaves_outside_the_head_are_the_same_arrays(model):
    before, after = jt.tree.flatten(model.params), jt.tree.flatten(jt.drop_background(model).params)
    changed = {name for name in before if after[name] is not before[name]}
    assert changed == {"head/kernel", "head/bias"}
    assert before["head/kernel"].shape == (8, 6)


def test_names_of_classes_follow(model):
    named = model.with_labels(["background", *"abcde"])
    assert jt.drop_background(named).labels == tuple("abcde")


def test_a_saved_model_comes_back(model, tmp_path):
    dropped = jt.drop_background(model)
    dropped.save(tmp_path)
    loaded = jt.load(tmp_path)
    assert jt.diff(loaded.params, dropped.params).is_empty
    assert (loaded.num_classes, loaded.spec, loaded.apply) == (5, dropped.spec, dropped.apply)


def test_integer_labels_meet_their_own_outputs(model):
    images = np.zeros((5, 8, 8, 3), np.uint8)
    fitted = fit_head(model, ArrayData(images, np.arange(5)))
    np.testing.assert_array_equal(
        fitted.params["head"]["kernel"], model.params["head"]["kernel"][:, 1:]
    )


def test_a_network_without_weights_will_do():
    empty = build("cifar_resnet8", num_classes=6)
    empty = replace(empty, preprocess=replace(empty.preprocess, label_offset=1))
    assert jt.drop_background(empty).params["head"]["kernel"].shape == (64, 5)


def test_a_network_without_a_head_is_an_error(model):
    features = build("cifar_resnet8", num_classes=0)
    features = replace(features, preprocess=model.preprocess)
    with pytest.raises(ModelError, match="expected weights with None columns at 'head'"):
        jt.drop_background(features)
