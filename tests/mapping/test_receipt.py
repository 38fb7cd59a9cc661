from __future__ import annotations

import json
import pickle

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxtransfer.errors import FormatError, MappingError
from jaxtransfer.mapping.receipt import Receipt, ReceiptEntry
from jaxtransfer.mapping.rule import Rule

TEXTS = st.text(max_size=6)
SHAPES = st.lists(st.integers(0, 9), max_size=4).map(tuple)
ENTRIES = st.builds(ReceiptEntry, TEXTS, TEXTS, TEXTS, SHAPES, SHAPES, TEXTS, TEXTS)
RULES = st.sampled_from([Rule("a.w", "params/a", "dense"), Rule("b{i}", "params/b/{i}")])
RECEIPTS = st.builds(
    Receipt,
    entries=st.lists(ENTRIES, max_size=3).map(tuple),
    ignored=st.lists(TEXTS, max_size=2).map(tuple),
    file=TEXTS,
    sha256=TEXTS,
    format=TEXTS,
    rules=st.lists(RULES, max_size=2).map(tuple),
    notes=st.lists(TEXTS, max_size=2).map(tuple),
    rules_name=TEXTS,
)
EXAMPLE = Receipt(
    entries=(
        ReceiptEntry("params/a/w", "a.weight", "dense", (2, 3), (3, 2), "float32", "float32"),
        ReceiptEntry("stats/n", "n", "identity", (), (), "bfloat16", "float32"),
    ),
    ignored=("step",),
    file="net.npz",
    sha256="abc",
    format="npz",
)


@given(RECEIPTS)
def test_json_gives_back_an_equal_receipt(receipt):
    found = Receipt.from_json(receipt.to_json())
    assert found == receipt
    assert hash(found) == hash(receipt)
    assert isinstance(found.entries, tuple)
    assert str(found) == str(receipt)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: "",
        lambda content: "[]",
        lambda content: "3",
        lambda content: "{}",
        lambda content: json.dumps({**content, "jaxtransfer_receipt": 2}),
        lambda content: json.dumps({**content, "colour": "red"}),
        lambda content: json.dumps({**content, "entries": [{"target": "a"}]}),
        lambda content: json.dumps({**content, "entries": 3}),
        lambda content: json.dumps({**content, "ignored": "step"}),
        lambda content: json.dumps({**content, "notes": [3]}),
        lambda content: json.dumps({**content, "file": 3}),
        lambda content: json.dumps({**content, "rules": [{"source": 3, "target": "a"}]}),
        lambda content: json.dumps(
            {**content, "entries": [{**content["entries"][0], "layout": 3}]}
        ),
        lambda content: json.dumps(
            {**content, "entries": [{**content["entries"][0], "source_shape": ["2"]}]}
        ),
        lambda content: json.dumps(content)[:-1],
    ],
)
def test_what_is_no_receipt_is_a_format_error(change):
    text = change(json.loads(EXAMPLE.to_json()))
    with pytest.raises(FormatError, match="receipt: expected the JSON"):
        Receipt.from_json(text)


def test_a_rule_in_it_that_is_no_rule_is_a_mapping_error():
    content = json.loads(EXAMPLE.to_json())
    content["rules"] = [{"source": "{", "target": "a"}]
    with pytest.raises(MappingError, match="rule"):
        Receipt.from_json(json.dumps(content))


def test_the_text_is_a_table_and_a_summary():
    text = str(EXAMPLE.with_note("head replaced"))
    assert text.splitlines() == [
        "leaf        source    layout    shape       dtype                    parameters",
        "----------  --------  --------  ----------  -----------------------  ----------",
        "params/a/w  a.weight  dense     2×3 -> 3×2  float32                           6",
        "stats/n     n         identity  ()          bfloat16 (else float32)           1",
        "2 leaves filled (7 parameters), 1 source tensor ignored; from net.npz (npz, sha256 abc)",
        "ignored: step",
        "note: head replaced",
    ]


def test_the_name_of_the_rules_is_told():
    receipt = Receipt(file="a.pth", format="torch", rules_name="torchvision")
    assert receipt.summary().endswith("from a.pth (torch, rules torchvision)")


def test_a_receipt_of_nothing_has_a_text():
    assert str(Receipt()) == "0 leaves filled (0 parameters), 0 source tensors ignored; from memory"


def test_notes_are_added_in_order_and_the_receipt_stays_as_it_is():
    noted = EXAMPLE.with_note("first").with_note("second")
    assert noted.notes == ("first", "second")
    assert EXAMPLE.notes == ()
    assert noted.entries == EXAMPLE.entries


def test_a_receipt_can_be_static_in_a_jitted_function():
    assert hash(EXAMPLE) == hash(pickle.loads(pickle.dumps(EXAMPLE)))
    traced = []

    def double(x: jax.Array, receipt: Receipt) -> jax.Array:
        traced.append(receipt)
        return x * len(receipt.entries)

    function = jax.jit(double, static_argnums=1)
    assert function(2, EXAMPLE) == 4
    assert function(2, Receipt.from_json(EXAMPLE.to_json())) == 4
    assert len(traced) == 1
