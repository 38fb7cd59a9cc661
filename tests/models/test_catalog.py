from __future__ import annotations

import jax
import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.errors import ModelError
from jaxtransfer.models import CATALOG, build, init, list_models
from jaxtransfer.models.catalog import _compiled_init

SMALL = {"width": 4, "input_size": (8, 8), "num_classes": 7}


def test_names_are_listed_by_glob():
    assert list_models("cifar_*") == [name for name in CATALOG if name.startswith("cifar_")]
    assert list_models() == list(CATALOG)
    assert list_models("nothing*") == []


def test_build_computes_nothing_and_init_fills_the_same_tree():
    empty = build("cifar_resnet8", **SMALL)
    model = init("cifar_resnet8", seed=3, **SMALL)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(empty))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(model))
    assert jax.tree.structure(empty) == jax.tree.structure(model)
    assert jt.diff(empty.params, model.params).fits and jt.diff(empty.stats, model.stats).fits
    assert empty.num_classes == model.num_classes == 7


def test_weights_are_a_function_of_the_seed():
    first, again, other = (init("cifar_resnet8", seed, **SMALL) for seed in (0, 0, 1))
    assert jt.diff(first.params, again.params).is_empty
    changed = jt.diff(first.params, other.params).changed
    assert set(changed) == {n for n in jt.leaf_names(first.params) if n.endswith("kernel")}


def test_another_seed_compiles_nothing_new():
    init("cifar_resnet8", seed=0, **SMALL)
    before = _compiled_init._cache_size()
    init("cifar_resnet8", seed=5, **SMALL)
    assert _compiled_init._cache_size() == before


def test_statistics_start_at_zero_mean_and_unit_variance():
    stats = jt.tree.flatten(init("cifar_resnet8", **SMALL).stats)
    for name, leaf in stats.items():
        np.testing.assert_array_equal(leaf, np.full(leaf.shape, name.endswith("var"), np.float32))


def test_an_unknown_name_brings_the_nearest():
    with pytest.raises(ModelError, match=r"found 'resnet51'; the nearest are .*resnet50"):
        build("resnet51")
    with pytest.raises(ModelError, match="'resnet51'"):
        init("resnet51")


def test_unknown_options_are_told_together():
    with pytest.raises(ModelError, match=r"options among num_classes, .*found \['depth', 'wide'\]"):
        build("resnet18", depth=3, wide=2)
