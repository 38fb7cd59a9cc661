from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
import time
import tracemalloc
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtransfer.formats import base
from jaxtransfer.formats.base import Damage
from jaxtransfer.formats.pickled import (
    PLAIN_GLOBALS,
    Allowance,
    Array,
    Dictionary,
    Refused,
    globals_of,
    leaves,
    plain_text,
)
from jaxtransfer.formats.pickles import Unpickler
from tests.formats.opcodes import STARTS, Call, Raw, coded, name, pickled

FIND = globals_of(PLAIN_GLOBALS)


def load(content: bytes) -> Any:
    return Unpickler(memoryview(content), 0, Allowance(len(content)), FIND).load()


def plain(value: Any) -> Any:
    """A value as Python would have unpickled it."""
    match value:
        case Dictionary():
            return {plain(key): plain(item) for key, item in value.pairs()}
        case list():
            return [plain(item) for item in value]
        case tuple():
            return tuple(plain(item) for item in value)
        case Array():
            return value.values.tolist()
    return value


KEYS = st.text(max_size=5) | st.integers() | st.booleans()
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False),
    lambda items: (
        st.lists(items)
        | st.tuples(items)
        | st.tuples(items, items, items, items)
        | st.dictionaries(KEYS, items)
    ),
    max_leaves=20,
)


@given(VALUES, st.integers(2, 5))
def test_plain_values_are_as_python_unpickles_them(value, protocol):
    assert plain(load(pickle.dumps(value, protocol))) == value


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize(
    "value",
    [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.arange(3, dtype=">i2"),
        np.array(["a", "bc"]),
        np.zeros((0, 2)),
        np.array(True),
    ],
    ids=repr,
)
def test_arrays_are_as_numpy_has_them(value, protocol):
    found = load(pickle.dumps(value, protocol))
    assert found.dtype == value.dtype.newbyteorder("=")
    np.testing.assert_array_equal(found.values, value)
    assert not found.values.flags.writeable


@pytest.mark.parametrize("protocol", range(2, 6))
def test_containers_and_scalars_of_the_libraries(protocol):
    value = [OrderedDict(a=np.float32(0.5), b={1}), frozenset([2]), bytearray(b"\xff"), np.int64(3)]
    assert plain(load(pickle.dumps(value, protocol))) == [{"a": 0.5, "b": [1]}, [2], b"\xff", 3]


def test_what_python_2_wrote():
    text = b"U\x03abcU\x02\xff\xfe"
    pairs = Call("collections OrderedDict", ([["k", 1], ["l", 2]],))
    integers = b"I01\nI-7\nI99999999999\n"
    value = load(STARTS[0] + b"(" + text + coded(pairs) + integers + b"t" + STARTS[1])
    assert plain(value) == ("abc", b"\xff\xfe", {"k": 1, "l": 2}, True, -7, 99999999999)
    assert plain(load(pickled(Call("__builtin__ set", ([3],))))) == [3]


# Attacks. Each would leave the canary file behind if it were run.


class Attack:
    def __init__(self, function: Any, *arguments: Any):
        self.reduced = function, arguments

    def __reduce__(self) -> Any:
        return self.reduced


def attacks(canary: Path) -> dict[str, tuple[bytes, str]]:
    """From what is tried to the pickle and what of it is named by the refusal."""
    command = f"touch {canary}"
    code = f"open({str(canary)!r}, 'w')"
    system = coded(name("posix system"))
    path = pickle.MARK + coded(command) + pickle.TUPLE
    joined = b"\x8c\x02os\x94\x8c\x0epath.os.system\x94"
    return {
        "os.system": (pickle.dumps(Attack(os.system, command)), "the global posix.system"),
        "protocol 2": (pickle.dumps(Attack(os.system, command), 2), "the global posix.system"),
        "eval": (pickle.dumps(Attack(eval, code)), "the global builtins.eval"),
        "exec in Python 2": (pickled(Call("__builtin__ exec", (code,))), "__builtin__.exec"),
        "open": (pickle.dumps(Attack(open, str(canary), "w")), r"the global (_?io).open"),
        "subprocess": (
            pickle.dumps(Attack(subprocess.call, ["touch", str(canary)])),
            "the global subprocess.call",
        ),
        "getattr": (
            pickled(Call("builtins getattr", (name("os system"), "x"))),
            "builtins.getattr",
        ),
        "a dotted name": (
            STARTS[0] + joined + pickle.STACK_GLOBAL + path + b"R.",
            r"the global os\.path\.os\.system",
        ),
        "a name from the memo": (
            STARTS[0] + joined + b"00h\x00\x8c\x06system" + pickle.STACK_GLOBAL + path + b"R.",
            r"the global os\.system",
        ),
        "a dotted module of an allowed one": (
            pickled(Call("collections.abc os.system", (command,))),
            r"the global collections\.abc\.os\.system",
        ),
        "a name below an allowed one": (
            pickled(Call("collections OrderedDict.fromkeys", ([1],))),
            r"the global collections\.OrderedDict\.fromkeys",
        ),
        "a name that looks alike": (
            pickled(Call("ｏs system", (command,))),
            "the global ｏs.system",
        ),
        "a global that is no text": (
            STARTS[0] + b"K\x01K\x02" + pickle.STACK_GLOBAL + STARTS[1],
            "a global whose module and name are no text",
        ),
        "INST": (b"(" + coded(command) + b"iposix\nsystem\n.", "the pickle opcode INST"),
        "OBJ": (b"(" + system + coded(command) + b"o.", "the global posix.system"),
        "OBJ of an allowed class": (
            b"(" + coded(name("collections OrderedDict")) + b"o.",
            "the pickle opcode OBJ",
        ),
        "NEWOBJ": (system + path + pickle.NEWOBJ + b".", "the global posix.system"),
        "NEWOBJ_EX": (
            coded(name("collections OrderedDict")) + b")}" + pickle.NEWOBJ_EX + b".",
            "the pickle opcode NEWOBJ_EX",
        ),
        "EXT1": (b"\x80\x02\x82\x01.", "the pickle opcode EXT1"),
        "EXT2": (b"\x80\x02\x83\x01\x00.", "the pickle opcode EXT2"),
        "EXT4": (b"\x80\x02\x84\x01\x00\x00\x00.", "the pickle opcode EXT4"),
        "PERSID": (b"Pabc\n.", "the pickle opcode PERSID"),
        "a call of text": (pickled(Raw(coded("abc") + b")R")), "a call of abc"),
        "a call of a mere name": (
            pickled(Call("numpy ndarray", ((2,),))),
            "a call of numpy.ndarray",
        ),
        "a call of a dict": (pickled(Raw(b"})R")), "a call of a value of the kind Dictionary"),
        "a state for a list": (pickled(Raw(b"]}b")), "a state for a value of the kind list"),
        "a state for a global": (
            pickled(Raw(coded(name("argparse Namespace")) + b"}b")),
            "a state for argparse.Namespace",
        ),
        "an array of objects": (
            pickle.dumps(np.array([Attack(os.system, command)], dtype=object)),
            "a NumPy dtype O8",
        ),
        "a scalar of objects": (
            pickled(Call("numpy.core.multiarray scalar", (Call("numpy dtype", ("O8",)), command))),
            "a NumPy dtype O8",
        ),
    }


@pytest.mark.parametrize("attack", attacks(Path("canary")))
def test_an_attack_is_refused_by_name_and_nothing_is_run(tmp_path, attack):
    canary = tmp_path / "canary"
    content, named = attacks(canary)[attack]
    modules = set(sys.modules)
    with pytest.raises(Refused, match=named):
        load(content)
    assert not canary.exists() and set(sys.modules) == modules


def test_the_canary_is_left_where_an_attack_is_run(tmp_path):
    pickle.loads(attacks(tmp_path / "canary")["os.system"][0])
    assert (tmp_path / "canary").exists()


def test_the_byte_of_a_refusal_is_told():
    with pytest.raises(Refused) as caught:
        load(pickled([1, Call("os system", ("x",))]))
    assert caught.value.offset == 2 + len(b"](K\x01")


namespace = coded(Call("argparse Namespace"))
ORDERED = coded(Call("collections OrderedDict"))
STRANGE = {
    "a state of slots": (namespace + b"}}\x86b", "a state that is no dict"),
    "an object as a state": (namespace + namespace + b"b", "a state that is no dict"),
    "entries for an object": (namespace + b"K\x01K\x02s", "entries for what is no dict"),
    "a state with a number as name": (namespace + b"}K\x01K\x02sb", "names are no text"),
    "a state for a dict": (ORDERED + b"}" + coded("__class__") + b"K\x01sb", "__class__"),
    "an odd number of entries": (b"}(K\x01u", "a key without a value"),
    "entries for a list": (b"]K\x01K\x02s", "entries for what is no dict"),
    "items for a tuple": (b")K\x01a", "items for what is no list"),
    "a memo beyond all": (b"j\xff\xff\xff\xff", "the memo 4294967295"),
    "a version of the protocol": (b"\x80\x09", "version 9"),
    "no mark": (b"K\x01t", "pop from empty list"),
    "an empty stack": (b"0", "pop from empty list"),
    "a tuple of too few": (b"K\x01\x87", "fewer values"),
    "an unknown byte": (b"\xff", "0xff, which is no pickle opcode"),
    "no text": (b"X\x01\x00\x00\x00\xff", "utf-8"),
    "bytes without end": (pickle.BINBYTES8 + struct.pack("<Q", 2**60), "the end of the file"),
    "text without end": (b"X\xff\xff\xff\xff", "the end of the file"),
    "a number without end": (b"\x8b\xff\xff\xff\x7f", "the end of the file"),
    "a line without end": (b"c" + b"x" * 5000, "no line"),
    "too many digits": (b"I" + b"9" * 1000 + b"x\n", "invalid literal"),
    "an integer of no digits": (b"Ix\n", "invalid literal"),
    "a wrong number of arguments": (
        coded(Call("builtins complex", (1,))),
        r"missing 1 .*in a call of builtins.complex",
    ),
    "arguments that are no tuple": (coded(name("builtins set")) + b"]R", "without a tuple"),
    "an encoding": (coded(Call("_codecs encode", ("x", "idna"))), "to be encoded as idna"),
    "two values": (b"NN", "ends with 2 values"),
    "an open mark": (b"(N", "ends with 1 values"),
}


@pytest.mark.parametrize("opcodes", STRANGE)
def test_what_no_pickler_writes_is_damage(opcodes):
    content, named = STRANGE[opcodes]
    with pytest.raises(Damage, match=named):
        load(content + b".")


def test_what_is_popped_is_gone_a_mark_included():
    """As picklers do it for a tuple that contains itself."""
    assert load(b"K\x07(0.") == 7
    assert load(b"K\x07(NN1.") == 7


def test_a_memo_index_allocates_nothing():
    value = load(b"K\x07r\xff\xff\xff\x7fj\xff\xff\xff\x7f\x86.")
    assert value == (7, 7)


def entries(content: bytes) -> list[Any]:
    return list(leaves(load(content), Allowance(len(content))))


def test_containers_that_contain_themselves_are_damage():
    with pytest.raises(Damage, match="within themselves"):
        entries(b"}q\x00K\x01h\x00s.")
    with pytest.raises(Damage, match="within themselves"):
        entries(b"]q\x00(" + b"h\x00" * 100 + b"e.")


@pytest.mark.parametrize("opcode", [b"\x85", b"a", b"]"])
def test_deep_nesting_is_damage(opcode):
    depth = 10**5
    content = {
        b"\x85": b")" + b"\x85" * depth,  # ((((…),),),)
        b"a": b"]" * depth + b"a" * (depth - 1),  # [[[[…]]]]
        b"]": b"](" * depth + b"e" * depth,
    }[opcode]
    with pytest.raises(Damage):
        entries(content + b".")


def test_a_deep_tuple_as_a_key_is_damage():
    # Hashing it would overflow the stack of the interpreter.
    with pytest.raises(Damage, match="as a key"):
        entries(b"})" + b"\x85" * 10**5 + b"K\x01s.")


def test_repeated_references_do_not_multiply(monkeypatch):
    """A billion laughs: each list holds the one before it ten times."""
    monkeypatch.setattr(base, "_ALLOWED_BYTES", 2**20)
    content = b"]K\x01}\x86aq\x00"
    for level in range(1, 60):
        content += b"0](" + bytes([ord("h"), level - 1]) * 10 + b"eq" + bytes([level])
    started = time.monotonic()
    with pytest.raises(Damage, match="values of .* bytes in a file"):
        entries(content + b".")
    assert time.monotonic() - started < 30


def test_a_long_list_is_not_looked_at_again_and_again(monkeypatch):
    monkeypatch.setattr(base, "_ALLOWED_BYTES", 2**20)
    content = b"](](" + b"N" * 2**12 + b"eq\x00" + b"h\x00" * 2**12 + b"e}a."
    with pytest.raises(Damage, match="values of .* bytes in a file"):
        entries(content)


BOMBS = {
    "lists": b"]" * 2**16,
    "dicts": b"}" * 2**16,
    "sets": b"\x8f" * 2**16,
    "marks": b"(" * 2**16,
    "memos": b"N" + b"\x94" * 2**16,
    "integers": b"M\x01\x01" * 2**16,
    "floats": (b"G" + bytes(8)) * 2**17,
    "names": b"ccollections\nOrderedDict\n" * 2**14,
    "copies of a dict": b"}q\x00("
    + b"NN" * 2**16
    + b"u0"
    + b"ccollections\nOrderedDict\nq\x010"
    + b"h\x01h\x00\x85R" * 2**16,
    "a growing state": coded(Call("argparse Namespace"))
    + b"q\x000}q\x01("
    + (coded("a") + b"N") * 2**12
    + b"u0h\x00"
    + b"h\x01b" * 2**14,
    "encoded text": b"X\x00\x00\x10\x00"
    + b"a" * 2**20
    + b"q\x000"
    + coded(name("_codecs encode"))
    + b"q\x010"
    + b"h\x01h\x00\x85R" * 2**12,
    "wide text": (b"X\x00\x00\x01\x00" + b"a" * (2**16 - 4) + "😀".encode()) * 2**6,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_takes_no_more_memory_than_is_allowed(monkeypatch, bomb):
    monkeypatch.setattr(base, "_ALLOWED_BYTES", 2**20)  # So that the bombs can be small.
    content = BOMBS[bomb] + b"."
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        with pytest.raises(Damage):
            load(content)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before <= 3 * len(content) + 2**20


@settings(max_examples=300)
@given(st.data())
def test_a_mutated_pickle_is_read_or_is_damage(data):
    value = {"a": [1, 2.5, "x" * 20], "b": (None, np.arange(3.0), np.float32(1)), "c": {1: b"yz"}}
    content = bytearray(pickle.dumps(value, data.draw(st.sampled_from([2, 4, 5]))))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        for _, leaf in entries(bytes(content)):
            assert isinstance(plain_text(leaf), str)
    except Damage as error:
        assert 0 <= error.offset <= len(content)


def test_the_ways_to_all_values():
    inner = Raw(coded(Call("argparse Namespace")) + coded({"lr": 1}) + b"b")
    outer = Raw(coded(Call("argparse Namespace")) + coded({"inner": inner, "x": 2}) + b"b")
    content = pickled(
        {"a.b": {3: None, "c": ["d", {"e": 4}]}, "list": [1, 2], (1, "b"): 0, "options": outer}
    )
    assert entries(content) == [
        (("a.b", "3"), None),
        (("a.b", "c", "0"), "d"),
        (("a.b", "c", "1", "e"), 4),
        (("list",), [1, 2]),
        (("[1, b]",), 0),
        (("options", "inner.lr"), 1),
        (("options", "x"), 2),
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("x" * 300, "x" * 200 + "… (300 characters)"),
        (list(range(30)), f"[{', '.join(map(str, range(20)))}, … (30 items)]"),
        (b"abc", "3 bytes"),
        (1 << 10**6, "an integer of 1000001 bits"),
        (None, "None"),
        (FIND("numpy", "ndarray"), "numpy.ndarray"),
        (Array(np.array(["a", "bc"])), "[a, bc]"),
        (load(pickle.dumps(np.dtype("f4"))), "float32"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_as_short_text(value, text):
    assert plain_text(value) == text
