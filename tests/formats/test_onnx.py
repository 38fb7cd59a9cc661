from __future__ import annotations

import functools
import hashlib
import os
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from jaxtransfer.errors import FormatError, ReferenceNotFoundError
from jaxtransfer.formats import base, caffe
from jaxtransfer.formats.onnx import DTYPES, inspect, matches, read

KINDS = sorted(set(DTYPES) & set(TensorProto.DataType.values()))


def tensor(name: str, values: Any = (1.5, -2.0)) -> TensorProto:
    return numpy_helper.from_array(np.asarray(values, np.float32), name)


def graph(name: str = "net", **fields: Any) -> onnx.GraphProto:
    return onnx.GraphProto(name=name, **fields)


def model(main: onnx.GraphProto, **fields: Any) -> onnx.ModelProto:
    opset = [helper.make_opsetid("", 21), helper.make_opsetid("com.example", 2)]
    return onnx.ModelProto(
        ir_version=10, producer_name="tests", opset_import=opset, graph=main, **fields
    )


def file_of(folder: Path, content: onnx.ModelProto | onnx.GraphProto | bytes) -> Path:
    """A file of a model, of a graph, or of bytes."""
    if isinstance(content, onnx.GraphProto):
        content = model(content)
    path = folder / "net.onnx"
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    return path


def constant(output: str, values: Any = (3.0,)) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [output], value=tensor("", values))


def branch(*initializers: TensorProto, nodes: tuple[onnx.NodeProto, ...] = ()) -> Any:
    return graph("branch", initializer=initializers, node=nodes)


def varint(value: int) -> bytes:
    more = value > 0x7F
    return bytes([value & 0x7F | more << 7]) + (varint(value >> 7) if more else b"")


def length_delimited(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def with_tensor(content: bytes) -> bytes:
    """A file with an initialiser of these bytes."""
    return b"\x08\x08" + length_delimited(7, length_delimited(5, content))


@functools.cache
def example() -> bytes:
    raw, typed = tensor("conv.weight", np.arange(24.0).reshape(2, 3, 4)), tensor("conv.bias")
    typed.ClearField("raw_data")
    typed.float_data.extend([1.5, -2.0])
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [-1, 300])
    condition = helper.make_node("If", ["x"], ["y"], "if", then_branch=branch(tensor("w")))
    nodes = [condition, constant("c")]
    return model(graph(initializer=[raw, typed, shape], node=nodes)).SerializeToString()


def values_of(kind: int, size: int) -> np.ndarray:
    """Values of a dtype, the extreme ones first."""
    dtype = DTYPES[kind][0]
    if dtype == np.bool_:
        return np.arange(size) % 3 == 0
    if dtype.kind == "c":
        return (np.arange(size) - 1.5j).astype(dtype)
    try:
        limits = [np.iinfo(dtype).min, np.iinfo(dtype).max]
    except ValueError:
        try:
            limits = [ml_dtypes.iinfo(dtype).min, ml_dtypes.iinfo(dtype).max]
        except ValueError:
            limits = [ml_dtypes.finfo(dtype).min, ml_dtypes.finfo(dtype).max]
    found = (np.arange(size) % 2).astype(dtype)
    found[: min(size, 2)] = limits[:size]
    return found


@pytest.mark.parametrize("kind", KINDS, ids=TensorProto.DataType.Name)
@pytest.mark.parametrize("shape", [(3, 5), (2, 1), (1,), (), (0, 3)], ids=str)
def test_every_dtype_reads_as_the_onnx_library_reads_it(tmp_path, kind, shape):
    values = values_of(kind, int(np.prod(shape))).reshape(shape)
    raw = numpy_helper.from_array(values, "raw")
    typed = helper.make_tensor("typed", kind, shape, values.ravel())
    assert not typed.HasField("raw_data")
    path = file_of(tmp_path, graph(initializer=[raw, typed]))
    found, inspection = read(path), inspect(path)
    assert list(found) == ["raw", "typed"]
    for array, info, proto in zip(found.values(), inspection.tensors, [raw, typed], strict=True):
        expected = numpy_helper.to_array(proto)
        assert array.dtype == expected.dtype == DTYPES[kind][0]
        assert info.dtype == array.dtype.name
        assert array.shape == info.shape == shape
        assert array.tobytes() == expected.tobytes()
        assert info.bytes == array.nbytes
    assert found["raw"].tobytes() == values.tobytes()


def test_every_data_type_of_the_library_is_read_or_refused():
    others = {"UNDEFINED", "STRING", "FLOAT6E2M3", "FLOAT6E3M2"}
    assert set(TensorProto.DataType.keys()) - others == set(map(TensorProto.DataType.Name, KINDS))


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=50), st.booleans())
def test_whole_numbers_of_any_length_read_one_by_one_and_packed(values, packed):
    number = TensorProto.INT64
    proto = helper.make_tensor("n", number, [len(values)], values).SerializeToString()
    if not packed:
        singles = b"".join(b"\x38" + varint(value % 2**64) for value in values)
        header = helper.make_tensor("n", number, [0], []).SerializeToString()[2:]
        proto = b"\x08" + varint(len(values)) + header + singles
    with tempfile.TemporaryDirectory() as folder:
        found = read(file_of(Path(folder), with_tensor(proto)))
    assert found["n"].tolist() == values


def test_many_whole_numbers_cross_the_bounds_of_what_is_decoded_at_once(tmp_path):
    values = np.resize([0, 127, 128, -1, 2**31 - 1, 300, -(2**31)], 50_001)
    proto = helper.make_tensor("n", TensorProto.INT32, values.shape, values)
    np.testing.assert_array_equal(read(file_of(tmp_path, graph(initializer=[proto])))["n"], values)


def test_a_truth_value_is_true_unless_it_is_0(tmp_path):
    proto = TensorProto(name="b", data_type=TensorProto.BOOL, dims=[3], int32_data=[0, 1, 2])
    found = read(file_of(tmp_path, graph(initializer=[proto])))["b"]
    assert found.view(np.uint8).tolist() == [0, 1, 1]


def test_arrays_are_read_only_views_of_the_file(tmp_path):
    path = file_of(tmp_path, graph(initializer=[tensor("w")]))
    found = read(path)["w"]
    with open(path, "r+b") as file:
        file.seek(path.read_bytes().index(np.float32(1.5).tobytes()))
        file.write(np.float32(9).tobytes())
    assert found.tolist() == [9, -2]
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 0


def test_tensors_of_subgraphs_constants_and_functions_are_named_by_their_place(tmp_path):
    inner = helper.make_node("Loop", ["n"], ["loop_out"], body=branch(tensor("w", [5])))
    condition = helper.make_node(
        "If",
        ["x"],
        ["y"],
        "if/0",
        then_branch=branch(tensor("w", [2]), nodes=(constant("c", [3]), inner)),
        else_branch=branch(tensor("w", [4])),
    )
    many = helper.make_node("Scan", [], ["s", "t"], bodies=[branch(tensor("w", [7]))] * 2)
    function = onnx.FunctionProto(name="block", node=[constant("c", [8])])
    training = onnx.TrainingInfoProto(algorithm=branch(tensor("rate", [9])))
    content = model(
        graph(initializer=[tensor("w", [0])], node=[constant("c", [1]), condition, many]),
        functions=[function],
        training_info=[training, training],
    )
    path = file_of(tmp_path, content)
    found = {name: array.tolist() for name, array in read(path).items()}
    assert found == {
        "c": [1],
        "if/0/else_branch/w": [4],
        "if/0/then_branch/c": [3],
        "if/0/then_branch/loop_out/body/w": [5],
        "if/0/then_branch/w": [2],
        "s/bodies/0/w": [7],
        "s/bodies/1/w": [7],
        "w": [0],
        "training_info/0/algorithm/rate": [9],
        "training_info/1/algorithm/rate": [9],
        "block/c": [8],
    }
    assert [info.name for info in inspect(path).tensors] == list(found)


def test_options_of_nodes_are_no_tensors(tmp_path):
    nodes = [
        helper.make_node("Constant", [], ["a"], value_ints=[1, 2]),
        helper.make_node("Constant", [], ["b"], value_float=1.0),
        helper.make_node("ConstantOfShape", ["a"], ["d"], value=tensor("fill", [1])),
        helper.make_node("Conv", ["x"], ["y"], pads=[1, 1], alpha=[0.5, 0.25]),
    ]
    assert read(file_of(tmp_path, graph(node=nodes))) == {}


def test_metadata_and_tensors_of_text(tmp_path):
    words = numpy_helper.from_array(np.array(["a", "b"], object), "words")
    content = model(
        graph(initializer=[words, tensor("w")]),
        producer_version="1.2",
        model_version=-3,
        doc_string="A net.",
    )
    content.metadata_props.add(key="labels", value="cat,dog")
    path = file_of(tmp_path, content)
    assert inspect(path).metadata == {
        "ir_version": "10",
        "producer_name": "tests",
        "producer_version": "1.2",
        "model_version": "-3",
        "doc_string": "A net.",
        "graph": "net",
        "opset_import": "ai.onnx 21, com.example 2",
        "metadata_props/labels": "cat,dog",
        "words": "text of shape (2,)",
    }
    assert list(read(path)) == ["w"]


def test_what_has_no_array_form_is_told_at_once(tmp_path):
    sparse = helper.make_sparse_tensor(tensor("sparse", [1]), tensor("at", [0]), [5])
    segment = tensor("segment")
    segment.segment.begin = 0
    main = graph(
        initializer=[tensor("good"), segment],
        sparse_initializer=[sparse],
        node=[helper.make_node("Constant", [], ["const"], sparse_value=sparse)],
    )
    for name, kind in [("six", 27), ("unknown", 99)]:
        main.initializer.add(name=name, data_type=kind, dims=[4], raw_data=b"123")
    path = file_of(tmp_path, main)
    for function in (read, inspect):
        with pytest.raises(FormatError, match=r"net\.onnx: expected dense tensors") as caught:
            function(path)
        message = str(caught.value)
        assert "good" not in message
        for problem in (
            "const: a sparse tensor, at byte ",
            "segment: a segment of a tensor, at byte ",
            "sparse: a sparse tensor, at byte ",
            "six: data type FLOAT6E2M3, at byte ",
            "unknown: data type 99, at byte ",
        ):
            assert f" ! {problem}" in message


def external(folder: Path, **entries: object) -> Path:
    """A model whose tensor of two float32 is in a file beside it."""
    entry = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2])
    entry.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        entry.external_data.add(key=key, value=str(value))
    return file_of(folder, graph(initializer=[entry]))


def test_values_in_a_file_beside_the_model_are_read_as_the_library_wrote_them(tmp_path):
    flat = {"a": np.arange(6.0).reshape(2, 3), "b": np.arange(5, dtype=np.int16)}
    tensors = [numpy_helper.from_array(array, name) for name, array in flat.items()]
    path = tmp_path / "net.onnx"
    onnx.save_model(
        model(graph(initializer=tensors)),
        path,
        save_as_external_data=True,
        location="net.data",
        size_threshold=0,
    )
    found = read(path)
    for name, array in flat.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
        assert not found[name].flags.writeable
    (tmp_path / "net.data").unlink()
    assert [(info.name, info.shape) for info in inspect(path).tensors] == [
        ("a", (2, 3)),
        ("b", (5,)),
    ]
    with pytest.raises(ReferenceNotFoundError, match=r"net\.data"):
        read(path)


def test_where_values_are_in_a_file_beside_the_model(tmp_path):
    (tmp_path / "parts").mkdir()
    values = np.array([1, 2, 3, 4], np.float32)
    (tmp_path / "parts" / "d").write_bytes(values.tobytes())
    place = {"location": "parts/d"}
    assert read(external(tmp_path, **place, offset=4, length=8))["w"].tolist() == [2, 3]
    assert read(external(tmp_path, **place, offset=8))["w"].tolist() == [3, 4]


@pytest.mark.parametrize(
    ("entries", "found"),
    [
        ({"location": "../d"}, r"net\.onnx: .*leads out of the folder"),
        ({"location": "link"}, r"net\.onnx: .*leads out of the folder"),
        ({"location": "/etc/hostname"}, r"net\.onnx: .*leads out of the folder"),
        ({"location": "a\0b"}, r"net\.onnx: .*null"),
        ({}, r"net\.onnx: .*leads out of the folder"),
        ({"location": "folder"}, r"folder: .*a folder, a device or a pipe"),
        ({"location": "pipe"}, r"pipe: .*a folder, a device or a pipe"),
        ({"location": "d"}, "d: .*w with 16 bytes of values"),
        ({"location": "d", "length": 4}, "w with 4 bytes of values"),
        ({"location": "d", "length": 8, "offset": 12}, "w with 8 bytes from byte 12"),
        ({"location": "d", "length": 8, "offset": -8}, "w with 8 bytes from byte -8"),
        ({"location": "d", "offset": 2**70}, "bytes of values"),
        ({"location": "d", "offset": "here"}, "invalid literal"),
        ({"location": "empty"}, "w with 0 bytes of values"),
    ],
)
def test_a_wrong_place_of_values_is_a_format_error(tmp_path, entries, found):
    folder = tmp_path / "model"
    (folder / "folder").mkdir(parents=True)
    for file in (tmp_path / "d", folder / "d"):
        file.write_bytes(bytes(16))
    (folder / "empty").touch()
    (folder / "link").symlink_to(tmp_path / "d")
    os.mkfifo(folder / "pipe")
    with pytest.raises(FormatError, match=found):
        read(external(folder, **entries))


def float_tensor(**fields: Any) -> bytes:
    return with_tensor(TensorProto(name="w", data_type=1, **fields).SerializeToString())


def twice(first: bytes, second: bytes) -> bytes:
    return b"\x08\x08" + length_delimited(7, length_delimited(5, first) + second)


W = tensor("w").SerializeToString()
EXTERNAL = TensorProto.EXTERNAL
DAMAGED = {
    "empty": (b"", "no graph"),
    "no graph": (b"\x08\x08\x12\x01a", "no graph"),
    "too few raw bytes": (float_tensor(dims=[3], raw_data=bytes(8)), "w with 8 bytes of values"),
    "too many raw bytes": (float_tensor(dims=[1], raw_data=bytes(8)), "w with 8 bytes of values"),
    "negative shape": (float_tensor(dims=[-2, -1], raw_data=bytes(8)), r"shape \(-2, -1\)"),
    "huge shape": (float_tensor(dims=[2**62, 2**62], raw_data=bytes(8)), "w with 8 bytes"),
    "many axes": (float_tensor(dims=[1] * 65, raw_data=bytes(4)), "more than 64 numbers"),
    "two places": (float_tensor(dims=[1], raw_data=bytes(4), float_data=[1]), r"\[4, 9\]"),
    "two files": (
        float_tensor(dims=[1], raw_data=bytes(4), data_location=EXTERNAL),
        r"fields \[9\] and in a file beside",
    ),
    "another dtype": (float_tensor(dims=[1], int32_data=[1]), r"float32 with values in fields \[5"),
    "no name": (twice(TensorProto(data_type=1).SerializeToString(), b""), "without a name"),
    "same name": (twice(W, length_delimited(5, W)), "a second tensor of the name 'w'"),
    "a number for a graph": (b"\x08\x08\x38\x01", "field 7 of kind 0"),
    "a graph for a number": (b"\x0a\x00\x3a\x00", "field 1 of kind 2"),
    "not UTF-8": (example().replace(b"conv.bias", b"conv\xffbias"), "not UTF-8"),
}
"""What `inspect` finds too, without the values."""

WRONG_VALUES = {
    "no values": (float_tensor(dims=[2]), "w with 0 bytes of values"),
    "too few floats": (float_tensor(dims=[2], float_data=[1]), "w with 4 bytes of values"),
    "too many floats": (float_tensor(dims=[1], float_data=[1, 2]), "w with 8 bytes of values"),
    "too few whole numbers": (
        with_tensor(b"\x08\x03" + helper.make_tensor("w", 7, [], [1]).SerializeToString()),
        "w with 8 bytes of values",
    ),
    "too many whole numbers": (
        with_tensor(helper.make_tensor("w", 7, [2], [1, 2]).SerializeToString()[2:]),
        "w with more values than 1",
    ),
    "an endless number": (
        with_tensor(b"\x10\x07\x42\x01w" + length_delimited(7, b"\xff" * 11 + b"\x01")),
        "a number that does not end",
    ),
    "a number cut off": (
        with_tensor(b"\x10\x07\x42\x01w" + length_delimited(7, b"\xff")),
        "a number that does not end",
    ),
    "values for terabytes": (
        with_tensor(b"\x08" + varint(2**40) + b"\x10\x07\x42\x01w\x3a\x01\x01"),
        "names and values of",
    ),
}


@pytest.mark.parametrize(("content", "found"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_a_format_error_that_says_what_and_where(tmp_path, content, found):
    path = file_of(tmp_path, content)
    for function in (read, inspect):
        with pytest.raises(FormatError, match=rf"net\.onnx: .*byte \d+: .*{found}"):
            function(path)


@pytest.mark.parametrize(("content", "found"), WRONG_VALUES.values(), ids=WRONG_VALUES)
def test_wrong_values_are_a_format_error_that_says_what_and_where(tmp_path, content, found):
    with pytest.raises(FormatError, match=rf"net\.onnx: .*byte \d+: .*{found}"):
        read(file_of(tmp_path, content))


def test_an_error_names_the_byte_where_it_is(tmp_path):
    content = float_tensor(dims=[2], raw_data=b"abcde")
    with pytest.raises(FormatError, match=f"found at byte {content.index(b'abcde')}: w with 5 "):
        read(file_of(tmp_path, content))


def test_graphs_that_lie_in_each_other_without_end_are_refused(tmp_path):
    inner = b""
    for _ in range(5_000):
        inner = length_delimited(1, length_delimited(5, b"\x0a\x01b" + length_delimited(6, inner)))
    with pytest.raises(FormatError, match="more than 100 deep"):
        read(file_of(tmp_path, b"\x08\x08" + length_delimited(7, inner)))


SWARMS = {
    "tensors": b"".join(
        length_delimited(5, b"\x10\x01\x08\x00" + length_delimited(8, b"%d" % index))
        for index in range(4_000)
    ),
    "copies of a name": length_delimited(
        1,
        length_delimited(3, b"n" * 10_000)
        + b"".join(
            length_delimited(5, length_delimited(1, b"%d" % index) + b"\x32\x00")
            for index in range(400)
        ),
    ),
    "small numbers": length_delimited(
        5,
        b"\x08" + varint(100_000) + b"\x10\x07\x42\x01w" + length_delimited(7, bytes(100_000)),
    ),
}


@pytest.mark.parametrize("content", SWARMS.values(), ids=SWARMS)
def test_a_swarm_of_small_parts_is_refused_before_it_fills_the_memory(
    tmp_path, monkeypatch, content
):
    # As it would be in a file of more than 32 MiB, in less time.
    monkeypatch.setattr(base, "_ALLOWED_BYTES", 2**18)
    path = file_of(tmp_path, b"\x08\x08" + length_delimited(7, content))
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="names and values of"):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 2**19 + 4 * path.stat().st_size
    finally:
        tracemalloc.stop()


def test_every_truncation_is_a_format_error(tmp_path):
    content = example()
    end = content.index(b"\x42\x04\x0a\x00\x10\x15")
    for length in range(0, end, 3):
        path = file_of(tmp_path, content[:length])
        with pytest.raises(FormatError):
            read(path)
        if length > 20:
            assert matches(content[:length], path)


@settings(max_examples=200)
@given(st.data())
def test_a_mutated_file_is_read_or_is_a_format_error(data):
    content = bytearray(example())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = file_of(Path(folder), bytes(content))
        matches(bytes(content[:1024]), path)
        try:
            read(path)
        except FormatError as error:
            assert str(path) in str(error)


OTHERS = {
    "Caffe": b"\x0a\x03net\xa2\x06\x04\x0a\x02in",
    "saved model": b"\x08\x01" + length_delimited(2, b"\n\x05serve") + b"\x3a\x00",
    "solver state": b"\x08\x64" + length_delimited(2, b"net.caffemodel") + b"\x1a\x02\x2a\x00",
    "mean image": b"\x08\x01\x10\x03\x18\x02\x20\x02\x2a\x04abcd",
    "no graph": b"\x08\x08\x12\x01a",
    "a field of no model": b"\x08\x08\x4a\x00\x3a\x00",
    "a version that is text": b"\x0a\x00\x3a\x00",
    "text": b"\x08 a text that begins with a backspace",
    "empty": b"",
    "zeros": bytes(1000),
}


@pytest.mark.parametrize("content", OTHERS.values(), ids=OTHERS)
def test_other_files_are_not_taken_for_onnx(tmp_path, content):
    path = tmp_path / "other"
    path.write_bytes(content)
    assert not matches(content[:1024], path)


def test_a_model_is_taken_for_onnx_and_not_for_caffe(tmp_path):
    path = file_of(tmp_path, example())
    assert matches(example()[:1024], path)
    assert not caffe.matches(example()[:1024], path)


def test_nothing_there_and_a_folder_there(tmp_path):
    assert not matches(b"", tmp_path)
    assert not matches(example(), tmp_path / "absent")
    for function in (read, inspect):
        with pytest.raises(ReferenceNotFoundError, match="absent"):
            function(tmp_path / "absent")
        with pytest.raises(FormatError):
            function(tmp_path)


def real(folder: Path, name: str) -> Path:
    path = folder / "weights" / name
    if not path.exists():
        pytest.skip(f"no {path.name} in {folder}")
    return path


@pytest.mark.parametrize(
    ("name", "tensors", "size"),
    [
        ("version-slim-320.onnx", 215, 291_305),
        ("version-slim-320_without_postprocessing.onnx", 208, 264_781),
    ],
)
def test_real_initialisers_are_the_weights_that_pytorch_has(real_data, name, tensors, size):
    path = real(real_data, f"ultraface_slim/{name}")
    assert matches(path.read_bytes()[:1024], path)
    found, inspection = read(path), inspect(path)
    assert len(found) == len(inspection.tensors) == tensors
    assert inspection.parameters == sum(array.size for array in found.values()) == size
    assert inspection.metadata == {
        "ir_version": "4",
        "producer_name": "pytorch",
        "producer_version": "1.2",
        "graph": "torch-jit-export",
        "opset_import": "ai.onnx 9",
    }
    # Constants have numbers for names. The sum is that of the names and values, by name, which
    # PyTorch 2.13 loads from version-slim-320.pth.
    weights = sorted(name for name in found if not name.isdigit())
    content = b"".join(name.encode() + found[name].tobytes() for name in weights)
    assert len(weights) == 184
    assert hashlib.sha256(content).hexdigest() == (
        "0adb5fac2f24d1887076e29bf9267b81aed267da7c70972b46aeb64f8a2c4ca8"
    )


def test_real_weights_in_the_constants_of_a_branch_are_those_of_the_initialisers(real_data):
    folder = "silero_vad_safetensors_onnx"
    plain = read(real(real_data, f"{folder}/silero_vad_16k_op15.onnx"))
    branches = read(real(real_data, f"{folder}/silero_vad.onnx"))
    assert (len(plain), len(branches)) == (175, 341)
    weights = {name: array for name, array in plain.items() if name.startswith("model.")}
    assert len(weights) == 15
    assert sum(array.size for array in weights.values()) == 309_633
    for name, array in weights.items():
        own_name = name.removeprefix("model.")
        other = branches[f"If_0/then_branch/If_0_then_branch__Inline_0__{own_name}"]
        assert other.dtype == array.dtype and other.shape == array.shape
        assert other.tobytes() == array.tobytes()


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("silero_vad.onnx", "5658e9f08ee2170a65169720fecb9502714f90f71cec5f784737a95fb9b56f76"),
        (
            "silero_vad_16k_op15.onnx",
            "9274c98c1b1e406880c1d10132c685fe6b5bf989b15ba9c821f0964fa0bdd3b1",
        ),
    ],
)
def test_real_values_are_those_that_the_onnx_library_reads(real_data, name, digest):
    found = read(real(real_data, f"silero_vad_safetensors_onnx/{name}"))
    # Of the bytes of `numpy_helper.to_array` for each tensor, in the order of the file.
    content = b"".join(array.tobytes() for array in found.values())
    assert hashlib.sha256(content).hexdigest() == digest
