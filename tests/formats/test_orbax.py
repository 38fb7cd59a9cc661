from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore
from flax import traverse_util
from hypothesis import given, settings
from hypothesis import strategies as st
from orbax.checkpoint import v1

from jaxtransfer.errors import FormatError, OutputError, ReferenceNotFoundError
from jaxtransfer.formats.orbax import DTYPES, inspect, matches, read, write

FLAT = {
    "layers/0/kernel": np.random.default_rng(0).standard_normal((40, 30), np.float32),
    "layers/0/bias": np.arange(4, dtype=np.int32),
    "layers/1/kernel": np.zeros((50, 60)),
    "scale": np.asarray(2.5, ml_dtypes.bfloat16),
}


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    return traverse_util.unflatten_dict(flat, sep="/")


def sharded() -> jax.Array:
    mesh = jax.make_mesh(
        (4, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto, jax.sharding.AxisType.Auto)
    )
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x", "y"))
    return jax.device_put(np.arange(64 * 16, dtype=np.float32).reshape(64, 16), sharding)


def same(before: Any, after: Any) -> bool:
    before = np.asarray(before)
    return (before.dtype, before.shape, before.tobytes()) == (
        after.dtype,
        after.shape,
        after.tobytes(),
    )


def save_old(path: Path, tree: Any, **options: Any) -> Path:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
        checkpointer.save(str(path), tree)
    return path


def save_new(path: Path, tree: Any) -> Path:
    v1.save(str(path), tree)
    return path


SAVERS = {
    "v0": save_old,
    "v0 as files": lambda path, tree: save_old(path, tree, use_ocdbt=False),
    "v0 as zarr 3": lambda path, tree: save_old(path, tree, use_zarr3=True),
    "v1": save_new,
}


@pytest.mark.parametrize("save", SAVERS.values(), ids=SAVERS)
def test_what_orbax_wrote_reads_bit_for_bit(tmp_path, save):
    tree = {
        "layers": [{"kernel": FLAT["layers/0/kernel"]}, (FLAT["layers/0/bias"],)],
        "sharded": sharded(),
        "count": jax.numpy.asarray(3),
        "half": np.ones((2, 3), ml_dtypes.bfloat16),
        "bool": np.array([True, False]),
        "complex": np.array([1 + 2j]),
        "int4": jax.numpy.arange(4, dtype=jax.numpy.int4),
        "key": jax.random.key(7),
        "step": 7,
        "rate": 0.25,
        "text": "hello",
        "none": None,
        "empty": {},
    }
    path = save(tmp_path / "checkpoint", tree)
    assert matches(b"", path)
    found, inspection = read(path), inspect(path)
    expected = {
        "bool": tree["bool"],
        "complex": tree["complex"],
        "count": tree["count"],
        "half": tree["half"],
        "int4": tree["int4"],
        "key": jax.random.key_data(tree["key"]),
        "layers/0/kernel": FLAT["layers/0/kernel"],
        "layers/1/0": FLAT["layers/0/bias"],
        "sharded": np.arange(64 * 16, dtype=np.float32).reshape(64, 16),
    }
    assert list(found) == sorted(expected) == [tensor.name for tensor in inspection.tensors]
    assert all(same(expected[name], found[name]) for name in expected)
    for info in inspection.tensors:
        after = found[info.name]
        assert (info.shape, info.dtype, info.bytes) == (after.shape, after.dtype.name, after.nbytes)
    assert inspection.metadata == {
        "step": "7",
        "rate": "0.25",
        "text": "hello",
        "none": "None",
        "empty": "Dict",
    }


def test_what_eight_devices_wrote_reads_in_a_process_with_one(tmp_path):
    save_new(tmp_path / "checkpoint", {"w": sharded()})
    command = (
        "import sys; from jaxtransfer.formats.orbax import read\n"
        "w = read(sys.argv[1])['w']\n"
        "assert 'orbax' not in sys.modules\n"
        "print(w.shape, int(w.sum()))"
    )
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", command, str(tmp_path / "checkpoint")],
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == f"(64, 16) {1024 * 1023 // 2}\n"
    assert found.stderr == ""


def test_custom_metadata_is_metadata(tmp_path):
    v1.save(tmp_path / "new", {"w": np.ones(2), "step": 3}, custom_metadata={"a": "b", "step": 4})
    assert inspect(tmp_path / "new").metadata == {
        "a": "b",
        "step": "3",
        "custom_metadata/step": "4",
    }


def test_the_folder_of_a_manager_and_of_a_step_lead_to_the_one_tree(tmp_path):
    with ocp.CheckpointManager(tmp_path / "one") as manager:
        manager.save(5, args=ocp.args.StandardSave({"w": np.ones(2)}))
    for path in ("one", "one/5", "one/5/default"):
        assert matches(b"", tmp_path / path)
        assert list(read(tmp_path / path)) == ["w"]


def test_a_folder_that_leads_to_several_trees_names_them(tmp_path):
    v1.save_checkpointables(
        tmp_path / "two", {"state": {"w": np.ones(2)}, "ema": {"w": np.zeros(2)}}
    )
    assert matches(b"", tmp_path / "two")
    for function in (read, inspect):
        with pytest.raises(FormatError, match=r"found 2; name one of them: .*two/ema, .*two/state"):
            function(tmp_path / "two")
    assert read(tmp_path / "two" / "ema")["w"].sum() == 0


def test_an_unfinished_save_is_no_checkpoint(tmp_path):
    save_new(tmp_path / "a", {"w": np.ones(2)})
    shutil.move(tmp_path / "a", tmp_path / "steps" / "1.orbax-checkpoint-tmp")
    assert not matches(b"", tmp_path / "steps")
    with pytest.raises(FormatError, match="no finished tree"):
        read(tmp_path / "steps")


def test_other_folders_do_not_match(tmp_path):
    (tmp_path / "variables").mkdir()
    (tmp_path / "variables" / "variables.index").write_text("")
    assert not matches(b"", tmp_path)
    assert not matches(b"", tmp_path / "absent")
    assert not matches(b"{}", tmp_path / "variables" / "variables.index")


RESTORERS = {
    "v0 standard": lambda path: ocp.StandardCheckpointer().restore(path),
    "v0 tree": lambda path: ocp.PyTreeCheckpointer().restore(path),
    "v1": v1.load,
}


@pytest.mark.parametrize("restore", RESTORERS.values(), ids=RESTORERS)
def test_orbax_reads_what_is_written(tmp_path, restore):
    flat = FLAT | {f"dtypes/{name}": np.ones((2, 3), dtype) for name, dtype in DTYPES.items()}
    flat |= {"empty": np.zeros((0, 3), np.float32)}
    write(flat, tmp_path / "a.orbax")
    found = traverse_util.flatten_dict(restore(tmp_path / "a.orbax"), sep="/")
    assert found.keys() == flat.keys()
    assert all(same(flat[name], found[name]) for name in flat)


def test_orbax_reads_what_is_written_onto_many_devices(tmp_path):
    before = sharded()
    write({"w": np.asarray(before)}, tmp_path / "a.orbax")
    after = v1.load(tmp_path / "a.orbax", {"w": before})["w"]
    assert after.sharding == before.sharding
    np.testing.assert_array_equal(after, before)


def test_orbax_finds_the_metadata(tmp_path):
    write(FLAT, tmp_path / "a.orbax", {"licence": "MIT"})
    found = v1.metadata(tmp_path / "a.orbax")
    assert found.custom_metadata == {"licence": "MIT"}
    assert found.metadata["layers"]["0"]["kernel"].shape == (40, 30)
    assert inspect(tmp_path / "a.orbax").metadata == {"licence": "MIT"}


KEYS = st.text("ab.é ~", min_size=1, max_size=3)


@settings(max_examples=15)
@given(
    st.dictionaries(
        st.lists(KEYS, min_size=1, max_size=3).map("/".join),
        st.tuples(
            st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 3), max_size=3), st.randoms()
        ),
        max_size=3,
    )
)
def test_what_is_written_reads_back_bit_for_bit(described):
    flat = {}
    for name, (dtype, shape, random) in described.items():
        size = int(np.prod(shape)) * DTYPES[dtype].itemsize
        bits = {"bool": 1, "int2": 2, "int4": 4, "float4_e2m1fn": 4}.get(dtype, 8)
        values = np.array([random.getrandbits(bits) for _ in range(size)], np.uint8)
        flat[name] = values.view(DTYPES[dtype]).reshape(shape)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.orbax"
        try:
            write(flat, path)
        except OutputError as error:
            assert "same key" in str(error) or "goes on where" in str(error)
            return
        found, inspection = read(path), inspect(path)
    assert list(found) == list(flat) == [tensor.name for tensor in inspection.tensors]
    assert all(same(flat[name], found[name]) for name in flat)


def test_large_arrays_are_written_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxtransfer.formats.orbax._WRITTEN_CHUNK_ELEMENTS", 100)
    flat = {"w": np.arange(12 * 20).reshape(12, 20), "prime": np.arange(13 * 20).reshape(13, 20)}
    write(flat, tmp_path / "a.orbax")
    store = tensorstore.KvStore.open(f"file://{tmp_path}/a.orbax/|ocdbt:").result()
    assert sorted(key.decode() for key in store.list().result()) == [
        "prime/c/0/0",
        "prime/zarr.json",
        "w/c/0/0",
        "w/c/1/0",
        "w/c/2/0",
        "w/zarr.json",
    ]
    found, restored = read(tmp_path / "a.orbax"), v1.load(tmp_path / "a.orbax")
    for name, before in flat.items():
        assert same(before, found[name]) and same(before, restored[name])


def test_a_folder_or_a_file_in_the_way_stays_as_it_is(tmp_path):
    (tmp_path / "file.orbax").write_text("kept")
    (tmp_path / "folder.orbax").mkdir()
    for name, found in (("file", "a file"), ("folder", "a folder")):
        with pytest.raises(OutputError, match=f"is not replaced, found {found}"):
            write(FLAT, tmp_path / f"{name}.orbax")
    assert (tmp_path / "file.orbax").read_text() == "kept"
    assert sorted(entry.name for entry in tmp_path.rglob("*")) == ["file.orbax", "folder.orbax"]


def test_a_path_that_cannot_be_written(tmp_path):
    (tmp_path / "file.txt").write_text("")
    for path in (tmp_path / "file.txt" / "x", tmp_path / "absent" / "x"):
        with pytest.raises(OutputError, match=str(path)):
            write(FLAT, path)


def test_nothing_is_left_when_a_write_fails_midway(tmp_path, monkeypatch):
    def fail(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jaxtransfer.formats.orbax._sync", fail)
    with pytest.raises(OutputError, match="No space left on device; make room"):
        write(FLAT, tmp_path / "a.orbax")
    assert not list(tmp_path.iterdir())


def test_what_has_no_place_in_the_format_is_told_at_once_and_nothing_is_written(tmp_path):
    flat = {
        "text": np.array(["a"]),
        "four": np.ones(2, ml_dtypes.uint4),
        "w/b/c": np.ones(2),
        "w": np.ones(2),
        "v/b": np.ones(2),
        "v.b": np.ones(2),
    }
    with pytest.raises(OutputError) as caught:
        write(flat, tmp_path / "a", {"epoch": 3})  # pyright: ignore[reportArgumentType]
    expected = ["text", "four", "w/b/c", "v.b", "metadata 'epoch'"]
    assert all(f" ! {name}" in str(caught.value) for name in expected)
    assert str(caught.value).count(" ! ") == len(expected)
    assert not list(tmp_path.iterdir())


def test_the_callers_dict_and_arrays_stay_as_they_are(tmp_path):
    flat = {"jax": jax.numpy.ones(3), "t": np.arange(6.0).reshape(2, 3).T}
    before = dict(flat)
    write(flat, tmp_path / "a")
    assert all(flat[name] is before[name] for name in before)
    np.testing.assert_array_equal(read(tmp_path / "a")["t"], before["t"])


def edit(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_entry(**values: Any) -> Any:
    def change(folder: Path) -> None:
        edit(folder / "_METADATA", lambda found: found["tree_metadata"]["('w',)"].update(**values))

    return change


def edit_header(**values: Any) -> Any:
    return lambda folder: edit(folder / "w" / ".zarray", lambda found: found.update(**values))


def double(text: str) -> Any:
    """Put a part of the JSON there a second time."""

    def change(folder: Path) -> None:
        content = (folder / "_METADATA").read_text()
        assert text in content
        (folder / "_METADATA").write_text(content.replace(text, f"{text}, {text}"))

    return change


def key(*names: str) -> list[dict[str, Any]]:
    return [{"key": name, "key_type": 2} for name in names]


EMPTY = {"value_type": "None", "skip_deserialize": True}
TEXT = {"value_type": "string", "skip_deserialize": False}

DAMAGES = {
    "a lost chunk": (
        lambda folder: (folder / "w" / "1.0").unlink(),
        "in 'w': 1 chunks, where its shape has 2",
    ),
    "a chunk cut short": (
        lambda folder: os.truncate(folder / "w" / "0.0", 50),
        "in 'w': .*",
    ),
    "a lost header": (lambda folder: (folder / "w" / ".zarray").unlink(), "no array for 'w'"),
    "JSON cut short": (
        lambda folder: os.truncate(folder / "_METADATA", 30),
        "_METADATA: .* at byte 30",
    ),
    "an empty JSON file": (lambda folder: os.truncate(folder / "_METADATA", 0), "_METADATA"),
    "no JSON object": (lambda folder: (folder / "_METADATA").write_text("[]"), "no JSON object"),
    "deep JSON": (lambda folder: (folder / "_METADATA").write_text("[" * 9999), "recursion"),
    "no tree": (lambda folder: (folder / "_METADATA").write_text("{}"), "no tree_metadata"),
    "a key of JSON twice": (double('"use_zarr3": false'), "the key 'use_zarr3' twice"),
    "keys that are numbers": (edit_entry(key_metadata=[{"key": 3}]), "without its keys"),
    "no keys": (edit_entry(key_metadata=None), "without its keys"),
    "no kind": (edit_entry(value_metadata={}), "without its keys and kind"),
    "another name": (edit_entry(key_metadata=key("v")), "no array for 'v'"),
    "a name twice": (edit_entry(key_metadata=key("b")), "several entries of the name 'b'"),
    "an array that is said to be none": (edit_entry(value_metadata=EMPTY), "does not name: w"),
    "an array that is said to be a text": (edit_entry(value_metadata=TEXT), "does not name: w"),
    "an unfinished save": (
        lambda folder: edit(folder / "_METADATA", lambda found: found.update(use_ocdbt=True)),
        r"no manifest\.ocdbt",
    ),
    "a huge shape": (
        edit_header(shape=[20 * 2**40, 30 * 2**20]),
        "arrays and chunks of .* in a file of",
    ),
    "huge chunks": (edit_header(chunks=[2**40, 30]), r"the shape \(40, 30\) in chunks of"),
    "too many chunks": (edit_header(shape=[2**20, 30], chunks=[1, 1]), "arrays and chunks of"),
    "a negative shape": (edit_header(shape=[-40, 30]), r"in 'w': the shape \[-40, 30\]"),
    "chunks of nothing": (edit_header(chunks=[0, 30]), r"in 'w': the shape \[0, 30\]"),
    "fewer dimensions": (
        edit_header(chunks=[20]),
        r"in 'w': the shape \(40, 30\) in chunks of \(20,\)",
    ),
    "another shape": (edit_header(shape=[60, 30]), "in 'w': 2 chunks, where its shape has 3"),
    "a smaller shape": (edit_header(shape=[20, 30]), "in 'w': 2 chunks, where its shape has 1"),
    "a narrower shape": (edit_header(shape=[40, 20]), r"in 'w': the shape \(40, 20\) in chunks"),
    "another chunk": (
        lambda folder: (folder / "w" / "1.0").rename(folder / "w" / "2.0"),
        "in 'w': .*missing",
    ),
    "an unknown dtype": (edit_header(dtype="|O"), r"in 'w': the dtype '\|O'"),
    "fields": (edit_header(dtype=[["a", "<f4"]]), "in 'w': the dtype"),
    "filters": (edit_header(filters=[{"id": "delta"}]), "in 'w': zarr with filters"),
    "an unknown compressor": (edit_header(compressor={"id": "blosc"}), "compressor 'blosc'"),
    "a header without a field": (
        lambda folder: edit(folder / "w" / ".zarray", lambda found: found.pop("chunks")),
        "in 'w': no 'chunks'",
    ),
}


@pytest.fixture(scope="module")
def as_files(tmp_path_factory) -> Path:
    values = jax.device_put(
        FLAT["layers/0/kernel"],
        jax.sharding.NamedSharding(
            jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,)),
            jax.sharding.PartitionSpec("x"),
        ),
    )
    path = tmp_path_factory.mktemp("orbax") / "files"
    return save_old(path, {"w": values, "b": np.ones(3), "n": None}, use_ocdbt=False)


@pytest.mark.parametrize(("damage", "expected"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_a_format_error(tmp_path, as_files, damage, expected):
    path = tmp_path / "a"
    shutil.copytree(as_files, path)
    assert read(path).keys() == {"b", "w"}
    damage(path)
    with pytest.raises(FormatError, match=expected) as caught:
        read(path)
    assert str(path) in str(caught.value) and "at byte" in str(caught.value)
    if "0.0" not in str(caught.value) and "missing" not in expected:
        with pytest.raises(FormatError, match=expected):
            inspect(path)


def edit_zarr3(path: Path, change: Any) -> None:
    """Change the header of the array `w` in the database of a folder."""
    store = tensorstore.KvStore.open(f"file://{path}/|ocdbt:").result()
    header = json.loads(store.read("w/zarr.json").result().value)
    change(header)
    store.write("w/zarr.json", json.dumps(header).encode()).result()


ZARR3_DAMAGES = {
    "a codec that needs it all at once": (
        lambda header: header["codecs"].append({"name": "blosc"}),
        "in 'w': the codec 'blosc'",
    ),
    "a codec in a shard": (
        lambda header: header["codecs"][0]["configuration"]["codecs"].append({"name": "zlib"}),
        "in 'w': the codec 'zlib'",
    ),
    "too many pieces in a shard": (
        lambda header: (
            header.update(shape=[2**21]),
            header["chunk_grid"]["configuration"].update(chunk_shape=[2**21]),
            header["codecs"][0]["configuration"].update(chunk_shape=[1]),
        ),
        "arrays and chunks of",
    ),
    "another grid": (lambda header: header["chunk_grid"].update(name="odd"), "grid 'odd'"),
    "another dtype": (lambda header: header.update(data_type="string"), "the dtype 'string'"),
}


@pytest.mark.parametrize(("change", "expected"), ZARR3_DAMAGES.values(), ids=ZARR3_DAMAGES)
def test_a_header_of_zarr_3_is_checked(tmp_path, change, expected):
    path = save_new(tmp_path / "a", {"w": np.ones(3, np.int8)}) / "state"
    edit_zarr3(path, change)
    for function in (read, inspect):
        with pytest.raises(FormatError, match=expected):
            function(path)


def test_a_chunk_that_unpacks_to_more_is_a_format_error(tmp_path, as_files):
    shutil.copytree(as_files, tmp_path / "a")
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "file", "path": f"{tmp_path}/bomb/"},
        "metadata": {"compressor": {"id": "zstd"}, "dtype": "<f4", "shape": [2**20, 1]},
        "store_data_equal_to_fill_value": True,
    }
    spec["metadata"]["chunks"] = [2**20, 1]
    tensorstore.open(spec, create=True).result().write(0).result()
    shutil.copy(tmp_path / "bomb" / "0.0", tmp_path / "a" / "w" / "0.0")
    with pytest.raises(FormatError, match="in 'w': .*End of data expected"):
        read(tmp_path / "a")


def test_every_flipped_bit_of_what_was_written_here_is_found(tmp_path):
    write({"w": FLAT["layers/0/kernel"]}, tmp_path / "a")
    (data,) = (tmp_path / "a" / "d").iterdir()
    content = data.read_bytes()
    for position in range(0, 8 * len(content), 211):
        mutated = bytearray(content)
        mutated[position // 8] ^= 1 << position % 8
        data.write_bytes(mutated)
        with pytest.raises(FormatError):
            read(tmp_path / "a")


def test_every_truncated_or_lost_file_of_a_database_is_a_format_error(tmp_path):
    write(FLAT, tmp_path / "a")
    for file in [file for file in (tmp_path / "a").rglob("*") if file.is_file()]:
        content = file.read_bytes()
        for length in (0, len(content) // 2, len(content) - 1):
            file.write_bytes(content[:length])
            with pytest.raises(FormatError):
                inspect(tmp_path / "a")
                read(tmp_path / "a")
        file.unlink()
        if file.name != "_CHECKPOINT_METADATA":  # It holds no more than the custom metadata.
            with pytest.raises(FormatError):
                read(tmp_path / "a")
        file.write_bytes(content)


def test_nothing_outside_the_folder_is_read(tmp_path, as_files):
    shutil.copytree(as_files, tmp_path / "a")
    shutil.move(tmp_path / "a" / "w" / "0.0", tmp_path / "secret")
    (tmp_path / "a" / "w" / "0.0").symlink_to(tmp_path / "secret")
    with pytest.raises(FormatError, match=r"the name 'w/0\.0', which leads out of the folder"):
        read(tmp_path / "a")
    (tmp_path / "a" / "w" / "0.0").unlink()
    shutil.move(tmp_path / "a" / "w", tmp_path / "a" / "v")
    (tmp_path / "a" / "w").symlink_to(tmp_path / "a" / "v")
    with pytest.raises(FormatError, match="'w', which is no regular file or folder"):
        read(tmp_path / "a")


def test_a_pipe_in_the_folder_is_not_waited_for(tmp_path, as_files):
    shutil.copytree(as_files, tmp_path / "a")
    (tmp_path / "a" / "w" / "0.0").unlink()
    os.mkfifo(tmp_path / "a" / "w" / "0.0")
    with pytest.raises(FormatError, match=r"'w/0\.0', which is no regular file"):
        read(tmp_path / "a")


def test_chunks_of_zeros_that_older_versions_left_out_are_zeros(tmp_path, as_files):
    shutil.copytree(as_files, tmp_path / "a")
    (tmp_path / "a" / "w" / "1.0").unlink()
    edit(
        tmp_path / "a" / "_METADATA",
        lambda found: found.pop("store_array_data_equal_to_fill_value"),
    )
    found = read(tmp_path / "a")["w"]
    assert not found[20:].any()
    np.testing.assert_array_equal(found[:20], FLAT["layers/0/kernel"][:20])


def test_a_folder_without_arrays(tmp_path):
    write({}, tmp_path / "a", {"k": "v"})
    assert matches(b"", tmp_path / "a")
    assert read(tmp_path / "a") == {}
    assert inspect(tmp_path / "a").metadata == {"k": "v"}


def test_nothing_there(tmp_path):
    for function in (read, inspect):
        with pytest.raises((FormatError, ReferenceNotFoundError), match="absent"):
            function(tmp_path / "absent")
