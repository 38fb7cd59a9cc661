"""The parser of HDF5, shown files that h5py wrote, and what h5py would not write."""

from __future__ import annotations

import functools
import re
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxtransfer.formats.base import Damage, map_file
from jaxtransfer.formats.hdf5 import File
from jaxtransfer.formats.hdf5_arrays import Unsupported, inflated

DTYPES = [
    np.dtype(name)
    for name in ("?", "i1", "u1", "<i2", ">i2", "<u4", ">i8", "<f2", "<f4", ">f4", "<f8", ">f8")
]
LIBRARIES = ["earliest", "v108"]
"""Which of HDF5's ways to write headers and groups; later ones are refused for chunks alone."""


def written(fill: Callable[[h5py.File], object], path: Path, **settings: Any) -> Path:
    with h5py.File(path, "w", **settings) as file:
        fill(file)
    return path


def opened(path: Path) -> File:
    return File(map_file(path))


def values_in(path: Path) -> dict[str, np.ndarray]:
    file = opened(path)
    return {name: file.values(dataset) for name, dataset in file.datasets.items()}


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9))
    size = int(np.prod(shape)) * dtype.itemsize
    values = draw(hnp.arrays(np.uint8, size, elements=st.integers(0, 255), fill=st.just(3)))
    return (values % 2 if dtype == np.bool_ else values).view(dtype).reshape(shape)


@given(
    st.dictionaries(st.text("ab/1é ", min_size=1, max_size=5), arrays(), max_size=5),
    st.sampled_from(LIBRARIES),
    st.sampled_from([{}, {"chunks": True}, {"compression": "gzip"}, {"shuffle": True}]),
    st.data(),
)
def test_what_h5py_writes_reads_bit_for_bit(flat, library, storage, data):
    # Each below a group of its own, for one name may begin as another does.
    flat = {
        f"{number}/{re.sub('/+', '/', name.strip('/'))}x": array
        for number, (name, array) in enumerate(flat.items())
    }
    with tempfile.TemporaryDirectory() as folder:

        def fill(file: h5py.File) -> None:
            for name, array in flat.items():
                options = dict(storage)
                if options and (not array.ndim or not array.size):
                    options = {}
                elif options:
                    options["chunks"] = tuple(
                        data.draw(st.integers(1, size), label="chunk") for size in array.shape
                    )
                file.create_dataset(name, data=array, **options)

        path = written(fill, Path(folder) / "a", libver=(library, "v108"))
        found = values_in(path)
    assert sorted(found) == sorted(flat)
    for name, array in flat.items():
        after = found[name]
        assert after.shape == array.shape
        assert after.dtype == array.dtype.newbyteorder("=")
        assert after.tobytes() == array.astype(after.dtype).tobytes()


@pytest.mark.parametrize("library", LIBRARIES)
def test_attributes_read_as_they_are(tmp_path, library):
    attributes: dict[str, Any] = {
        "text": "ü" * 300,
        "bytes": b"abc",
        "fixed": np.bytes_("abc"),
        "list": ["a", "", "ccc"],
        "bytes list": np.array([b"a", b"bb"]),
        "empty": [],
        "with / and .": 3,
    }
    path = written(lambda file: file.create_group("g").attrs.update(attributes), tmp_path / "a",
                   libver=(library, "v108"))  # fmt: skip
    found = opened(path).attributes("g")
    assert found.pop("with / and .") == 3
    assert np.shape(found.pop("empty")) == (0,)
    assert found == {
        "text": "ü" * 300,
        "bytes": "abc",
        "fixed": "abc",
        "list": ["a", "", "ccc"],
        "bytes list": ["a", "bb"],
    }


def test_an_attribute_of_another_kind_says_so(tmp_path):
    def fill(file: h5py.File) -> None:
        file.attrs["pair"] = np.zeros((), [("a", "f4"), ("b", "i4")])

    found = opened(written(fill, tmp_path / "a")).attributes("")
    assert found["pair"] == "compounds (8 bytes each, datatype class 6), which are not read here"


def test_many_names_and_deep_trees_read_in_the_order_of_their_numbers(tmp_path):
    def fill(file: h5py.File) -> None:
        for number in range(500):
            file[f"group/w{number}"] = np.float32(number)

    found = values_in(written(fill, tmp_path / "a"))
    assert list(found) == [f"group/w{number}" for number in range(500)]
    assert [int(value) for value in found.values()] == list(range(500))


def test_compact_links_keep_the_order_of_the_file(tmp_path):
    def fill(file: h5py.File) -> None:
        for name in ("b", "c", "a"):
            file[name] = np.ones(2)

    path = written(fill, tmp_path / "a", libver=("v108", "v108"), track_order=True)
    assert list(values_in(path)) == ["b", "c", "a"]


def test_plain_values_are_views_of_the_file_that_cannot_be_written(tmp_path):
    path = written(lambda file: file.create_dataset("w", data=np.ones(1000)), tmp_path / "a")
    found = values_in(path)["w"]
    assert not found.flags.owndata and not found.flags.writeable


def test_bfloat16_reads_in_both_forms_in_which_it_is_written(tmp_path):
    values = np.arange(4).astype(ml_dtypes.bfloat16)

    def fill(file: h5py.File) -> None:
        file["opaque"] = values.view("V2")
        kind = h5py.h5t.IEEE_F16LE.copy()
        kind.set_fields(15, 7, 8, 0, 7)
        kind.set_ebias(127)
        space = h5py.h5s.create_simple((4,))
        dataset = h5py.h5d.create(file.id, b"float", kind, space)
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, values.view("V2"), mtype=kind)

    found = values_in(written(fill, tmp_path / "a"))
    assert found.keys() == {"opaque", "float"}
    for array in found.values():
        assert array.dtype == values.dtype
        assert array.astype(np.float32).tolist() == [0, 1, 2, 3]


def test_values_in_the_header_are_read(tmp_path):
    def fill(file: h5py.File) -> None:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple((3,))
        dataset = h5py.h5d.create(file.id, b"w", h5py.h5t.STD_I32LE, space, properties)
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, np.array([1, -2, 3], np.int32))

    assert values_in(written(fill, tmp_path / "a"))["w"].tolist() == [1, -2, 3]


def test_one_array_with_two_names_is_read_under_both(tmp_path):
    def fill(file: h5py.File) -> None:
        file["a"] = np.arange(3)
        file["b"] = file["a"]

    found = values_in(written(fill, tmp_path / "a"))
    assert found["a"].tolist() == found["b"].tolist() == [0, 1, 2]


def test_texts_are_datasets_of_their_own_kind(tmp_path):
    def fill(file: h5py.File) -> None:
        file["labels"] = ["cat", "dog"]
        file["fixed"] = np.array([b"cat", b"dog"])
        file["one"] = "cat"

    file = opened(written(fill, tmp_path / "a"))
    assert all(dataset.kind.is_text for dataset in file.datasets.values())
    found = {name: file.text(dataset) for name, dataset in file.datasets.items()}
    assert found == {"labels": ["cat", "dog"], "fixed": ["cat", "dog"], "one": "cat"}


def linked_in_a_loop(file: h5py.File) -> None:
    inner = file.create_group("a/b")
    inner["again"] = file["a"]


def external(file: h5py.File) -> None:
    file.create_dataset("w", (4,), "f4", external=[("/etc/passwd", 0, 16)])


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "w", (4,))
    file.create_virtual_dataset("w", layout)


def committed(file: h5py.File) -> None:
    file["kind"] = np.dtype("f4")
    file.create_dataset("w", (4,), file["kind"])
    del file["kind"]


def chunked(file: h5py.File, **options: Any) -> None:
    file.create_dataset("w", data=np.zeros((8, 8), np.float32), chunks=(4, 4), **options)


REFUSED: dict[str, tuple[Callable[[h5py.File], object], dict[str, Any], str]] = {
    "soft link": (lambda f: f.update({"w": h5py.SoftLink("/x")}), {}, "soft link 'w'"),
    "named datatype": (
        lambda f: f.update({"kind": np.dtype("f4")}),
        {},
        "an object that is neither a group nor a dataset",
    ),
    "soft compact link": (
        lambda f: f.update({"w": h5py.SoftLink("/x")}),
        {"libver": ("v108", "v108")},
        "soft link 'w'",
    ),
    "external link": (
        lambda f: f.update({"w": h5py.ExternalLink("/etc/passwd", "/x")}),
        {},
        "external link 'w'",
    ),
    "other files": (external, {}, "'w' with its values in other files"),
    "virtual": (virtual, {}, "'w' in parts of other datasets"),
    "shared datatype": (committed, {}, "a datatype or another message that objects share"),
    "never written": (
        lambda f: f.create_dataset("w", (9,), "f4"),
        {},
        "'w', whose values were never written",
    ),
    "no chunk written": (
        lambda f: f.create_dataset("w", (9,), "f4", chunks=(3,)),
        {},
        "'w', whose values were never written",
    ),
    "a chunk not written": (
        lambda f: f.create_dataset("w", (9,), "f4", chunks=(3,)).write_direct(
            np.ones(3, np.float32), dest_sel=np.s_[:3]
        ),
        {},
        "'w' without 2 of 3 chunks",
    ),
    "LZF": (lambda f: chunked(f, compression="lzf"), {}, "'w' with the filters LZF"),
    "Fletcher32": (lambda f: chunked(f, fletcher32=True), {}, "'w' with the filters Fletcher32"),
    "new chunks": (chunked, {"libver": "latest"}, "'w' in chunks as HDF5 1.10 indexes them"),
    "compound": (lambda f: f.update({"w": np.zeros(3, "c8")}), {}, "'w' of compounds"),
    "references": (
        lambda f: f.create_dataset("w", (1,), h5py.ref_dtype),
        {},
        "'w' of references",
    ),
    "no value": (lambda f: f.update({"w": h5py.Empty("f4")}), {}, "'w', which has no value"),
    "loop": (linked_in_a_loop, {}, "the group 'a/b/again', which is linked from two places"),
    "many new links": (
        lambda f: f.update({f"w{n}": np.ones(1) for n in range(20)}),
        {"libver": ("v108", "v108")},
        "links in a heap",
    ),
    "many new attributes": (
        lambda f: f.attrs.update({f"a{n}": n for n in range(20)}),
        {"libver": ("v108", "v108")},
        "the attributes of '' in a heap",
    ),
    "bomb": (
        lambda f: f.create_dataset("w", data=np.zeros(5 * 10**6), compression="gzip"),
        {},
        r"'w' of \d+ bytes in a file of \d+, for which at most \d+ are allocated",
    ),
    "huge chunk": (
        lambda f: f.create_dataset("w", data=np.zeros(3), chunks=(2 * 10**6,), maxshape=(None,),
                                   compression="gzip"),
        {},
        r"'w' of \d+ bytes in a file of \d+, for which at most \d+ are allocated",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_here_is_refused_by_name(tmp_path, name):
    fill, settings, reason = REFUSED[name]
    path = written(fill, tmp_path / "a", **settings)
    with pytest.raises(Damage, match=reason):
        file = opened(path)
        file.attributes("")
        [file.values(dataset) for dataset in file.datasets.values()]


@functools.cache
def example() -> bytes:
    def fill(file: h5py.File) -> None:
        file["a/w"] = np.arange(6.0)
        file["a/v"] = np.arange(6.0)
        file["a"].attrs["names"] = ["w", "v"]
        chunked(file, compression="gzip", shuffle=True)

    with tempfile.TemporaryDirectory() as folder:
        return written(fill, Path(folder) / "example").read_bytes()


def opened_bytes(content: bytes | bytearray) -> File:
    file = File(np.frombuffer(content, np.uint8))
    for group in file.groups:
        file.attributes(group)
    for dataset in file.datasets.values():
        file.values(dataset)
    return file


def test_two_datasets_in_one_place_are_refused():
    content = bytearray(example())
    first, second = (opened_bytes(content).datasets[name].address for name in ("a/w", "a/v"))
    stated = content.index(second.to_bytes(8, "little"))
    content[stated : stated + 8] = (first + 8).to_bytes(8, "little")
    with pytest.raises(Damage, match="'a/w' and 'a/v' in one place"):
        opened_bytes(content)


def test_a_tree_that_is_its_own_child_ends():
    content = bytearray(example())
    tree = content.index(b"TREE")
    for level in (1, 255):
        content[tree + 5] = level
        content[tree + 32 : tree + 40] = tree.to_bytes(8, "little")
        with pytest.raises(Damage, match=f"a node of kind 0 and level {level} of a tree"):
            opened_bytes(content)


def test_headers_that_go_on_in_themselves_end():
    content = bytearray(example())
    start = content.index(b"TREE") - 40  # The root's only message leads to this tree.
    assert content[start : start + 2] == b"\x01\x00"
    content[start + 16 : start + 18] = b"\x10\x00"
    content[start + 24 : start + 40] = struct.pack("<QQ", start + 16, 24)
    with pytest.raises(Damage, match="overlap or form a loop"):
        opened_bytes(content)


def test_a_header_with_other_messages_than_it_counts_is_refused():
    content = bytearray(example())
    dataset = opened_bytes(content).datasets["a/w"]
    content[dataset.header + 2] -= 1
    with pytest.raises(Damage, match="another number of messages"):
        opened_bytes(content)


def test_a_dataset_of_another_size_than_is_stored_is_refused():
    content = bytearray(example())
    dataset = opened_bytes(content).datasets["a/w"]
    stated = content.index(struct.pack("<QQ", dataset.address, 48))
    content[stated + 8] = 40
    with pytest.raises(Damage, match="'a/w' with 48 bytes, of which 40 are stored"):
        opened_bytes(content)


def test_chunks_that_share_their_bytes_are_refused():
    content = bytearray(example())
    tree = content.index(b"TREE\x01")
    for entry in range(tree + 24, tree + 24 + 4 * 40, 40):
        address = int.from_bytes(content[entry + 32 : entry + 40], "little")
        content[entry : entry + 4] = (len(content) - address).to_bytes(4, "little")
    with pytest.raises(Damage, match="a chunk of 'w' with"):
        opened_bytes(content)


def test_what_is_allocated_is_bounded_by_the_file_on_disk():
    content = np.frombuffer(example(), np.uint8)
    assert File(content, file_bytes=1000, allocated=2**24).datasets
    with pytest.raises(Damage, match="in a file of 1000, for which at most"):
        File(content, file_bytes=1000, allocated=2**25 + 3000)


def test_a_part_beyond_the_end_tells_where():
    content = bytearray(example())
    heap = content.index(b"HEAP")
    content[heap + 24 : heap + 32] = (2**63).to_bytes(8, "little")
    with pytest.raises(Damage, match=f"bytes from byte {2**63}") as caught:
        opened_bytes(content)
    assert caught.value.offset == len(content)


def test_every_truncation_is_damage():
    content = example()
    for length in range(0, len(content), 7):
        with pytest.raises(Damage):
            opened_bytes(content[:length])


@settings(max_examples=300)
@given(st.data())
def test_a_mutated_file_is_read_or_refused(data):
    content = bytearray(example())
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position] = data.draw(st.sampled_from([0, 1, 8, 255, content[position] ^ 1]))
    try:
        opened_bytes(content)
    except (Damage, ValueError, RecursionError):
        pass  # What `reading` makes an error of the package.


def test_deflated_bytes_must_become_what_they_should():
    packed = np.frombuffer(zlib.compress(bytes(1000)), np.uint8)
    assert inflated(packed, 1000, 0).tolist() == [0] * 1000
    for size in (999, 1001, 0):
        with pytest.raises(Damage, match="should"):
            inflated(packed, size, 0)
    for broken in (packed[:-1], packed[:5], packed[:0], packed[::-1].copy()):
        with pytest.raises(Damage, match="deflated"):
            inflated(broken, 1000, 0)


def test_what_is_unsupported_is_damage_of_its_own_kind(tmp_path):
    path = written(external, tmp_path / "a")
    with pytest.raises(Unsupported):
        opened(path)
