from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxtransfer.errors import FormatError, ReferenceNotFoundError
from jaxtransfer.formats import inspect_weights, read_weights, reader_of, write_weights

INDEX = "model.safetensors.index.json"


def index_of(folder: Path, names: Any, metadata: Any = None) -> Path:
    content = {"metadata": metadata or {"total_size": 24}, "weight_map": names}
    (folder / INDEX).write_text(json.dumps(content))
    return folder / INDEX


@pytest.fixture
def index(tmp_path: Path) -> Path:
    write_weights({"a": np.ones(2), "c": np.zeros(3)}, tmp_path / "1.safetensors", {"format": "pt"})
    write_weights({"b": np.arange(4)}, tmp_path / "2.npz")
    return index_of(tmp_path, {"c": "1.safetensors", "b": "2.npz", "a": "1.safetensors"})


def test_shards_read_as_one_file_in_the_order_of_the_index(index):
    flat = read_weights(index)
    assert list(flat) == ["c", "b", "a"]
    np.testing.assert_array_equal(flat["b"], np.arange(4))
    inspection = inspect_weights(index)
    assert [(tensor.name, tensor.shape) for tensor in inspection.tensors] == [
        (name, array.shape) for name, array in flat.items()
    ]
    assert inspection.metadata == {
        "shards": "1.safetensors (safetensors), 2.npz (npz)",
        "format": "pt",
        "total_size": "24",
    }


def test_shards_of_the_hugging_face_cache_are_links_out_of_the_folder(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    write_weights({"a": np.ones(2)}, blobs / "abc.safetensors")
    (snapshot / "1.safetensors").symlink_to("../../blobs/abc.safetensors")
    assert read_weights(index_of(snapshot, {"a": "1.safetensors"}))["a"].all()


def test_a_link_or_a_name_that_leads_out_of_the_folder_is_refused(tmp_path):
    write_weights({"a": np.ones(2)}, tmp_path / "secret.safetensors")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link.safetensors").symlink_to(tmp_path / "secret.safetensors")
    names = (
        "link.safetensors",
        "../secret.safetensors",
        str(tmp_path / "secret.safetensors"),
        "..",
        "",
        "..\\secret.safetensors",
        3,
    )
    for name in names:
        path = index_of(folder, {"a": name})
        for function in (read_weights, inspect_weights):
            with pytest.raises(FormatError, match=r"index\.json: .*byte \d+: "):
                function(path)


def test_index_and_shards_must_name_the_same_tensors(index):
    path = index_of(index.parent, {"a": "1.safetensors", "b": "2.npz", "d": "2.npz"})
    for function in (read_weights, inspect_weights):
        with pytest.raises(FormatError, match=r"1\.safetensors also has c; 2\.npz lacks d"):
            function(path)


def test_a_missing_shard_is_named(index):
    (index.parent / "2.npz").unlink()
    with pytest.raises(ReferenceNotFoundError, match=r"2\.npz"):
        read_weights(index)


def test_an_index_of_itself_or_of_another_index_is_refused(index):
    with pytest.raises(FormatError, match="the index itself"):
        read_weights(index_of(index.parent, {"a": INDEX}))
    (index.parent / "other.json").write_text('{"weight_map": {}}')
    with pytest.raises(FormatError, match="another index"):
        read_weights(index_of(index.parent, {"a": "other.json"}))


def test_a_name_that_stands_twice_is_told(tmp_path):
    (tmp_path / INDEX).write_text('{"weight_map": {"a": "1", "a": "2"}}')
    with pytest.raises(FormatError, match="byte 0: 'a' twice"):
        read_weights(tmp_path / INDEX)


@pytest.mark.parametrize(
    "content",
    [
        '{"weight_map": []}',
        '{"weight_map": {}, "metadata": 3}',
        '{"weight_map": {"a": "1"}',
        "{" * 9,
    ],
)
def test_json_that_is_no_index_is_a_format_error(tmp_path, content):
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(FormatError, match="byte 0"):
        read_weights(tmp_path / INDEX)


def test_deep_nesting_and_a_swarm_of_entries_are_refused(tmp_path):
    for content in ("[" * 100_000, "{}," * 500_000):
        (tmp_path / INDEX).write_text('{"weight_map": {}, "x": [' + content)
        assert reader_of(tmp_path / INDEX).name == "sharded"
        with pytest.raises(FormatError):
            read_weights(tmp_path / INDEX)
