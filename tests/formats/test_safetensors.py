from __future__ import annotations

import functools
import json
import struct
import tempfile
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file

from jaxtransfer.errors import FormatError, OutputError, ReferenceNotFoundError
from jaxtransfer.formats.safetensors import DTYPES, inspect, read, write

NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8
).filter(lambda name: name != "__metadata__")


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    """Any bits in any dtype of the format, NaNs with payloads included, in any memory order."""
    dtype = draw(st.sampled_from(list(DTYPES.values())))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    size = int(np.prod(shape)) * dtype.itemsize
    values = draw(hnp.arrays(np.uint8, size, elements=st.integers(0, 255)))
    if dtype == np.bool_:
        values = values % 2
    return values.view(dtype).reshape(shape).copy(order="F" if draw(st.booleans()) else "C")


def file_of(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(dtype: str, shape: list[int], end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}


@functools.cache
def example() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        flat = {"conv.weight": np.arange(24.0).reshape(2, 3, 4), "n": np.int32(7)}
        write(flat, path, {"format": "pt"})
        return path.read_bytes()


@given(st.dictionaries(NAMES, arrays(), max_size=4), st.dictionaries(NAMES, NAMES, max_size=2))
def test_what_is_written_reads_back_bit_for_bit(flat, metadata):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        write(flat, path, metadata)
        found, inspection = read(path), inspect(path)
    assert found.keys() == flat.keys()
    assert inspection.metadata == metadata
    assert [tensor.name for tensor in inspection.tensors] == list(found)
    for info in inspection.tensors:
        before, after = flat[info.name], found[info.name]
        assert after.dtype == before.dtype and info.dtype == before.dtype.name
        assert after.shape == before.shape == info.shape
        assert after.tobytes() == before.tobytes()
        assert info.bytes == before.nbytes


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_dtype_keeps_its_name(tmp_path, dtype):
    write({"w": np.ones((2, 3), np.float32).astype(dtype)}, tmp_path / "a")
    assert read(tmp_path / "a")["w"].dtype == dtype
    assert inspect(tmp_path / "a").tensors[0].dtype == dtype.name


def test_the_callers_dict_and_arrays_stay_as_they_are(tmp_path):
    transposed = np.arange(6.0).reshape(2, 3).T
    flat = {"jax": jnp.ones(3), "t": transposed, "big": np.arange(3, dtype=">f4")}
    before = dict(flat)
    write(flat, tmp_path / "a")
    assert flat.keys() == before.keys()
    assert all(flat[name] is before[name] for name in before)
    assert not transposed.flags.c_contiguous
    found = read(tmp_path / "a")
    np.testing.assert_array_equal(found["t"], transposed)
    np.testing.assert_array_equal(found["big"], [0, 1, 2])
    np.testing.assert_array_equal(found["jax"], np.ones(3))


def test_arrays_are_views_of_the_file_that_nobody_can_write_through(tmp_path):
    write({"a": np.zeros(2), "b": np.zeros(2)}, tmp_path / "a")
    found = read(tmp_path / "a")
    before = (tmp_path / "a").read_bytes()
    for array in found.values():
        assert not array.flags.owndata
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 1
    assert (tmp_path / "a").read_bytes() == before


def test_float4_stays_packed_two_values_to_a_byte(tmp_path):
    (tmp_path / "a").write_bytes(file_of({"w": tensor("F4", [2, 4], 4)}, b"1234"))
    found, inspection = read(tmp_path / "a"), inspect(tmp_path / "a")
    np.testing.assert_array_equal(found["w"], np.frombuffer(b"1234", np.uint8).reshape(2, 2))
    assert inspection.tensors[0].shape == (2, 2) and inspection.tensors[0].dtype == "uint8"
    assert "w" in inspection.metadata["packed float4_e2m1fn, two values a byte"]
    (tmp_path / "b").write_bytes(file_of({"odd": tensor("F4", [2, 1], 1)}, b"1"))
    with pytest.raises(FormatError, match="odd of F4 with the shape .* not even"):
        inspect(tmp_path / "b")


def test_a_header_that_would_take_far_more_memory_than_the_file_is_refused(tmp_path):
    empty = {f"{i:x}": tensor("U8", [0], 0) for i in range(60_000)}
    (tmp_path / "a").write_bytes(file_of(empty))
    with pytest.raises(FormatError, match=r"byte 0: a header of \d+ bytes, once parsed"):
        inspect(tmp_path / "a")


def test_equal_arrays_and_metadata_give_equal_files(tmp_path):
    metadata = {f"key {i}": '\x00\x1f\x7f"\\/é\n' for i in range(9)}
    for name in "ab":
        write({"v": np.ones(3), "w": np.zeros(2)}, tmp_path / name, metadata)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert inspect(tmp_path / "a").metadata == metadata


DAMAGED = {
    "empty": b"",
    "short": b"abc",
    "garbage": b"\xff" * 100,
    "oversized header": struct.pack("<Q", 10**7) + b"{}",
    "absurd header": struct.pack("<Q", 2**63) + b"{}",
    "no JSON": file_of(b'{"a'),
    "no UTF-8": file_of(b'{"\xff":1}'),
    "a list": file_of([]),
    "missing data": file_of({"a": tensor("F32", [2], 8)}, b"1234"),
    "data left over": file_of({"a": tensor("F32", [1], 4)}, b"12345678"),
    "wrong size": file_of({"a": tensor("F32", [3], 4)}, b"1234"),
    "overlap": file_of({"a": tensor("F32", [1], 4), "b": tensor("F32", [1], 4)}, b"1234"),
    "unknown dtype": file_of({"a": tensor("F7", [1], 4)}, b"1234"),
    "negative shape": file_of({"a": tensor("F32", [-1], 4)}, b"1234"),
    "huge shape": file_of({"a": tensor("F32", [2**40, 2**40], 4)}, b"1234"),
    "metadata that is no text": file_of({"__metadata__": {"a": 1}}),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_a_format_error_that_names_it(tmp_path, content):
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(content)
    for function in (read, inspect):
        with pytest.raises(
            FormatError, match=r"damaged\.safetensors: expected .*found at byte \d+: \S"
        ):
            function(path)


def test_a_dtype_without_array_form_is_named(tmp_path):
    header = {"w": tensor("F6_E2M3", [4], 3), "x": {**tensor("U8", [1], 4)}}
    header["x"]["data_offsets"] = [3, 4]
    (tmp_path / "a").write_bytes(file_of(header, b"1234"))
    with pytest.raises(FormatError, match="byte 8: w of F6_E2M3, where BOOL"):
        read(tmp_path / "a")


def test_every_truncation_is_a_format_error(tmp_path):
    content = example()
    path = tmp_path / "a"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(FormatError):
            read(path)


@settings(max_examples=300)
@given(st.data())
def test_a_mutated_file_is_read_or_is_a_format_error(data):
    content = bytearray(example())
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.sampled_from([len(content), len(content) - 1, 40]))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        path.write_bytes(content)
        try:
            read(path)
        except FormatError as error:
            assert str(path) in str(error)


def test_nothing_there_and_a_folder_there(tmp_path):
    with pytest.raises(ReferenceNotFoundError, match="absent"):
        read(tmp_path / "absent")
    with pytest.raises(FormatError):
        read(tmp_path)


def test_what_has_no_place_in_the_format_is_told_at_once_and_nothing_is_written(tmp_path):
    flat = {
        "four": np.ones(2, ml_dtypes.int4),
        "wide": np.ones(2, np.complex128),
        "text": np.array(["a"]),
        "__metadata__": np.ones(2),
    }
    with pytest.raises(OutputError) as caught:
        write(flat, tmp_path / "a", {"epoch": 3})  # pyright: ignore[reportArgumentType]
    assert all(f" ! {name}" in str(caught.value) for name in flat)
    assert "metadata 'epoch': expected text, found 3" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_path_that_cannot_be_written(tmp_path):
    (tmp_path / "file.txt").write_text("")
    for path in (tmp_path / "file.txt" / "x", tmp_path / "absent" / "x", tmp_path):
        with pytest.raises(OutputError, match=str(path)):
            write({"w": np.ones(2)}, path)


def test_real_weights(real_data):
    path = real_data / "weights" / "silero_vad_safetensors_onnx" / "silero_vad_16k.safetensors"
    if not path.exists():
        pytest.skip(f"no {path.name} in {real_data}")
    flat, inspection = read(path), inspect(path)
    assert len(flat) == len(inspection.tensors) == 15
    assert inspection.parameters == sum(array.size for array in flat.values()) == 309_633
    assert flat["stft_conv.weight"].shape == (258, 1, 256)
    for name, array in load_file(path).items():
        assert array.tobytes() == flat[name].tobytes()
