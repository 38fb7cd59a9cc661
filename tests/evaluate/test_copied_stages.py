from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.errors import ModelError
from jaxtransfer.evaluate.copied_stages import copy_stages, random_network, treatment_plan


@pytest.fixture(scope="module")
def model():
    return jt.init("cifar_resnet8", in_channels=1, width=4, input_size=(8, 8), num_classes=3)


@pytest.fixture(scope="module")
def other(model):
    return replace(jt.init(model.spec.name, 1, **dict(model.spec.options)), labels=tuple("abc"))


def test_networks_of_the_catalog_know_their_random_weights(model):
    data = jt.ArrayData(np.zeros((2, 8, 8, 1), np.float32), np.array([0, 4], np.int32))
    fresh, again, different = (random_network(model, data, seed) for seed in (0, 0, 1))
    assert fresh.num_classes == 5
    assert jt.diff(fresh.params, again.params).is_empty
    kernels = set(jt.select(fresh.params, "**/kernel"))
    assert kernels <= set(jt.diff(fresh.params, different.params).changed)


def test_a_network_that_was_cut_off_is_none_of_the_catalog(model):
    cut = jt.replace_head(jt.truncate(model, "layer2"), 3)
    data = jt.ArrayData(np.zeros((1, 8, 8, 1), np.float32), np.array([2], np.int32))
    with pytest.raises(ModelError, match="differ, among them layer3.*give initialise="):
        random_network(cut, data, 0)


def test_copied_stages_are_the_same_arrays(model, other):
    copied = copy_stages(other, model, 2)
    for mine, theirs, own in (
        (copied.params, other.params, model.params),
        (copied.stats, other.stats, model.stats),
    ):
        assert all(mine[stage] is theirs[stage] for stage in ("stem", "layer1"))
        assert all(mine[stage] is own[stage] for stage in own if stage not in ("stem", "layer1"))
    assert copied.labels is model.labels


def test_stages_of_another_network_are_not_copied(model):
    wider = {**model.params, "stem": {"conv": {"kernel": jnp.ones((3, 3, 1, 5))}}}
    with pytest.raises(ModelError, match="3 that differ, among them stem/bn/bias.* and none"):
        copy_stages(replace(model, params=wider), model, 1)


def test_plans_freeze_what_was_copied(model):
    assert treatment_plan(model, 1, fine_tuned=False) == jt.freeze_until(model, "layer1")
    assert treatment_plan(model, 4, fine_tuned=False) == jt.freeze_until(model, "head")
    assert treatment_plan(model, 4, fine_tuned=True) == jt.full(model)
