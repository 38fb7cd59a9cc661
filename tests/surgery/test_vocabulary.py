from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxtransfer as jt
from jaxtransfer.errors import ModelError
from tests.surgery.networks import note_of, outputs

OLD = ["the", "a", "cat", "dog"]
NEW = ["dog", "the", "emu", "a", "yak"]


def embedding(rows: int = 4, features: int = 3) -> np.ndarray:
    return np.random.default_rng(0).normal(2, 3, (rows, features)).astype(np.float32)


tokens = st.lists(st.text(max_size=3), min_size=1, max_size=8, unique=True)


@settings(max_examples=40)
@given(tokens, tokens, st.sampled_from(["normal", "mean", "zeros"]), st.sampled_from([0, -1]))
def test_rows_of_known_tokens_are_kept_to_the_bit(old, new, new_rows, axis):
    rows = embedding(len(old))
    leaf = np.moveaxis(rows, 0, axis)
    tree = {"text": {"embedding": leaf}, "other": {"kernel": jnp.ones(2)}}
    found = jt.extend_vocabulary(
        tree, "text/embedding", old, new, key=1, new_rows=new_rows, axis=axis
    )
    assert found["other"]["kernel"] is tree["other"]["kernel"]
    assert tree["text"]["embedding"] is leaf
    if old == new:
        assert found is tree
    after = np.moveaxis(found["text"]["embedding"], axis, 0)
    assert after.shape == (len(new), 3)
    for row, token in zip(after, new, strict=True):
        if token in old:
            np.testing.assert_array_equal(row, rows[old.index(token)])
        elif new_rows == "mean":
            np.testing.assert_allclose(row, rows.mean(0), rtol=1e-5, atol=1e-5)
        elif new_rows == "zeros":
            assert not row.any()


def test_new_rows_have_the_mean_and_deviation_of_the_old():
    old = embedding(50) * [1, 10, 0] + [0, 5, 7]
    names = [str(i) for i in range(50)]
    new = [f"new{i}" for i in range(4000)]
    found = np.asarray(jt.extend_vocabulary(jnp.asarray(old, jnp.float32), None, names, new))
    assert np.abs(found.mean(0) - old.mean(0)).max() < 0.06 * 30
    np.testing.assert_allclose(found.mean(0), old.mean(0), atol=0.05 * old.std(0).max())
    np.testing.assert_allclose(found.std(0), old.std(0), rtol=0.05, atol=1e-5)
    assert abs(np.corrcoef(found[:, 0], found[:, 1])[0, 1]) < 0.05


def test_the_same_key_draws_the_same_rows():
    rows = jnp.asarray(embedding())
    first = jt.extend_vocabulary(rows, None, OLD, NEW, key=1)
    same = jt.extend_vocabulary(rows, None, OLD, NEW, key=jax.random.key(1))
    np.testing.assert_array_equal(first, same)
    other = jt.extend_vocabulary(rows, None, OLD, NEW, key=2)
    assert not np.allclose(first[2], other[2]) and not np.allclose(first[2], first[4])
    # An output layer with a copy of the embedding gets a copy of the new one.
    output = jt.extend_vocabulary(rows.T, None, OLD, NEW, key=1, axis=-1)
    np.testing.assert_allclose(output.T, first, rtol=1e-5)


def test_a_bias_is_extended_too():
    bias = jnp.arange(4.0)
    found = jt.extend_vocabulary(bias, None, OLD, NEW, axis=-1, new_rows="mean")
    np.testing.assert_array_equal(found, [3, 0, 1.5, 1, 1.5])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_the_dtype_and_the_kind_of_array_are_kept(dtype):
    rows = embedding().astype(dtype)
    found = jt.extend_vocabulary(rows, None, OLD, NEW)
    assert isinstance(found, np.ndarray) and found.dtype == rows.dtype
    np.testing.assert_array_equal(found[[0, 1, 3]], rows[[3, 0, 1]])
    if dtype != "float64":
        assert isinstance(jt.extend_vocabulary(jnp.asarray(rows), None, OLD, NEW), jax.Array)


def test_shapes_alone_are_extended_too():
    shape = jax.ShapeDtypeStruct((4, 3), jnp.bfloat16)
    assert jt.extend_vocabulary(shape, None, OLD, NEW) == jax.ShapeDtypeStruct((5, 3), jnp.bfloat16)


# Models


@dataclass(frozen=True)
class Sizes:
    vocabulary: int = 4
    depth: int = 4


class Words(nn.Module):
    """An embedding that is tied to the output layer."""

    sizes: Sizes = Sizes()

    @nn.compact
    def __call__(self, x):
        embed = nn.Embed(self.sizes.vocabulary, 3, name="embed")
        return embed.attend(nn.Dense(3, name="head")(embed(x).mean(1)))


def test_a_model_and_its_tied_output_follow():
    module = Words()
    variables = module.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    model = jt.Model.from_linen(module, variables)
    model = replace(model, spec=replace(model.spec, options=(("vocabulary", 4),)))
    new = jt.extend_vocabulary(model, "embed/embedding", OLD, NEW, option="vocabulary")
    assert new.apply.module.sizes == Sizes(5, 4)
    assert new.spec.options == (("vocabulary", 5),)
    assert new.params["head"]["kernel"] is model.params["head"]["kernel"]
    before = outputs(model, jnp.array([[3, 1]]))  # dog, a
    after = outputs(new, jnp.array([[0, 3]]))
    np.testing.assert_allclose(after[0, [1, 3, 0]], before[0, [0, 1, 3]], rtol=1e-5)
    assert note_of(new) == (
        "extend_vocabulary: embed/embedding from 4 to 5 tokens, 3 rows kept by name, 2 new (normal)"
    )
    assert jt.extend_vocabulary(model, "embed/embedding", OLD, OLD) is model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "text/embeding"}, "expected a leaf there, found none; the nearest are text/emb"),
        ({"path": "ids"}, "an array of floats, found int32"),
        ({"old_tokens": OLD[:3]}, r"axis 0 with a row for each of 3 old tokens.*\(4, 3\)"),
        ({"old_tokens": ["a", "a", "b", "c"]}, r"old tokens, each once, found \['a'\]"),
        ({"new_tokens": ["a", "a"]}, r"new tokens, each once, found \['a'\]"),
        ({"new_tokens": "abc"}, "new tokens, each once, found the text 'abc'"),
        ({"new_tokens": []}, "new tokens, each once, found none"),
        ({"axis": 2}, "expected an axis 2 with a row"),
        ({"new_rows": "uniform"}, "new_rows among normal, mean, zeros, found 'uniform'"),
    ],
)
def test_what_does_not_fit_is_an_error(changes, message):
    tree: Any = {"text": {"embedding": embedding()}, "ids": jnp.arange(4)}
    arguments = {"path": "text/embedding", "old_tokens": OLD, "new_tokens": NEW, **changes}
    with pytest.raises(ModelError, match=r"extend_vocabulary\(.*" + message):
        jt.extend_vocabulary(tree, **arguments)
