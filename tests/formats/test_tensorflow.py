from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from jaxtransfer.errors import FormatError, ReferenceNotFoundError
from jaxtransfer.formats import base
from jaxtransfer.formats.tensorflow import inspect, matches, read
from tests.formats.table_files import (
    checksum,
    content_of,
    field,
    shape_of,
    slice_of,
    table_of,
    varint,
)

FIXTURES = Path(__file__).parent / "fixtures" / "tensorflow"
OBJECTS = "network/{}/.ATTRIBUTES/VARIABLE_VALUE"

FLOAT, INT32, STRING, INT64, BOOL, QINT8, HALF, VARIANT = 1, 3, 7, 9, 10, 11, 19, 21


def expected(prefix: str) -> dict[str, np.ndarray]:
    """What TensorFlow read from a checkpoint."""
    with np.load(FIXTURES / "expected.npz") as archive:
        keys = [key.split(" ") for key in archive if key.startswith(f"{prefix} ")]
        return {
            name: archive[f"{prefix} {name} {dtype}"].view(np.dtype(dtype))
            for _, name, dtype in keys
        }


def assert_same(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape, name
        assert found[name].tobytes() == array.tobytes(), name


def assert_inspected(path: Path, found: Mapping[str, np.ndarray]) -> None:
    inspection = inspect(path)
    assert inspection.path == path and inspection.format == "tensorflow"
    assert [
        (tensor.name, tensor.shape, tensor.dtype, tensor.bytes) for tensor in inspection.tensors
    ] == [(name, array.shape, array.dtype.name, array.nbytes) for name, array in found.items()]


@pytest.mark.parametrize("prefix", ["kinds", "parts", "shards", "objects/ckpt-1"])
def test_bundles_are_read_as_tensorflow_reads_them(prefix):
    wanted = expected(prefix)
    assert wanted
    for path in (FIXTURES / prefix, FIXTURES / f"{prefix}.index"):
        found = read(path)
        assert_same(found, wanted)
        assert list(found) == sorted(wanted)
        assert_inspected(path, found)


@pytest.mark.parametrize(
    ("name", "prefix", "count"),
    [
        ("version1", "kinds", 14),
        ("version1_parts", "parts", 3),
        ("sharded", "parts", 3),
        ("sharded-00000-of-00002", "parts", 3),
        ("sharded-00001-of-00002", "parts", 3),
    ],
)
def test_the_first_version_has_the_same_values(name, prefix, count):
    found, wanted = read(FIXTURES / name), expected(prefix)
    assert_same(found, {key: wanted[key] for key in found})
    assert len(found) == count
    assert_inspected(FIXTURES / name, found)


@pytest.mark.parametrize("name", ["kinds", "version1"])
def test_plain_values_are_views_of_the_file_that_nobody_can_write_through(name):
    kernel = read(FIXTURES / name)["kernel"]
    assert not kernel.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        kernel[:] = 0


def test_text_and_the_names_of_variables_are_metadata():
    metadata = inspect(FIXTURES / "objects").metadata
    assert json.loads(metadata["full_names"]) == {
        OBJECTS.format("kernel"): "dense/kernel",
        OBJECTS.format("note"): "note",
        OBJECTS.format("words"): "words",
        "save_counter/.ATTRIBUTES/VARIABLE_VALUE": "save_counter",
    }
    assert metadata[OBJECTS.format("note")] == "a note"
    assert metadata[OBJECTS.format("words")] == "text of shape [2]"
    assert metadata["_CHECKPOINTABLE_OBJECT_GRAPH"] == "the object graph, 380 bytes"
    assert len(metadata) == 4
    assert inspect(FIXTURES / "version1").metadata == {"words": "text of shape [2]"}


@pytest.mark.parametrize(
    "name",
    ["kinds", "kinds.index", "kinds.data-00000-of-00001", "objects", "objects/checkpoint"]
    + ["version1", "sharded", "sharded-00001-of-00002"],
)
def test_every_way_to_name_a_checkpoint_is_known(name):
    path = FIXTURES / name
    assert matches(path.read_bytes()[:1024] if path.is_file() else b"", path)
    assert read(path)


def test_other_files_and_folders_are_not_taken_for_checkpoints(tmp_path):
    assert not matches(b"", tmp_path)
    (tmp_path / "checkpoint").write_bytes(b"\x81\xa6params\x80")
    (tmp_path / "network.onnx").write_bytes(b"\x08\x01\x12\x07pytorch\x3a\x02\x0a\x00")
    (tmp_path / "a.index").write_bytes(b"lines of text\n" * 9)
    (tmp_path / "net.caffemodel").write_bytes(b"\x0a\x06LeNet5\xa2\x06\x03\x0a\x01a")
    assert not matches(b"", tmp_path)
    for path in tmp_path.iterdir():
        assert not matches(path.read_bytes(), path)
    assert not matches(b"", tmp_path / "absent")
    assert not matches(b"", Path("\0"))
    with pytest.raises(FormatError, match=r"a\.index: .*found at byte 125: an end"):
        read(tmp_path / "a.index")
    with pytest.raises(ReferenceNotFoundError, match="absent"):
        read(tmp_path / "absent")


# Where checkpoints are found.


def copy(folder: Path, prefix: str, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in FIXTURES.glob(f"{prefix}*"):
        shutil.copy(path, folder / path.name.replace(prefix, name, 1))


def test_a_saved_model_is_a_folder_its_program_or_its_variables(tmp_path):
    copy(tmp_path / "variables", "parts", "variables")
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01\x12\x05\x0a\x03\x12\x01x")
    wanted = expected("parts")
    for name in ("", "saved_model.pb", "variables", "variables/variables"):
        assert matches((tmp_path / "saved_model.pb").read_bytes(), tmp_path / name)
        assert_same(read(tmp_path / name), wanted)
    shutil.rmtree(tmp_path / "variables")
    for name in ("", "saved_model.pb"):
        assert matches(b"", tmp_path / name)
        with pytest.raises(FormatError, match="expected a SavedModel with variables, found no"):
            read(tmp_path / name)


@pytest.mark.parametrize("named", ["b", "/where/it/was/b", "./b"])
def test_the_file_checkpoint_names_the_latest(tmp_path, named):
    copy(tmp_path, "parts", "a")
    copy(tmp_path, "shards", "b")
    with pytest.raises(FormatError, match=r"found 2 checkpoints: a\.index, b\.index; name one"):
        read(tmp_path)
    (tmp_path / "checkpoint").write_text(
        f'model_checkpoint_path: "{named}"\nall_model_checkpoint_paths: "a"\n'
    )
    assert_same(read(tmp_path), expected("shards"))
    assert_same(read(tmp_path / "checkpoint"), expected("shards"))


@pytest.mark.parametrize(
    ("named", "found"),
    [("c", "found 'c', of which there are no files"), ("../b", "'../b', which leads out of")],
)
def test_a_checkpoint_that_is_not_in_the_folder_is_not_read(tmp_path, named, found):
    copy(tmp_path / "inside", "parts", "a")
    copy(tmp_path, "parts", "b")
    (tmp_path / "inside" / "checkpoint").write_text(f'model_checkpoint_path: "{named}"')
    assert matches(b"", tmp_path / "inside")
    with pytest.raises(FormatError, match=found):
        read(tmp_path / "inside")


def test_the_only_index_of_a_folder_is_read(tmp_path):
    copy(tmp_path, "shards", "a")
    assert_same(read(tmp_path), expected("shards"))


def test_data_files_that_are_missing_or_elsewhere_are_not_read(tmp_path):
    copy(tmp_path / "inside", "shards", "a")
    data = tmp_path / "inside" / "a.data-00001-of-00002"
    data.rename(tmp_path / "outside")
    for function in (read, inspect):
        with pytest.raises(ReferenceNotFoundError, match=r"a\.data-00001-of-00002"):
            function(tmp_path / "inside")
    data.symlink_to(tmp_path / "outside")
    with pytest.raises(FormatError, match="which leads out of the folder"):
        read(tmp_path / "inside")
    shutil.copy(FIXTURES / "sharded-00000-of-00002", tmp_path / "inside" / "b-00000-of-00002")
    (tmp_path / "inside" / "b-00001-of-00002").symlink_to(FIXTURES / "sharded-00001-of-00002")
    with pytest.raises(FormatError, match="'b-00001-of-00002', which leads out of the folder"):
        read(tmp_path / "inside" / "b")


def test_all_shards_of_the_first_version_must_be_there(tmp_path):
    shutil.copy(FIXTURES / "sharded-00001-of-00002", tmp_path / "a-00001-of-00002")
    for function in (read, inspect):
        with pytest.raises(ReferenceNotFoundError, match="a-00000-of-00002"):
            function(tmp_path / "a")


def test_a_file_with_a_number_that_cannot_be_is_read_alone(tmp_path):
    for name in ("a-00000-of-00000", "a-00002-of-00002"):
        shutil.copy(FIXTURES / "version1_parts", tmp_path / name)
        assert_same(read(tmp_path / name), expected("parts"))
        assert_inspected(tmp_path / name, expected("parts"))


def test_an_index_under_another_name_cannot_name_its_data(tmp_path):
    shutil.copy(FIXTURES / "kinds.index", tmp_path / "renamed")
    with pytest.raises(FormatError, match=r"expected a name that ends in \.index"):
        read(tmp_path / "renamed")


def test_a_graph_without_variables_is_explained():
    path = FIXTURES / "frozen.pb"
    assert matches(path.read_bytes(), path)
    for function in (read, inspect):
        with pytest.raises(FormatError, match="found at byte 0: a TensorFlow graph"):
            function(path)


@pytest.mark.parametrize("name", ["quantized.index", "version1_quantized"])
def test_a_quantized_tensor_is_named(name):
    for function in (read, inspect):
        with pytest.raises(
            FormatError, match=r"expected tensors of float32, .*\n ! q: at byte \d+: qint8"
        ):
            function(FIXTURES / name)


# The second version, byte by byte.


def header(shards: int = 1, **fields: int) -> bytes:
    return field(1, shards) + b"".join(field(2, value) for value in fields.values())


def entry(
    values: bytes = b"1234",
    *,
    kind: int = FLOAT,
    shape: tuple[int, ...] = (1,),
    shard: int = 0,
    offset: int = 0,
    size: int | None = None,
    slices: tuple[bytes, ...] = (),
) -> bytes:
    message = field(1, kind) + field(2, shape_of(shape)) + field(3, shard) + field(4, offset)
    message += field(5, len(values) if size is None else size)
    message += varint(6 << 3 | 5) + checksum(values)
    return message + b"".join(field(7, part) for part in slices)


def bundle(folder: Path, pairs: Mapping[bytes, bytes], data: bytes = b"1234") -> Path:
    path = folder / "made.index"
    path.write_bytes(table_of({b"": header(), **dict(sorted(pairs.items()))}))
    (folder / "made.data-00000-of-00001").write_bytes(data)
    return path


def test_a_bundle_made_here_is_read(tmp_path):
    path = bundle(tmp_path, {b"a": entry(), b"b": entry(b"56", kind=HALF, offset=4)}, b"123456")
    found = read(path)
    assert found["a"].tobytes() == b"1234" and found["b"].tobytes() == b"56"


FULL = slice_of([None])
KEY_FULL = b"\0w\0\1\1\1\x80\x7f"  # The slice from 0, of length -1 (which means all).
KEY_FAR = b"\0w\0\1\1\1" + b"\xc0\x40" + b"\x81"  # From 64, of length 1.

WRONG = {
    "no number": ({b"w": entry(kind=77)}, r" ! w: at byte \d+: number 77"),
    "a negative shape": ({b"w": entry(shape=(-1,))}, r"'w' with the shape \(-1,\)"),
    "too many dimensions": ({b"w": entry(shape=(1,) * 65)}, "'w' with 65 dimensions"),
    "an unknown rank": (
        {b"w": field(1, FLOAT) + field(2, field(3, 1))},
        "'w' with the shape unknown",
    ),
    "too few bytes": ({b"w": entry(shape=(2,))}, r"'w' of 4 bytes for the shape \(2,\) of float32"),
    "a size beyond all": ({b"w": entry(shape=(2**62, 2**62))}, "'w' of 4 bytes for"),
    "beyond the end": ({b"w": entry(offset=1)}, "'w' in 4 bytes from byte 1 of the data file 0"),
    "before the start": ({b"w": entry(offset=-1)}, "'w' in 4 bytes from byte -1"),
    "nothing before the start": ({b"w": entry(b"", shape=(0,), offset=-1)}, "'w' in 0 bytes from"),
    "a negative size": ({b"w": entry(b"", kind=STRING, size=-1)}, "'w' in -1 bytes"),
    "no such data file": ({b"w": entry(shard=1)}, "of the data file 1"),
    "a negative data file": ({b"w": entry(shard=-1)}, "of the data file -1"),
    "an overlap": ({b"v": entry(), b"w": entry(b"23", kind=HALF, offset=1)}, "'w' in 2 bytes"),
    "no message": ({b"w": b"\x08"}, "no message of the kind BundleEntry"),
    "a name that is no text": ({b"\xff": entry()}, "the name b'\\\\xff', which is no text"),
    "a slice of nothing": ({KEY_FULL: entry()}, "the slice .* of no tensor"),
    "a missing slice": ({b"w": entry(b"", slices=(FULL,))}, "'w' without its slice"),
    "a slice of another dtype": (
        {KEY_FULL: entry(), b"w": entry(b"", kind=INT32, slices=(FULL,))},
        "'w' without its slice",
    ),
    "a slice of another shape": (
        {KEY_FULL: entry(), b"w": entry(b"", shape=(2,), slices=(FULL,))},
        "'w' without its slice",
    ),
    "a slice twice": (
        {KEY_FULL: entry(), b"w": entry(b"", slices=(FULL, FULL))},
        "'w' without its slice",
    ),
    "a slice beyond the tensor": (
        {KEY_FAR: entry(), b"w": entry(b"", shape=(64,), slices=(slice_of([(64, 1)]),))},
        r"'w' of the shape \(64,\) with the slice",
    ),
    "a slice of too many dimensions": (
        {b"w": entry(b"", slices=(slice_of([None] * 65),))},
        "'w' with a slice of 65 dimensions",
    ),
    "a slice of other dimensions": (
        {KEY_FULL: entry(), b"w": entry(b"", shape=(1, 1), slices=(FULL,))},
        r"'w' of the shape \(1, 1\) with the slice",
    ),
}


@pytest.mark.parametrize(("pairs", "found"), WRONG.values(), ids=WRONG)
def test_what_an_index_cannot_say_is_an_error_that_names_it(tmp_path, pairs, found):
    path = bundle(tmp_path, pairs)
    for function in (read, inspect):
        with pytest.raises(FormatError, match=rf"made\.index: expected (.|\n)*{found}") as caught:
            function(path)
        assert "at byte" in str(caught.value)


def test_slices_must_cover_their_tensor(tmp_path):
    far = entry(b"", shape=(65,), slices=(slice_of([(64, 1)]),))
    path = bundle(tmp_path, {KEY_FAR: entry(), b"w": far})
    assert inspect(path).tensors[0].shape == (65,)
    with pytest.raises(FormatError, match="'w' with slices that leave something out"):
        read(path)


def test_slices_must_not_overlap(tmp_path):
    both = entry(b"", shape=(65,), slices=(slice_of([None]), slice_of([(64, 1)])))
    whole = entry(b"0" * 260, shape=(65,), offset=4)
    path = bundle(tmp_path, {KEY_FULL: whole, KEY_FAR: entry(), b"w": both}, b"1234" + b"0" * 260)
    with pytest.raises(FormatError, match="'w' with slices that overlap"):
        read(path)


def test_a_slice_far_from_the_start_has_its_key(tmp_path):
    parts = (slice_of([(0, 64)]), slice_of([(64, 1)]))
    near = entry(b"0" * 256, shape=(64,), offset=4)
    pairs = {
        b"\0w\0\1\1\1" + b"\x80" + b"\xc0\x40": near,
        KEY_FAR: entry(),
        b"w": entry(b"", shape=(65,), slices=parts),
    }
    found = read(bundle(tmp_path, pairs, b"1234" + b"0" * 256))
    assert found["w"].tobytes() == b"0" * 256 + b"1234"


def test_tensors_in_slices_cannot_fill_the_memory(tmp_path):
    shape = (2**20, 2**20)
    whole = entry(b"", shape=shape, slices=(slice_of([(0, 1), (0, 1)]),))
    key = b"\0w\0\1\1\2" + b"\x80\x81" * 2
    path = bundle(tmp_path, {key: entry(shape=(1, 1)), b"w": whole})
    with pytest.raises(FormatError, match=r"tensors in slices of \d+ bytes in a file of"):
        read(path)


def test_many_tensors_cannot_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "_ALLOWED_BYTES", 2**20)
    nothing = entry(b"", shape=(0,))
    path = bundle(tmp_path, {b"%04d" % number: nothing for number in range(1000)})
    assert len(inspect(path).tensors) == 1000
    path = bundle(tmp_path, {b"%04d" % number: nothing for number in range(1300)})
    with pytest.raises(FormatError, match=r"tensors of \d+ bytes in a file of"):
        inspect(path)


def test_long_messages_cannot_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "_ALLOWED_BYTES", 2**20)
    path = bundle(tmp_path, {b"w": entry(b"", slices=(b"",) * 2**15)})
    with pytest.raises(FormatError, match=r"a message of \d+ bytes in a file of"):
        inspect(path)


def test_values_in_big_endian_order_are_refused(tmp_path):
    path = bundle(tmp_path, {})
    path.write_bytes(table_of({b"": header(endianness=1)}))
    with pytest.raises(FormatError, match="expected values in little-endian order"):
        read(path)


@pytest.mark.parametrize("pairs", [{}, {b"a": b"1"}, {b"": b""}])
def test_a_table_of_something_else_is_no_checkpoint(tmp_path, pairs):
    (tmp_path / "000005.ldb").write_bytes(table_of(pairs))
    with pytest.raises(FormatError, match="a table that does not begin as checkpoints do"):
        read(tmp_path / "000005.ldb")


def test_a_changed_value_is_an_error_that_names_its_tensor(tmp_path):
    copy(tmp_path, "parts", "a")
    data = tmp_path / "a.data-00000-of-00001"
    content = data.read_bytes()
    for position, name in [(0, "table"), (100, "long"), (len(content) - 1, "bias")]:
        changed = bytearray(content)
        changed[position] ^= 1
        data.write_bytes(changed)
        with pytest.raises(FormatError, match=r"data-00000-of-00001: .*byte \d+: ") as caught:
            read(tmp_path / "a")
        assert name in str(caught.value) and "checksum" in str(caught.value)
        assert inspect(tmp_path / "a").tensors  # Only the index is read for this.


def text_entry(text: bytes) -> tuple[bytes, bytes]:
    """The message and the values of a text of one piece: its length, a checksum of this, itself."""
    length = len(text).to_bytes(4, "little")
    values = checksum(length) + text
    message = field(1, STRING) + field(2, b"") + field(5, len(varint(len(text)) + values))
    return message + varint(6 << 3 | 5) + checksum(length + values), varint(len(text)) + values


def test_what_is_no_number_is_metadata(tmp_path):
    message, values = text_entry(b"one piece")
    variants = {b"u": entry(b"", kind=VARIANT, shape=()), b"v": entry(b"", kind=VARIANT)}
    path = bundle(tmp_path, {b"t": message, **variants}, values)
    assert inspect(path).metadata == {
        "t": "one piece",
        "u": "a variant of shape []",
        "v": "a variant of shape [1]",
    }
    assert inspect(path).tensors == () and read(path) == {}


@pytest.mark.parametrize(
    ("text", "shown"),
    [(b"", ""), (b"\xff", "\ufffd"), (b"x" * 2**20, "x" * 2**20)]
    + [(b"x" * (2**20 + 1), "text of shape []")],
    ids=["empty", "no UTF-8", "long", "too long"],
)
def test_text_is_shown_up_to_a_length(tmp_path, text, shown):
    message, values = text_entry(text)
    assert inspect(bundle(tmp_path, {b"t": message}, values)).metadata == {"t": shown}


def test_text_is_compared_with_its_checksum(tmp_path):
    message, values = text_entry(b"one piece")
    for position in (0, 1, len(values) - 1):
        changed = bytearray(values)
        changed[position] ^= 1
        with pytest.raises(FormatError, match="byte 0: 't' that does not have its checksum"):
            inspect(bundle(tmp_path, {b"t": message}, bytes(changed)))


def test_only_names_of_what_the_checkpoint_has_are_taken_from_its_object_graph(tmp_path):
    attributes = [(b"full", b"w"), (b"other", b"absent"), (b"", b"v")]
    node = b"".join(field(2, field(2, full) + field(3, key)) for full, key in attributes)
    message, values = text_entry(field(1, field(1, b"child")) + field(1, node))
    pairs = {b"_CHECKPOINTABLE_OBJECT_GRAPH": message}
    pairs |= {key: entry(b"", shape=(0,)) for key in (b"v", b"w")}
    metadata = inspect(bundle(tmp_path, pairs, values)).metadata
    assert json.loads(metadata["full_names"]) == {"w": "full"}


# The first version, byte by byte.


def saved(
    kind: int,
    shape: tuple[int, ...],
    values: bytes,
    *,
    name: bytes = b"w",
    part: bytes | None = None,
) -> dict[bytes, bytes]:
    """The pairs of a checkpoint with one tensor; `values` is the message that has them."""
    whole = slice_of([None] * len(shape)) if part is None else part
    listed = field(1, b"w") + field(2, shape_of(shape)) + field(3, kind) + field(4, whole)
    data = field(1, name) + field(2, whole) + field(3, values)
    return {b"": field(1, field(1, listed)), b"\0w": field(2, data)}


def slices_file(folder: Path, pairs: Mapping[bytes, bytes]) -> Path:
    path = folder / "made.ckpt"
    path.write_bytes(table_of(pairs))
    return path


@pytest.mark.parametrize("count", [0, 1, 70_000])
def test_long_lists_of_whole_numbers_are_read(tmp_path, count):
    values = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, count, np.int64, endpoint=True)
    values >>= np.random.default_rng(1).integers(0, 64, count)
    packed = b"".join(varint(int(value)) for value in values)
    found = read(slices_file(tmp_path, saved(INT64, (count,), field(10, packed))))
    np.testing.assert_array_equal(found["w"], values)


def test_a_scalar_of_the_first_version(tmp_path):
    found = read(slices_file(tmp_path, saved(BOOL, (), field(11, b"\1"))))["w"]
    assert found.shape == () and found.dtype == np.bool_ and found


FLOATS = field(5, b"12345678")
WRONG_SLICES = {
    "too few values": (saved(FLOAT, (3,), FLOATS), r"'w' with 8 bytes for the shape \(3,\)"),
    "no values": (saved(FLOAT, (2,), b""), "a message without just one field 5"),
    "values twice": (saved(FLOAT, (2,), FLOATS + FLOATS), "without just one field 5"),
    "values of another dtype": (saved(INT32, (2,), FLOATS), "without just one field 7"),
    "too few numbers": (saved(INT32, (2,), field(7, b"\1")), "number of values than the 2"),
    "too many numbers": (saved(INT32, (2,), field(7, b"\1\1\1")), "number of values than the 2"),
    "a number cut off": (saved(INT32, (2,), field(7, b"\1\x80")), "number of values than the 2"),
    "numbers cut off": (saved(INT32, (1,), field(7, b"\x80")), "number of values than the 1"),
    "a number too long": (saved(INT32, (1,), field(7, b"\x80" * 10 + b"\1")), "than the 1"),
    "an unknown name": (saved(FLOAT, (2,), FLOATS, name=b"v"), "slice of 'v', which is not in"),
    "a name that is no text": (saved(FLOAT, (2,), FLOATS, name=b"\xff"), "which is no text"),
    "a part": (saved(FLOAT, (3,), FLOATS, part=slice_of([(1, 2)])), "leave something out"),
    "a part beyond": (saved(FLOAT, (2,), FLOATS, part=slice_of([(1, 2)])), "with the slice"),
    "no part": ({**saved(FLOAT, (2,), b""), b"\0w": field(2, b"")}, "just one field 1"),
    "no slice": ({b"": saved(FLOAT, (2,), b"")[b""]}, "'w' without any slice"),
    "a slice twice": (
        {**saved(FLOAT, (2,), FLOATS), b"\0x": saved(FLOAT, (2,), FLOATS)[b"\0w"]},
        "'w' with slices that overlap",
    ),
    "no list": ({b"": field(2, b"")}, "without just one field 1"),
    "a tensor twice": ({b"": field(1, field(1, field(1, b"w")) * 2)}, "'w' twice"),
    "a quantized tensor": (saved(QINT8, (2,), FLOATS), "! w: at byte 3: qint8"),
    "a dtype without a field": (saved(14, (2,), FLOATS), "! w: at byte 3: bfloat16"),
    "a field of no kind": (saved(FLOAT, (2,), b"\x0b"), "a field of the unknown kind 3"),
    "a field beyond its message": (saved(FLOAT, (2,), b"\x2a\x09"), "field of 9 bytes, beyond"),
    "more than memory": (saved(INT64, (2**40,), field(10, b"\1")), "groups of seven bits of"),
    "more than memory in parts": (
        saved(FLOAT, (2**40,), FLOATS, part=slice_of([(0, 2)])),
        "tensors in slices of",
    ),
}


@pytest.mark.parametrize(("pairs", "found"), WRONG_SLICES.values(), ids=WRONG_SLICES)
def test_what_slices_cannot_say_is_an_error(tmp_path, pairs, found):
    with pytest.raises(FormatError, match=found) as caught:
        read(slices_file(tmp_path, pairs))
    assert "made.ckpt: expected" in str(caught.value) and "at byte" in str(caught.value)


def test_many_slices_cannot_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "_ALLOWED_BYTES", 2**20)
    pairs = saved(FLOAT, (0,), b"")
    for count in (1000, 1300):
        some = {b"\0w%04d" % number: pairs[b"\0w"] for number in range(count)}
        path = slices_file(tmp_path, {b"": pairs[b""], **some})
        if count == 1000:
            assert read(path)["w"].shape == (0,)
    with pytest.raises(FormatError, match=r"tensors of \d+ bytes in a file of"):
        read(path)


def test_shards_must_agree_about_a_tensor(tmp_path):
    for number, shape in enumerate([(2,), (2, 1)]):
        pairs = saved(FLOAT, shape, FLOATS)
        (tmp_path / f"a-0000{number}-of-00002").write_bytes(table_of(pairs))
    with pytest.raises(FormatError, match="a-00001-of-00002: .*'w' twice"):
        inspect(tmp_path / "a")


def test_a_compressed_checkpoint_of_the_first_version(tmp_path):
    compress = pytest.importorskip("pyarrow").compress
    zeros = field(5, bytes(4 * 10_000))
    block = content_of(saved(FLOAT, (10_000,), zeros))
    path = tmp_path / "made.ckpt"
    path.write_bytes(table_of(compress(block, codec="snappy", asbytes=True), kind=1))
    assert path.stat().st_size < 4000
    assert_same(read(path), {"w": np.zeros(10_000, np.float32)})


# Real files.


@pytest.mark.pretrained
def test_a_real_saved_model_is_read_as_tensorflow_reads_it(real_data):
    folder = real_data / "weights" / "mlperf_tiny_kws_savedmodel"
    found, inspection = read(folder), inspect(folder)
    digest = hashlib.sha256()
    for name, array in found.items():
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    # Computed from `tf.train.load_checkpoint`, names in order.
    assert len(found) == 141 and sum(array.size for array in found.values()) == 72429
    assert digest.hexdigest() == "6cad096258f2afbd4df2b4ce3f68a426295ebc69660913575a8d0fba6a7c1d7b"
    assert_inspected(folder, found)
    assert inspection.parameters == 72429
    names = json.loads(inspection.metadata["full_names"])
    assert names["layer_with_weights-18/kernel/.ATTRIBUTES/VARIABLE_VALUE"] == "dense/kernel"
    listed = json.dumps([list(pair) for pair in sorted(names.items())])
    assert hashlib.sha256(listed.encode()).hexdigest() == (
        "8456d9e284cb8c903b7c2bedb3b710c72116dc06b41dc5bed29cd19016edec47"
    )
