from __future__ import annotations

from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxtransfer as jt
from jaxtransfer.errors import ModelError, TreeError
from tests.surgery.networks import leaves, note_of, outputs, tokens, untouched

IMAGES = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)


# Trees


@st.composite
def trees(draw: Any) -> dict[str, Any]:
    """Blocks of one random structure, among other keys."""
    shapes = draw(
        st.dictionaries(
            st.text("abcd/", min_size=1, max_size=3).filter(lambda name: "/" not in name),
            st.tuples(
                st.lists(st.integers(0, 3), max_size=3).map(tuple),
                st.sampled_from([np.float32, np.float64, np.int8, jnp.bfloat16]),
            ),
            min_size=1,
            max_size=3,
        )
    )
    count, rng = draw(st.integers(1, 12)), np.random.default_rng(draw(st.integers(0, 99)))

    def block() -> dict[str, Any]:
        return {
            "in": {
                name: rng.integers(0, 255, shape).astype(dtype)
                for name, (shape, dtype) in shapes.items()
            }
        }

    return {"stem": np.ones(2), **{f"block{i}": block() for i in range(count)}, "head": np.ones(1)}


@settings(max_examples=40)
@given(trees())
def test_blocks_go_and_come_back_to_the_bit(tree):
    names = [name for name in tree if name.startswith("block")]
    before = jt.tree.flatten(tree)
    stacked = jt.stack_blocks(tree, names)
    assert list(stacked) == ["stem", "blocks", "head"]
    assert stacked["stem"] is tree["stem"] and stacked["head"] is tree["head"]
    back = jt.unstack_blocks(stacked)
    assert list(back) == list(tree)
    assert jt.diff(back, tree).is_empty
    after = jt.tree.flatten(tree)
    assert all(after[name] is leaf for name, leaf in before.items())
    for name, leaf in jt.tree.flatten(stacked["blocks"]).items():
        assert leaf.dtype == before[f"block0/{name}"].dtype
        np.testing.assert_array_equal(leaf[-1], before[f"{names[-1]}/{name}"])


def test_the_order_of_the_names_is_that_of_the_axis():
    tree = {f"block{i}": {"bias": jnp.full(2, float(i))} for i in range(3)}
    stacked = jt.stack_blocks(tree, ["block2", "block0", "block1"])
    np.testing.assert_array_equal(stacked["blocks"]["bias"][:, 0], [2, 0, 1])


@pytest.mark.parametrize(
    ("tree", "names", "message"),
    [
        ({"block0": {}}, ["block0", "block1"], "found none of block1"),
        ({"block0": {}}, [], "the keys of blocks"),
        ({"block0": {}, "blocks": {}}, ["block0"], "no 'blocks', found block0, blocks"),
        (
            {"block0": {"a": np.ones(2)}, "block1": {"a": np.ones(3)}},
            ["block0", "block1"],
            "in block0 and block1, found others at a",
        ),
        (
            {"block0": {"a": np.ones(2)}, "block1": {"a": np.ones(2, np.float32), "b": np.ones(1)}},
            ["block0", "block1"],
            "found others at a, b",
        ),
    ],
)
def test_blocks_that_cannot_be_stacked_are_errors(tree, names, message):
    with pytest.raises(TreeError, match="stack_blocks: expected .*" + message):
        jt.stack_blocks(tree, names)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"block0": {}}, "found none"),
        ({"blocks": {"a": np.ones(2), "b": np.ones(3)}}, r"of length \[2, 3\]"),
        ({"blocks": {"a": np.ones(())}}, r"of length \[0\]"),
        ({"blocks": {"a": np.ones(2)}, "block7": {}}, "found block7"),
    ],
)
def test_what_is_no_stack_is_an_error(tree, message):
    with pytest.raises(TreeError, match="unstack_blocks: expected .*" + message):
        jt.unstack_blocks(tree)


# Models


def test_a_stacked_network_computes_the_same():
    apart = tokens()
    fast = jt.stack(apart)
    assert untouched(apart, fast, "params/block", "stats/block")
    assert fast.spec.stages == ("embed", "blocks", "pool", "head")
    assert fast.apply.module.scan
    assert fast.params["blocks"]["dense"]["kernel"].shape == (3, 4, 4)
    assert fast.stats["blocks"]["norm"]["mean"].shape == (3, 4)
    np.testing.assert_allclose(outputs(fast, IMAGES), outputs(apart, IMAGES), rtol=1e-5)
    for stage in ("blocks", "pool"):
        expected = outputs(apart, IMAGES, stop=stage.replace("blocks", "block0"))
        np.testing.assert_allclose(outputs(fast, IMAGES, stop=stage), expected, rtol=1e-5)
    assert note_of(fast) == "stack: block0 to block2 are blocks, 3 along the first axis"

    trained, stats = apart.apply(apart.params, apart.stats, IMAGES, train=True)
    also, fast_stats = fast.apply(fast.params, fast.stats, IMAGES, train=True)
    np.testing.assert_allclose(also, trained, rtol=1e-4)
    back = jt.unstack_blocks(fast_stats)
    assert jax.tree.structure(back) == jax.tree.structure(stats)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), back, stats)


def test_unstack_is_the_way_back():
    apart = tokens()
    back = jt.unstack(jt.stack(apart))
    assert jt.diff(back.params, apart.params).is_empty
    assert jt.diff(back.stats, apart.stats).is_empty
    assert (back.spec, back.apply, back.labels) == (apart.spec, apart.apply, apart.labels)
    assert back.receipt.notes[-1] == "unstack: blocks are block0 to block2"


def test_what_is_around_the_network_stays():
    headed = jt.replace_head(tokens(), 2, hidden=[jt.Dense(3)])
    fast = jt.stack(headed)
    np.testing.assert_allclose(outputs(fast, IMAGES), outputs(headed, IMAGES), rtol=1e-5)
    assert jt.unstack(fast).apply == headed.apply

    cut = jt.replace_head(jt.truncate(tokens(), "block2"), 2)
    fast = jt.stack(cut)
    assert fast.spec.truncated_after == "blocks"
    np.testing.assert_allclose(outputs(fast, IMAGES), outputs(cut, IMAGES), rtol=1e-5)
    back = jt.unstack(fast)
    assert (back.spec, back.apply) == (cut.spec, cut.apply)
    direct = jt.truncate(jt.stack(tokens()), "blocks")
    assert (direct.spec, direct.apply) == (replace(fast.spec, head_layers=()), fast.apply.body)


def test_options_follow():
    model = tokens()
    model = replace(model, spec=replace(model.spec, options=(("depth", 3), ("scan", False))))
    fast = jt.stack(model)
    assert fast.spec.options == (("depth", 3), ("scan", True))
    assert jt.unstack(fast).spec.options == model.spec.options


def test_shapes_alone_are_stacked_too():
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tokens())
    fast = jt.stack(shapes)
    assert leaves(fast)["params/blocks/dense/kernel"].shape == (3, 4, 4)
    assert jt.unstack(fast).params == shapes.params


class NoScan(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(3, name="block1")(nn.Dense(3, name="block0")(x))
        return nn.Dense(2, name="head")(x)


def test_what_cannot_be_stacked_is_an_error():
    model = tokens()
    with pytest.raises(
        ModelError, match=r"stack\(Tokens\): expected the stages block0.*found embed, bl"
    ):
        jt.stack(jt.stack(model))
    with pytest.raises(ModelError, match=r"with all its blocks, found one that ends after block1"):
        jt.stack(jt.truncate(model, "block1"))
    with pytest.raises(ModelError, match=r"with all its blocks, found one that ends after block1"):
        jt.stack(jt.replace_head(jt.truncate(model, "block1"), 2))
    with pytest.raises(TreeError, match="unstack_blocks: .*found none"):
        jt.unstack(model)
    module = NoScan()
    variables = module.init(jax.random.key(0), jnp.ones((1, 3)))
    plain = jt.Model.from_linen(module, variables, stages=["block0", "block1", "head"])
    with pytest.raises(ModelError, match="field scan=False, found NoScan with no such field"):
        jt.stack(plain)
    function = jt.Model.from_function(
        lambda params, x: x, plain.params, stages=["block0", "block1", "head"]
    )
    with pytest.raises(ModelError, match="found FunctionApply with no such field"):
        jt.stack(function)


def test_blocks_that_differ_are_told():
    model = tokens()
    params = jt.tree.with_subtree(model.params, "block1/dense/bias", jnp.ones(5))
    with pytest.raises(TreeError, match="in block0 and block1, found others at dense/bias"):
        jt.stack(replace(model, params=params))
