from __future__ import annotations

import copy
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxtransfer import tree as jt

NAN = np.float32("nan")
OTHER_NAN = np.uint32(0x7FC00001).view(np.float32)


def kind_of(before: Any, after: Any) -> str:
    """The one field of the difference that holds the leaf `x`."""
    difference = jt.diff({"x": before}, {"x": after})
    fields = ("missing", "extra", "reshaped", "retyped", "changed", "unchanged")
    filled = [field for field in fields if getattr(difference, field)]
    assert len(filled) == 1
    return filled[0]


def test_a_tree_does_not_differ_from_itself_or_from_a_copy(sample: Any) -> None:
    copied = jax.tree.map(lambda x: x.copy() if isinstance(x, jax.Array) else x, sample.tree)
    for other in (sample.tree, copied):
        difference = jt.diff(sample.tree, other)
        assert difference == jt.TreeDiff(unchanged=sample.names)
        assert difference.is_empty and difference.fits
        assert str(difference) == "no difference"


def test_changed_leaves_are_named_in_every_framework(sample: Any) -> None:
    changed = jt.map_with_names(
        lambda name, leaf: leaf + 1 if name in sample.head_names else leaf, sample.tree
    )
    difference = jt.diff(sample.tree, changed)
    assert difference.changed == sample.head_names
    assert difference.fits and not difference.is_empty
    assert set(difference.unchanged) == set(sample.names) - set(sample.head_names)


def test_one_half_lacks_what_the_other_has(sample: Any) -> None:
    head, body = jt.split(sample.tree, sample.head)
    assert jt.diff(sample.tree, body).missing == sample.head_names
    assert jt.diff(body, sample.tree).extra == sample.head_names
    assert not jt.diff(head, body).fits


def test_shape_before_dtype_before_values() -> None:
    before = {"a": np.zeros(2), "b": np.zeros(2, np.float32), "c": np.zeros(2), "d": np.zeros(2)}
    after = {"a": np.ones((2, 1), int), "b": np.ones(2, np.float16), "c": np.ones(2), "e": 0}
    difference = jt.diff(before, after)
    assert difference == jt.TreeDiff(
        missing=("d",),
        extra=("e",),
        reshaped=(("a", (2,), (2, 1)),),
        retyped=(("b", "float32", "float16"),),
        changed=("c",),
    )
    assert str(difference).splitlines() == [
        " - d",
        " + e",
        " ~ a: (2,) -> (2, 1)",
        " ~ b: float32 -> float16",
        " * c: other values",
    ]


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        (NAN, NAN, "unchanged"),
        (NAN, OTHER_NAN, "changed"),
        (NAN, -NAN, "changed"),
        (np.float32(0.0), np.float32(-0.0), "changed"),
        (np.float32(1), np.nextafter(np.float32(1), np.float32(2)), "changed"),
        (ml_dtypes.bfloat16(1), ml_dtypes.bfloat16(1), "unchanged"),
        (ml_dtypes.bfloat16(1), ml_dtypes.bfloat16(1.0078125), "changed"),
        (ml_dtypes.bfloat16(0.0), ml_dtypes.bfloat16(-0.0), "changed"),
        (ml_dtypes.bfloat16(1), np.float32(1), "retyped"),
        (np.int32(1), np.uint32(1), "retyped"),
        (np.bool_(True), np.bool_(True), "unchanged"),
    ],
)
def test_arrays_are_compared_bit_by_bit(array: Any, before: Any, after: Any, kind: str) -> None:
    assert kind_of(array([before]), array([after])) == kind


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        (float("nan"), float("nan"), "unchanged"),
        (0.0, -0.0, "changed"),
        (complex(0.0, 0.0), complex(0.0, -0.0), "changed"),
        (1.5, 1.5, "unchanged"),
        (10**30, 10**30, "unchanged"),
        (10**30, 10**30 + 1, "changed"),
        (1, True, "retyped"),
        (1, 1.0, "retyped"),
        ("adam", "adam", "unchanged"),
        ("adam", "sgd", "changed"),
        (jax.nn.relu, jax.nn.relu, "unchanged"),
        (max, min, "changed"),
    ],
)
def test_leaves_that_are_no_arrays(before: Any, after: Any, kind: str) -> None:
    assert kind_of(before, after) == kind


def test_numpy_and_jax_arrays_of_one_content_are_equal() -> None:
    assert kind_of(np.arange(3, dtype=np.float32), jnp.arange(3, dtype=jnp.float32)) == "unchanged"
    assert kind_of(np.arange(6).reshape(2, 3), np.arange(6).reshape(3, 2).T.copy()) == "changed"
    fortran = np.asfortranarray(np.arange(6).reshape(2, 3))
    assert kind_of(np.arange(6).reshape(2, 3), fortran) == "unchanged"


def test_typed_random_keys_are_compared_by_their_numbers() -> None:
    assert kind_of(jax.random.key(0), jax.random.key(0)) == "unchanged"
    assert kind_of(jax.random.key(0), jax.random.key(1)) == "changed"
    assert kind_of(jax.random.key(0), jax.random.key(0, impl="rbg")) == "retyped"
    assert kind_of(jax.random.key(0), jax.random.PRNGKey(0)) == "reshaped"
    split = jax.random.split(jax.random.key(0))
    assert kind_of(split, split) == "unchanged"
    assert kind_of(split, split[::-1]) == "changed"


def test_a_leaf_without_values_is_compared_by_shape_and_dtype() -> None:
    shape = jax.ShapeDtypeStruct((2,), jnp.float32)
    assert kind_of(shape, shape) == "unchanged"
    assert kind_of(shape, np.zeros(2, np.float32)) == "unchanged"
    assert kind_of(np.zeros(2, np.float32), shape) == "unchanged"
    assert kind_of(shape, jax.ShapeDtypeStruct((2,), jnp.bfloat16)) == "retyped"
    assert kind_of(shape, np.zeros(3, np.float32)) == "reshaped"


def test_a_tree_fits_its_own_shapes(sample: Any) -> None:
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype) if hasattr(x, "shape") else x,
        sample.tree,
    )
    assert jt.diff(shapes, sample.tree) == jt.TreeDiff(unchanged=sample.names)


ARRAYS = st.binary(min_size=8, max_size=8).map(lambda raw: np.frombuffer(raw, np.float32))
FLAT_TREES = st.dictionaries(st.sampled_from("abcde"), ARRAYS)


@given(FLAT_TREES, FLAT_TREES)
def test_every_leaf_is_in_exactly_one_field(before: dict[str, Any], after: dict[str, Any]) -> None:
    copies = copy.deepcopy((before, after))
    difference = jt.diff(before, after)
    fields = [*difference.missing, *difference.extra, *difference.changed, *difference.unchanged]
    assert sorted(fields) == sorted(before.keys() | after.keys())
    assert set(difference.changed) == {
        name
        for name in before.keys() & after.keys()
        if before[name].view(np.uint32).tolist() != after[name].view(np.uint32).tolist()
    }
    opposite = jt.diff(after, before)
    assert (difference.missing, difference.extra) == (opposite.extra, opposite.missing)
    assert set(difference.changed) == set(opposite.changed)
    assert jt.diff((before, after), copies).is_empty
