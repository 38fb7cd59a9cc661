from __future__ import annotations

import contextlib
import functools
import io
import tempfile
import tracemalloc
import warnings
import zipfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxtransfer.errors import FormatError, OutputError, ReferenceNotFoundError
from jaxtransfer.formats.npz import inspect, matches, read, write

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
PLAIN = [np.dtype(name) for name in ("?", "u1", "i4", "u8", "f2", "f4", "f8", "c8", "c16")]


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    """Any bits in any dtype that the format can hold, in any memory order."""
    dtype = draw(st.sampled_from([BFLOAT16, *PLAIN]))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    size = int(np.prod(shape)) * dtype.itemsize
    values = draw(hnp.arrays(np.uint8, size, elements=st.integers(0, 255)))
    if dtype == np.bool_:
        values = values % 2
    return values.view(dtype).reshape(shape).copy(order="F" if draw(st.booleans()) else "C")


def npy(array: np.ndarray, *, allow_pickle: bool = False) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, allow_pickle=allow_pickle)
    return stream.getvalue()


def archive_of(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@functools.cache
def example(compressed: bool) -> bytes:
    stream = io.BytesIO()
    save = np.savez_compressed if compressed else np.savez
    save(stream, **{"Transformer/w": np.arange(24.0).reshape(2, 3, 4), "n": np.int32(7)})
    return stream.getvalue()


@given(st.dictionaries(NAMES, arrays(), max_size=4))
def test_what_is_written_reads_back_bit_for_bit(flat):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.npz"
        write(flat, path)
        found, inspection = read(path), inspect(path)
    assert list(found) == list(flat) == [tensor.name for tensor in inspection.tensors]
    for info in inspection.tensors:
        before, after = flat[info.name], found[info.name]
        assert after.dtype == before.dtype and info.dtype == before.dtype.name
        assert after.shape == before.shape == info.shape
        assert after.tobytes() == before.tobytes()
        assert info.bytes == before.nbytes


def test_bfloat16_that_numpy_wrote_without_a_type_reads_as_bfloat16(tmp_path):
    values = np.arange(6).reshape(2, 3).astype(BFLOAT16)
    np.savez(tmp_path / "a.npz", **{"params/img/kernel": values})  # pyright: ignore[reportArgumentType]
    found = read(tmp_path / "a.npz")["params/img/kernel"]
    assert found.dtype == BFLOAT16
    np.testing.assert_array_equal(found.astype(np.float32), values.astype(np.float32))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_wrote_reads_as_numpy_reads_it(tmp_path: Path, save: Any):
    flat: dict[str, Any] = {
        "f": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big": np.arange(3, dtype=">i4"),
        "both": np.asfortranarray(np.arange(6, dtype=">f8").reshape(2, 3)),
        "large": np.arange(400_000),
    }
    save(tmp_path / "a.npz", **flat)
    found = read(tmp_path / "a.npz")
    for name, array in flat.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype.isnative


def test_numpy_reads_what_is_written_and_names_may_be_those_of_its_arguments(tmp_path):
    flat = {"file": np.ones(2), "a/b": np.arange(3)}
    write(flat, tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as found:
        assert sorted(found.files) == sorted(flat)
        np.testing.assert_array_equal(found["a/b"], [0, 1, 2])


def test_equal_arrays_give_equal_files(tmp_path):
    for name in "ab":
        write({"w": np.ones(2), "v": jnp.ones(2)}, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_callers_dict_and_arrays_stay_as_they_are(tmp_path):
    flat = {"jax": jnp.ones(3), "t": np.arange(6.0).reshape(2, 3).T}
    before = dict(flat)
    write(flat, tmp_path / "a")
    assert all(flat[name] is before[name] for name in before)
    assert not before["t"].flags.c_contiguous  # pyright: ignore[reportAttributeAccessIssue]


def test_a_file_that_python_2_wrote_reads_without_a_warning(tmp_path):
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2L,), }\n"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = read(archive_of(tmp_path / "a", {"w.npy": content}))
    assert found["w"].shape == (2,)


def test_objects_are_never_unpickled(tmp_path):
    content = npy(np.array([{"a": 1}], dtype=object), allow_pickle=True)
    for function in (read, inspect):
        with pytest.raises(FormatError, match="in 'w': Python objects"):
            function(archive_of(tmp_path / "a", {"w.npy": content}))


STRANGE = {
    "float8 without a type": npy(np.ones(2, ml_dtypes.float8_e4m3fn)),
    "fields": npy(np.zeros(2, [("a", "f4"), ("b", "i4")])),
    "no header": b"abc",
    "nothing": b"",
    "too few values": npy(np.ones(4))[:-1],
    "too many values": npy(np.ones(4)) + b"x",
    "negative shape": npy(np.ones(4))
    .replace(b"(4,)", b"(-4,)"[:5].ljust(4))
    .replace(b"4,) ", b"4,)"),
    "huge shape": npy(np.ones(4)).replace(b"(4,), }      ", b"(4444444,), }"),
}


@pytest.mark.parametrize("content", STRANGE.values(), ids=STRANGE)
def test_a_member_that_is_no_array_of_numbers_is_a_format_error(tmp_path, content):
    path = archive_of(tmp_path / "a.npz", {"good.npy": npy(np.ones(2)), "bad.npy": content})
    for function in (read, inspect):
        with pytest.raises(FormatError, match=r"a\.npz: .*at byte \d{3}: in 'bad': "):
            function(path)


def test_other_members_are_named(tmp_path):
    path = archive_of(tmp_path / "a", {"w.npy": npy(np.ones(2)), "data.pkl": b""})
    with pytest.raises(FormatError, match=r"data\.pkl"):
        read(path)
    assert not matches(path.read_bytes()[:1024], path)


def test_repeated_members_are_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "a", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("w.npy", npy(np.ones(2)))
        archive.writestr("w.npy", npy(np.zeros(2)))
    with pytest.raises(FormatError, match=r"byte 0: the repeated member 'w\.npy'"):
        read(tmp_path / "a")


def test_a_changed_value_is_found_by_its_checksum(tmp_path):
    content = bytearray(example(False))
    position = content.find(np.float64(5).tobytes())
    content[position + 7] ^= 1
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(FormatError, match=r"in 'Transformer/w': .*CRC"):
        read(tmp_path / "a")


def test_no_flipped_bit_of_the_directory_changes_what_is_read(tmp_path):
    path = archive_of(tmp_path / "a", {"a.npy": npy(np.ones(2)), "b.npy": npy(np.zeros(3))})
    content = path.read_bytes()
    before = {name: array.tobytes() for name, array in read(path).items()}
    for position in range(8 * content.find(b"PK\x01\x02"), 8 * len(content)):
        mutated = bytearray(content)
        mutated[position // 8] ^= 1 << position % 8
        path.write_bytes(mutated)
        with contextlib.suppress(FormatError):
            assert {name: array.tobytes() for name, array in read(path).items()} == before


def entry_of(content: bytes, name: bytes) -> int:
    """Where the archive's directory has the entry of a member."""
    return content.rfind(name) - 46


def test_a_directory_that_swallows_or_loses_members_is_a_format_error(tmp_path):
    content = archive_of(
        tmp_path / "a", {"first.npy": npy(np.ones(2)), "second.npy": npy(np.ones(3))}
    ).read_bytes()
    swallowing = bytearray(content)
    first, second = entry_of(content, b"first.npy"), entry_of(content, b"second.npy")
    swallowing[first + 32 : first + 34] = (46 + len("second.npy")).to_bytes(2, "little")
    losing = bytearray(content)
    losing[-10:-2] = bytes(8)  # The directory's size and its position.
    assert 0 < first < second
    for mutated, found in ((swallowing, "within that of 'first.npy'"), (losing, "no member")):
        (tmp_path / "a").write_bytes(mutated)
        for function in (read, inspect):
            with pytest.raises(FormatError, match=rf"at byte 0: .*{found}"):
                function(tmp_path / "a")


def test_a_bomb_is_refused_before_it_goes_off(tmp_path):
    path = tmp_path / "a"
    np.savez_compressed(path, w=np.zeros(2**24, np.float32))
    path = path.with_suffix(".npz")
    assert path.stat().st_size < 2**20
    tracemalloc.start()
    try:
        for function in (read, inspect):
            with pytest.raises(FormatError, match=r"unpacked members of 671\d+ bytes in a file of"):
                function(path)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_members_within_members_are_a_format_error(tmp_path):
    inner = npy(np.ones(2))
    archive_of(tmp_path / "inner", {"b.npy": inner})
    packed = (tmp_path / "inner").read_bytes()
    archive_of(tmp_path / "a", {"a.npy": packed, "b.npy": inner})
    content = bytearray((tmp_path / "a").read_bytes())
    entry = entry_of(bytes(content), b"b.npy")
    content[entry + 42 : entry + 46] = content.find(packed).to_bytes(4, "little")
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(FormatError, match=r"at byte 35: 'b\.npy' within 'a\.npy'"):
        read(tmp_path / "a")


def test_other_methods_and_encrypted_members_are_told(tmp_path):
    path = tmp_path / "a"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("w.npy", npy(np.ones(2)))
    with pytest.raises(FormatError, match=r"at byte 0: 'w\.npy' compressed by method 14"):
        read(path)
    content = bytearray(archive_of(path, {"w.npy": npy(np.ones(2))}).read_bytes())
    for flags in (6, entry_of(bytes(content), b"w.npy") + 8):
        content[flags] |= 1
    path.write_bytes(content)
    with pytest.raises(FormatError, match="at byte 0: in 'w': .*encrypted"):
        read(path)


def test_a_member_before_the_first_byte_is_told_at_a_byte(tmp_path):
    path = archive_of(tmp_path / "a", {"data.pkl": b""})
    content = bytearray(path.read_bytes())
    content[-6] += 1  # Where the directory begins: everything else seems to lie a byte before.
    path.write_bytes(content)
    for function in (read, inspect):
        with pytest.raises(FormatError, match=r"byte 0: .*'data\.pkl' before the file's first"):
            function(path)


def test_every_truncation_is_a_format_error(tmp_path):
    content = example(False)
    path = tmp_path / "a"
    for length in range(0, len(content), 3):
        path.write_bytes(content[:length])
        with pytest.raises(FormatError):
            read(path)


@settings(max_examples=400)
@given(st.data(), st.booleans())
def test_a_mutated_file_is_read_or_is_a_format_error(data, compressed):
    content = bytearray(example(compressed))
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        path.write_bytes(content)
        for function in (read, inspect):
            try:
                function(path)
            except FormatError as error:
                assert str(path) in str(error)


@settings(max_examples=200)
@given(st.data())
def test_a_mutated_header_is_read_or_is_a_format_error(data):
    content = bytearray(npy(np.arange(24.0).reshape(2, 3, 4)))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, 75))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = archive_of(Path(folder) / "a", {"w.npy": bytes(content)})
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
    flat = {"eight": np.ones(2, ml_dtypes.float8_e4m3fn), "four": np.ones(2, ml_dtypes.int4)}
    with pytest.raises(OutputError) as caught:
        write(flat, tmp_path / "a", {"epoch": "3"})
    assert all(f" ! {name}" in str(caught.value) for name in [*flat, "metadata: epoch"])
    assert not list(tmp_path.iterdir())


def test_a_path_that_cannot_be_written(tmp_path):
    (tmp_path / "file.txt").write_text("")
    for path in (tmp_path / "file.txt" / "x", tmp_path / "absent" / "x", tmp_path):
        with pytest.raises(OutputError, match=str(path)):
            write({"w": np.ones(2)}, path)


def test_real_weights(real_data):
    path = real_data / "weights" / "squeezenet_v1.0_deepcompression" / "decoded_float32.npz"
    if not path.exists():
        pytest.skip(f"no {path.name} in {real_data}")
    flat, inspection = read(path), inspect(path)
    with np.load(path) as expected:
        assert sorted(flat) == sorted(expected.files)
        for name in flat:
            assert flat[name].tobytes() == expected[name].tobytes()
            assert flat[name].shape == expected[name].shape
    assert inspection.parameters == sum(array.size for array in flat.values())
