from __future__ import annotations

import hashlib
import os
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxtransfer.errors import FormatError, ReferenceNotFoundError
from jaxtransfer.formats import base
from jaxtransfer.formats.caffe import inspect, matches, read, read_prototxt
from jaxtransfer.formats.messages import message_classes

BLOB = {
    "num": (1, "int32"),
    "channels": (2, "int32"),
    "height": (3, "int32"),
    "width": (4, "int32"),
    "data": (5, "repeated bytes"),  # A packed list, as Caffe writes it.
    "diff": (6, "repeated float"),
    "shape": (7, "Shape"),
    "double_data": (8, "repeated bytes"),
}
TABLE = {
    "Net": {"name": (1, "string"), "layers": (2, "repeated Old"), "layer": (100, "repeated New")},
    "New": {"name": (1, "string"), "type": (2, "string"), "blobs": (7, "repeated Blob")},
    "Old": {
        "layer": (1, "Oldest"),
        "name": (4, "string"),
        "type": (5, "int32"),
        "blobs": (6, "repeated Blob"),
    },
    "Oldest": {"name": (1, "string"), "type": (2, "string"), "blobs": (50, "repeated Blob")},
    "Shape": {"dim": (1, "repeated int64")},
    "Blob": BLOB,
}
UNPACKED = TABLE | {
    "Blob": BLOB | {"data": (5, "repeated float"), "double_data": (8, "repeated double")}
}
PACKED_CLASSES = message_classes("tests.caffe", TABLE)
UNPACKED_CLASSES = message_classes("tests.caffe.unpacked", UNPACKED)

Layers = list[tuple[str, str, list[dict[str, Any]]]]


def blob(array: Any, axes: tuple[int, ...] | None = None) -> dict[str, Any]:
    """A blob with today's shape, or with the four axes of before 2015."""
    array = np.asarray(array)
    field = "double_data" if array.dtype == np.float64 else "data"
    values: dict[str, Any] = {field: [array.tobytes()] if array.size else []}
    if axes is None:
        return values | {"shape": {"dim": array.shape}}
    return values | dict(zip(("num", "channels", "height", "width"), axes, strict=True))


def net(layers: Layers, name: str = "net") -> bytes:
    entries = [{"name": layer, "type": kind, "blobs": blobs} for layer, kind, blobs in layers]
    return PACKED_CLASSES["Net"](name=name, layer=entries).SerializeToString()


def file_of(folder: Path, content: bytes) -> Path:
    path = folder / "net.caffemodel"
    path.write_bytes(content)
    return path


WEIGHTS = np.arange(6, dtype=np.float32).reshape(3, 2, 1, 1)
DENSE = np.arange(6, dtype=np.float32).reshape(2, 3)
BIAS = np.array([1, -2, 3], np.float32)


def example() -> bytes:
    convolution = [blob(WEIGHTS), blob(BIAS)]
    return net([("data", "Data", []), ("conv1", "Convolution", convolution), ("z", "PReLU", [])])


def new_generation() -> bytes:
    return net(
        [
            ("conv", "Convolution", [blob(WEIGHTS), blob(BIAS)]),
            ("relu", "ReLU", []),
            ("fc", "InnerProduct", [blob(DENSE)]),
        ]
    )


def old_blobs() -> tuple[list[Any], list[Any]]:
    return [blob(WEIGHTS, (3, 2, 1, 1)), blob(BIAS, (1, 1, 1, 3))], [blob(DENSE, (1, 1, 2, 3))]


def old_generation() -> bytes:
    convolution, dense = old_blobs()
    layers = [
        {"name": "conv", "type": 4, "blobs": convolution},
        {"name": "relu", "type": 18},
        {"name": "fc", "type": 14, "blobs": dense},
    ]
    return PACKED_CLASSES["Net"](name="net", layers=layers).SerializeToString()


def oldest_generation() -> bytes:
    convolution, dense = old_blobs()
    layers = [
        {"layer": {"name": "conv", "type": "conv", "blobs": convolution}},
        {"layer": {"name": "relu", "type": "relu"}},
        {"layer": {"name": "fc", "type": "innerproduct", "blobs": dense}},
    ]
    return PACKED_CLASSES["Net"](name="net", layers=layers).SerializeToString()


@pytest.mark.parametrize("content", [new_generation, old_generation, oldest_generation])
def test_the_three_generations_of_the_format_read_alike(tmp_path, content):
    path = file_of(tmp_path, content())
    found, inspection = read(path), inspect(path)
    assert list(found) == ["conv/0", "conv/1", "fc/0"]
    for name, expected in zip(found, (WEIGHTS, BIAS, DENSE), strict=True):
        np.testing.assert_array_equal(found[name], expected)
        assert found[name].dtype == np.float32 and found[name].dtype.isnative
    assert [(info.name, info.shape, info.dtype, info.bytes) for info in inspection.tensors] == [
        (name, array.shape, "float32", array.nbytes) for name, array in found.items()
    ]
    assert inspection.metadata == {
        "network": "net",
        "conv/type": "Convolution",
        "fc/type": "InnerProduct",
    }
    assert matches(path.read_bytes()[:1024], path)


@pytest.mark.parametrize(
    ("kind", "index", "axes", "shape"),
    [
        ("Convolution", 0, (1, 1, 3, 2), (1, 1, 3, 2)),
        ("Convolution", 0, (1, 1, 1, 6), (1, 1, 1, 6)),
        ("Convolution", 1, (1, 1, 1, 6), (6,)),
        ("Deconvolution", 1, (1, 1, 1, 6), (6,)),
        ("InnerProduct", 0, (1, 1, 2, 3), (2, 3)),
        ("InnerProduct", 0, (1, 1, 1, 6), (1, 6)),
        ("InnerProduct", 0, (2, 3, 1, 1), (2, 3, 1, 1)),
        ("InnerProduct", 1, (1, 1, 1, 6), (6,)),
        ("InnerProduct", 1, (1, 1, 6, 1), (1, 1, 6, 1)),
        ("PReLU", 0, (1, 1, 1, 6), (1, 1, 1, 6)),
        ("", 1, (1, 1, 1, 6), (1, 1, 1, 6)),
    ],
)
def test_four_axes_shrink_only_where_the_layers_type_says_what_they_are(
    tmp_path, kind, index, axes, shape
):
    values = np.arange(6, dtype=np.float32)
    blobs = [blob(np.ones((1,), np.float32))] * index + [blob(values, axes)]
    found = read(file_of(tmp_path, net([("a", kind, blobs)])))
    assert found[f"a/{index}"].shape == shape
    np.testing.assert_array_equal(found[f"a/{index}"].ravel(), values)


def test_an_axis_that_a_file_leaves_out_is_0_as_in_caffe(tmp_path):
    path = file_of(tmp_path, net([("a", "Convolution", [{"num": 3, "data": [bytes(12)]}])]))
    with pytest.raises(FormatError, match=r"a/0 with 3 values for the shape \(3, 0, 0, 0\)"):
        read(path)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(st.data())
def test_values_keep_all_their_bits_however_they_are_written(dtype, data):
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    values = data.draw(hnp.arrays(np.uint8, size)).view(dtype)
    packed = blob(values.reshape(shape))
    field = "data" if dtype == np.float32 else "double_data"
    cut = data.draw(st.integers(0, values.size))
    pieces = packed | {field: [values[:cut].tobytes(), values[cut:].tobytes()]}
    layers: Layers = [("packed", "", [packed]), ("pieces", "", [pieces])]
    single = {field: values.tolist(), "shape": {"dim": shape}, "diff": [1.0]}
    with tempfile.TemporaryDirectory() as folder:
        path = file_of(Path(folder), net(layers))
        if not np.isnan(values).any():  # Python's numbers need not keep a NaN's payload.
            unpacked = UNPACKED_CLASSES["Net"](layer=[{"name": "single", "blobs": [single]}])
            path.write_bytes(path.read_bytes() + unpacked.SerializeToString())
        found = read(path)
    assert list(found)[:2] == ["packed/0", "pieces/0"]
    for array in found.values():
        assert array.shape == shape
        assert array.tobytes() == values.tobytes()
        assert array.dtype == (dtype if values.size else np.float32)


def test_a_long_run_of_single_values_that_other_fields_interrupt(tmp_path):
    classes, values = UNPACKED_CLASSES, np.arange(20_000, dtype=np.float32)
    content = b"".join(
        classes["Blob"](**fields).SerializeToString()
        for fields in (
            {"data": values[:9_999].tolist()},
            {"shape": {"dim": [2, 10_000]}, "diff": [0.5] * 7},
            {"data": values[9_999:].tolist()},
        )
    )
    layer = classes["New"](name="a").SerializeToString() + length_delimited(7, content)
    found = read(file_of(tmp_path, length_delimited(100, layer)))
    np.testing.assert_array_equal(found["a/0"], values.reshape(2, 10_000))


def varint(value: int) -> bytes:
    more = value > 0x7F
    return bytes([value & 0x7F | more << 7]) + (varint(value >> 7) if more else b"")


def length_delimited(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def test_arrays_are_read_only_views_of_the_file(tmp_path):
    path = file_of(tmp_path, example())
    found = read(path)
    offset = path.read_bytes().index(WEIGHTS.tobytes())
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(np.float32(9).tobytes())
    assert found["conv1/0"].ravel()[0] == 9
    with pytest.raises(ValueError, match="read-only"):
        found["conv1/0"][:] = 0


def batch_norm(factor: list[float], kind: str = "BatchNorm") -> bytes:
    mean, variance = np.array([2, 4], np.float32), np.array([6, 10], np.float32)
    blobs = [blob(mean), blob(variance), blob(np.array(factor, np.float32))]
    return net([("bn", kind, blobs)])


def test_batch_norm_statistics_are_divided_by_their_factor(tmp_path):
    path = file_of(tmp_path, batch_norm([3]))
    found = read(path)
    third = np.float32(1) / np.float32(3)
    assert list(found) == ["bn/0", "bn/1"]
    assert found["bn/0"].tolist() == [2 * third, 4 * third]
    assert found["bn/1"].tolist() == [6 * third, 10 * third]
    assert inspect(path).metadata == {
        "network": "net",
        "bn/type": "BatchNorm",
        "bn/2": "scale factor 3, applied",
    }
    assert [info.name for info in inspect(path).tensors] == list(found)


def test_a_batch_norm_factor_of_0_gives_0_as_in_caffe(tmp_path):
    found = read(file_of(tmp_path, batch_norm([0])))
    assert found["bn/0"].tolist() == found["bn/1"].tolist() == [0, 0]


def test_a_batch_norm_factor_that_is_no_number_needs_no_warning(tmp_path):
    assert np.isnan(read(file_of(tmp_path, batch_norm([np.nan])))["bn/0"]).all()


def test_a_batch_norm_factor_of_two_numbers_is_an_error(tmp_path):
    with pytest.raises(FormatError, match=r"bn/2, a BatchNorm factor, with the shape \(2,\)"):
        read(file_of(tmp_path, batch_norm([1, 2])))


def test_only_three_blobs_of_a_batch_norm_layer_are_statistics_with_a_factor(tmp_path):
    found = read(file_of(tmp_path, batch_norm([3], "Scale")))
    assert [array.tolist() for array in found.values()] == [[2, 4], [6, 10], [3]]
    found = read(file_of(tmp_path, net([("bn", "BatchNorm", [blob(BIAS), blob(BIAS)])])))
    assert [array.tolist() for array in found.values()] == [BIAS.tolist()] * 2


def with_blob(**fields: Any) -> bytes:
    return net([("good", "Scale", [blob(BIAS)]), ("bad", "Scale", [fields])])


DAMAGED = {
    "empty": (b"", "no layer with parameters"),
    "no weights": (net([("conv", "Convolution", [])]), "no layer with parameters"),
    "too few values": (with_blob(shape={"dim": [2, 2]}, data=[bytes(12)]), "3 values for"),
    "no values": (with_blob(shape={"dim": [2]}), "0 values for the shape"),
    "half a number": (with_blob(shape={"dim": [1]}, data=[bytes(5)]), "5 bytes for numbers"),
    "negative shape": (with_blob(shape={"dim": [-1, -3]}, data=[bytes(12)]), r"\(-1, -3\)"),
    "negative packed shape": (
        net([("a", "Scale", [])])
        + length_delimited(
            100,
            b"\x0a\x01a"
            + length_delimited(7, length_delimited(7, length_delimited(1, varint(2**64 - 2)))),
        ),
        r"0 values for the shape \(-2,\)",
    ),
    "huge shape": (with_blob(shape={"dim": [2**62, 4]}, data=[bytes(12)]), "3 values for"),
    "two kinds": (with_blob(data=[bytes(4)], double_data=[bytes(8)]), "both float and double"),
    "many axes": (with_blob(shape={"dim": [1] * 33}, data=[bytes(4)]), "more than 32 numbers"),
    "same name": (net([("a", "Scale", [blob(BIAS)])] * 2), "a layer 'a' with parameters again"),
    "no name": (net([("", "Scale", [blob(BIAS)])]), "without a name"),
    "not UTF-8": (example().replace(b"conv1", b"\xff\xfe123"), "not UTF-8"),
    "a number as a name": (length_delimited(100, b"\x08\x01"), "field 1 of kind 0"),
    "field number 0": (b"\x02\x00" + example(), "a field with the number 0"),
    "a group": (example() + b"\x0b", "the unknown kind 3"),
    "endless number": (example() + b"\x28" + b"\xff" * 10, "a number that does not end"),
    "oversized field": (example() + b"\x12\xff\xff\xff\xff\x7f", "where 0 are left"),
}


@pytest.mark.parametrize(("content", "found"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_a_format_error_that_says_what_and_where(tmp_path, content, found):
    path = file_of(tmp_path, content)
    for function in (read, inspect):
        with pytest.raises(FormatError, match=rf"net\.caffemodel: .*byte \d+: .*{found}"):
            function(path)


def test_an_error_names_the_byte_where_it_is(tmp_path):
    content = with_blob(shape={"dim": [1]}, data=[b"abcde"])
    with pytest.raises(FormatError, match=rf"found at byte {content.index(b'abcde')}: 5 bytes"):
        read(file_of(tmp_path, content))


def test_every_truncation_is_a_format_error_or_ends_between_two_layers(tmp_path):
    content = example()
    start_of_last = content.index(b"\x0a\x01z\x12") - 3
    ends = [
        length
        for length in range(len(content))
        if not truncated_is_error(tmp_path, content[:length])
    ]
    assert ends == [start_of_last]


def truncated_is_error(folder: Path, content: bytes) -> bool:
    try:
        read(file_of(folder, content))
    except FormatError:
        return True
    return False


@settings(max_examples=150)
@given(st.data())
def test_a_mutated_file_is_read_or_is_a_format_error(data):
    content = bytearray(data.draw(st.sampled_from([example(), old_generation(), batch_norm([3])])))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = file_of(Path(folder), bytes(content))
        matches(bytes(content[:1024]), path)
        try:
            read(path)
        except FormatError as error:
            assert str(path) in str(error)


def blob_of_one() -> bytes:
    return length_delimited(7, length_delimited(5, bytes(4)))


SWARMS = {
    "blobs": (length_delimited(100, b"\x0a\x01a" + b"\x3a\x00" * 4_000), "blobs"),
    "parts of values": (
        length_delimited(100, b"\x0a\x01a" + length_delimited(7, b"\x2a\x00" * 4_000)),
        "scattered values",
    ),
    "layers": (
        b"".join(
            length_delimited(100, length_delimited(1, b"%d" % index) + blob_of_one())
            for index in range(4_000)
        ),
        "names",
    ),
    "copies of a name": (
        length_delimited(100, length_delimited(1, b"a" * 10_000) + blob_of_one() * 400),
        "names",
    ),
}


@pytest.mark.parametrize(("content", "what"), SWARMS.values(), ids=SWARMS)
def test_a_swarm_of_small_parts_is_refused_before_it_fills_the_memory(
    tmp_path, monkeypatch, content, what
):
    # As it would be in a file of more than 32 MiB, in less time.
    monkeypatch.setattr(base, "_ALLOWED_BYTES", 2**18)
    path = file_of(tmp_path, content)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=rf"{what} of \d+ bytes in a file of"):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20 + 4 * path.stat().st_size
    finally:
        tracemalloc.stop()


OTHERS = {
    "onnx": b"\x08\x08\x12\x04spox\x3a\x02\x12\x00",
    "graph of TensorFlow": length_delimited(1, b"\n\x01x\x12\x05Const") * 2
    + b"\x22\x03\x08\xb1\x05",
    "saved model": b"\x08\x01" + length_delimited(2, b"\n\x05serve"),
    "mean image": PACKED_CLASSES["Blob"](**blob(BIAS, (1, 1, 1, 3))).SerializeToString(),
    "solver state": b"\x08\x64" + length_delimited(2, b"net.caffemodel"),
    "solver state without a step": length_delimited(2, b"net.caffemodel") + b"\x1a\x00",
    "text": b"\n# the weights of a network\n\x12\x34",
    "empty": b"",
    "zeros": bytes(1000),
    "a name alone": length_delimited(1, b"net"),
    "a layer without a name": net([("", "Scale", [blob(BIAS)])]),
}


@pytest.mark.parametrize("content", OTHERS.values(), ids=OTHERS)
def test_other_files_are_not_taken_for_caffe(tmp_path, content):
    path = tmp_path / "other"
    path.write_bytes(content)
    assert not matches(content[:1024], path)


def test_nothing_there_and_a_folder_there(tmp_path):
    assert not matches(b"", tmp_path)
    assert not matches(example(), tmp_path / "absent")
    for function in (read, inspect):
        with pytest.raises(ReferenceNotFoundError, match="absent"):
            function(tmp_path / "absent")
        with pytest.raises(FormatError):
            function(tmp_path)


NETWORK = """
name: 'net'
layer { name: "data" type: "Data" top: "data" include { phase: TRAIN } }
layer { name: "conv1" type: "Convolution" convolution_param { num_output: 3 kernel_size: 1 } }
"""


def test_the_network_beside_the_weights_is_looked_at(tmp_path):
    path = file_of(tmp_path, example())
    (tmp_path / "net.prototxt").write_text(NETWORK.replace("conv1", "conv2"))
    with pytest.raises(FormatError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert f"{tmp_path / 'net.prototxt'}, found none for:\n ! conv2: Convolution" in str(
        caught.value
    )
    (tmp_path / "right.prototxt").write_text(NETWORK)
    assert list(read(path, tmp_path / "right.prototxt")) == ["conv1/0", "conv1/1"]


def test_layers_that_only_the_weights_have_are_read_and_marked(tmp_path):
    path = file_of(tmp_path, example() + net([("aux", "InnerProduct", [blob(DENSE)])], "net"))
    (tmp_path / "net.prototxt").write_text(NETWORK)
    assert list(read(path)) == ["conv1/0", "conv1/1", "aux/0"]
    assert inspect(path).metadata == {
        "network": "net",
        "conv1/type": "Convolution",
        "aux/type": "InnerProduct, not in net.prototxt",
    }


def test_layers_of_some_phases_need_not_be_in_the_weights(tmp_path):
    path = file_of(tmp_path, example())
    layer = 'layer { name: "x" type: "Convolution" %s { phase: TEST } }'
    (tmp_path / "net.prototxt").write_text(NETWORK + layer % "include" + layer % "exclude")
    assert len(read(path)) == 2


@pytest.mark.parametrize(
    "network",
    [
        'layer { name: "a" type: "InnerProduct" }',
        'layers { name: "a" type: INNER_PRODUCT }',
        'layers { layer { name: "a" type: "innerproduct" } bottom: "data" }',
    ],
)
def test_the_network_tells_types_that_the_weights_do_not(tmp_path, network):
    path = file_of(tmp_path, net([("a", "", [blob(DENSE, (1, 1, 2, 3))])]))
    assert read(path)["a/0"].shape == (1, 1, 2, 3)
    assert inspect(path).metadata["a/type"] == "unknown"
    (tmp_path / "net.prototxt").write_text(network)
    assert read(path)["a/0"].shape == (2, 3)
    assert inspect(path).metadata["a/type"] == "InnerProduct"


def test_the_network_that_is_named_must_be_there(tmp_path):
    with pytest.raises(ReferenceNotFoundError, match=r"absent\.prototxt"):
        read(file_of(tmp_path, example()), tmp_path / "absent.prototxt")


def test_the_text_format(tmp_path):
    path = tmp_path / "a.prototxt"
    path.write_bytes(
        rb"""# A comment { in Latin-1: """
        + "é".encode("latin-1")
        + """
        name: "a \\"b\\" # é" 'c\\303\\251'  # Pieces of one text.
        layer { dim: 1, dim: -2.5e3; on: true param < kind: MAX > param: {} }
        list: [1, 2, "three"]
        empty: []
        messages: [{ a: 1 }, <b: 2>]
        """.encode()
    )
    assert read_prototxt(path) == {
        "name": ['a "b" # écé'],
        "layer": [{"dim": ["1", "-2.5e3"], "on": ["true"], "param": [{"kind": ["MAX"]}, {}]}],
        "list": ["1", "2", "three"],
        "empty": [],
        "messages": [{"a": ["1"]}, {"b": ["2"]}],
    }


WRONG_TEXTS = {
    "layer {": "byte 7: '', where a field's name was expected",
    "layer }": "byte 0: 'layer' without a value",
    "name:": "byte 5: '', where a value was expected",
    'name: "a': "byte 6: '\"a', which is no token",
    "  a: 1 }": "byte 7: '}', where a field's name was expected",
    "a { b: 1 >": "byte 9: '>', where a field's name was expected",
    "a: [1": "byte 5: '', where a value was expected",
    '"a": 1': "byte 0: '\"a\"', where a field's name was expected",
    "a: 1 $": "byte 5: '\\$', which is no token",
    "a {" * 200: "more than 100 deep",
    "layer: 1": "'1', where a layer in braces was expected",
    "layer { name { } }": "a layer whose name is",
    'layers { layer: "a" }': "a layer whose layer is",
    "# nothing": "no layer",
}


@pytest.mark.parametrize(("text", "found"), WRONG_TEXTS.items())
def test_a_network_that_is_none_is_a_format_error(tmp_path, text, found):
    path = file_of(tmp_path, example())
    (tmp_path / "net.prototxt").write_text(text)
    with pytest.raises(FormatError, match=rf"net\.prototxt: .*{found}"):
        read(path)


@given(st.text(st.sampled_from("ab:{}<>[],;\"'\\#\n 1é\0")))
def test_any_text_is_parsed_or_is_a_format_error(text):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        path.write_text(text)
        try:
            read_prototxt(path)
        except FormatError as error:
            assert os.fspath(path) in str(error)


def test_real_weights(real_data):
    folder = real_data / "weights" / "ultraface_slim"
    path = folder / "slim-320.caffemodel"
    if not path.exists():
        pytest.skip(f"no {path.name} in {real_data}")
    assert matches(path.read_bytes()[:1024], path)
    found, inspection = read(path), inspect(path)
    assert len(found) == len(inspection.tensors) == 84
    assert inspection.parameters == sum(array.size for array in found.values()) == 257_916
    assert found["185/0"].shape == (16, 3, 3, 3) and found["185/1"].shape == (16,)
    assert inspection.metadata["185/type"] == "Convolution"
    # The blobs that OpenCV 4.14 (cv2.dnn.readNetFromCaffe) has for these layers, in its order.
    values = b"".join(array.tobytes() for array in found.values())
    assert hashlib.sha256(values).hexdigest() == (
        "5000e95b0287200e9013555b448d489a7db569a6c819aca1d1eb9140104d86db"
    )


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("ultraface_slim/slim-320.prototxt", 96),
        ("squeezenet_v1.0_deepcompression/SqueezeNet_deploy.prototxt", 65),
        ("squeezenet_v1.1_keras_notop/squeezenet_v1.1_deploy.prototxt", 67),
    ],
)
def test_real_networks(real_data, name, layers):
    path = real_data / "weights" / name
    if not path.exists():
        pytest.skip(f"no {path.name} in {real_data}")
    assert len(read_prototxt(path)["layer"]) == layers
