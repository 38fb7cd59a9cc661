"""Tensors that are split over several leaves, joined in one, or tied to others."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxtransfer.errors import MappingError
from jaxtransfer.mapping import Receipt, Rule, convert, invert
from jaxtransfer.mapping.receipt import ReceiptEntry
from jaxtransfer.tree import flatten, unflatten

QKV = ("query", "key", "value")
SPLIT = (
    Rule(
        "layers.{i}.attn.in_proj_weight",
        tuple(f"params/{{i}}/{name}/kernel" for name in QKV),
        "split_heads(2)",
    ),
    Rule(
        "layers.{i}.attn.in_proj_bias",
        tuple(f"params/{{i}}/{name}/bias" for name in QKV),
        "split_heads_bias(2)",
    ),
)
JOINED = (
    Rule(tuple(f"layer.{{i}}.{name}.weight" for name in QKV), "params/{i}/qkv/kernel", "dense"),
    Rule(tuple(f"layer.{{i}}.{name}.bias" for name in QKV), "params/{i}/qkv/bias"),
)
TIED = (
    Rule("wte.weight", "params/embed/embedding"),
    Rule("lm_head.weight", "params/head/kernel", "dense"),
    Rule("wte.weight", "params/head/kernel", "dense", tied=True),
    Rule("lm_head.weight", "params/embed/embedding", tied=True),
)


def values(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def like(**shapes: tuple[int, ...]) -> Any:
    return unflatten(
        {
            name.replace("__", "/"): jax.ShapeDtypeStruct(shape, np.float32)
            for name, shape in shapes.items()
        }
    )


def message_of(function: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(MappingError) as caught:
        function(*arguments, **options)
    return str(caught.value)


def attention() -> tuple[dict[str, np.ndarray], Any]:
    flat = {
        "layers.0.attn.in_proj_weight": values(12, 6),
        "layers.0.attn.in_proj_bias": values(12, seed=1),
    }
    tree = like(
        **{f"params__0__{name}__kernel": (6, 2, 2) for name in QKV},
        **{f"params__0__{name}__bias": (2, 2) for name in QKV},
    )
    return flat, tree


def test_a_fused_projection_is_split_as_torch_joins_it():
    flat, tree = attention()
    found, receipt = convert(flat, SPLIT, tree)
    weight = flat["layers.0.attn.in_proj_weight"]
    for index, name in enumerate(QKV):
        expected = weight[4 * index : 4 * index + 4].T.reshape(6, 2, 2)
        np.testing.assert_array_equal(found["params"]["0"][name]["kernel"], expected)
    assert {entry.use for entry in receipt.entries} == {"split"}
    kernels = [entry for entry in receipt.entries if entry.target.endswith("kernel")]
    assert {entry.target: entry.start for entry in kernels} == {
        "params/0/query/kernel": 0,
        "params/0/key/kernel": 4,
        "params/0/value/kernel": 8,
    }
    assert receipt.parameters == 12 * 6 + 12
    assert "6 leaves filled (84 parameters, 6 split), 0 source" in str(receipt)
    assert "split_heads(2), split from 4 on axis 0" in str(receipt)
    for inverted in (invert(found, SPLIT), invert(found, SPLIT, receipt=receipt)):
        assert inverted.keys() == flat.keys()
        assert all(inverted[name].tobytes() == flat[name].tobytes() for name in flat)


@given(
    st.lists(st.integers(0, 4), min_size=2, max_size=4),
    st.integers(0, 2),
    st.sampled_from(["identity", "dense", "conv1d"]),
    st.booleans(),
)
def test_parts_of_any_size_along_any_axis_come_back_bit_for_bit(sizes, axis, layout, splits):
    rank = {"identity": 3, "dense": 2, "conv1d": 3}[layout]
    axis = min(axis, rank - 1)
    names = tuple("abcd"[: len(sizes)])
    sides = ("w", names) if splits else (names, "w")
    rule = Rule(*sides, layout, axis=axis)
    parts = [values(*(size if i == axis else 2 for i in range(rank))) for size in sizes]
    whole = np.concatenate(parts, axis)
    flat = {"w": whole} if splits else dict(zip(names, parts, strict=True))
    targets = parts if splits else [whole]
    tree = {
        name: jax.ShapeDtypeStruct(rule.transform.target_shape(part.shape), np.float32)
        for name, part in zip(names if splits else "w", targets, strict=True)
    }
    found, receipt = convert(flat, [rule], tree)
    for name, part in zip(names if splits else "w", targets, strict=True):
        np.testing.assert_array_equal(found[name], rule.transform.apply(part))
    back = invert(found, [rule], receipt=receipt)
    assert list(back) == list(flat)
    assert all(back[name].tobytes() == flat[name].tobytes() for name in flat)
    assert all(back[name].shape == flat[name].shape for name in flat)
    assert Receipt.from_json(receipt.to_json()) == receipt
    if splits or len(set(sizes)) == 1:  # without a receipt, joined parts are taken for equal
        back = invert(found, [rule])
        assert all(back[name].tobytes() == flat[name].tobytes() for name in flat)


def test_separate_projections_are_joined():
    flat = {f"layer.1.{name}.weight": values(4, 6, seed=i) for i, name in enumerate(QKV)}
    flat |= {f"layer.1.{name}.bias": values(4, seed=i) for i, name in enumerate(QKV)}
    tree = like(params__1__qkv__kernel=(6, 12), params__1__qkv__bias=(12,))
    shuffled = dict(reversed(flat.items()))
    found, receipt = convert(shuffled, JOINED, tree)
    expected = np.concatenate([flat[f"layer.1.{name}.weight"] for name in QKV]).T
    np.testing.assert_array_equal(found["params"]["1"]["qkv"]["kernel"], expected)
    assert "2 leaves filled (84 parameters, 6 joined)" in receipt.summary()
    back = invert(found, JOINED)
    assert back.keys() == flat.keys()
    assert all(back[name].tobytes() == flat[name].tobytes() for name in flat)


def test_a_part_that_is_not_there_is_missing_by_name():
    flat = {f"layer.1.{name}.weight": values(4, 6) for name in QKV[:2]}
    message = message_of(convert, flat, JOINED, like(params__1__qkv__kernel=(6, 12)))
    assert (
        " - params/1/qkv/kernel: there is no tensor layer.1.value.weight, which is a part of it"
        in message
    )
    assert "found 1 problem (" in message


def test_parts_that_do_not_fit_are_told_with_all_shapes():
    flat, tree = attention()
    flat["layers.0.attn.in_proj_weight"] = values(11, 6)
    message = message_of(convert, flat, SPLIT, tree)
    assert "from layers.0.attn.in_proj_weight (11, 6) by split_heads(2)" in message
    assert "which need a source of (12, 6)" in message
    parts = {f"layer.1.{name}.weight": values(4, 6 + i) for i, name in enumerate(QKV)}
    message = message_of(convert, parts, JOINED, like(params__1__qkv__kernel=(6, 12)))
    assert "found parts (4, 6), (4, 7), (4, 8), which do not join" in message
    parts = {f"layer.1.{name}.weight": values(3, 6) for name in QKV}
    message = message_of(convert, parts, JOINED, like(params__1__qkv__kernel=(6, 12)))
    assert " ~ params/1/qkv/kernel: from layer.1.query.weight + " in message
    assert "found (6, 9)" in message


def test_parts_of_several_dtypes_are_not_joined():
    flat = {f"layer.1.{name}.bias": values(4) for name in QKV}
    flat["layer.1.key.bias"] = flat["layer.1.key.bias"].astype(np.float16)
    message = message_of(convert, flat, JOINED, like(params__1__qkv__bias=(12,)))
    assert "expected one dtype in all parts, found float16, float32" in message


def test_a_leaf_of_a_split_that_the_tree_lacks_is_told():
    flat, tree = attention()
    del tree["params"]["0"]["value"]
    message = message_of(convert, flat, SPLIT, tree)
    assert "in_proj_weight: leads to params/0/value/kernel, which is no leaf" in message
    found = convert(*attention()[:1], SPLIT, attention()[1])[0]
    del found["params"]["0"]["value"]
    assert "params/0/value/kernel: no such leaf" in message_of(invert, found, SPLIT)


def test_another_size_than_the_receipt_says_is_told():
    flat = {f"layer.1.{name}.bias": values(4 + i) for i, name in enumerate(QKV)}
    _, receipt = convert(flat, JOINED, like(params__1__qkv__bias=(15,)))
    longer = {"params": {"1": {"qkv": {"bias": values(16)}}}}
    message = message_of(invert, longer, JOINED, receipt=receipt)
    assert "expected (15,) as they were joined, found (16,)" in message
    assert "expected 3 parts of one size along axis 0, found (16,)" in message_of(
        invert, longer, JOINED
    )
    split, receipt = convert(*attention()[:1], SPLIT, attention()[1])
    split["params"]["0"]["key"]["bias"] = values(2, 3)
    message = message_of(invert, split, SPLIT, receipt=receipt)
    assert "expected parts that make (12,), found (14,)" in message


# Tied values.


def embedding() -> Any:
    return like(params__embed__embedding=(5, 3), params__head__kernel=(3, 5))


def test_a_tensor_that_a_file_has_once_fills_both_leaves():
    flat = {"wte.weight": values(5, 3)}
    found, receipt = convert(flat, TIED, embedding())
    np.testing.assert_array_equal(found["params"]["head"]["kernel"], flat["wte.weight"].T)
    assert [(entry.target, entry.use) for entry in receipt.entries] == [
        ("params/embed/embedding", "whole"),
        ("params/head/kernel", "tied"),
    ]
    back = invert(found, TIED, receipt=receipt)
    assert list(back) == ["wte.weight"]
    assert back["wte.weight"].tobytes() == flat["wte.weight"].tobytes()


def test_a_tensor_that_a_file_has_twice_fills_one_leaf():
    flat = {"lm_head.weight": values(5, 3), "wte.weight": values(5, 3)}
    tree = like(params__embed__embedding=(5, 3))
    found, receipt = convert(flat, [rule for rule in TIED if "head/" not in rule.target], tree)
    assert [(entry.source, entry.use) for entry in receipt.entries] == [
        ("wte.weight", "whole"),
        ("lm_head.weight", "tied"),
    ]
    assert receipt.parameters == 15
    assert invert(found, TIED, receipt=receipt).keys() == flat.keys()
    assert list(invert(found, TIED)) == ["wte.weight"]


def test_two_of_each_are_checked_and_each_goes_back():
    flat = {"lm_head.weight": values(5, 3), "wte.weight": values(5, 3)}
    found, receipt = convert(flat, TIED, embedding())
    assert flatten(found).keys() == {"params/embed/embedding", "params/head/kernel"}
    assert invert(found, TIED, receipt=receipt).keys() == flat.keys()


def test_tied_values_that_differ_are_a_conflict_both_ways():
    flat = {"lm_head.weight": values(5, 3), "wte.weight": values(5, 3, seed=1)}
    message = message_of(convert, flat, TIED, embedding())
    assert " ! params/head/kernel: tied to wte.weight (rule wte.weight ->" in message
    found, receipt = convert({"wte.weight": values(5, 3)}, TIED, embedding())
    found["params"]["head"]["kernel"] = values(3, 5, seed=2)
    message = message_of(invert, found, TIED, receipt=receipt)
    assert "tied leaves params/embed/embedding and params/head/kernel differ" in message


def test_a_network_without_the_tied_leaf_is_no_problem_but_a_tensor_without_use_is():
    tree = like(params__embed__embedding=(5, 3))
    rules = TIED[:1] + TIED[2:3]
    found, _ = convert({"wte.weight": values(5, 3)}, rules, tree)
    assert list(flatten(found)) == ["params/embed/embedding"]
    message = message_of(convert, {"wte.weight": values(5, 3)}, TIED[2:3], tree)
    assert " + wte.weight: leads to params/head/kernel, which is no leaf" in message


def test_without_the_tie_a_second_leaf_stays_missing():
    message = message_of(convert, {"wte.weight": values(5, 3)}, TIED[:2], embedding())
    assert " - params/head/kernel (3, 5): there is no tensor lm_head.weight" in message


# Rules and receipts.


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (lambda: Rule(("a", "b"), ("c", "d")), "several on both"),
        (lambda: Rule(("a", "b"), "c", tied=True), "one source and one target in a tied rule"),
        (lambda: Rule(("a{i}", "b"), "c{i}"), r"\{i\} not in all"),
        (lambda: Rule(("a", ""), "c"), "found ''"),
        (lambda: Rule("a", ("c", "d//e")), "a target such as"),
        (lambda: Rule("a", ("c", "d"), axis=-1), "an axis from 0 on"),
        (lambda: Rule("a", ()), "several on both"),
    ],
)
def test_rules_that_mean_nothing_are_errors(rule, expected):
    with pytest.raises(MappingError, match=expected):
        rule()


def test_rules_with_several_names_read_well_and_are_values():
    assert str(Rule(["a", "b"], "c", "dense", axis=1)) == "a + b -> c [dense, axis 1]"  # pyright: ignore
    assert str(TIED[2]) == "wte.weight -> params/head/kernel [dense, tied]"
    assert hash(Rule(["a", "b"], "c")) == hash(Rule(("a", "b"), "c"))  # pyright: ignore


def test_receipts_of_an_earlier_version_without_parts_are_read():
    entry = ReceiptEntry("a", "b", "dense", (2, 3), (3, 2), "float32", "float32")
    receipt = Receipt((entry,), rules=(Rule("b", "a", "dense"),))
    old = receipt.to_json()
    for line in ('"use": "whole",', '"axis": 0,', '"start": 0', '"tied": false'):
        old = "\n".join(part for part in old.splitlines() if part.strip() != line)
    old = old.replace('"float32",\n  }', '"float32"\n  }').replace('"dense",\n  }', '"dense"\n  }')
    assert "axis" not in old
    assert Receipt.from_json(old) == receipt
