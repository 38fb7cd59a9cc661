"""An index of weights that lie in several files, as the Hugging Face libraries write it.

`model.safetensors.index.json` names, for each tensor, the file beside it that holds it; shards may
be of any format that can be read.

Source: https://huggingface.co/docs/safetensors/metadata_parsing (section "Sharded model").
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxtransfer.formats.base import (
    Damage,
    Inspection,
    TensorInfo,
    check_size,
    file_beside,
    reading,
)

NAME = "sharded"

_MAP_KEY = "weight_map"
_BYTES_PER_ENTRY = 300
"""What Python keeps of one entry of the index."""


def matches(head: bytes, path: Path) -> bool:
    """Whether a file is a JSON object with a map from tensors to files."""
    if head[:1] != b"{" or b"\0" in head:
        return False
    with open(path, "rb") as file:
        return f'"{_MAP_KEY}"'.encode() in file.read()


def read(path: Path, read_shard: Callable[[Path], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """All tensors of all shards, in the order of the index.

    Args:
        path: the index.
        read_shard: reads a shard.

    Raises:
        ReferenceNotFoundError: there is no such file, or a shard is missing.
        FormatError: the index or a shard is damaged, a shard lies outside the folder, or index and
            shards disagree on which tensors there are.
    """
    index = _read_index(path)
    shards = {name: read_shard(_shard(path, name)) for name in _shard_names(index)}
    _check(path, index, {name: set(tensors) for name, tensors in shards.items()})
    return {tensor: shards[shard][tensor] for tensor, shard in index[_MAP_KEY].items()}


def inspect(path: Path, inspect_shard: Callable[[Path], Inspection]) -> Inspection:
    """Names, shapes and dtypes of all shards' tensors; metadata of the index and of all shards.

    Args:
        path: the index.
        inspect_shard: inspects a shard.

    Raises:
        ReferenceNotFoundError: there is no such file, or a shard is missing.
        FormatError: the index or a shard is damaged, a shard lies outside the folder, or index and
            shards disagree on which tensors there are.
    """
    index = _read_index(path)
    found = {name: inspect_shard(_shard(path, name)) for name in _shard_names(index)}
    tensors: dict[str, dict[str, TensorInfo]] = {
        name: {info.name: info for info in shard.tensors} for name, shard in found.items()
    }
    _check(path, index, {name: set(infos) for name, infos in tensors.items()})
    metadata = {"shards": ", ".join(f"{name} ({shard.format})" for name, shard in found.items())}
    for shard in found.values():
        metadata.update(shard.metadata)
    metadata.update({key: str(value) for key, value in index.get("metadata", {}).items()})
    ordered = tuple(tensors[shard][tensor] for tensor, shard in index[_MAP_KEY].items())
    return Inspection(Path(path), NAME, ordered, metadata)


def files(path: Path) -> list[Path]:
    """The index and the files that it names.

    Raises:
        FormatError: the index is damaged, or a shard lies outside the folder.
    """
    return [Path(path), *(_shard(path, name) for name in _shard_names(_read_index(path)))]


def _read_index(path: Path) -> dict[str, Any]:
    with reading(path, "index of shards"):
        content = Path(path).read_bytes()
        entries = content.count(b",") + content.count(b"[") + content.count(b"{")
        check_size(
            2 * len(content) + entries * _BYTES_PER_ENTRY, len(content), f"{entries} entries"
        )
        index = json.loads(content, object_pairs_hook=_without_duplicates)
        names = index.get(_MAP_KEY) if isinstance(index, dict) else None
        if not isinstance(names, dict) or not isinstance(index.get("metadata", {}), dict):
            raise Damage(f"no object {_MAP_KEY!r} from tensors to files")
        for tensor, shard in names.items():
            if not (isinstance(shard, str) and "/" not in shard and "\\" not in shard):
                offset = max(content.find(json.dumps(tensor).encode()), 0)
                raise Damage(f"{tensor} in {shard!r}, which is no file beside the index", offset)
        return index


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise ValueError(f"{counts.most_common(1)[0][0]!r} twice")
    return found


def _shard_names(index: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(index[_MAP_KEY].values()))


def _shard(path: Path, name: str) -> Path:
    with reading(path, "index of shards"):
        shard = file_beside(path, name)
        if shard.resolve() == Path(path).resolve():
            raise Damage(f"the index itself as a shard ({name})")
        return shard


def _check(path: Path, index: dict[str, Any], found: dict[str, set[str]]) -> None:
    expected: dict[str, set[str]] = {name: set() for name in found}
    for tensor, shard in index[_MAP_KEY].items():
        expected[shard].add(tensor)
    problems = [
        f"{shard} {verb} {', '.join(sorted(names)[:5])}" + (" and more" if len(names) > 5 else "")
        for shard in found
        for verb, names in (
            ("lacks", expected[shard] - found[shard]),
            ("also has", found[shard] - expected[shard]),
        )
        if names
    ]
    with reading(path, "index of shards"):
        if problems:
            raise Damage(f"other tensors in the shards: {'; '.join(problems)}")
