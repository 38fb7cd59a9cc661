from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxtransfer as jt
from jaxtransfer.errors import ModelError
from jaxtransfer.models import build
from tests.surgery.networks import leaves, note_of, outputs, tokens, untouched, varied

EMBEDDING = "params/embed/position_embedding"
REFERENCES = np.load(Path(__file__).parent / "fixtures" / "references.npz")
METHODS = ["timm", "big_vision"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", range(7))
def test_embeddings_are_those_of_the_library(case, method):
    *grids, prefix = map(int, REFERENCES[f"{case}/grids"])
    embedding = REFERENCES[f"{case}/embedding"]
    old, new = tuple(grids[:2]), tuple(grids[2:])
    found = jt.resize_position_embedding(jnp.asarray(embedding), old, new, prefix, method)
    np.testing.assert_allclose(found, REFERENCES[f"{case}/{method}"], atol=1e-5)
    np.testing.assert_array_equal(found[:, :prefix], embedding[:, :prefix])


sides = st.integers(1, 9)
grids = st.tuples(sides, sides)


@settings(max_examples=25)
@given(grids, grids, st.integers(0, 2), st.sampled_from(METHODS))
def test_a_constant_stays_and_the_prefix_too(old, new, prefix, method):
    first = np.random.default_rng(0).normal(size=(prefix, 2)).astype(np.float32)
    embedding = np.concatenate([first, np.full((old[0] * old[1], 2), 1.5, np.float32)])
    found = jt.resize_position_embedding(embedding, old, new, prefix, method)
    assert found.shape == (prefix + new[0] * new[1], 2)
    np.testing.assert_array_equal(found[:prefix], first)
    np.testing.assert_allclose(found[prefix:], 1.5, rtol=1e-5)


@settings(max_examples=25)
@given(grids, grids, st.integers(0, 100), st.sampled_from(METHODS))
def test_turned_grids_give_turned_embeddings(old, new, seed, method):
    grid = np.random.default_rng(seed).normal(size=(1, *old, 2)).astype(np.float32)

    def resized(grid: np.ndarray, to: tuple[int, int]) -> np.ndarray:
        shape = grid.shape[1:3]
        tokens = grid.reshape(1, -1, 2)
        found = jt.resize_position_embedding(tokens, shape, to, method=method)
        return np.asarray(found).reshape(1, *to, 2)

    upright = resized(grid, new)
    turned = resized(grid.transpose(0, 2, 1, 3), (new[1], new[0]))
    np.testing.assert_allclose(turned.transpose(0, 2, 1, 3), upright, atol=1e-5)
    if method == "big_vision" and new[0] == 1:
        return  # the first row alone is left
    flipped = resized(grid[:, ::-1], new)
    np.testing.assert_allclose(flipped[:, ::-1], upright, atol=1e-5)


def test_big_vision_keeps_corners_and_timm_does_not():
    embedding = np.random.default_rng(0).normal(size=(1, 9, 1)).astype(np.float32)
    linear = jt.resize_position_embedding(embedding, (3, 3), (5, 5), method="big_vision")
    assert np.asarray(linear)[0, [0, 4, 20, 24], 0] == pytest.approx(embedding[0, [0, 2, 6, 8], 0])
    cubic = jt.resize_position_embedding(embedding, (3, 3), (5, 5))
    assert abs(float(cubic[0, 0, 0] - embedding[0, 0, 0])) > 1e-3


def test_the_same_grid_is_the_same_array():
    embedding = jnp.ones((1, 10, 2))
    assert jt.resize_position_embedding(embedding, (3, 3), (3, 3), prefix=1) is embedding


def test_half_precision_is_computed_in_single():
    embedding = jnp.asarray(REFERENCES["0/embedding"], jnp.bfloat16)
    found = jt.resize_position_embedding(embedding, (7, 7), (12, 12), 1)
    single = jt.resize_position_embedding(embedding.astype(jnp.float32), (7, 7), (12, 12), 1)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, single.astype(jnp.bfloat16))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((3, 3), (4, 4), 0), r"0 \+ 3 \* 3 tokens, found the shape \(1, 10, 2\)"),
        (((3, 3), (4, 0), 1), r"a grid of two integers of at least 1, found \(4, 0\)"),
        (((3, 3, 1), (4, 4), 1), r"found \(3, 3, 1\)"),
        (((3, 3), (4, 4), 1, "bilinear"), "a method among timm, big_vision, found 'bilinear'"),
    ],
)
def test_what_does_not_fit_is_an_error(arguments, message):
    with pytest.raises(ModelError, match=message):
        jt.resize_position_embedding(jnp.ones((1, 10, 2)), *arguments)


# Whole models


@pytest.mark.parametrize("method", METHODS)
def test_a_network_with_a_position_embedding_runs_at_another_size(method):
    old = tokens()
    before = leaves(old)
    new = jt.change_input_size(old, (12, 6), method=method)
    assert untouched(old, new, EMBEDDING)
    assert all(leaf is before[name] for name, leaf in leaves(old).items())
    expected = jt.resize_position_embedding(before[EMBEDDING], (4, 4), (6, 3), 1, method)
    np.testing.assert_array_equal(leaves(new)[EMBEDDING], expected)
    assert (new.spec.input_size, new.preprocess.size) == ((12, 6), (12, 6))
    assert new.apply.module.input_size == (12, 6)  # the module's field of that name follows
    assert outputs(new, np.ones((2, 12, 6, 3), np.float32)).shape == (2, 3)
    assert note_of(new) == (
        "change_input_size: 8x8 to 12x6; embed/position_embedding from 4x4 to 6x3 patches by "
        f"{method}"
    )


def test_a_network_without_one_keeps_every_leaf():
    old = varied(build("cifar_resnet8", width=2, input_size=16))
    new = jt.change_input_size(old, 24)
    assert untouched(old, new)
    assert new.preprocess.size == (24, 24)
    assert json.loads(json.dumps(dict(new.spec.options)))["input_size"] == [24, 24]
    direct = build("cifar_resnet8", width=2, input_size=24)
    assert (new.spec, new.apply, new.preprocess) == (direct.spec, direct.apply, direct.preprocess)
    assert note_of(new) == "change_input_size: 16x16 to 24x24"


def test_the_same_size_is_the_model_itself():
    model = tokens()
    assert jt.change_input_size(model, 8) is model
    assert jt.change_input_size(model, [8, 8]) is model


def test_images_that_nothing_resizes_stay_as_they_come():
    model = replace(tokens(), preprocess=jt.Preprocess(scale=None))
    assert jt.change_input_size(model, 16).preprocess == model.preprocess


class Flat(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="head")(x.reshape(x.shape[0], -1))


def test_a_network_for_one_size_says_so():
    module = Flat()
    variables = varied(
        jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 4, 4, 3))))
    )
    model = jt.Model.from_linen(module, variables, input_shape=(4, 4, 3))
    with pytest.raises(
        ModelError, match=r"runs on images of \(5, 5\).*found: .*belong to one size"
    ):
        jt.change_input_size(model, 5)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (0, "of at least 1, found 0"),
        ((8, 8, 3), r"found \(8, 8, 3\)"),
        (8.0, r"found 8\.0"),
        ((7, 12), "patches of 2 pixels fill, found 7x12; the nearest are 8x12"),
        (1, "the nearest are 2x2"),
    ],
)
def test_sizes_that_cannot_be_are_errors(size, message):
    with pytest.raises(ModelError, match=r"change_input_size\(Tokens\): expected .*" + message):
        jt.change_input_size(tokens(), size)


def test_patches_of_unknown_images_are_an_error():
    model = tokens()
    unknown = replace(model, spec=replace(model.spec, input_size=None))
    with pytest.raises(ModelError, match="that knows the size of its images"):
        jt.change_input_size(unknown, 16)
