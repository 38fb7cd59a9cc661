from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

import jaxtransfer as jt
from jaxtransfer.errors import ModelError
from jaxtransfer.mapping import RuleIndex
from jaxtransfer.models import build, families, init, list_models
from jaxtransfer.models.catalog import _compiled_init, aliases, spec_of
from jaxtransfer.tree import count_parameters, path_prefixes

SMALL = {"width": 4, "input_size": (8, 8), "num_classes": 7}


def test_names_are_listed_by_glob():
    assert list_models("cifar_*") == [name for name in families() if name.startswith("cifar_")]
    assert list_models() == list(families())
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
    jitted = _compiled_init._jitted[False]
    before = jitted._cache_size()
    init("cifar_resnet8", seed=5, **SMALL)
    assert jitted._cache_size() == before


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


def without_rules(leaves, source):
    index = RuleIndex(source.rules)
    return [leaf for leaf in leaves if not index.leading_to(leaf)]


@pytest.mark.slow  # each takes a second or two, and there are many
@pytest.mark.parametrize("name", families())
def test_every_network_of_the_catalog_is_as_its_data_says(name):
    """Head, stem, stages and the targets of all rules exist; the size is the published one."""
    model = build(name)
    spec, leaves = model.spec, jt.leaf_names({"params": model.params, "stats": model.stats})
    paths = {prefix for leaf in leaves for prefix in path_prefixes(leaf)}
    assert f"params/{spec.head}" in paths or model.num_classes is None
    assert f"params/{spec.stem}/kernel" in leaves
    assert set(model.params) <= set(spec.stages)
    assert spec.head.split("/")[0] == spec.stages[-1]
    kernel = model.params
    for segment in f"{spec.stem}/kernel".split("/"):
        kernel = kernel[segment]
    assert kernel.shape[-2] == spec.in_channels
    assert count_parameters(model.params) == families()[name].parameters[name]
    if spec.position_embedding is not None:
        assert f"params/{spec.position_embedding.path}" in leaves
    for source in spec.sources:
        unfilled = without_rules(leaves, source)
        if unfilled and source.options:  # leaves that the source's networks do not have
            like = build(name, **source.options)
            wanted = jt.leaf_names({"params": like.params, "stats": like.stats})
            unfilled = without_rules(wanted, like.spec.source(source.name))
        assert not unfilled, f"{source.name} has no rules for them"
    known = {source.name for source in spec.sources}
    assert {weights.source for weights in spec.weights} <= known


@pytest.mark.parametrize("alias", aliases())
def test_an_alias_builds_a_network(alias):
    variant, options = aliases()[alias]
    assert alias not in families() and variant in families()
    assert spec_of(alias) == spec_of(variant, **options)


def test_an_input_size_may_be_one_number_or_a_list():
    assert spec_of("resnet18", input_size=96).input_size == (96, 96)
    assert spec_of("resnet18", input_size=[96, 64]).input_size == (96, 64)
    assert build("resnet18", input_size=96, width=4).preprocess.size == (96, 96)


def test_a_network_without_classes_gives_features():
    model = build("cifar_resnet8", width=4, num_classes=0)
    forward = functools.partial(model.apply, train=False)
    features, _ = jax.eval_shape(forward, model.params, model.stats, np.zeros((2, 32, 32, 3)))
    assert features.shape == (2, 16) and "head" not in model.params and model.num_classes is None
