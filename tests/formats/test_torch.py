from __future__ import annotations

import functools
import hashlib
import io
import os
import pickle
import struct
import tarfile
import tempfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtransfer.errors import FormatError, ReferenceNotFoundError
from jaxtransfer.formats import base
from jaxtransfer.formats.torch import inspect, matches, read
from jaxtransfer.formats.torch_tensors import DTYPES
from tests.formats.opcodes import (
    MAGIC,
    ORDERED,
    STARTS,
    Call,
    Raw,
    coded,
    legacy_file,
    name,
    pickled,
    storage,
    tensor,
    zip_file,
)

FIXTURES = Path(__file__).parent / "fixtures" / "torch"
# PyTorch 2.13 has no arithmetic for it, so that no file of it was written for these tests.
WRITTEN = {kind: dtype for kind, dtype in DTYPES.items() if kind != "float8_e8m0fnu"}
METADATA = {
    "epoch": "3",
    "name": "näme",
    "args/lr": "0.1",
    "args/sizes": "[1, 2]",
    "best": "0.5",
    "classes": "[a, bc]",
    "milestones/30": "1",
    "milestones/60": "1",
    "kinds/dtype": "torch.float32",
    "kinds/device": "cuda:0",
    "kinds/size": "[2]",
    "bytes": "2 bytes",
    "complex": "1j",
    "set": "[5]",
    "large": str(2**70),
    "nothing": "None",
    "flag": "True",
}


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def words(*values: float) -> bytes:
    return floats(*values).tobytes()


def written_tensors() -> dict[str, np.ndarray]:
    """What the script beside the files put into each of the large ones."""
    flat = {kind: np.arange(1, 7).astype(dtype) for kind, dtype in WRITTEN.items()}
    table = np.arange(24, dtype=np.float32).reshape(4, 6)
    return {
        **flat,
        "base": table,
        "tied": table,
        "transposed": table.T,
        "part": table[1:3, ::2],
        "expanded": np.broadcast_to(floats(0, 1, 2), (2, 3)),
        "scalar": np.array(7.5, np.float32),
        "empty": np.empty((0, 3), np.float32),
        "parameter": floats(1, 1),
        "noted": floats(1, 1, 1),
    }


def check(path: Path, expected: dict[str, np.ndarray]) -> None:
    found, inspection = read(path), inspect(path)
    assert set(found) == set(expected)
    assert [tensor.name for tensor in inspection.tensors] == list(found)
    for info in inspection.tensors:
        array, wanted = found[info.name], expected[info.name]
        assert array.dtype == wanted.dtype and array.dtype.isnative, info.name
        assert array.shape == wanted.shape == info.shape, info.name
        assert array.tobytes() == wanted.tobytes(), info.name
        assert (info.dtype, info.bytes) == (wanted.dtype.name, wanted.nbytes), info.name
    assert matches(path.read_bytes()[:1024], path)


def test_a_zip_file_of_every_dtype_and_every_kind_of_view():
    check(FIXTURES / "zip.pt", written_tensors())
    assert dict(inspect(FIXTURES / "zip.pt").metadata) == {**METADATA, "container": "state_dict"}


def test_a_legacy_file_of_the_same():
    expected = {f"model/{key}": array for key, array in written_tensors().items()}
    linear = {
        "linear/weight": np.arange(6, dtype=np.float32).reshape(3, 2),
        "linear/bias": floats(0, 0, 0),
    }
    check(FIXTURES / "legacy.pt", {**expected, **linear})
    assert dict(inspect(FIXTURES / "legacy.pt").metadata) == METADATA


@pytest.mark.parametrize("file", ["legacy_protocol_4.pt", "zip_protocol_5.pt"])
def test_a_state_dict_by_other_protocols(file):
    expected = {"weight": np.arange(6, dtype=np.float32).reshape(3, 2), "bias": floats(0, 0, 0)}
    check(FIXTURES / file, expected)
    assert not inspect(FIXTURES / file).metadata


@pytest.mark.parametrize("protocol", [2, 5])
def test_arrays_of_numpy_count_as_tensors(protocol):
    table = np.arange(6).reshape(2, 3)
    expected = {"c": table.astype(np.float64), "f": table, "big": np.arange(3, dtype=np.int16)}
    check(FIXTURES / f"numpy_protocol_{protocol}.pt", expected)


def test_a_torchscript_archive_has_the_names_of_its_state_dict():
    check(
        FIXTURES / "script.pt",
        {
            "0.weight": np.arange(6, dtype=np.float32).reshape(3, 2),
            "0.bias": floats(0, 0, 0),
            "1.weight": floats(1, 1, 1),
            "1.bias": floats(0, 0, 0),
            "1.running_mean": floats(0, 0, 0),
            "1.running_var": floats(1, 1, 1),
            "1.num_batches_tracked": np.array(0),
        },
    )
    assert inspect(FIXTURES / "script.pt").metadata["program"].startswith("TorchScript")


def test_tensors_without_an_array_form_are_all_named():
    for function in (read, inspect):
        with pytest.raises(FormatError) as caught:
            function(FIXTURES / "without_arrays.pt")
        for line in (
            "lazy: conjugated",
            "sparse: sparse: save x.to_dense()",
            "meta: without values",
            "quantised: quantised: save x.dequantize()",
        ):
            assert f"\n ! {line}" in str(caught.value)


def test_views_share_the_memory_of_the_file_and_are_read_only():
    found = read(FIXTURES / "zip.pt")
    assert found["tied"] is found["base"]
    assert np.shares_memory(found["transposed"], found["base"])
    assert found["transposed"].strides == (4, 24)
    assert not any(array.flags.writeable for array in found.values() if array.size)


# Names.


@pytest.mark.parametrize(
    ("value", "names", "container"),
    [
        ({"a.w": 0, "a.b": 1}, ["a.w", "a.b"], None),
        ({"module.w": 0}, ["module.w"], None),
        (
            {"state_dict": {"module.w": 0, "module.b": 1}, "n": "x"},
            ["module.w", "module.b"],
            "state_dict",
        ),
        ({"model": {"w": 0}, "ema": {"w": 1}}, ["model/w", "ema/w"], None),
        ({"x": {"model": {"w": 0}, "ema": {"w": 1}}}, ["model/w", "ema/w"], "x"),
        ({"model": {"w": 0}, "mean": 1}, ["model/w", "mean"], None),
        ({"model": {"w": 0}, "opt": {"state": {0: {"m": 1}}}}, ["model/w", "opt/state/0/m"], None),
        ([{"w": 0}, "text"], ["w"], "0"),
        ([0, 1], ["0", "1"], None),
        (({"w": 0}, {"w": 1}), ["0/w", "1/w"], None),
        (0, ["tensor"], None),
        ({"a": "no tensor"}, [], None),
    ],
)
def test_names_and_the_container_that_is_left_out_of_them(tmp_path, value, names, container):
    def with_tensors(value: Any) -> Any:
        match value:
            case dict():
                return {key: with_tensors(item) for key, item in value.items()}
            case list() | tuple():
                return type(value)(map(with_tensors, value))
            case int():
                return tensor(str(value), (1,))
        return value

    path = zip_file(tmp_path / "a", with_tensors(value), {"0": words(1), "1": words(2)})
    assert list(read(path)) == names
    assert inspect(path).metadata.get("container") == container


def test_two_tensors_of_one_name_are_damage(tmp_path):
    value = {"a/b": tensor("0", (1,)), "a": {"b": tensor("0", (1,))}}
    with pytest.raises(FormatError, match=r"found at byte \d+: two tensors named 'a/b'"):
        read(zip_file(tmp_path / "a", value, {"0": words(1)}))


def test_what_metadata_is_left_out_is_counted(tmp_path):
    path = zip_file(tmp_path / "a", {f"n{index}": index for index in range(105)})
    metadata = inspect(path).metadata
    assert metadata["n99"] == "99" and "n100" not in metadata
    assert metadata["left_out"] == "5 more values that are no tensors"


def test_a_storage_by_itself_is_a_tensor(tmp_path):
    path = zip_file(tmp_path / "a", {"s": storage("0", 2)}, {"0": words(1, 2)})
    assert read(path)["s"].tolist() == [1, 2]


# Layouts.


@pytest.mark.parametrize("kind", DTYPES)
def test_big_endian_values_come_in_native_order(tmp_path, kind):
    values = np.frombuffer(np.random.default_rng(0).bytes(96), DTYPES[kind])
    if kind == "bool":
        values = np.arange(96) % 3 == 0
    part = values.dtype.itemsize // (2 if values.dtype.kind == "c" else 1)
    swapped = np.frombuffer(values.tobytes(), np.uint8).reshape(-1, part)[:, ::-1].tobytes()
    arguments = (storage("0", 96, "torch.storage UntypedStorage"), 1, (2, 2), (1, 2), False)
    value = Call(
        "torch._utils _rebuild_tensor_v3", (*arguments, Call(ORDERED), name(f"torch {kind}"))
    )
    path = zip_file(tmp_path / "a", {"w": value}, {"0": swapped}, byteorder=b"big")
    found = read(path)["w"]
    assert found.dtype == DTYPES[kind] and found.dtype.isnative
    assert found.tobytes() == values[1:5].reshape(2, 2).T.tobytes()


def test_an_archive_that_was_packed_anew(tmp_path):
    values = np.arange(1000, dtype=np.float32)
    packed = zip_file(
        tmp_path / "a",
        {"w": tensor("0", (1000,)), "v": tensor("0", (10,), start=990, size=1000)},
        {"0": values.tobytes()},
        zipfile.ZIP_DEFLATED,
    )
    found = read(packed)
    np.testing.assert_array_equal(found["w"], values)
    np.testing.assert_array_equal(found["v"], values[990:])
    assert not found["w"].flags.writeable and np.shares_memory(found["w"], found["v"])


def test_an_archive_without_a_folder_or_in_another_order(tmp_path):
    with zipfile.ZipFile(tmp_path / "a", "w") as archive:
        archive.writestr("data/0", words(1, 2))
        archive.writestr("data.pkl", pickled({"w": tensor("0", (2,))}))
    assert read(tmp_path / "a")["w"].tolist() == [1, 2]
    assert matches((tmp_path / "a").read_bytes()[:1024], tmp_path / "a")


def test_parts_of_a_storage_in_a_legacy_file(tmp_path):
    whole = storage("k", 6, "torch FloatStorage", None)
    part = storage("k", 6, "torch.cuda FloatStorage", ("view", 2, 3))
    value = {
        "whole": Call("torch._utils _rebuild_tensor", (whole, 0, (6,), (1,))),
        "part": Call("torch._utils _rebuild_tensor", (part, 1, (2,), (1,))),
    }
    found = read(legacy_file(tmp_path / "a", value, {"k": floats(0, 1, 2, 3, 4, 5)}))
    assert found["part"].tolist() == [3, 4]
    assert np.shares_memory(found["part"], found["whole"])


def test_tensors_of_other_devices(tmp_path):
    on_tpu = "torch._utils _rebuild_device_tensor_from_cpu_tensor"
    value = {
        "same": Call(on_tpu, (tensor("0", (2,)), name("torch float32"), "xla:0", False)),
        "type": Call(
            "torch._tensor _rebuild_from_type_v2",
            (
                name("torch._utils _rebuild_tensor_v2"),
                name("torch.nn.parameter Parameter"),
                tensor("0", (2,)).arguments,
                {"note": "x"},
            ),
        ),
    }
    found = read(zip_file(tmp_path / "a", value, {"0": words(1, 2)}))
    assert found["same"].tolist() == found["type"].tolist() == [1, 2]
    value["other"] = Call(on_tpu, (tensor("0", (2,)), name("torch bfloat16"), "xla:0", False))
    with pytest.raises(FormatError, match="! other: kept in another dtype"):
        read(zip_file(tmp_path / "a", value, {"0": words(1, 2)}))


def test_the_tar_layout_is_refused_by_name(tmp_path):
    with tarfile.open(tmp_path / "a", "w") as archive:
        for member in ("sys_info", "pickle", "tensors", "storages"):
            archive.addfile(tarfile.TarInfo(member), io.BytesIO())
    assert matches((tmp_path / "a").read_bytes()[:1024], tmp_path / "a")
    with pytest.raises(FormatError, match="a tar archive, the layout of PyTorch's first releases"):
        read(tmp_path / "a")


def test_other_archives_and_pickles_do_not_match(tmp_path):
    path = tmp_path / "a"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.npy", b"")
    assert not matches(path.read_bytes()[:1024], path)
    path.write_bytes(pickle.dumps({"w": [1]}))
    assert not matches(path.read_bytes()[:1024], path)
    with pytest.raises(FormatError, match="neither a zip archive nor"):
        read(path)


def test_inspecting_reads_no_values(tmp_path):
    """The values of a stored member are never looked at, so they may lie in a hole of the file."""
    count = 2**28
    path = zip_file(tmp_path / "a", {"w": tensor("0", (count,))})
    content = path.read_bytes()
    directory = content.rfind(b"PK\x01\x02")
    local = struct.pack("<4sHHHHHIIIHH", b"PK\x03\x04", 20, 0, 0, 0, 0, 0, 0, 0, 8, 0) + b"a/data/0"
    entry = bytearray(46)
    struct.pack_into("<4sHHHH", entry, 0, b"PK\x01\x02", 20, 20, 0, 0)
    struct.pack_into("<IIIH", entry, 16, 0, 4 * count, 4 * count, 8)
    struct.pack_into("<I", entry, 42, directory)
    entries = content[directory : content.rfind(b"PK\x05\x06")] + bytes(entry) + b"a/data/0"
    start = directory + len(local) + 4 * count
    with open(path, "r+b") as file:
        file.seek(directory)
        file.write(local)
        file.seek(start)
        file.write(entries)
        file.write(struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 2, 2, len(entries), start, 0))
    tracemalloc.start()
    assert inspect(path).bytes == 4 * count
    assert read(path)["w"][-1] == 0
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert os.stat(path).st_blocks * 512 < 2**22


# Damage. Every message names the file and the byte.


def refusal(path: Path, function: Callable[[Path], Any] = read) -> str:
    with pytest.raises(FormatError, match=r"found at byte \d+: ") as caught:
        function(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


BAD_TENSORS = {
    "beyond the storage": (tensor("0", (5,), size=4), "a tensor of shape (5,)"),
    "a start beyond": (tensor("0", (4,), start=1), "from number 1 on"),
    "strides beyond": (tensor("0", (2, 2), (3, 1), size=4), "with strides (3, 1)"),
    "a negative shape": (tensor("0", (-1,), size=4), "dimensions [-1]"),
    "a negative start": (tensor("0", (1,), start=-1, size=4), "dimensions [-1]"),
    "a negative stride": (tensor("0", (2,), (-1,), start=1, size=4), "dimensions [-1]"),
    "a shape of text": (tensor("0", ("4",), (1,), size=4), "dimensions [4]"),
    "a shape of truth": (tensor("0", (True,), (1,), size=4), "dimensions [True]"),
    "a huge shape": (tensor("0", (2**62, 2**62), (0, 2**62), size=4), "with strides"),
    "too large a shape": (tensor("0", (2**63,), (0,), size=4), "dimensions"),
    "many dimensions": (tensor("0", (1,) * 33, (1,) * 33, size=4), "dimensions"),
    "one stride too few": (tensor("0", (2, 2), (1,), size=4), "with strides (1,)"),
    "a repeated value": (tensor("0", (2**40,), (0,), size=4), "tensors of 4398046511104 bytes"),
    "an absent storage": (tensor("7", (4,)), "the storage '7', which is not in the file"),
    "a storage too large": (tensor("0", (5,)), "on 20 bytes of the storage '0', which has 16"),
    "no storage": (Call("torch._utils _rebuild_tensor", ("x", 0, (1,), (1,))), "a tensor on x"),
    "a negative size": (storage("0", -4), "dimensions [-4]"),
    "two sizes": ((storage("0", 4), storage("0", 3)), "the storage '0' with two sizes"),
    "a kind of storage": (storage("0", 4, "torch.cuda UntypedTensor"), "the global torch.cuda.U"),
    "no kind of storage": (storage("0", 4, "torch Tensor"), "the persistent id [storage, torch.T"),
    "a persistent id of text": (Raw(coded("0") + b"Q"), "the persistent id 0"),
    "a persistent id of a module": (Raw(coded(("module", None, "a", "b")) + b"Q"), "persistent id"),
    "a view beyond": (storage("0", 4, "torch FloatStorage", ("v", 2, 3)), "a view beyond the end"),
    "a dtype without arrays": (
        Call(
            "torch._utils _rebuild_tensor_v3",
            (storage("0", 4), 0, (4,), (1,), False, Call(ORDERED), name("torch Tensor")),
        ),
        "a tensor of the dtype torch.Tensor",
    ),
    "a function that rebuilds no tensor": (
        Call(
            "torch._tensor _rebuild_from_type_v2",
            (name("collections OrderedDict"), name("torch Tensor"), (), {}),
        ),
        "a call of collections.OrderedDict",
    ),
    "a class of tensors": (
        Call(
            "torch._tensor _rebuild_from_type_v2",
            (name("torch._utils _rebuild_tensor_v2"), name("torch Size"), (), {}),
        ),
        "a tensor of the kind torch.Size",
    ),
    "a state for a tensor": (Raw(coded(tensor("0", (4,))) + b"}b"), "a state for a value"),
    "bytes to be loaded": (
        Call("torch.storage _load_from_bytes", (b"x",)),
        "the global torch.storage._load_from_bytes",
    ),
    "a whole module": (Call("torchvision.models ResNet"), "the global torchvision.models.ResNet"),
    "a list that holds itself": (
        [tensor("0", (4,)), Raw(b"]q\xf0h\xf0a")],
        "within themselves",
    ),
}


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_what_cannot_be_a_tensor_is_told(tmp_path, case):
    value, named = BAD_TENSORS[case]
    for file in (
        zip_file(tmp_path / "zip", {"w": value}, {"0": words(1, 2, 3, 4)}),
        legacy_file(tmp_path / "old", {"w": value}, {"0": floats(1, 2, 3, 4)}),
    ):
        if file.name == "old" and case in ("an absent storage", "a storage too large"):
            named = "in the storage '0'" if "large" in case else "the storage '0', which no tensor"
        for function in (read, inspect):
            assert named in refusal(file, function)


def test_an_attack_is_refused_by_name_at_its_byte_and_nothing_is_run(tmp_path):
    canary = tmp_path / "canary"
    attack = pickled({"w": Call("os system", (f"touch {canary}",))})
    for path in (
        zip_file(tmp_path / "zip", attack),
        zip_file(tmp_path / "packed", attack, packing=zipfile.ZIP_DEFLATED),
        legacy_file(tmp_path / "old", attack),
    ):
        message = refusal(path)
        assert "the global os.system; nothing of the file was run" in message
        if path.name != "packed":
            place = path.read_bytes().find(b"cos\nsystem")
            assert f"found at byte {place}: " in message
    assert not canary.exists()


def test_a_class_of_torchscript_is_an_object_with_attributes_alone(tmp_path):
    script = Raw(coded(name("__torch__.a Net")) + b")\x81" + coded({"w": tensor("0", (1,))}) + b"b")
    path = zip_file(tmp_path / "a", script, {"0": words(3)})
    assert read(path)["w"].tolist() == [3]
    for module in ("__torch__x", "x.__torch__"):
        other = Raw(coded(name(f"{module} Net")) + b")\x81")
        assert f"the global {module}.Net" in refusal(zip_file(tmp_path / "a", other))


def test_members_that_do_not_fit_are_told(tmp_path):
    value = {"w": tensor("0", (4,))}
    path = zip_file(tmp_path / "a", value, {"0": words(1, 2, 3, 4)}, byteorder=b"middle")
    assert "the byte order b'middle'" in refusal(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("b/data.pkl", b"N.")
    assert "2 members named data.pkl" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("b/c/data.pkl", b"N.")
    assert "0 members named data.pkl" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("a/data.pkl", b"N.")
        archive.writestr("a/data.pkl", b"N.")
    assert "two members named 'a/data.pkl'" in refusal(path)


def test_a_packed_bomb_is_refused_before_it_is_unpacked(tmp_path):
    count = 2**25
    bomb = {"0": bytes(4 * count)}
    path = zip_file(tmp_path / "a", {"w": tensor("0", (count,))}, bomb, zipfile.ZIP_DEFLATED)
    for function in (read, inspect):
        assert f"tensors of {4 * count} bytes" in refusal(path, function)
    small = {"w": tensor("0", (1,), size=count)}
    path = zip_file(tmp_path / "b", small, bomb, zipfile.ZIP_DEFLATED)
    assert "the packed member 'a/data/0'" in refusal(path)


def test_many_names_for_one_tensor_take_no_more_than_is_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "_ALLOWED_BYTES", 2**20)
    value = Raw(coded(tensor("0", (1,))) + b"q\xf00](" + b"h\xf0" * 10**4 + b"e")
    path = zip_file(tmp_path / "a", value, {"0": words(1)})
    assert "values of" in refusal(path)


def test_long_names_take_no_more_than_is_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "_ALLOWED_BYTES", 2**20)
    key = coded("k" * 2**14) + b"q\xf00"
    values = coded({f"n{index}": None for index in range(20)})
    path = zip_file(tmp_path / "a", Raw(key + b"}h\xf0" * 16 + values + b"s" * 16))
    assert "values of" in refusal(path)


LEGACY = {"w": tensor("0", (2,)), "v": tensor("1", (1,))}
BAD_LEGACY: dict[str, tuple[dict[str, Any], str]] = {
    "a storage twice": ({"order": ("0", "0", "1")}, "the storage '0', twice"),
    "a storage too many": ({"order": ("0", "1", "2")}, "the storage '2', which no tensor"),
    "a storage too few": ({"order": ("0",)}, "the storage '1', which is not in the file"),
    "more bytes": ({"after": b"abc"}, "3 bytes after the last storage"),
    "another pickle": ({"after": pickled({"x": 1})}, "bytes after the last storage"),
}


@pytest.mark.parametrize("case", BAD_LEGACY)
def test_storages_that_do_not_fit_are_told(tmp_path, case):
    arguments, named = BAD_LEGACY[case]
    values = {"0": floats(1, 2), "1": floats(3), "2": floats(4)}
    assert named in refusal(
        legacy_file(tmp_path / "a", LEGACY, values, **{"order": ("0", "1")} | arguments)
    )


def test_a_storage_that_counts_other_numbers_is_told(tmp_path):
    path = legacy_file(tmp_path / "a", {"w": tensor("0", (2,))}, {"0": floats(1, 2)})
    content = bytearray(path.read_bytes())
    assert content[-16] == 2
    content[-16] = 1
    path.write_bytes(content)
    assert "1 numbers in the storage '0'" in refusal(path)


def test_a_legacy_file_of_another_version(tmp_path):
    (tmp_path / "a").write_bytes(pickled(MAGIC) + pickled(1002) + b"N.")
    assert "version 1002 of PyTorch's older layout" in refusal(tmp_path / "a")
    (tmp_path / "a").write_bytes(
        b"".join(map(pickled, (MAGIC, 1001, None, None))) + STARTS[0] + b"}" + STARTS[1]
    )
    assert "keys of storages that are no list" in refusal(tmp_path / "a")


def test_nothing_there_an_empty_file_and_a_folder(tmp_path):
    with pytest.raises(ReferenceNotFoundError, match="absent"):
        read(tmp_path / "absent")
    (tmp_path / "empty").write_bytes(b"")
    refusal(tmp_path / "empty")
    with pytest.raises(FormatError):
        read(tmp_path)
    assert not matches(b"", tmp_path)


@functools.cache
def examples() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        value = {
            "state": {"a.w": tensor("0", (2, 2), (1, 2)), "a.b": tensor("1", (2,))},
            "n": [1, 2],
        }
        values = {"0": words(1, 2, 3, 4), "1": words(5, 6)}
        place = Path(folder) / "a"
        packings = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        files = [zip_file(place, value, values, packing).read_bytes() for packing in packings]
        old = legacy_file(place, value, {"0": floats(1, 2, 3, 4), "1": floats(5, 6)}).read_bytes()
        return [*files, old]


def test_every_truncation_is_a_format_error(tmp_path):
    path = tmp_path / "a"
    for content in examples():
        for length in range(0, len(content), 7):
            path.write_bytes(content[:length])
            refusal(path)


@settings(max_examples=400)
@given(st.data(), st.sampled_from([0, 1, 2]))
def test_a_mutated_file_is_read_or_is_a_format_error(data, index):
    content = bytearray(examples()[index])
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        path.write_bytes(content)
        matches(bytes(content[:1024]), path)
        for function in (read, inspect):
            try:
                function(path)
            except FormatError as error:
                assert str(path) in str(error)


# Real files. The hashes are of what PyTorch 2.13 reads: names, shapes, dtypes and values in turn.


def digest(flat: dict[str, np.ndarray]) -> str:
    total = hashlib.sha256()
    for key, array in flat.items():
        total.update(f"{key} {array.shape} {array.dtype}".encode() + array.tobytes())
    return total.hexdigest()


REAL = {
    "cifar10_resnet/resnet20-12fca82f.th": (
        97,
        271_098,
        {"best_prec1": "91.78000183105469", "container": "state_dict"},
        "b8f7d57fa92a74579d3a699c51bf50b52f3ef85bd8f0e79f40bdf80dfed29ad4",
    ),
    "cifar10_resnet/resnet32-d509ac18.th": (
        157,
        466_426,
        {"best_prec1": "92.78000144958496", "container": "state_dict"},
        "90bfe43fbc0acbb213b58581d97418ca6e9caeac69b66fbb4db73a28e500025d",
    ),
    "ultraface_slim/version-slim-320.pth": (
        184,
        264_757,
        {},
        "3fb049f4220318462e53e821a7cc0fcef281fcd7f241f4f827cb312ccddb272c",
    ),
}


@pytest.mark.parametrize("file", REAL)
def test_real_weights(real_data, file):
    path = real_data / "weights" / file
    if not path.exists():
        pytest.skip(f"no {path.name} in {real_data}")
    count, parameters, metadata, hashed = REAL[file]
    flat, inspection = read(path), inspect(path)
    assert len(flat) == len(inspection.tensors) == count
    assert inspection.parameters == parameters
    assert dict(inspection.metadata) == metadata
    assert digest(flat) == hashed


def test_the_same_real_network_in_another_format(real_data):
    folder = real_data / "weights" / "ultraface_slim"
    if not (folder / "version-slim-320.onnx").exists():
        pytest.skip(f"no version-slim-320.onnx in {real_data}")
    onnx, numpy_helper = map(pytest.importorskip, ("onnx", "onnx.numpy_helper"))
    graph = onnx.load(folder / "version-slim-320.onnx").graph
    expected = {entry.name: numpy_helper.to_array(entry) for entry in graph.initializer}
    found = read(folder / "version-slim-320.pth")
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        assert found[key].dtype == array.dtype and found[key].shape == array.shape
        assert found[key].tobytes() == array.tobytes()
