from __future__ import annotations

import functools
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import msgpack
import numpy as np
import pytest
from flax import serialization, traverse_util
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxtransfer.errors import FormatError, OutputError, ReferenceNotFoundError
from jaxtransfer.formats import msgpack as our_msgpack
from jaxtransfer.formats.msgpack import DTYPES, inspect, matches, read, write

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
KEYS = st.text(
    st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters="/"),
    min_size=1,
    max_size=4,
)
OTHERS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text()


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    """Any bits in any dtype that the format can hold."""
    dtype = DTYPES[draw(st.sampled_from(sorted(DTYPES)))]
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    size = int(np.prod(shape)) * dtype.itemsize
    values = draw(hnp.arrays(np.uint8, size, elements=st.integers(0, 255)))
    if dtype == np.bool_:
        values = values % 2
    return values.view(dtype).reshape(shape)


def trees(leaves: st.SearchStrategy) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(
        KEYS,
        st.recursive(leaves, lambda below: st.dictionaries(KEYS, below, min_size=1, max_size=3)),
        max_size=3,
    )


def same(before: Any, after: Any) -> bool:
    return (before.dtype, before.shape, before.tobytes()) == (
        after.dtype,
        after.shape,
        after.tobytes(),
    )


def file_of(folder: Path, value: Any) -> Path:
    path = folder / "a"
    path.write_bytes(value if isinstance(value, bytes) else serialization.msgpack_serialize(value))
    return path


@given(trees(arrays() | OTHERS))
def test_what_flax_wrote_reads_bit_for_bit(tree):
    leaves = traverse_util.flatten_dict(tree, sep="/")
    with tempfile.TemporaryDirectory() as folder:
        path = file_of(Path(folder), tree)
        found, inspection = read(path), inspect(path)
        assert matches(path.read_bytes()[:1024], path)
    tensors = {name: leaf for name, leaf in leaves.items() if isinstance(leaf, np.ndarray)}
    assert found.keys() == tensors.keys()
    assert list(found) == [tensor.name for tensor in inspection.tensors]
    assert all(same(tensors[name], found[name]) for name in tensors)
    for info in inspection.tensors:
        before = tensors[info.name]
        assert (info.shape, info.dtype, info.bytes) == (
            before.shape,
            before.dtype.name,
            before.nbytes,
        )
    texts = {name: str(leaf) for name, leaf in leaves.items() if name not in tensors}
    assert inspection.metadata == texts


@given(trees(arrays()))
def test_flax_reads_what_is_written_and_so_do_we(tree):
    flat = traverse_util.flatten_dict(tree, sep="/")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        write(flat, path)
        restored, found = serialization.msgpack_restore(path.read_bytes()), read(path)
        assert matches(path.read_bytes()[:1024], path)
    restored = traverse_util.flatten_dict(restored, sep="/")
    assert restored.keys() == found.keys() == flat.keys()
    for name, before in flat.items():
        assert same(before, restored[name]) and same(before, found[name])


def test_the_bytes_are_those_that_flax_writes(tmp_path):
    tree = {"a": {"b": np.arange(70_000.0), "c": np.ones((2, 3), BFLOAT16)}, "d": np.zeros((0, 2))}
    write(traverse_util.flatten_dict(tree, sep="/"), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == serialization.to_bytes(tree)


def test_large_arrays_are_in_pieces_as_flax_has_them(tmp_path, monkeypatch):
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 100)
    monkeypatch.setattr(our_msgpack, "_CHUNK_BYTES", 100)
    tree = {"a": {"w": np.arange(60, dtype=np.int16).reshape(3, 20)}, "v": np.ones(12)}
    flat = traverse_util.flatten_dict(tree, sep="/")
    write(flat, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == serialization.msgpack_serialize(tree)
    assert b"chunked_array" in (tmp_path / "a").read_bytes()
    found, inspection = read(tmp_path / "a"), inspect(tmp_path / "a")
    assert list(found) == list(flat)
    assert all(same(flat[name], found[name]) for name in flat)
    assert [(info.shape, info.dtype, info.bytes) for info in inspection.tensors] == [
        ((3, 20), "int16", 120),
        ((12,), "float64", 96),
    ]
    assert not inspection.metadata


def test_arrays_are_views_of_the_mapped_file(tmp_path):
    path = file_of(tmp_path, {"w": np.zeros(2**22, np.float32)})
    tracemalloc.start()
    try:
        found = read(path)["w"]
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert not found.flags.owndata and not found.flags.writeable
    assert not found.any()


def test_what_is_no_array_is_metadata(tmp_path):
    tree = {
        "step": np.int64(3),
        "list": [1.5, np.ones(2)],
        "c": 1 - 2j,
        "raw": b"abc",
        "none": None,
        "empty": {},
        "nothing": [],
        3: {"text": "é", "big": 2**64 - 1, "small": -(2**63)},
    }
    path = file_of(tmp_path, msgpack.packb(tree, default=serialization._msgpack_ext_pack))
    assert {name: array.tolist() for name, array in read(path).items()} == {
        "step": 3,
        "list/1": [1, 1],
    }
    assert inspect(path).metadata == {
        "list/0": "1.5",
        "c": "(1-2j)",
        "raw": "3 bytes",
        "none": "None",
        "empty": "{}",
        "nothing": "[]",
        "3/text": "é",
        "3/big": "18446744073709551615",
        "3/small": "-9223372036854775808",
    }


def test_a_jax_train_state_reads_by_its_names(tmp_path):
    tree = {"params": {"kernel": jax.numpy.ones((2, 3))}, "opt_state": (np.zeros(2), ())}
    path = tmp_path / "a"
    path.write_bytes(serialization.to_bytes(tree))
    assert list(read(path)) == ["params/kernel", "opt_state/0"]
    assert inspect(path).metadata == {"opt_state/1": "{}"}


OTHER_FILES = {
    "text": b"\x83 text",
    "png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "hdf5": b"\x89HDF\r\n\x1a\n",
    "pickle": b"\x80\x04\x95\x10\0\0\0",
    "a map with a number as its first key": b"\x81\x01\xa1a",
    "a list": b"\x92\xa1a\xa1b",
    "a map with an unreadable key": b"\x81\xa2\xff\xfe\x01",
    "a map with control characters": b"\x81\xa2\x00\x01\x01",
    "a map without a value": b"\x81\xa1a",
    "nothing": b"",
}


@pytest.mark.parametrize("head", OTHER_FILES.values(), ids=OTHER_FILES)
def test_other_files_do_not_match(tmp_path, head):
    assert not matches(head, tmp_path)


ARRAY = b"\x93\x91\x02\xa7float32\xc4\x08" + bytes(8)


def ext(kind: int, content: bytes) -> bytes:
    return msgpack.Packer().pack(msgpack.ExtType(kind, content))


def array_of(shape: Any = (2,), dtype: Any = "float32", content: Any = bytes(8)) -> bytes:
    return ext(1, msgpack.Packer().pack((shape, dtype, content)))


def chunks_of(shape: Any = None, **chunks: np.ndarray) -> dict[str, Any]:
    return {"w": {"__msgpack_chunked_array__": True, "shape": shape or {"0": 4}, "chunks": chunks}}


STRANGE = {
    "objects": (b"\x81\xa1w" + array_of(dtype="object"), "at byte 9: 'w' of the dtype 'object'"),
    "a string dtype": (b"\x81\xa1w" + array_of(dtype="str32"), "of the dtype 'str32'"),
    "fields": (b"\x81\xa1w" + array_of(dtype="void64"), "of the dtype 'void64'"),
    "a negative shape": (b"\x81\xa1w" + array_of((-2,)), r"'w' with the shape \(-2,\)"),
    "a shape of fractions": (b"\x81\xa1w" + array_of((2.0,)), r"with the shape \(2.0,\)"),
    "too many dimensions": (b"\x81\xa1w" + array_of((1,) * 65), "'w' with 65 dimensions"),
    "a huge shape": (b"\x81\xa1w" + array_of((2**40,)), "at byte 27: 'w' with 8 bytes for"),
    "too many values": (b"\x81\xa1w" + array_of(content=bytes(9)), "'w' with 9 bytes for"),
    "no array inside": (b"\x81\xa1w" + ext(1, b"\xa1a"), "at byte 5: the token str"),
    "more after an array": (b"\x81\xa1w" + ext(1, ARRAY + b"\xc0"), "end elsewhere"),
    "an array that outruns its extension": (
        b"\x82\xa1w\xc7\x10\x01" + ARRAY + b"\xa1v\xc0",
        "at byte 5: 'w' with 16 bytes, which end elsewhere",
    ),
    "an unknown extension": (b"\x81\xa1w" + ext(9, b"abcd"), "'w' of the extension type 9"),
    "a time": (b"\x81\xa1w\xd6\xff" + bytes(4), "'w' of the extension type -1"),
    "a complex number of texts": (b"\x81\xa1w" + ext(2, b"\x92\xa1a\xa1b"), "the token str 1"),
    "a byte that begins nothing": (b"\x81\xa1w\xc1", "at byte 3: the byte 0xc1"),
    "a key twice": (b"\x82\xa1w\x01\xa1w\x02", "the key 'w' twice"),
    "a key as text and as a number": (b"\x82\xa11\x01\x01\x02", "the key '1' twice"),
    "a name twice": (b"\x82\xa3a/b\x01\xa1a\x81\xa1b\x02", "byte 11: a second .* name 'a/b'"),
    "a key that is a list": (b"\x81\x90\x01", "byte 1: a key that is neither"),
    "a text that is none": (b"\x81\xa1w\xa3ab\xff", "at byte 6: text that is not UTF-8"),
    "more after the end": (b"\x81\xa1w\x01\xc0", "at byte 4: more bytes after the end"),
    "one value": (b"\xa1w", "a single value"),
    "nothing": (b"", "at byte 0: 0 bytes where 1 should follow"),
    "deep maps": (b"\x81\xa1w" * 2000 + b"\xc0", "more than 100 deep"),
    "pieces of another size": (chunks_of(**{"0": np.ones(3)}), "at byte 3: 'w' in pieces"),
    "pieces of two dtypes": (
        chunks_of(**{"0": np.ones(2), "1": np.ones(2, np.int64)}),
        "'w' in pieces",
    ),
    "pieces that are missing": (chunks_of(**{"1": np.ones(4)}), "'w' in pieces"),
    "no pieces": (chunks_of(), "'w' in pieces"),
    "pieces of a negative shape": (
        chunks_of(shape={"0": -2, "1": -2}, **{"0": np.ones(4)}),
        "'w' in pieces",
    ),
    "pieces of numbers": ({"w": {**chunks_of()["w"], "chunks": {"0": 4}}}, "'w' in pieces"),
    "pieces and more": ({"w": {**chunks_of(**{"0": np.ones(4)})["w"], "x": 1}}, "'w' in pieces"),
}


@pytest.mark.parametrize(("content", "expected"), STRANGE.values(), ids=STRANGE)
def test_what_flax_does_not_write_is_a_format_error(tmp_path, content, expected):
    path = file_of(tmp_path, content)
    for function in (read, inspect):
        with pytest.raises(FormatError, match=expected) as caught:
            function(path)
        assert str(path) in str(caught.value) and "at byte" in str(caught.value)


BOMBS = {
    "many nothings": b"\xdd" + (2**18).to_bytes(4, "big") + b"\xc0" * 2**18,
    "long names": b"\x81\xdb\x00\x10\x00\x00"
    + b"n" * 2**20
    + b"\xdc\xff\xff"
    + b"\xc0" * (2**16 - 1),
    "a length beyond the file": b"\x81\xa1w\xdd\xff\xff\xff\xff",
}


@pytest.mark.parametrize("content", BOMBS.values(), ids=BOMBS)
def test_a_small_file_takes_little_memory(tmp_path, content):
    path = file_of(tmp_path, content)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()


@functools.cache
def example() -> bytes:
    tree = {
        "a": {"w": np.arange(24, dtype=np.float32).reshape(2, 3, 4), "b": np.ones(2, BFLOAT16)},
        "s": [np.float32(2), 1j],
        "text": "abc",
        "n": 70_000,
    }
    return serialization.msgpack_serialize(tree)


def test_every_truncation_is_a_format_error(tmp_path):
    path = tmp_path / "a"
    for length in range(len(example())):
        path.write_bytes(example()[:length])
        with pytest.raises(FormatError, match="at byte"):
            read(path)


@settings(max_examples=400)
@given(st.data())
def test_a_mutated_file_is_read_or_is_a_format_error(data):
    content = bytearray(example())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = file_of(Path(folder), bytes(content))
        matches(bytes(content[:1024]), path)
        for function in (read, inspect):
            try:
                function(path)
            except FormatError as error:
                assert str(path) in str(error)


def test_nothing_there_and_a_folder_there(tmp_path):
    with pytest.raises(ReferenceNotFoundError, match="absent"):
        read(tmp_path / "absent")
    with pytest.raises(FormatError):
        read(tmp_path)


def test_an_empty_dict_is_an_empty_map(tmp_path):
    write({}, tmp_path / "a")
    assert serialization.msgpack_restore((tmp_path / "a").read_bytes()) == {}
    assert read(tmp_path / "a") == {}
    assert matches((tmp_path / "a").read_bytes(), tmp_path / "a")


def test_what_has_no_place_in_the_format_is_told_at_once_and_nothing_is_written(tmp_path):
    flat = {
        "text": np.array(["a"]),
        "w": np.ones(2),
        "w/b": np.ones(2),
        "v/b/c": np.ones(2),
        "v/b": np.ones(2),
        "a/__msgpack_chunked_array__": np.ones(2),
    }
    with pytest.raises(OutputError) as caught:
        write(flat, tmp_path / "a", {"epoch": "3"})
    expected = ["text", "w/b", "v/b", "a/__msgpack_chunked_array__", "metadata: epoch"]
    assert all(f" ! {name}" in str(caught.value) for name in expected)
    assert str(caught.value).count(" ! ") == len(expected)
    assert not list(tmp_path.iterdir())


def test_the_callers_dict_and_arrays_stay_as_they_are(tmp_path):
    flat = {"jax": jax.numpy.ones(3), "t": np.arange(6.0).reshape(2, 3).T, "b": np.ones(2, ">f4")}
    before = dict(flat)
    write(flat, tmp_path / "a")
    assert all(flat[name] is before[name] for name in before)
    found = read(tmp_path / "a")
    for name, array in before.items():
        np.testing.assert_array_equal(found[name], array)


def test_a_path_that_cannot_be_written(tmp_path):
    (tmp_path / "file.txt").write_text("")
    for path in (tmp_path / "file.txt" / "x", tmp_path / "absent" / "x", tmp_path):
        with pytest.raises(OutputError, match=str(path)):
            write({"w": np.ones(2)}, path)
