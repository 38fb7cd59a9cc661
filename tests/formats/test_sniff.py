from __future__ import annotations

import gzip
import os
import shutil
import tempfile
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxtransfer.errors import FormatError, JaxTransferError, OutputError, ReferenceNotFoundError
from jaxtransfer.formats import (
    fingerprint_of,
    inspect_weights,
    read_weights,
    reader_of,
    readers,
    write_weights,
)
from jaxtransfer.hub import resolve

FLAT = {"head/kernel": np.arange(6.0).reshape(2, 3), "head/bias": np.zeros(3, np.float32)}


WRITTEN = [reader for reader in readers() if reader.write and reader.name != "orbax"]


@pytest.mark.parametrize("reader", WRITTEN, ids=lambda reader: reader.name)
def test_the_content_tells_the_format_whatever_the_name(tmp_path, reader):
    written = tmp_path / f"a{reader.suffix}"
    write_weights(FLAT, written)
    for name in ("b", "b.npz", "b.safetensors", "b.bin"):
        path = tmp_path / name
        path.write_bytes(written.read_bytes())
        assert reader_of(path) is reader
        assert inspect_weights(str(path)).format == reader.name
        found = read_weights(str(path))
        assert found.keys() == FLAT.keys()
        assert all(found[name].tobytes() == FLAT[name].tobytes() for name in FLAT)


def test_an_empty_dict_is_a_file_without_tensors(tmp_path):
    for name in ("a.npz", "a.safetensors"):
        write_weights({}, tmp_path / name)
        assert read_weights(tmp_path / name) == {}


def test_metadata_stays_with_the_tensors(tmp_path):
    write_weights(FLAT, tmp_path / "a.safetensors", {"step": "3"})
    assert inspect_weights(tmp_path / "a.safetensors").metadata == {"step": "3"}
    with pytest.raises(OutputError, match="metadata: step"):
        write_weights(FLAT, tmp_path / "a.npz", {"step": "3"})


def test_an_ending_that_names_no_format_is_told_with_those_that_do(tmp_path):
    with pytest.raises(OutputError, match=r"\.safetensors or \.npz or .*, found '\.bin'"):
        write_weights(FLAT, tmp_path / "a.bin")
    with pytest.raises(OutputError, match="no ending"):
        write_weights(FLAT, tmp_path / "a")


def test_a_part_of_a_file_is_named_without_it(tmp_path):
    flat = {"ema/head/kernel": np.ones(2), "model/head/kernel": np.zeros(2), "step": np.ones(())}
    write_weights(flat, tmp_path / "a.npz")
    for part in ("ema", "ema/"):
        assert read_weights(tmp_path / "a.npz", part=part)["head/kernel"].all()
    tensors = inspect_weights(tmp_path / "a.npz", part="ema/head").tensors
    assert [tensor.name for tensor in tensors] == ["kernel"]
    for function in (read_weights, inspect_weights):
        with pytest.raises(ReferenceNotFoundError, match=r"below 'em/'.* parts are ema, model"):
            function(tmp_path / "a.npz", part="em")


def test_the_container_that_is_left_out_of_all_names_may_be_named():
    path = Path(__file__).parent / "fixtures" / "torch" / "zip.pt"
    container = inspect_weights(path).metadata["container"]
    assert read_weights(path, part=container).keys() == read_weights(path).keys()
    assert inspect_weights(path, part=container) == inspect_weights(path)


def test_an_architecture_is_refused_by_formats_that_need_none(tmp_path):
    write_weights(FLAT, tmp_path / "a.npz")
    with pytest.raises(FormatError, match=r"expected no architecture.* a\.cfg; leave it out"):
        read_weights(tmp_path / "a.npz", architecture="a.cfg")


TREE = {"head": {"kernel": FLAT["head/kernel"], "bias": jnp.zeros(3)}, "blocks": [np.ones(2)]}


@pytest.mark.parametrize("reader", WRITTEN, ids=lambda reader: reader.name)
def test_a_tree_is_written_by_the_names_of_its_leaves(tmp_path, reader):
    write_weights(TREE, tmp_path / f"a{reader.suffix}")
    found = read_weights(tmp_path / f"a{reader.suffix}")
    assert sorted(found) == ["blocks/0", "head/bias", "head/kernel"]
    np.testing.assert_array_equal(found["head/kernel"], TREE["head"]["kernel"])


def test_a_state_dict_for_torch_has_dots_and_its_mark(tmp_path):
    write_weights(TREE, tmp_path / "a.safetensors", {"epoch": "3"}, style="torch")
    assert sorted(read_weights(tmp_path / "a.safetensors")) == [
        "blocks.0",
        "head.bias",
        "head.kernel",
    ]
    assert inspect_weights(tmp_path / "a.safetensors").metadata == {"epoch": "3", "format": "pt"}
    with pytest.raises(OutputError, match=r"more than one of \['a\.b'\]"):
        write_weights({"a": {"b": 1}, "a.b": 1}, tmp_path / "b.safetensors", style="torch")
    with pytest.raises(OutputError, match=r"ends in \.safetensors for the style 'torch'"):
        write_weights(TREE, tmp_path / "b.npz", style="torch")
    with pytest.raises(OutputError, match="style 'jax' or 'torch', found 'tf'"):
        write_weights(TREE, tmp_path / "b.npz", style="tf")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


CONTENTS = {
    b"": "an empty file",
    b"hello": "5 bytes that begin with b'hello'",
    b"<!DOCTYPE html><title>404</title>": "a web page",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n": "git lfs pull",
    gzip.compress(b"weights"): "a gzip archive",
    b"PK\x03\x04": "4 bytes",
    b'{"a": {"b": 1}}': "15 bytes",
    b'text (7){"a": 1}': "16 bytes",
}


@pytest.mark.parametrize("content", CONTENTS, ids=CONTENTS.values())
def test_what_is_of_no_known_format_is_described(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(FormatError) as caught:
        read_weights(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: expected weights as safetensors, npz")
    assert CONTENTS[content] in message


def test_damaged_files_are_told_by_their_own_reader(tmp_path):
    for name, expected in (("a.npz", "a whole npz"), ("a.safetensors", "a whole safetensors")):
        write_weights(FLAT, tmp_path / name)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:-30])
        with pytest.raises(FormatError, match=expected):
            read_weights(tmp_path / name)


def test_a_zip_of_other_things_is_not_npz(tmp_path):
    with zipfile.ZipFile(tmp_path / "a", "w") as archive:
        archive.writestr("notes.txt", b"")
    with pytest.raises(FormatError, match="found .* begin with b'PK"):
        read_weights(tmp_path / "a")


def test_nothing_there_a_folder_there_and_a_pipe_there(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "weights.bin").write_text("")
    with pytest.raises(ReferenceNotFoundError, match="absent"):
        read_weights(tmp_path / "absent")
    with pytest.raises(ReferenceNotFoundError, match="check the path"):
        read_weights(tmp_path / "folder" / "weights.bin" / "x")
    with pytest.raises(FormatError, match=r"a folder with weights\.bin; name a file"):
        read_weights(tmp_path / "folder")
    with pytest.raises(FormatError, match="name too long"):
        read_weights(tmp_path / ("a" * 5000))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FormatError, match="a pipe"):
        read_weights(tmp_path / "pipe")


@given(st.binary(max_size=200))
def test_garbage_is_an_error_of_the_package(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        path.write_bytes(content)
        with pytest.raises(JaxTransferError):
            read_weights(path)


def test_what_lies_in_several_files_has_one_hash_of_all(tmp_path):
    fixtures = Path(__file__).parent / "fixtures" / "tensorflow"
    for file in fixtures.glob("shards.*"):
        shutil.copy(file, tmp_path)
    prefix = tmp_path / "shards"
    hashes = {fingerprint_of(path) for path in (prefix, *tmp_path.iterdir())}
    assert len(hashes) == 1
    assert resolve(str(prefix)) == prefix and len(read_weights(prefix)) > 1
    data = next(tmp_path.glob("*.data-00001-of-*"))
    data.write_bytes(data.read_bytes()[:-1] + b"x")
    assert fingerprint_of(prefix) not in hashes


def test_external_values_of_a_model_belong_to_its_hash(tmp_path):
    tensor = onnx.numpy_helper.from_array(np.arange(9, dtype=np.float32), "w")
    graph = onnx.helper.make_graph([], "g", [], [], [tensor])
    onnx.save(
        onnx.helper.make_model(graph),
        tmp_path / "a.onnx",
        save_as_external_data=True,
        location="a.bin",
        size_threshold=0,
    )
    before = fingerprint_of(tmp_path / "a.onnx")
    (tmp_path / "a.bin").write_bytes(bytes(36))
    assert fingerprint_of(tmp_path / "a.onnx") != before
